"""The investigation document: generated from a verdict, and as new as the configs and bundles it speaks of."""

import json
from pathlib import Path

import pytest

from etrm.errors import EvaluationError
from etrm.experiment.attribution import HYPOTHESES
from etrm.experiment.demo_evidence import demo_evidence
from etrm.experiment.investigation import DOCUMENT, TESTS, fingerprint, main, render, written_fingerprint
from etrm.experiment.verdict import judge, to_json

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parents[3]


def verdict() -> dict[str, object]:
    return to_json(
        {arm: judge(demo_evidence("A" if arm == "calibration" else "C", arm)) for arm in ("calibration", "arc")}
    )


def test_every_hypothesis_is_stated_with_its_test_its_evidence_and_its_status() -> None:
    text = render(verdict(), {"calibration": "0"})
    for name, says in HYPOTHESES.items():
        assert f"## {name}: {says}" in text
        assert (ROOT / "tests" / "experiments" / TESTS[name][0]).is_file(), TESTS[name]
    arms = verdict()["arms"]
    assert isinstance(arms, dict)
    for body in arms.values():
        for hypothesis in body["hypotheses"].values():
            assert all(f"- {sentence}" in text for sentence in hypothesis["evidence"])


def test_the_committed_document_is_of_todays_configs_and_bundles() -> None:
    """Fails where a config or bundle was changed without a new full run."""
    written = written_fingerprint((ROOT / DOCUMENT).read_text())
    assert set(written) == {"calibration", "arc"}
    assert written == fingerprint(tuple(written), ROOT / "config"), (
        "run `make experiment`, then python -m etrm.experiment.investigation runs/experiment/verdict.json"
    )


def test_a_document_without_fingerprint_is_refused() -> None:
    with pytest.raises(EvaluationError, match="no fingerprint"):
        written_fingerprint("# nothing\n")


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"schema": 1, "arms": {}})])
def test_a_file_that_is_no_verdict_writes_nothing(tmp_path: Path, content: str) -> None:
    given, out = tmp_path / "verdict.json", tmp_path / "doc.md"
    given.write_text(content)
    assert main([str(given), "--out", str(out)]) == 2 and not out.exists()

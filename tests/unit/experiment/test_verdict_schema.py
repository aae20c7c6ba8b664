"""Each broken field of verdict.json is refused with its path."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from etrm.errors import EvaluationError
from etrm.experiment.checks import CHECK_RULES
from etrm.experiment.demo_evidence import demo_evidence
from etrm.experiment.verdict import judge, to_json
from etrm.experiment.verdict_schema import validate_json

pytestmark = pytest.mark.fast
GOOD = to_json({"calibration": judge(demo_evidence("C"))})


def _set(path: str, value: Any):  # type: ignore[no-untyped-def]
    def change(document: dict[str, Any]) -> None:
        *keys, last = path.split(".")
        for key in keys:
            document = document[key]
        if value is KeyError:
            del document[last]
        else:
            document[last] = value

    return change


ARM = "arms.calibration"
BROKEN = {
    "schema": ("schema", 2, "verdict.schema: expected one of 1, got 2"),
    "schema is no truth value": ("schema", True, "verdict.schema"),
    "no arms": ("arms", {}, "verdict.arms: expected at least one arm"),
    "unknown arm": ("arms.moon", {}, "expected one of calibration, micro, arc, got 'moon'"),
    "scenario": (f"{ARM}.scenario", "D", "verdict.arms.calibration.scenario"),
    "no reason": (f"{ARM}.reasons", [], "at least one reason"),
    "empty reason": (f"{ARM}.reasons", [""], "non-empty"),
    "gradient": (f"{ARM}.gradient", "fine", "calibration.gradient"),
    "no rung": (f"{ARM}.rungs.seen_task", KeyError, "seen_task and unseen_composition"),
    "no k": (f"{ARM}.rungs.seen_task.k", KeyError, "rungs.seen_task: expected a field 'k'"),
    "k is a rate": (f"{ARM}.rungs.seen_task.k", 0.5, "a count"),
    "k above n": (f"{ARM}.rungs.seen_task.k", 513, "at most n = 512"),
    "ci95 in percent": (f"{ARM}.rungs.seen_task.ci95", [0, 60], "0 <= low <= high <= 1"),
    "ci95 short": (f"{ARM}.rungs.seen_task.ci95", [0], "two numbers"),
    "null": (f"{ARM}.rungs.seen_task.null.n", -1, "seen_task.null.n"),
    "null above n": (f"{ARM}.rungs.seen_task.null.k", 999, "null.k"),
    "metric": (f"{ARM}.metrics.loss", "low", "metrics.loss: expected a number"),
    "hypothesis": (f"{ARM}.hypotheses.H8", {}, "expected one of H1"),
    "status": (f"{ARM}.hypotheses.H1.status", "maybe", "H1.status"),
    "budget": (f"{ARM}.budget", None, "budget: expected an object"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_documents_are_refused_by_path(case: str) -> None:
    path, value, message = BROKEN[case]
    document = deepcopy(GOOD)
    _set(path, value)(document)
    with pytest.raises(EvaluationError) as caught:
        validate_json(document)
    assert message in str(caught.value) and "docs/verdict.md" in str(caught.value)


def test_further_keys_are_allowed() -> None:
    document = deepcopy(GOOD)
    document["arms"]["calibration"]["later"] = 1
    validate_json(document)


def test_not_even_an_object() -> None:
    with pytest.raises(EvaluationError, match="verdict: expected an object"):
        validate_json([])


def test_the_page_lists_every_check_with_its_consequence() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "verdict.md").read_text()
    for name, rule in CHECK_RULES.items():
        row = next((line for line in page.splitlines() if line.startswith((f"| {name} |", f"| {name} ("))), "")
        needed = "yes" if rule.stage == "start" else "no"
        assert f"| {rule.hypothesis} | {rule.on_failure} | {needed} |" in row, f"{name}: {row!r}"

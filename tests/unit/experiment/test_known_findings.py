"""Known findings: a default run that leaves them is told how, and a broken file is named."""

from pathlib import Path

import pytest

from etrm.errors import ConfigError
from etrm.experiment.demo_evidence import demo_evidence
from etrm.experiment.known_findings import KnownArm, departures, read_known_findings
from etrm.experiment.verdict import judge

pytestmark = pytest.mark.fast

WIDE = {"seen_task": (0.0, 1.0), "unseen_composition": (0.0, 1.0)}
FILE = Path(__file__).resolve().parents[2] / "experiments" / "expected_findings.yaml"


def test_the_committed_file_names_both_arms() -> None:
    known = read_known_findings(FILE)
    assert set(known) == {"calibration", "arc"} and known["calibration"].scenario == "A"
    assert (
        known["calibration"].rungs["seen_task"][0] >= 0.6
        and known["calibration"].rungs["unseen_composition"][0] >= 0.45
    )


def test_leaving_an_interval_on_either_side_or_the_scenario_is_told() -> None:
    verdict = judge(demo_evidence("A"))
    assert departures(KnownArm("A", "2026-11-24", "x", WIDE), verdict) == []
    low = departures(KnownArm("A", "2026-11-24", "x", {**WIDE, "unseen_composition": (0.0, 0.1)}), verdict)
    high = departures(KnownArm("A", "2026-11-24", "x", {**WIDE, "unseen_composition": (0.99, 1.0)}), verdict)
    assert len(low) == len(high) == 1 and "307 of 512" in low[0] and "0% to 10%" in low[0]
    assert "scenario A, known since 2026-11-24 is C" in departures(KnownArm("C", "2026-11-24", "x", WIDE), verdict)[0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[1]", "no mapping of arms"),
        ("calibration: {scenario: A}", "needs exactly scenario, date, commit and rungs"),
        ("nowhere: {}", "arm 'nowhere' is not known"),
        ("calibration: {scenario: Z, date: d, commit: c, rungs: {}}", "scenario 'Z'"),
        ("calibration: {scenario: A, date: d, commit: c, rungs: {seen_task: [0, 1]}}", "needs the rungs"),
        (
            "calibration: {scenario: A, date: d, commit: c, rungs: {seen_task: [0, 2], unseen_composition: [0, 1]}}",
            "expected .low, high. within 0 and 1",
        ),
        ("calibration: [", "cannot be read"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "findings.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_known_findings(path)

"""The certificate is given for the right verdicts alone, and what stood in its way is named."""

from dataclasses import replace
from pathlib import Path

import pytest

from etrm.errors import EvaluationError
from etrm.experiment.certificate import Trial, certify, read_trials, write_trials
from etrm.experiment.demo_evidence import demo_evidence
from etrm.experiment.verdict import judge

pytestmark = pytest.mark.fast

GOOD = (Trial("cut", "B", "B", ""), Trial("blind", "C", "C", ""), Trial("cycles", "INVALID", "INVALID", ""))


def test_a_healthy_a_and_three_right_trials_earn_it() -> None:
    found = certify(demo_evidence("A"), GOOD)
    assert "healthy encoder gave A" in found.says and "cut gave B" in found.says and found.date


@pytest.mark.parametrize(
    ("scenario", "trials", "told"),
    [
        ("C", GOOD, "the healthy encoder gave C"),
        ("A", (*GOOD[:2], replace(GOOD[2], found="A")), "cycles gave A instead of INVALID"),
        ("A", GOOD[:2], "do not cover"),
    ],
)
def test_anything_else_is_named(scenario: str, trials: tuple[Trial, ...], told: str) -> None:
    with pytest.raises(EvaluationError, match=told):
        certify(demo_evidence(scenario), trials)  # type: ignore[arg-type]


def test_without_it_the_arc_arm_is_not_judged_but_a_broken_gradient_still_is() -> None:
    arc = replace(demo_evidence("C", "arc"), certificate=None)
    assert judge(arc).scenario == "UNDECIDED" and "certificate" in judge(arc).reasons[0]
    broken = replace(demo_evidence("B", "arc"), certificate=None)
    assert judge(broken).scenario == "B"


def test_trials_survive_their_file_and_a_broken_one_is_refused(tmp_path: Path) -> None:
    write_trials(tmp_path, GOOD)
    assert read_trials(tmp_path) == GOOD
    (tmp_path / "certificate.json").write_text("[{}]")
    with pytest.raises(EvaluationError, match="holds no trials"):
        read_trials(tmp_path)

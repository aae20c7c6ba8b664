"""H6: pass@1 on the locked test against every null (full run only), and the verdict that follows from it."""

import pytest

from etrm.experiment.verdict import judge

pytestmark = [pytest.mark.frozen_decoder, pytest.mark.calibration, pytest.mark.slow]


def test_pass_at_1_was_evaluated_at_two_points_of_the_run_or_more(calibration):
    points = [row["step"] for row in calibration.record["curve"]]
    assert len(points) >= 2, f"evaluated at {points}"


def test_every_query_was_evaluated(calibration):
    found = calibration.check("queries_evaluated")
    assert found.ok is True, f"{found.detail}; {found.remedy}"


def test_pass_at_1_is_above_chance(calibration, gate):
    verdict = judge(calibration.evidence)
    reasons = "; ".join(verdict.reasons)
    if verdict.scenario == "INVALID":
        gate.invalid(reasons)
    if verdict.scenario == "UNDECIDED":
        gate.undecided(reasons)
    assert verdict.scenario == "A", f"scenario {verdict.scenario}: {reasons}"

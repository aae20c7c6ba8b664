"""H6: pass@1 on the locked test against every null (full run only), and the verdict that follows from it."""

from pathlib import Path

import pytest

from etrm.experiment.known_findings import departures, read_known_findings

pytestmark = [pytest.mark.frozen_decoder, pytest.mark.slow]

KNOWN = Path(__file__).with_name("expected_findings.yaml")


def test_pass_at_1_was_evaluated_at_two_points_of_the_run_or_more(arm_run):
    points = [row["step"] for row in arm_run.record["curve"]]
    assert len(points) >= 2, f"evaluated at {points}"


def test_every_query_was_evaluated(arm_run):
    found = arm_run.check("queries_evaluated")
    assert found.ok is True, f"{found.detail}; {found.remedy}"


def test_the_instrument_has_its_certificate(certificate):
    assert not isinstance(certificate, str), certificate


def test_the_default_encoder_stays_within_its_known_findings(arm_run, verdicts, run_options):
    if run_options.encoder:
        pytest.skip("a user's encoder is judged by its own result only")
    left = departures(read_known_findings(KNOWN)[arm_run.arm], verdicts[arm_run.arm])
    assert not left, f"{arm_run.arm}: {'; '.join(left)}"


def test_pass_at_1_is_above_chance(arm_run, verdicts, gate, run_options):
    verdict = verdicts[arm_run.arm]
    reasons = "; ".join(verdict.reasons)
    known = None if run_options.encoder else read_known_findings(KNOWN)[arm_run.arm]
    if known is not None and verdict.scenario == known.scenario != "A":
        pytest.xfail(f"known finding of {known.date}, scenario {verdict.scenario}: {reasons}")
    if verdict.scenario == "INVALID":
        gate.invalid(reasons)
    if verdict.scenario == "UNDECIDED":
        gate.undecided(reasons)
    assert verdict.scenario == "A", f"scenario {verdict.scenario}: {reasons}"

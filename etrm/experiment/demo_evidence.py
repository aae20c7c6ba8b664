"""Invented evidence, one for each scenario: what the panel's demo shows and what the tests start from.

Notable: the numbers are of the size that the calibration benchmark gives, but none of them was measured; `provenance`
says so, and the panel prints it.
"""

from dataclasses import replace

from etrm.errors import EvaluationError
from etrm.experiment.checks import CHECK_RULES, Check, check
from etrm.experiment.evidence import (
    ALL_NULLS,
    ArmName,
    Budget,
    Certificate,
    Evidence,
    Finding,
    GradientEvidence,
    LossEvidence,
    NullEvidence,
    OracleEvidence,
    RungEvidence,
    Score,
)

PASSED = tuple(check(name, True, "as expected") for name in CHECK_RULES)
_LOSS = LossEvidence(
    probe_start=1.31, probe_end=0.21, p_decrease=0.0001, own_loss=0.21, constant_context_loss=1.02,
    p_below_constant=0.0001, mismatched_loss=1.84, p_below_mismatched=0.0001, plateaued=True, constant_sufficed=True,
)  # fmt: skip


def demo_rung(name: str, k: int, ci95: tuple[float, float], tasks: int = 40, n: int = 512) -> RungEvidence:
    """k of n exact; every null stands at 6 of n or below, and was tested against k."""
    p = 0.0002 if k > 30 else 0.6
    lift = (ci95[0] - 0.015, ci95[1] - 0.005)
    nulls = {null: NullEvidence(max(0, 6 - i), n, p, lift) for i, null in enumerate(ALL_NULLS)}
    return RungEvidence(name, Score(k, n, tasks, ci95), nulls, False, 1 / tasks, None if k > 30 else 4 * tasks)


def healthy(arm: ArmName = "calibration") -> Evidence:
    """Evidence on which every question is answered well."""
    hardest = [demo_rung("unseen_composition", 307, (0.52, 0.67))]
    if arm == "arc":
        hardest = [demo_rung("unseen_augmentation", 240, (0.39, 0.55)), demo_rung("unseen_task", 160, (0.24, 0.38), 60)]
    return Evidence(
        arm=arm, encoder="aligned", user_encoder=False, objective="lm", seeds=3, validity=PASSED,
        gradient=GradientEvidence("intact", "", "48 of 48 parameters, all samples and tokens, as finite differences"),
        loss=_LOSS, rungs=(demo_rung("seen_task", 359, (0.64, 0.76)), *hardest),
        oracle_many=OracleEvidence(28, Score(436, 512, 32, (0.76, 0.92)), 6),
        oracle_demos=OracleEvidence(12, Score(184, 512, 32, (0.26, 0.47)), 6),
        positive_control=Score(504, 512, 40, (0.97, 1.0)),
        findings=(Finding("between-task over total variance", 0.61, 0.05, None, "H3", "contexts differ by task"),),
        budget=Budget(6000, 6000, 384_000, 384_000, 0.05, True),
        certificate=Certificate("2026-02-01", "0000000", "healthy gave A; planted faults gave B, C and INVALID"),
        required_nulls=ALL_NULLS, provenance={"demo": True, "note": "invented numbers"},
        metrics={"grad/encoder_norm": 0.61, "train/lm_loss": 0.21, "train/lm_loss/first": 1.31,
                 "train/encoder_token_std": 0.42, "train/encoder_token_std/first": 0.05, "ARC/pass@1": 0.6},
    )  # fmt: skip


def demo_evidence(scenario: str, arm: ArmName = "calibration") -> Evidence:
    """Evidence that is judged as `scenario`. Raises EvaluationError for an unknown one."""
    good = healthy(arm)
    if scenario == "A":
        return good
    if scenario == "B":
        place = "encoder.read_out.weight"
        gradient = GradientEvidence("blocked", place, "0 of 48 parameters get a gradient; finite differences say 0.31")
        stopped = Budget(6000, 20, 384_000, 1280, 0.05, False, early_stop="the gradient is blocked")
        return replace(good, gradient=gradient, loss=None, rungs=(), budget=stopped)
    low = tuple(
        replace(demo_rung(r.name, 3, (0.001, 0.017)), nulls=demo_rung(r.name, 3, (0, 0)).nulls) for r in good.rungs
    )
    if scenario == "C":
        return replace(good, rungs=(*good.rungs[:-1], low[-1]))
    if scenario == "UNDECIDED":
        return replace(good, loss=replace(_LOSS, probe_end=1.30, p_decrease=0.41, own_loss=1.30, plateaued=False))
    if scenario == "INVALID":
        return replace(good, validity=with_check("structure", False, "L_cycles is 4, the decoder was trained with 2"))
    raise EvaluationError(f"scenario {scenario!r} has no demo; expected A, B, C, INVALID or UNDECIDED")


def with_check(name: str, ok: bool | None, detail: str) -> tuple[Check, ...]:
    """All checks passed but this one."""
    return tuple(check(name, ok, detail) if c.name == name else c for c in PASSED)

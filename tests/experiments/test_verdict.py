"""The order of questions, as a truth table, and what must hold for any evidence whatever.

Each case starts from evidence on which everything is well and changes one thing; the expected scenario and question
are those of docs/verdict.md. The property tests draw several changes at once and restate the rule independently of
the judge.
"""

from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etrm.errors import EvaluationError
from etrm.experiment.checks import CHECK_RULES, Check, check
from etrm.experiment.demo_evidence import demo_evidence, demo_rung, healthy, with_check
from etrm.experiment.evidence import (
    RUNGS,
    USEFUL,
    ArmName,
    Budget,
    Evidence,
    GradientEvidence,
    NullEvidence,
    OracleEvidence,
    Score,
    refused,
)
from etrm.experiment.next_steps import NEXT_STEPS
from etrm.experiment.verdict import exit_code, judge, to_json, validate_json

pytestmark = pytest.mark.fast
ARMS: tuple[ArmName, ...] = ("calibration", "micro", "arc")
FAILED_ORACLE = OracleEvidence(1, Score(2, 512, 32, (0.0, 0.015)), 6)


def failing(evidence: Evidence, name: str, ok: bool | None, detail: str) -> Evidence:
    return replace(evidence, validity=with_check(name, ok, detail))


def with_loss(evidence: Evidence, **changes: float | bool | None) -> Evidence:
    assert evidence.loss is not None
    return replace(evidence, loss=replace(evidence.loss, **changes))


def with_rung(evidence: Evidence, name: str, k: int, ci95: tuple[float, float], **changes: object) -> Evidence:
    new = replace(demo_rung(name, k, ci95), **changes)
    return replace(evidence, rungs=tuple(new if r.name == name else r for r in evidence.rungs))


def with_headline(evidence: Evidence, k: int, ci95: tuple[float, float], **changes: object) -> Evidence:
    return with_rung(evidence, evidence.headline, k, ci95, **changes)


def with_gradient(evidence: Evidence, state: str | None) -> Evidence:
    return replace(evidence, gradient=GradientEvidence(state, "encoder.proj", "planted"))


def without_rung(evidence: Evidence, name: str) -> Evidence:
    return replace(evidence, rungs=tuple(r for r in evidence.rungs if r.name != name))


def stopped(evidence: Evidence) -> Evidence:
    return replace(
        evidence, budget=Budget(6000, 20, 9000, 30, 0.05, True, "gradient is not intact"), rungs=(), loss=None
    )


LOW = (3, (0.001, 0.017))
WIDE = (20, (0.012, 0.08))

# change of healthy evidence -> scenario, question, text that the reasons must contain
TABLE = {
    "healthy": (lambda e: e, "A", 5, "above every null"),
    # 1 validity
    "structure": (lambda e: failing(e, "structure", False, "L_cycles 6"), "INVALID", 1, "L_cycles 6"),
    "finite": (lambda e: failing(e, "finite", False, "NaN at 12"), "INVALID", 1, "NaN at 12"),
    "overlap": (lambda e: failing(e, "disjoint", False, "070dd51e"), "INVALID", 1, "070dd51e"),
    "provenance": (lambda e: failing(e, "provenance", False, "none"), "INVALID", 1, "training tasks"),
    "not evaluated": (lambda e: failing(e, "golden_logits", None, "no file"), "UNDECIDED", 1, "no file"),
    "not reported": (lambda e: replace(e, validity=e.validity[:-1]), "UNDECIDED", 1, "not reported"),
    "few tasks": (lambda e: failing(e, "enough_tasks", False, "4 tasks"), "UNDECIDED", 1, "4 tasks"),
    "budget": (lambda e: replace(e, budget=Budget(9, 8, 9, 9, 0.0, True)), "INVALID", 1, "8 of 9 updates"),
    "episodes": (lambda e: replace(e, budget=Budget(9, 9, 90, 9, 0.0, True)), "INVALID", 1, "9 of 90 distinct"),
    "warm-up": (lambda e: replace(e, budget=Budget(9, 9, 9, 9, 0.4, True)), "UNDECIDED", 1, "40 %"),
    "base rate": (lambda e: replace(e, budget=Budget(9, 9, 9, 9, 0.1, False)), "UNDECIDED", 1, "never reached"),
    "unknown check": (
        lambda e: replace(e, validity=(*e.validity, Check("moon_phase", False, "new", "wait", "H6"))),
        "INVALID",
        1,
        "moon_phase",
    ),
    "stopped early, intact": (lambda e: stopped(e), "UNDECIDED", 1, "stopped on purpose"),
    # 2 gradient
    "blocked": (lambda e: with_gradient(e, "blocked"), "B", 2, "blocked at encoder.proj"),
    "partial": (lambda e: with_gradient(e, "partial"), "B", 2, "partial"),
    "vanishing": (lambda e: with_gradient(e, "vanishing"), "B", 2, "vanishing"),
    "unmeasured gradient": (lambda e: with_gradient(e, None), "UNDECIDED", 2, "not measured"),
    "blocked, stopped early": (lambda e: with_gradient(stopped(e), "blocked"), "B", 2, "blocked"),
    "blocked, few tasks": (
        lambda e: with_gradient(failing(e, "enough_tasks", False, "4 tasks"), "blocked"),
        "B",
        2,
        "blocked",
    ),
    # 3 loss
    "flat": (lambda e: with_loss(e, p_decrease=0.4), "UNDECIDED", 3, "optimisation"),
    "rising": (lambda e: with_loss(e, probe_end=1.4), "UNDECIDED", 3, "optimisation"),
    "flat, low outcome": (lambda e: with_headline(with_loss(e, p_decrease=0.4), *LOW), "UNDECIDED", 3, "does not fall"),
    "no loss": (lambda e: replace(e, loss=None), "UNDECIDED", 3, "not measured"),
    "no constant control": (lambda e: with_loss(e, constant_context_loss=None), "UNDECIDED", 3, "constant context"),
    "ignored, low": (
        lambda e: with_headline(with_loss(e, own_loss=1.02, p_below_constant=0.5), *LOW),
        "C",
        3,
        "context ignored",
    ),
    "ignored by mismatched, low": (
        lambda e: with_headline(with_loss(e, mismatched_loss=0.21, p_below_mismatched=0.5), *LOW),
        "C",
        3,
        "mismatched",
    ),
    "ignored, yet high": (lambda e: with_loss(e, p_below_constant=0.5), "UNDECIDED", 3, "do not settle"),
    # 4 fit
    "no seen rung": (lambda e: without_rung(e, "seen_task"), "UNDECIDED", 4, "not evaluated"),
    "unfit, plateau": (lambda e: with_headline(with_rung(e, "seen_task", *LOW), *LOW), "C", 4, "does not fit"),
    "unfit, falling": (
        lambda e: with_loss(with_headline(with_rung(e, "seen_task", *LOW), *LOW), plateaued=False),
        "UNDECIDED",
        4,
        "underfit",
    ),
    "unfit, yet unseen high": (lambda e: with_rung(e, "seen_task", *LOW), "UNDECIDED", 4, "underfit"),
    # 5 generalisation
    "no headline": (lambda e: without_rung(e, e.headline), "UNDECIDED", 5, "not evaluated"),
    "low": (lambda e: with_headline(e, *LOW), "C", 5, "does not transfer"),
    "low, still falling": (
        lambda e: with_loss(with_headline(e, *LOW), plateaued=False),
        "UNDECIDED",
        5,
        "still falling",
    ),
    "wide": (lambda e: with_headline(e, *WIDE), "UNDECIDED", 5, "160 would"),
    "decoder knows": (lambda e: with_headline(e, 307, (0.52, 0.67), decoder_known=True), "UNDECIDED", 5, "no plain A"),
    "decoder may know": (
        lambda e: with_headline(e, 307, (0.52, 0.67), decoder_known=None),
        "UNDECIDED",
        5,
        "may have been",
    ),
    "decoder knows, low": (lambda e: with_headline(e, *LOW, decoder_known=True), "C", 5, "decoder_known"),
    "constant hardly trained": (lambda e: with_loss(e, constant_sufficed=None), "UNDECIDED", 5, "too weak"),
}


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("case", TABLE)
def test_truth_table(case: str, arm: ArmName) -> None:
    change, scenario, question, text = TABLE[case]
    verdict = judge(change(healthy(arm)))
    assert (verdict.scenario, verdict.question) == (scenario, question), verdict.reasons
    assert text in " | ".join(verdict.reasons)


def test_demos_are_what_they_say() -> None:
    for arm in ARMS:
        for scenario in ("A", "B", "C", "UNDECIDED", "INVALID"):
            assert judge(demo_evidence(scenario, arm)).scenario == scenario
    with pytest.raises(EvaluationError, match="expected A, B, C"):
        demo_evidence("D")


@pytest.mark.parametrize("name", CHECK_RULES)
def test_every_check_bars_every_outcome(name: str) -> None:
    rule = CHECK_RULES[name]
    failed = replace(healthy("arc"), validity=with_check(name, False, "planted"))
    open_ = replace(healthy("arc"), validity=with_check(name, None, "planted"))
    assert judge(failed).scenario == rule.on_failure
    assert judge(open_).scenario == "UNDECIDED"
    blocked = judge(with_gradient(failed, "blocked")).scenario
    assert blocked == ("B" if rule.on_failure == "UNDECIDED" and rule.stage == "outcome" else rule.on_failure)


@pytest.mark.parametrize("null", healthy().required_nulls)
def test_a_must_beat_every_null(null: str) -> None:
    good = healthy()
    rung = good.rung(good.headline)
    assert rung is not None
    lost = {**rung.nulls, null: NullEvidence(290, 512, 0.2, (-0.02, 0.09))}
    missing = {name: m for name, m in rung.nulls.items() if name != null}
    untested = {**rung.nulls, null: replace(rung.nulls[null], p=None)}
    for nulls in (lost, missing, untested):
        changed = replace(good, rungs=(good.rungs[0], replace(rung, nulls=nulls)))
        assert judge(changed).scenario == "UNDECIDED"
        assert null in judge(changed).reasons[0]


def test_useless_demonstrations_are_c_even_at_a_high_rate() -> None:
    """A constant context that solves half of the queries: the rate is high, what the demonstrations add is nothing."""
    good = with_loss(healthy("micro"), own_loss=1.02, p_below_constant=0.5, p_below_mismatched=0.5)
    for rung in good.rungs:
        nulls = {name: NullEvidence(round(0.97 * rung.score.k), 512, 0.3, (-0.01, 0.012)) for name in rung.nulls}
        good = replace(good, rungs=tuple(replace(r, nulls=nulls) if r.name == rung.name else r for r in good.rungs))
    assert judge(good).scenario == "C"


def test_certificate_is_needed_for_arc_and_user_encoders_only() -> None:
    own, arc = replace(healthy(), certificate=None), replace(healthy("arc"), certificate=None)
    assert judge(own).scenario == "A"
    for evidence in (arc, replace(own, user_encoder=True)):
        assert judge(evidence).scenario == "UNDECIDED"
        assert "certificate" in judge(evidence).reasons[0] and len(judge(evidence).reasons) == 1
        unreported = replace(evidence, validity=tuple(c for c in evidence.validity if c.name != "certificate"))
        assert judge(replace(unreported, certificate=healthy().certificate)).scenario == "A"


@pytest.mark.parametrize("state", ["blocked", "partial", "vanishing"])
def test_a_missing_certificate_hides_no_broken_gradient_and_gives_no_c(state: str) -> None:
    user = replace(healthy(), certificate=None, user_encoder=True)
    broken = judge(with_gradient(user, state))
    assert (broken.scenario, broken.question) == ("B", 2) and broken.hypotheses["H6"].status == "open"
    assert judge(with_headline(user, *LOW)).scenario == "UNDECIDED"


def test_failing_oracle_is_not_shown_steerable_and_clears_the_encoder_of_blame() -> None:
    low = with_headline(healthy(), *LOW)
    blind = judge(replace(low, oracle_many=FAILED_ORACLE, oracle_demos=FAILED_ORACLE))
    seeing = judge(low)
    assert blind.scenario == seeing.scenario == "C"
    text = " ".join(blind.reasons)
    assert "not shown steerable: 1 of 32 tasks" in text and "'encoder too weak' may not be concluded" in text
    assert "impossible" not in text and "may not be concluded" not in " ".join(seeing.reasons)
    assert blind.hypotheses["H7"].status == "open" and seeing.hypotheses["H7"].status == "supported"
    assert blind.next_steps[0] == NEXT_STEPS["C.not_steerable"][0] and seeing.next_steps == NEXT_STEPS["C"]


def test_refused_before_training_is_invalid_and_complete_as_json() -> None:
    checks = (check("structure", False, "L_cycles is 4, trained with 2"),)
    verdict = judge(refused("calibration", "aligned", False, checks, "refused before training"))
    assert verdict.scenario == "INVALID" and len(verdict.reasons) == 2
    body = to_json({"calibration": verdict})["arms"]["calibration"]
    assert body["gradient"] is None and body["rungs"]["seen_task"]["n"] == 0 and body["budget"] == {}


def test_hypotheses_follow_the_evidence() -> None:
    def status(evidence: Evidence) -> dict[str, str]:
        return {name: h.status for name, h in judge(evidence).hypotheses.items()}

    assert status(healthy()) == dict.fromkeys(("H1", "H2", "H3", "H4", "H5", "H6", "H7"), "refuted")
    assert status(with_gradient(healthy(), "blocked"))["H2"] == "supported"
    assert status(with_loss(healthy(), p_decrease=0.4))["H4"] == "supported"
    assert status(with_gradient(with_loss(healthy(), p_decrease=0.4), "blocked"))["H4"] == "open"
    assert status(replace(healthy(), validity=with_check("structure", False, "x")))["H1"] == "supported"
    assert status(replace(healthy(), validity=with_check("disjoint", None, "x")))["H5"] == "open"
    collapsed = replace(healthy().findings[0], value=0.001)
    assert status(replace(healthy(), findings=(collapsed,)))["H3"] == "supported"


def test_confidence_grows_with_seeds_and_distance() -> None:
    assert judge(healthy()).confidence == "high"
    assert judge(replace(healthy(), seeds=1)).confidence == "moderate"
    assert judge(replace(with_headline(healthy(), 40, (0.03, 0.13)), seeds=1)).confidence == "low"
    assert judge(with_loss(healthy(), p_decrease=0.4)).confidence == "none"


def test_confidence_of_each_scenario() -> None:
    assert [judge(demo_evidence(name)).confidence for name in ("INVALID", "UNDECIDED")] == ["high", "none"]
    assert judge(with_gradient(healthy(), "blocked")).confidence == "high"
    assert judge(with_gradient(healthy(), "vanishing")).confidence == "moderate"
    at_twice, beyond = (with_headline(healthy(), 307, (low, 0.67)) for low in (0.04, 0.05))  # the useful rate is 0.02
    assert [judge(e).confidence for e in (at_twice, beyond)] == ["moderate", "high"]
    never = with_headline(healthy(), 1, (0.0, 0.008))
    assert judge(never).scenario == "C"
    at_half, between = (with_headline(healthy(), 1, (0.0, high)) for high in (0.01, 0.015))
    assert [(judge(e).scenario, judge(e).confidence) for e in (at_half, between)] == [("C", "moderate")] * 2
    blind = replace(never, oracle_demos=FAILED_ORACLE)
    assert [judge(e).confidence for e in (never, blind)] == ["high", "moderate"]
    assert [judge(replace(e, seeds=1)).confidence for e in (never, blind)] == ["moderate", "low"]


def test_what_is_invalid_comes_first_then_what_fails_then_what_is_open() -> None:
    odd = {"structure": False, "enough_tasks": False, "golden_logits": None, "disjoint": None}
    checks = tuple(replace(c, ok=odd.get(c.name, True), detail=f"<{c.name}>") for c in healthy().validity)
    verdict = judge(replace(healthy(), validity=checks))
    order = [c.name for c in checks]
    open_ = sorted(("golden_logits", "disjoint"), key=order.index)
    assert verdict.scenario == "INVALID" and "<structure>" in verdict.reasons[0]
    assert "<enough_tasks>" in verdict.reasons[1] and verdict.reasons[1].startswith("does not hold")
    assert verdict.reasons[2:] == (f"also not evaluated: {', '.join(open_)}",)


def test_what_is_in_the_way_of_an_outcome_is_the_first_next_step() -> None:
    verdict = judge(failing(healthy(), "enough_tasks", False, "4 tasks"))
    first, *rest = verdict.next_steps
    rule = CHECK_RULES["enough_tasks"]
    assert (first.why, first.command, first.hypothesis) == ("enough_tasks: 4 tasks", rule.remedy, rule.hypothesis)
    assert tuple(rest) == NEXT_STEPS["UNDECIDED.validity"]


def test_a_gradient_broken_at_no_one_place_is_told_without_one() -> None:
    broken = replace(healthy(), gradient=GradientEvidence("vanishing", "", "planted"))
    assert judge(broken).reasons == ("the encoder's gradient is vanishing: planted",)


def test_next_steps_tell_missing_controls_from_missing_power() -> None:
    wide = with_headline(healthy(), *WIDE)
    beaten = demo_rung("unseen_composition", 307, (0.52, 0.67)).nulls
    untested = {**beaten, "mismatched": replace(beaten["mismatched"], p=None)}
    assert judge(wide).next_steps == NEXT_STEPS["UNDECIDED.power"]
    for open_ in (with_headline(healthy(), *WIDE, nulls=untested), without_rung(healthy(), "unseen_composition")):
        assert judge(open_).next_steps == NEXT_STEPS["UNDECIDED.controls"]
    assert judge(without_rung(healthy(), "unseen_composition")).reasons[0] == "unseen_composition was not evaluated"


def test_rungs_between_the_seen_and_the_headline_are_told_once() -> None:
    told = [reason.split(":")[0] for reason in judge(with_headline(healthy("arc"), *LOW)).reasons]
    assert [told.count(name) for name in ("seen_task", "unseen_augmentation")] == [1, 1]
    assert told.count("it trains and fits, but does not transfer") == 1 and "unseen_task" not in told


def test_an_underfit_run_says_whether_its_loss_still_falls() -> None:
    unfit = with_rung(healthy(), "seen_task", *LOW)
    assert judge(unfit).reasons[0].endswith("; the loss has stopped falling")
    assert (
        judge(with_loss(unfit, plateaued=False))
        .reasons[0]
        .endswith("; the loss was still falling, or its plateau was not shown, when the budget ended")
    )


@pytest.mark.parametrize(
    ("scenarios", "failed", "code"),
    [
        (("A", "A"), False, 0), (("A", "C"), True, 1), (("B",), True, 1), (("A", "UNDECIDED"), False, 10),
        (("A", "UNDECIDED"), True, 10), (("INVALID", "UNDECIDED"), True, 11), (("INVALID",), False, 11), ((), True, 1),
    ],
)  # fmt: skip
def test_exit_code(scenarios: tuple[str, ...], failed: bool, code: int) -> None:
    verdicts = {str(i): judge(demo_evidence(name)) for i, name in enumerate(scenarios)}
    assert exit_code(verdicts, failed) == code


def test_json_has_the_shape_of_schema_1() -> None:
    """Golden: keys and values as the issue that asked for schema 1 wrote them down."""
    document = to_json({arm: judge(healthy(arm)) for arm in ("calibration", "arc")})
    assert document["schema"] == 1 and list(document["arms"]) == ["calibration", "arc"]
    body = document["arms"]["calibration"]
    assert {"scenario", "reasons", "rungs", "gradient", "metrics", "hypotheses", "budget"} <= set(body)
    rung = body["rungs"]["unseen_composition"]
    assert {key: rung[key] for key in ("k", "n", "tasks", "ci95", "null")} == {
        "k": 307, "n": 512, "tasks": 40, "ci95": [0.52, 0.67], "null": {"k": 6, "n": 512},
    }  # fmt: skip
    assert list(document["arms"]["arc"]["rungs"]) == list(RUNGS["arc"])
    assert body["question"] == {"number": 5, "name": "generalisation"} and body["gradient"] == "intact"
    assert Evidence.from_json(body["evidence"]) == healthy()
    validate_json(document)


INTERVALS = {"seen_task": [0.64, 0.76], "unseen_composition": [0.52, 0.67]}
NOT_EVALUATED = {
    "k": 0, "n": 0, "tasks": 0, "ci95": [0.0, 1.0], "null": {"k": 0, "n": 0}, "nulls": {}, "decoder_known": None,
    "chance_nominal": None, "searched": None, "reading": "missing",
}  # fmt: skip


def test_json_of_a_rung_in_full() -> None:
    """What was evaluated with its nulls, what was not as 0 of 0, and a rung whose mismatched null is missing."""
    good = healthy()
    rung = good.rung("unseen_composition")
    assert rung is not None
    two = {name: rung.nulls[name] for name in ("mismatched", "zero_context")}
    full = replace(rung, nulls=two)
    bodies = [
        to_json({"calibration": judge(replace(good, rungs=rungs))})["arms"]["calibration"]["rungs"]
        for rungs in ((full,), (replace(full, nulls={"zero_context": two["zero_context"]}),))
    ]
    lift = [0.52 - 0.015, 0.67 - 0.005]
    zero = {"zero_context": {"k": 3, "n": 512, "p": 0.0002, "lift_ci95": lift}}
    expected = {
        "k": 307, "n": 512, "tasks": 40, "ci95": [0.52, 0.67], "null": {"k": 6, "n": 512},
        "nulls": {"mismatched": {"k": 6, "n": 512, "p": 0.0002, "lift_ci95": lift}, **zero},
        "decoder_known": False, "chance_nominal": 0.025, "searched": None, "reading": "undecided",
    }  # fmt: skip
    assert bodies[0] == {"seen_task": NOT_EVALUATED, "unseen_composition": expected}
    assert bodies[1]["unseen_composition"] == expected | {"null": {"k": 0, "n": 0}, "nulls": zero}


@pytest.mark.parametrize(
    ("k", "ci95", "known", "reading"),
    [
        (307, (0.52, 0.67), False, "above"),
        (307, (0.52, 0.67), None, "above (decoder_known)"),
        (*LOW, True, "below"),
        (*WIDE, None, "undecided"),
    ],
)
def test_only_a_rung_that_stands_above_is_marked_as_known(
    k: int, ci95: tuple[float, float], known: bool | None, reading: str
) -> None:
    body = to_json({"micro": judge(with_headline(healthy("micro"), k, ci95, decoder_known=known))})
    assert body["arms"]["micro"]["rungs"]["unseen_composition"]["reading"] == reading


def test_json_of_an_arm_in_full() -> None:
    evidence = with_gradient(healthy(), "partial")
    verdict = judge(evidence)
    body = to_json({"calibration": verdict})["arms"]["calibration"]
    rungs, hypotheses, checks, seed_rows = (body.pop(key) for key in ("rungs", "hypotheses", "checks", "seed_reading"))
    assert body == {
        "scenario": "B",
        "question": {"number": 2, "name": "gradient"},
        "reasons": ["the encoder's gradient is partial at encoder.proj: planted"],
        "confidence": "moderate",
        "headline_rung": "unseen_composition",
        "gradient": "partial",
        "gradient_place": "encoder.proj",
        "metrics": {
            "grad/encoder_norm": 0.61, "train/lm_loss": 0.21, "train/lm_loss/first": 1.31,
            "train/encoder_token_std": 0.42, "train/encoder_token_std/first": 0.05, "ARC/pass@1": 0.6,
        },
        "budget": {
            "planned_updates": 6000, "executed_updates": 6000, "planned_episodes": 384_000,
            "distinct_episodes": 384_000, "warmup_share": 0.05, "lr_reached_base": True, "early_stop": "",
        },
        "next_steps": [
            {"why": step.why, "command": step.command, "hypothesis": step.hypothesis} for step in NEXT_STEPS["B"]
        ],
        "certificate": {
            "date": "2026-02-01", "commit": "0000000", "says": "healthy gave A; planted faults gave B, C and INVALID",
        },
        "evidence": evidence.to_json(),
    }  # fmt: skip
    assert {name: rung["ci95"] for name, rung in rungs.items()} == INTERVALS
    assert {name: h["status"] for name, h in hypotheses.items()} == {n: h.status for n, h in verdict.hypotheses.items()}
    assert [c["name"] for c in checks] == [c.name for c in verdict.checks] and checks[0] == asdict(verdict.checks[0])
    assert [row["metric"] for row in seed_rows] == [
        "grad/encoder_norm", "train/lm_loss", "train/encoder_token_std", "ARC/pass@1", "scenario",
    ]  # fmt: skip
    bare = to_json({"calibration": judge(replace(evidence, certificate=None))})["arms"]["calibration"]
    assert bare["certificate"] is None


def test_reasons_of_a_plain_a_in_full_and_in_order() -> None:
    """The headline, the seen rung, the loss, then the oracle; each once."""
    reasons = judge(healthy()).reasons
    nulls = "nulls mismatched 6 of 512; above every null (7 of 7)"
    assert reasons[0] == (
        "above every null and above the useful 2 %: unseen_composition: 307 of 512 exact over 40 tasks "
        f"(60 %, 95 % interval 52 % to 67 %); {nulls}"
    )
    assert reasons[1] == f"seen_task: 359 of 512 exact over 40 tasks (70 %, 95 % interval 64 % to 76 %); {nulls}"
    assert reasons[2].startswith("probe loss 1.31 to 0.21 nats") and len(reasons) == len(set(reasons)) == 4


@pytest.mark.parametrize(
    ("known", "no_a", "told"),
    [
        (True, "was trained on", "the decoder was trained on these tasks' demonstrations"),
        (None, "may have been trained on", "whether the decoder knows these tasks is not on record"),
    ],
)
def test_what_the_decoder_knows_is_told_of_every_rung_but_the_seen_one(
    known: bool | None, no_a: str, told: str
) -> None:
    arc = healthy("arc")
    headline = judge(with_headline(arc, 307, (0.52, 0.67), decoder_known=known)).reasons
    assert headline[0] == (
        f"no plain A: the decoder {no_a} these tasks' demonstrations, so recall cannot be told from inference"
    )
    assert f"unseen_task carries decoder_known: {told}" in headline
    between = judge(with_rung(arc, "unseen_augmentation", 240, (0.39, 0.55), decoder_known=known))
    assert between.scenario == "A" and f"unseen_augmentation carries decoder_known: {told}" in between.reasons
    seen = judge(with_rung(arc, "seen_task", 359, (0.64, 0.76), decoder_known=known))
    assert seen.reasons == judge(arc).reasons


def test_what_bars_an_a_or_a_decision_is_the_first_sentence() -> None:
    weak = judge(with_loss(healthy(), constant_sufficed=None))
    assert weak.reasons[0] == (
        "the learned constant context was not shown to be trained enough, so this null may be too weak"
    )
    assert weak.reasons[1].startswith("unseen_composition: 307 of 512")
    planned = judge(with_headline(healthy(), *WIDE)).reasons[0]
    assert planned.endswith("; 40 tasks cannot decide, about 160 would")
    unplanned = judge(with_headline(healthy(), *WIDE, tasks_needed=None)).reasons[0]
    assert unplanned.endswith("; how many tasks would decide was not computed")


def test_json_marks_what_the_decoder_knew() -> None:
    known = with_headline(healthy("arc"), 307, (0.52, 0.67), decoder_known=True)
    body = to_json({"arc": judge(known)})["arms"]["arc"]
    assert body["rungs"]["unseen_task"]["reading"] == "above (decoder_known)"
    assert body["rungs"]["unseen_task"]["decoder_known"] is True and body["scenario"] == "UNDECIDED"


CHANGES = sorted(set(TABLE) - {"healthy", "stopped early, intact", "blocked, stopped early"})


@st.composite
def changed_evidence(draw: st.DrawFn) -> Evidence:
    """Healthy evidence with up to four changes of the table, random checks and a random gradient."""
    evidence = healthy(draw(st.sampled_from(ARMS)))
    for name in draw(st.lists(st.sampled_from(CHANGES), max_size=4, unique=True)):
        if name in ("no constant control", "flat", "rising") and evidence.loss is None:
            continue
        if evidence.loss is None and any(word in name for word in ("flat", "falling", "ignored", "plateau", "control")):
            continue
        evidence = TABLE[name][0](evidence)
    odd = draw(st.dictionaries(st.sampled_from(sorted(CHECK_RULES)), st.sampled_from([False, None]), max_size=2))
    checks = tuple(replace(c, ok=odd.get(c.name, c.ok)) for c in evidence.validity)
    state = draw(st.sampled_from(["intact", "intact", "intact", "partial", "vanishing", "blocked", None]))
    if evidence.gradient.state == "intact":
        evidence = with_gradient(evidence, state)
    return replace(evidence, validity=checks)


@pytest.mark.thorough
@settings(deadline=None, derandomize=True, max_examples=80)
@given(changed_evidence())
def test_precedence(evidence: Evidence) -> None:
    """Restates the first two questions and the two conditions that no A and no C may lack."""
    verdict = judge(evidence)
    invalid = any(
        c.ok is False and (c.name not in CHECK_RULES or CHECK_RULES[c.name].on_failure == "INVALID")
        for c in verdict.checks
    )
    barred = any(
        c.ok is not True and (c.name not in CHECK_RULES or CHECK_RULES[c.name].stage == "start") for c in verdict.checks
    )
    state = evidence.gradient.state
    assert (verdict.scenario == "INVALID") == invalid
    assert (verdict.scenario == "B") == (not invalid and not barred and state not in ("intact", None))
    rung = evidence.rung(evidence.headline)
    if verdict.scenario in ("A", "C"):
        assert state == "intact" and rung is not None and all(c.ok is True for c in verdict.checks)
        assert evidence.loss is not None and evidence.loss.p_decrease is not None and evidence.loss.p_decrease < 0.05
    if verdict.scenario == "A":
        assert rung is not None and rung.score.ci95[0] > USEFUL and rung.decoder_known is False
        assert all(
            m.p is not None and m.p < 0.05 and m.k * rung.score.n < rung.score.k * m.n for m in rung.nulls.values()
        )
    if verdict.scenario == "C":
        assert rung is not None
        assert rung.score.ci95[1] < USEFUL or any(m.lift_ci95 and m.lift_ci95[1] < USEFUL for m in rung.nulls.values())
    validate_json(to_json({evidence.arm: verdict}))
    assert judge(Evidence.from_json(evidence.to_json())) == verdict


@pytest.mark.thorough
@settings(deadline=None, derandomize=True, max_examples=80)
@given(changed_evidence(), st.sampled_from(CHANGES))
def test_one_more_failure_never_makes_an_a(evidence: Evidence, name: str) -> None:
    if evidence.loss is None:
        evidence = replace(evidence, loss=healthy().loss)
    before, after = judge(evidence).scenario, judge(TABLE[name][0](evidence)).scenario
    assert after != "A", f"{before} became A by {name}"

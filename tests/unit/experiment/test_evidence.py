"""Evidence survives JSON, refuses what is malformed by path, and refuses to contradict itself."""

import json
import math
from dataclasses import replace

import pytest

from etrm.errors import EvaluationError
from etrm.experiment.checks import CHECK_RULES, check
from etrm.experiment.demo_evidence import demo_evidence, healthy
from etrm.experiment.evidence import Evidence, Finding, Score

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("scenario", ["A", "B", "C", "UNDECIDED", "INVALID"])
def test_json_round_trip(scenario: str) -> None:
    evidence = demo_evidence(scenario, "arc")
    assert Evidence.from_json(json.loads(evidence.dumps())) == evidence


def test_non_finite_numbers_survive_as_texts() -> None:
    evidence = replace(healthy(), metrics={"train/lm_loss": math.nan, "grad/encoder_norm": math.inf, "x": None})
    text = evidence.dumps()
    assert '"train/lm_loss": "nan"' in text and "NaN" not in text
    back = Evidence.from_json(json.loads(text)).metrics
    assert back["train/lm_loss"] is not None and math.isnan(back["train/lm_loss"])
    assert back["grad/encoder_norm"] == math.inf and back["x"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("loss"), "evidence: missing field loss"),
        (lambda d: d.update(extra=1), "evidence: unknown field extra"),
        (lambda d: d.update(seeds="3"), "evidence.seeds: expected a value of type int, got '3'"),
        (lambda d: d.update(seeds=True), "evidence.seeds"),
        (lambda d: d["gradient"].update(state="fine"), "evidence.gradient.state: expected one of intact"),
        (lambda d: d["rungs"][0]["score"].update(ci95=[0.1]), r"evidence.rungs\[0\].score.ci95: expected a list of 2"),
        (
            lambda d: d["rungs"][0]["nulls"]["mismatched"].pop("k"),
            r"evidence.rungs\[0\].nulls.mismatched: missing field k",
        ),
        (lambda d: d.update(rungs={}), "evidence.rungs: expected a list"),
        (lambda d: d.update(budget=[]), "evidence.budget: expected an object"),
        (
            lambda d: d["provenance"].update(note=[1]),
            "evidence.provenance.note: expected a text, number or truth value",
        ),
        (lambda d: d["validity"][0].update(ok="yes"), r"evidence.validity\[0\].ok: expected a value of type bool"),
    ],
)
def test_malformed_json_is_named_by_its_path(change, message: str) -> None:  # type: ignore[no-untyped-def]
    data = healthy().to_json()
    change(data)
    with pytest.raises(EvaluationError, match=message):
        Evidence.from_json(data)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (Score(5, 4, 4, (0.0, 1.0)), "5 of 4"),
        (Score(1, 4, 5, (0.0, 1.0)), "over 5 tasks"),
        (Score(1, 4, 4, (0.6, 0.5)), "no interval"),
        (Score(1, 4, 4, (0.0, math.nan)), "no interval"),
        (Score(1, 4, 4, (0.0, 60.0)), "no interval"),
    ],
)
def test_impossible_scores_are_refused(score: Score, message: str) -> None:
    rung = replace(healthy().rungs[0], score=score)
    with pytest.raises(EvaluationError, match=message):
        replace(healthy(), rungs=(rung,))


def test_arms_rungs_and_checks_must_fit() -> None:
    good = healthy()
    with pytest.raises(EvaluationError, match="arm 'moon'"):
        replace(good, arm="moon")
    with pytest.raises(EvaluationError, match="unseen_task"):
        replace(good, rungs=healthy("arc").rungs)
    with pytest.raises(EvaluationError, match="at most once"):
        replace(good, rungs=(good.rungs[0], good.rungs[0]))
    with pytest.raises(EvaluationError, match="twice"):
        replace(good, validity=(*good.validity, good.validity[0]))
    null = replace(good.rungs[0].nulls["mismatched"], k=600)
    with pytest.raises(EvaluationError, match="null mismatched: 600 of 512"):
        replace(good, rungs=(replace(good.rungs[0], nulls={"mismatched": null}),))


def test_a_rung_without_queries_counts_as_not_evaluated() -> None:
    empty = replace(healthy().rungs[0], score=Score(0, 0, 0, (0.0, 1.0)), nulls={})
    assert replace(healthy(), rungs=(empty,)).rung("seen_task") is None


@pytest.mark.parametrize(
    ("value", "low", "high", "ok"),
    [
        (0.5, 0.1, 1.0, True),
        (0.05, 0.1, None, False),
        (2.0, None, 1.0, False),
        (math.nan, None, None, False),
        (9.0, None, None, True),
    ],
)
def test_finding_bounds(value: float, low: float | None, high: float | None, ok: bool) -> None:
    assert Finding("x", value, low, high, "H3", "").healthy is ok


def test_checks_take_hypothesis_and_remedy_from_their_rule() -> None:
    made = check("structure", False, "cycles differ")
    assert (made.hypothesis, made.remedy) == ("H1", CHECK_RULES["structure"].remedy)
    assert check("structure", None, "", "look").remedy == "look"
    with pytest.raises(EvaluationError, match="'struktur' is not known"):
        check("struktur", True, "")

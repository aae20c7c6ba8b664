"""The verdict: five questions in a fixed order, the first one that is not answered well decides.

1 validity -> INVALID or UNDECIDED; 2 gradient, anything but intact -> B; 3 loss, flat -> UNDECIDED (optimisation);
4 fit, 5 generalisation -> A, C or UNDECIDED. Pure: evidence in, verdict out.

Notable: A needs every answer, so no missing or failing piece of evidence can turn anything into A. Checks of stage
"outcome" (budget, schedule, queries, power) that are merely open do not protect a broken gradient from B: such a run
is stopped early.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from etrm.experiment.attribution import HypothesisStatus, attribute
from etrm.experiment.checks import Check, failure_of, needed_from_start, sentence
from etrm.experiment.evidence import RUNGS, USEFUL, Evidence, plain_json
from etrm.experiment.next_steps import NEXT_STEPS, Step
from etrm.experiment.reading import (
    oracle_text,
    percent,
    rate,
    read_loss,
    read_rung,
    steerable,
    validity_checks,
)
from etrm.experiment.seed_reading import seed_reading
from etrm.experiment.session import EXIT_INVALID, EXIT_UNDECIDED
from etrm.experiment.verdict_schema import SCHEMA, validate_json

__all__ = ["EXIT_INVALID", "EXIT_UNDECIDED", "QUESTIONS", "Verdict", "exit_code", "judge", "to_json", "validate_json"]

Scenario = Literal["A", "B", "C", "INVALID", "UNDECIDED"]
Confidence = Literal["high", "moderate", "low", "none"]

QUESTIONS = {1: "validity", 2: "gradient", 3: "loss", 4: "fit", 5: "generalisation"}


@dataclass(frozen=True)
class Verdict:
    """The answer for one arm. `reasons[0]` is the sentence that decided; `question` is its number in QUESTIONS."""

    scenario: Scenario
    question: int
    reasons: tuple[str, ...]
    confidence: Confidence
    next_steps: tuple[Step, ...]
    hypotheses: dict[str, HypothesisStatus]
    checks: tuple[Check, ...]
    evidence: Evidence

    @property
    def gradient(self) -> str | None:
        """The gradient's state, apart from the outcome; None: not measured."""
        return self.evidence.gradient.state


def judge(evidence: Evidence) -> Verdict:
    """Ask the five questions in order. Reads nothing but `evidence`, raises nothing."""
    checks = validity_checks(evidence)
    scenario, question, reasons, steps = _decide(evidence, checks)
    hypotheses = attribute(evidence, checks, scenario)
    return Verdict(scenario, question, reasons, _confidence(evidence, scenario), steps, hypotheses, checks, evidence)


_Decision = tuple[Scenario, int, tuple[str, ...], tuple[Step, ...]]
STILL_FALLING = "the loss was still falling, or its plateau was not shown, when the budget ended"


def _decide(evidence: Evidence, checks: tuple[Check, ...]) -> _Decision:
    """Questions 1 and 2."""
    unclear = [c for c in checks if c.ok is not True]
    invalid = [c for c in unclear if c.ok is False and failure_of(c) == "INVALID"]
    if invalid:
        rest = [c for c in unclear if c not in invalid]
        return "INVALID", 1, _named(invalid, rest), (*_remedies(invalid), *NEXT_STEPS["INVALID"])
    not_valid = _undecided(1, _named([], unclear), "validity", _remedies(unclear))
    if any(needed_from_start(c) for c in unclear):
        return not_valid
    gradient = evidence.gradient
    if gradient.state is None:
        return _undecided(2, (f"the gradient was not measured: {gradient.detail}",), "gradient")
    if gradient.state != "intact":
        at = f" at {gradient.place}" if gradient.place else ""
        return "B", 2, (f"the encoder's gradient is {gradient.state}{at}: {gradient.detail}",), NEXT_STEPS["B"]
    return not_valid if unclear else _decide_outcome(evidence)


def _decide_outcome(evidence: Evidence) -> _Decision:
    """Questions 3 to 5 of a valid run whose gradient is intact."""
    word, loss_says = read_loss(evidence.loss)
    if word in ("unmeasured", "falls"):
        return _undecided(3, (loss_says,), "controls")
    if word == "flat":
        return _undecided(3, (f"optimisation: {loss_says}, though the gradient is intact",), "optimisation")

    seen, headline = read_rung(evidence, "seen_task"), read_rung(evidence, evidence.headline)
    between = [read_rung(evidence, r.name).says for r in evidence.rungs if r.name not in (seen.name, headline.name)]
    told = (*between, *_known(evidence), oracle_text(evidence))
    plateaued = evidence.loss is not None and evidence.loss.plateaued is True
    power = "controls" if headline.beats_every_null is None else "power"
    if word == "ignored":
        if headline.word == "below":
            return "C", 3, (f"context ignored: {loss_says}", headline.says, seen.says, *told), _c_steps(evidence)
        said = f"the loss says that the context is ignored ({loss_says}), but the queries do not settle it"
        return _undecided(3, (said, headline.says, seen.says, *told), power)

    if seen.beats_every_null is None:
        return _undecided(4, (f"fit cannot be told: {seen.says}", headline.says, *told), "controls")
    if seen.beats_every_null is False:
        if headline.word == seen.word == "below" and plateaued:
            said = f"it does not fit the tasks it was trained on: {seen.says}"
            return "C", 4, (said, headline.says, loss_says, *told), _c_steps(evidence)
        end = "the loss has stopped falling" if plateaued else STILL_FALLING
        said = f"underfit, no verdict on generalisation: {seen.says}; {end}"
        return _undecided(4, (said, headline.says, *told), "optimisation")

    if headline.word == "above":
        return _decide_above(evidence, (headline.says, seen.says, loss_says, *told))
    if headline.word == "below" and plateaued:
        said = f"it trains and fits, but does not transfer: {headline.says}"
        return "C", 5, (said, seen.says, loss_says, *told), _c_steps(evidence)
    if headline.word == "below":
        return _undecided(5, (f"{headline.says}; but {STILL_FALLING}", seen.says, *told), "optimisation")
    needed = "" if headline.word == "missing" else f"; {_would_decide(evidence)}"
    return _undecided(5, (f"{headline.says}{needed}", seen.says, *told), power)


def _decide_above(evidence: Evidence, reasons: tuple[str, ...]) -> _Decision:
    """The headline rung stands above everything; what can still be in the way of a plain A."""
    rung = evidence.rung(evidence.headline)
    if rung is None or rung.decoder_known is not False:
        known = "was trained on" if rung is not None and rung.decoder_known else "may have been trained on"
        said = f"no plain A: the decoder {known} these tasks' demonstrations, so recall cannot be told from inference"
        return _undecided(5, (said, *reasons), "decoder_known")
    if evidence.loss is None or evidence.loss.constant_sufficed is not True:
        said = "the learned constant context was not shown to be trained enough, so this null may be too weak"
        return _undecided(5, (said, *reasons), "controls")
    return (
        "A",
        5,
        (f"above every null and above the useful {percent(USEFUL)}: {reasons[0]}", *reasons[1:]),
        NEXT_STEPS["A"],
    )


def _undecided(question: int, reasons: tuple[str, ...], key: str, first: tuple[Step, ...] = ()) -> _Decision:
    return "UNDECIDED", question, reasons, (*first, *NEXT_STEPS[f"UNDECIDED.{key}"])


def _named(invalid: list[Check], rest: list[Check]) -> tuple[str, ...]:
    """A sentence for each check that fails or that alone is in the way; the others that are open in one sentence."""
    shown = [c for c in rest if c.ok is False] if invalid else rest
    hidden = [c.name for c in rest if c not in shown]
    summary = (f"also not evaluated: {', '.join(hidden)}",) if hidden else ()
    return (*(sentence(c) for c in (*invalid, *shown)), *summary)


def _c_steps(evidence: Evidence) -> tuple[Step, ...]:
    """The oracle comes first where it has not shown that demonstrations suffice to find a working context."""
    return NEXT_STEPS["C"] if steerable(evidence.oracle_demos) else (*NEXT_STEPS["C.not_steerable"], *NEXT_STEPS["C"])


def _would_decide(evidence: Evidence) -> str:
    rung = evidence.rung(evidence.headline)
    if rung is None or rung.tasks_needed is None:
        return "how many tasks would decide was not computed"
    return f"{rung.score.tasks} tasks cannot decide, about {rung.tasks_needed} would"


def _known(evidence: Evidence) -> tuple[str, ...]:
    """One sentence for each rung whose tasks the decoder knows, or may know."""
    words = {
        True: "the decoder was trained on these tasks' demonstrations",
        None: "whether the decoder knows these tasks is not on record",
    }
    unseen = [r for r in evidence.rungs if r.name != "seen_task" and r.decoder_known is not False]
    return tuple(f"{r.name} carries decoder_known: {words[r.decoder_known]}" for r in unseen)


def _remedies(checks: list[Check]) -> tuple[Step, ...]:
    return tuple(Step(f"{c.name}: {c.detail}", c.remedy, c.hypothesis) for c in checks)


def _confidence(evidence: Evidence, scenario: Scenario) -> Confidence:
    """How much would have to change for another answer: seeds, distance of the interval from the threshold, oracles."""
    if scenario == "UNDECIDED":
        return "none"
    if scenario == "INVALID":
        return "high"
    if scenario == "B":
        return "high" if evidence.gradient.state == "blocked" else "moderate"
    rung = evidence.rung(evidence.headline)
    if rung is None:
        return "low"
    low, high = rung.score.ci95
    strongest = max([USEFUL, *(rate(null) for null in rung.nulls.values())])
    far = low > 2 * strongest if scenario == "A" else high < USEFUL / 2 and steerable(evidence.oracle_demos) is True
    return "high" if far and evidence.seeds >= 3 else "moderate" if far or evidence.seeds >= 3 else "low"


def exit_code(verdicts: Mapping[str, Verdict], gates_failed: bool) -> int:
    """11 if an arm is INVALID, else 10 if one is UNDECIDED, else pytest's own 1 (a gate failed) or 0."""
    scenarios = {verdict.scenario for verdict in verdicts.values()}
    if "INVALID" in scenarios:
        return EXIT_INVALID
    if "UNDECIDED" in scenarios:
        return EXIT_UNDECIDED
    return 1 if gates_failed else 0


def to_json(verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    """verdict.json, schema 1 (docs/verdict.md). Raises EvaluationError if the result does not fit its own schema."""
    document = {"schema": SCHEMA, "arms": {arm: _arm_json(verdict) for arm, verdict in verdicts.items()}}
    validate_json(document)
    return document


def _arm_json(verdict: Verdict) -> dict[str, Any]:
    evidence = verdict.evidence
    return {
        "scenario": verdict.scenario,
        "question": {"number": verdict.question, "name": QUESTIONS[verdict.question]},
        "reasons": list(verdict.reasons),
        "confidence": verdict.confidence,
        "headline_rung": evidence.headline,
        "rungs": {name: _rung_json(evidence, name) for name in RUNGS[evidence.arm]},
        "gradient": evidence.gradient.state,
        "gradient_place": evidence.gradient.place,
        "metrics": plain_json(evidence.metrics),
        "hypotheses": plain_json({name: asdict(h) for name, h in verdict.hypotheses.items()}),
        "budget": plain_json(asdict(evidence.budget)) if evidence.budget else {},
        "next_steps": [asdict(step) for step in verdict.next_steps],
        "certificate": asdict(evidence.certificate) if evidence.certificate else None,
        "checks": [asdict(c) for c in verdict.checks],
        "seed_reading": [row.to_json() for row in seed_reading(evidence.metrics)],
        "evidence": evidence.to_json(),
    }


def _rung_json(evidence: Evidence, name: str) -> dict[str, Any]:
    """A rung that was not evaluated has n = 0, the interval [0, 1] and the reading 'missing'."""
    rung, reading = evidence.rung(name), read_rung(evidence, name)
    if rung is None:
        empty: dict[str, Any] = {"k": 0, "n": 0, "tasks": 0, "ci95": [0.0, 1.0], "null": {"k": 0, "n": 0}, "nulls": {}}
        return empty | {"decoder_known": None, "chance_nominal": None, "searched": None, "reading": reading.word}
    mismatched = rung.nulls.get("mismatched")
    score: dict[str, Any] = plain_json(asdict(rung.score))
    return score | {
        "null": {"k": mismatched.k, "n": mismatched.n} if mismatched else {"k": 0, "n": 0},
        "nulls": plain_json({null: asdict(m) for null, m in rung.nulls.items()}),
        "decoder_known": rung.decoder_known,
        "chance_nominal": rung.chance_nominal,
        "searched": plain_json(asdict(rung.searched)) if rung.searched else None,
        "reading": "above (decoder_known)"
        if reading.word == "above" and rung.decoder_known is not False
        else reading.word,
    }

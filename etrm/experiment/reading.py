"""What one piece of evidence says by itself: a rung against its nulls, the loss against its controls, the oracles.

Notable: each function returns its word together with the sentence that carries the numbers, so the verdict never
restates a number that it did not read. "below" does not need a low rate: demonstrations whose lift over some null is
shown to be under the useful 2 points are as useless as a rate under 2 %.
"""

from dataclasses import dataclass
from typing import Literal

from etrm.experiment.checks import CHECK_RULES, Check, check
from etrm.experiment.evidence import (
    ALPHA,
    MAX_WARMUP_SHARE,
    MINIMAL_NULLS,
    USEFUL,
    Evidence,
    LossEvidence,
    NullEvidence,
    OracleEvidence,
    RungEvidence,
    Score,
)

NOT_THE_ENCODER = "'encoder too weak' may not be concluded"
RungWord = Literal["above", "below", "undecided", "missing"]


def percent(rate: float) -> str:
    """A rate in [0, 1] as a percentage, with a decimal only near the ends, where it matters."""
    text = f"{100 * rate:.0f}" if 0.1 <= rate <= 0.99 else f"{100 * rate:.1f}".removesuffix(".0")
    return f"{text} %"


def rate(counted: Score | NullEvidence) -> float:
    """k / n; 0.0 where nothing was evaluated (callers ask `n` first)."""
    return counted.k / counted.n if counted.n else 0.0


def count_text(score: Score) -> str:
    """'307 of 512 exact over 40 tasks (60 %, 95 % interval 55 % to 65 %)'."""
    low, high = score.ci95
    return (
        f"{score.k} of {score.n} exact over {score.tasks} tasks "
        f"({percent(rate(score))}, 95 % interval {percent(low)} to {percent(high)})"
    )


@dataclass(frozen=True)
class RungReading:
    """`word` answers question 5; `beats_every_null` (None: some null is missing or untested) answers question 4."""

    name: str
    word: RungWord
    beats_every_null: bool | None
    says: str


def beats(rung: RungEvidence, null: NullEvidence) -> bool | None:
    """Is the rung's rate above this null, paired where a paired interval is given? None: it could not be tested."""
    if null.n == 0 or null.p is None:
        return None
    clear = null.lift_ci95[0] > 0 if null.lift_ci95 is not None else rung.score.ci95[0] > rate(null)
    return null.p < ALPHA and clear


def read_rung(evidence: Evidence, name: str) -> RungReading:
    """One rung against every required null and the useful level."""
    rung = evidence.rung(name)
    if rung is None:
        return RungReading(name, "missing", None, f"{name} was not evaluated")
    required = tuple(dict.fromkeys((*MINIMAL_NULLS, *evidence.required_nulls)))
    answers = {null: beats(rung, rung.nulls[null]) if null in rung.nulls else None for null in required}
    answers |= {null: beats(rung, measured) for null, measured in rung.nulls.items()}
    lost = [null for null, won in answers.items() if won is False]
    untested = [null for null, won in answers.items() if won is None]
    beats_all = False if lost else None if untested else True
    low, high = rung.score.ci95
    small_lift = [null for null, m in rung.nulls.items() if m.lift_ci95 is not None and m.lift_ci95[1] < USEFUL]
    word: RungWord = "undecided"
    if high < USEFUL or small_lift:
        word = "below"
    elif beats_all and low > USEFUL:
        word = "above"
    return RungReading(name, word, beats_all, _rung_sentence(rung, lost, untested, small_lift))


def _rung_sentence(rung: RungEvidence, lost: list[str], untested: list[str], small_lift: list[str]) -> str:
    parts = [f"{rung.name}: {count_text(rung.score)}"]
    if rung.nulls:
        best = max(rung.nulls, key=lambda name: rate(rung.nulls[name]))
        shown = list(dict.fromkeys([name for name in ("mismatched", best) if name in rung.nulls]))
        counts = [f"{name} {rung.nulls[name].k} of {rung.nulls[name].n}" for name in shown]
        parts.append("nulls " + ", ".join(counts))
    if lost:
        parts.append("above none of its nulls" if len(lost) == len(rung.nulls) > 1 else "not above " + ", ".join(lost))
    if untested:
        parts.append("not tested against " + ", ".join(untested))
    if not lost and not untested:
        parts.append(f"above every null ({len(rung.nulls)} of {len(rung.nulls)})")
    if small_lift and rung.score.ci95[1] >= USEFUL:
        parts.append(f"adds less than the useful {percent(USEFUL)} over {', '.join(small_lift)}")
    return "; ".join(parts)


LossWord = Literal["unmeasured", "flat", "ignored", "uses demonstrations", "falls"]


def read_loss(loss: LossEvidence | None) -> tuple[LossWord, str]:
    """Question 3. 'falls': it falls, but a control is missing, so it cannot be told what makes it fall."""
    if loss is None or loss.probe_start is None or loss.probe_end is None or loss.p_decrease is None:
        return "unmeasured", "the loss on the fixed probe set was not measured"
    moved = (
        f"probe loss {loss.probe_start:.3g} to {loss.probe_end:.3g} nats (paired by task, p = {loss.p_decrease:.2g})"
    )
    if not (loss.probe_end < loss.probe_start and loss.p_decrease < ALPHA):
        return "flat", f"{moved}: it does not fall"
    controls = (
        ("the best constant context", loss.constant_context_loss, loss.p_below_constant),
        ("mismatched demonstrations", loss.mismatched_loss, loss.p_below_mismatched),
    )
    for name, control, p in controls:
        if (
            loss.own_loss is not None
            and control is not None
            and p is not None
            and not (loss.own_loss < control and p < ALPHA)
        ):
            return "ignored", (
                f"{moved}, but no further than {name}: {loss.own_loss:.3g} against {control:.3g} nats (p = {p:.2g}); "
                "the context is ignored"
            )
    missing = [name for name, control, p in controls if control is None or p is None]
    if loss.own_loss is None or missing:
        return "falls", f"{moved}; not compared with {' and '.join(missing) or 'any control'}"
    return "uses demonstrations", (
        f"{moved}; {loss.own_loss:.3g} nats with its own demonstrations against {loss.constant_context_loss:.3g} with "
        f"the best constant context and {loss.mismatched_loss:.3g} with mismatched ones"
    )


def steerable(oracle: OracleEvidence | None) -> bool | None:
    """True: shown; False: *not shown* (which is never "impossible"); None: the oracle was not run."""
    return None if oracle is None or oracle.score.n == 0 else oracle.score.ci95[0] > USEFUL


def oracle_text(evidence: Evidence) -> str:
    """Question 4's second half: what may be blamed on the encoder, in the only words the oracles allow."""
    many, demos = evidence.oracle_many, evidence.oracle_demos
    parts = [_one_oracle("many labelled pairs", many), _one_oracle("demonstrations only", demos)]
    if steerable(demos):
        parts.append(
            "demonstrations suffice to find a working context: what is missing is in the encoder or its training"
        )
    elif steerable(many):
        parts.append("a working context exists, but so few pairs were not shown to suffice to find it")
        parts.append(NOT_THE_ENCODER)
    else:
        parts.append(NOT_THE_ENCODER)
    return "; ".join(parts)


def _one_oracle(form: str, oracle: OracleEvidence | None) -> str:
    if oracle is None or oracle.score.n == 0:
        return f"oracle ({form}) was not run"
    score, word = oracle.score, "steerable" if steerable(oracle) else "not shown steerable"
    counts = f"{oracle.solved} of {score.tasks} tasks, {score.k} of {score.n} exact, {oracle.restarts} restarts"
    return f"oracle ({form}): {word}: {counts}"


def validity_checks(evidence: Evidence) -> tuple[Check, ...]:
    """In rule order, the worse of reported and recomputed; a required check that nobody reported is `ok=None`."""
    reported = {c.name: c for c in evidence.validity}
    for derived in _derived(evidence):
        own = reported.get(derived.name)
        if own is None or _badness(derived) > _badness(own):
            reported[derived.name] = derived
    needed = [name for name in CHECK_RULES if name != "certificate" or needs_certificate(evidence)]
    ordered = [reported.pop(name) if name in reported else check(name, None, "it was not reported") for name in needed]
    return (*ordered, *reported.values())


def needs_certificate(evidence: Evidence) -> bool:
    """Not for its own encoder on its own benchmark: that run is how the instrument earns its certificate."""
    return evidence.arm == "arc" or evidence.user_encoder


def _badness(c: Check) -> int:
    return 2 if c.ok is False else 1 if c.ok is None else 0


def _derived(evidence: Evidence) -> list[Check]:
    """Checks that follow from numbers already in the evidence, so that a report cannot contradict them."""
    found = []
    budget = evidence.budget
    held = evidence.certificate
    if needs_certificate(evidence):
        said = "there is none for this machine and commit" if held is None else f"{held.date}, commit {held.commit}"
        found.append(check("certificate", None if held is None else True, said))
    if budget is None:
        return found
    updates = f"{budget.executed_updates} of {budget.planned_updates} updates"
    counts = f"{updates}, {budget.distinct_episodes} of {budget.planned_episodes} distinct episodes"
    whole = budget.executed_updates == budget.planned_updates and budget.distinct_episodes >= budget.planned_episodes
    if budget.early_stop:
        found.append(check("budget", None, f"stopped on purpose after {counts}: {budget.early_stop}"))
    elif not whole:
        found.append(check("budget", False, f"{counts} were executed"))
    reached = "reached" if budget.lr_reached_base else "never reached"
    in_order = budget.lr_reached_base and budget.warmup_share <= MAX_WARMUP_SHARE
    said = f"warm-up took {percent(budget.warmup_share)} and the rate {reached} its base"
    if not in_order or not budget.early_stop:
        found.append(check("schedule", in_order, said))
    return found

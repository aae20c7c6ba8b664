"""The verdict at a glance: the five questions with where it was decided, and the key figures as tiles.

Notable: a tile never shows a rate without its count, its interval and the null that comes nearest.
"""

from dataclasses import dataclass

from etrm.experiment.evidence import RUNGS, OracleEvidence
from etrm.experiment.panel import DEPTH
from etrm.experiment.reading import percent, rate, read_rung
from etrm.experiment.report.figures import NULL_NAMES
from etrm.experiment.verdict import QUESTIONS, Verdict

ASKED = {
    1: ("valid?", "Is the experiment in order?"),
    2: ("gradient?", "Does the loss reach the whole encoder?"),
    3: ("learns?", "Does the loss fall, further than without demonstrations?"),
    4: ("fits?", "Does it solve the tasks it was trained on?"),
    5: ("transfers?", "Does it solve tasks it has never seen?"),
}
HEADLINE = {
    "A": "It learns",
    "B": "It is stuck",
    "C": "It trains, but does not transfer",
    "INVALID": "The experiment is not in order",
    "UNDECIDED": "It cannot be told yet",
}


@dataclass(frozen=True)
class Question:
    """One of the five. `state`: yes, no, open (it decided: not answerable) or unasked."""

    number: int
    short: str
    asks: str
    state: str


@dataclass(frozen=True)
class Tile:
    """One key figure: label, value in large type, what it consists of, what it is compared with. `tone` as `state`."""

    label: str
    value: str
    detail: str
    compared: str
    tone: str


def questions(verdict: Verdict) -> list[Question]:
    """The five questions; those before the deciding one were answered well."""
    decided = {"A": "yes", "B": "no", "C": "no", "INVALID": "no", "UNDECIDED": "open"}[verdict.scenario]
    states = {n: "yes" if n < verdict.question else "unasked" for n in QUESTIONS} | {verdict.question: decided}
    return [Question(n, *ASKED[n], states[n]) for n in QUESTIONS]


def tiles(verdict: Verdict) -> list[Tile]:
    """Gradient, loss, each rung of the arm, ceilings."""
    evidence = verdict.evidence
    state = evidence.gradient.state
    shown = [
        Tile(
            "gradient",
            state or "not measured",
            evidence.gradient.place or evidence.gradient.detail,
            "every parameter, sample and token must get one",
            {"intact": "yes", None: "open"}.get(state, "no"),
        ),
        _loss_tile(verdict),
        *(_rung_tile(verdict, name) for name in RUNGS[evidence.arm]),
    ]
    own = evidence.positive_control
    oracles = f"oracle: many pairs {_oracle(evidence.oracle_many)}, demonstrations {_oracle(evidence.oracle_demos)}"
    ceiling = Tile("ceiling", "not run", "", oracles, "open")
    if own is not None and own.n:
        detail = f"{own.k} of {own.n} with the decoder's own contexts"
        ceiling = Tile("ceiling", percent(rate(own)), detail, oracles, "plain")
    return [*shown, ceiling]


def _loss_tile(verdict: Verdict) -> Tile:
    loss = verdict.evidence.loss
    if loss is None or loss.probe_start is None or loss.probe_end is None:
        return Tile("probe loss", "not measured", "", "", "open")
    controls = [
        f"{name} {value:.3g}"
        for name, value in (("best constant", loss.constant_context_loss), ("mismatched", loss.mismatched_loss))
        if value is not None
    ]
    falls = loss.p_decrease is not None and loss.p_decrease < 0.05 and loss.probe_end < loss.probe_start
    p = "" if loss.p_decrease is None else f"p = {loss.p_decrease:.2g}, paired by task"
    value = f"{loss.probe_start:.3g} → {loss.probe_end:.3g}"
    return Tile("probe loss, nats", value, p, ", ".join(controls) or "no control was run", "yes" if falls else "no")


def _rung_tile(verdict: Verdict, name: str) -> Tile:
    rung = verdict.evidence.rung(name)
    label = name.replace("_", " ")
    if rung is None:
        return Tile(label, "not evaluated", DEPTH[name], "", "open")
    low, high = (percent(v) for v in rung.score.ci95)
    detail = f"{rung.score.k} of {rung.score.n}, 95 % interval {low} to {high}, {rung.score.tasks} tasks"
    if rung.decoder_known and name != "seen_task":
        detail += "; the decoder knows these tasks"
    measured = {null: m for null, m in rung.nulls.items() if m.n}
    compared = "no null was measured"
    if measured:
        best = max(measured, key=lambda null: rate(measured[null]))
        compared = f"nearest null: {NULL_NAMES.get(best, best)}, {percent(rate(measured[best]))}"
    tone = {"above": "yes", "below": "no"}.get(read_rung(verdict.evidence, name).word, "open")
    return Tile(label, percent(rate(rung.score)), detail, compared, "plain" if verdict.scenario == "INVALID" else tone)


def _oracle(oracle: OracleEvidence | None) -> str:
    return "not run" if oracle is None else f"{oracle.solved} of {oracle.score.tasks} tasks"

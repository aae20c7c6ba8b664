"""The key figures of a verdict as tiles.

Notable: a tile never shows a rate without its count, its interval and the null that comes nearest.
"""

from dataclasses import dataclass

from etrm.experiment.evidence import RUNGS, OracleEvidence
from etrm.experiment.reading import percent, rate, read_rung
from etrm.experiment.verdict import Verdict
from etrm.experiment.wording import DEPTH, NULL_NAMES


@dataclass(frozen=True)
class Tile:
    """One key figure: label, value in large type, its parts, what it is compared with. `tone`: yes, no, open, plain."""

    label: str
    value: str
    detail: str
    compared: str
    tone: str


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

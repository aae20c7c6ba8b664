"""Which hypothesis each piece of evidence belongs to, and where each hypothesis H1..H7 stands after one run.

Notable: a hypothesis says "this is what holds the encoder back". `supported`: something that belongs to it failed.
`refuted`: everything that belongs to it was measured and is in order. `open`: not (all) measured, or not tellable.
Two healthy things never refute H7 by themselves: an encoder is only cleared by an A.
"""

from dataclasses import dataclass
from typing import Literal

from etrm.experiment.checks import Check
from etrm.experiment.evidence import Evidence
from etrm.experiment.reading import oracle_text, read_loss, steerable

Status = Literal["supported", "refuted", "open"]

HYPOTHESES = {
    "H1": "the decoder is not loaded as it was trained",
    "H2": "the gradient does not reach the whole encoder",
    "H3": "the context has the wrong shape, scale or number of active tokens",
    "H4": "learning rate, warm-up or budget",
    "H5": "the dataset and its splits",
    "H6": "the evaluator and its power",
    "H7": "the encoder's capacity",
}


@dataclass(frozen=True)
class HypothesisStatus:
    """One hypothesis with its evidence, one sentence each."""

    status: Status
    evidence: tuple[str, ...]


def attribute(evidence: Evidence, checks: tuple[Check, ...], scenario: str) -> dict[str, HypothesisStatus]:
    """Every hypothesis with status and evidence, H1 to H7 in order."""
    marks: dict[str, list[tuple[bool | None, str]]] = {
        name: [] for name in HYPOTHESES
    }  # True: speaks for it, None: cannot tell
    for c in checks:
        word = {True: "holds", False: "fails", None: "could not be evaluated"}[c.ok]
        marks[c.hypothesis].append((None if c.ok is None else not c.ok, f"{c.name} {word}: {c.detail}"))
    state = evidence.gradient.state
    marks["H2"].append(
        (
            None if state is None else state != "intact",
            f"gradient {state or 'not measured'}: {evidence.gradient.detail}",
        )
    )
    word, says = read_loss(evidence.loss)
    # a flat loss supports H4 only where the gradient is known to be intact; a blocked one would be flat too
    against_h4 = {"flat": True if state == "intact" else None, "uses demonstrations": False}.get(word)
    marks["H4"].append((against_h4, says))
    for finding in evidence.findings:
        low, high = ("any" if bound is None else f"{bound:.3g}" for bound in (finding.low, finding.high))
        marks[finding.hypothesis].append(
            (not finding.healthy, f"{finding.name} = {finding.value:.3g} (expected {low} to {high}): {finding.detail}")
        )
    marks["H7"].append(
        ({"A": False, "C": True if steerable(evidence.oracle_demos) else None}.get(scenario), oracle_text(evidence))
    )
    return {name: HypothesisStatus(_status(own), tuple(text for _, text in own)) for name, own in marks.items()}


def _status(marks: list[tuple[bool | None, str]]) -> Status:
    words = [word for word, _ in marks]
    if True in words:
        return "supported"
    return "refuted" if words and None not in words else "open"

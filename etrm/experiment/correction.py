"""p-values of several rungs against the same null, corrected by Holm's method: three rungs asked are three tests."""

from collections.abc import Sequence
from dataclasses import replace

from etrm.evaluation.statistics import holm
from etrm.experiment.evidence import RungEvidence


def corrected_over_rungs(rungs: Sequence[RungEvidence]) -> tuple[RungEvidence, ...]:
    """The rungs with each null's p corrected over the rungs that were tested against it; untested ones stay None."""
    names = dict.fromkeys(name for rung in rungs for name in rung.nulls)
    held: dict[str, dict[str, float]] = {}
    for name in names:
        tested = {r.name: r.nulls[name].p for r in rungs if name in r.nulls}
        held[name] = holm({rung: p for rung, p in tested.items() if p is not None})
    return tuple(
        replace(r, nulls={n: replace(null, p=held[n].get(r.name)) for n, null in r.nulls.items()}) for r in rungs
    )

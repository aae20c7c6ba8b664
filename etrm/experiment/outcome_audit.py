"""Are the numbers of the outcome those of the trained encoder? Scores, losses and lifts beside a second reading.

After training every rung is answered once more by etrm.experiment.second_reading, with the weights of this moment.
Cached answers, exchanged weights, a null that compares something with itself or a difference taken the wrong way round
leave a gap.

Legend: N queries.
"""

import numpy as np

from etrm.config.schema import RunConfig
from etrm.data.grids import IGNORE
from etrm.experiment.arms import Arm, Rung
from etrm.experiment.checks import Check, check
from etrm.experiment.evidence import LossEvidence, RungEvidence
from etrm.experiment.second_reading import Reading, direct_contexts, read
from etrm.models.etrm import ETRM

COUNT = 0.01  # share of the queries that rounding may answer otherwise
NATS = 0.02  # relative
LIFT = 0.05  # a rate's difference may lie so far outside of its interval: tasks may have unequal numbers of queries
SPREAD = 2.0  # planned distances between two evaluations that one gap of a run may span


def outcome_check(
    config: RunConfig, arm: Arm, model: ETRM, steps: int, loss: LossEvidence, rungs: tuple[RungEvidence, ...]
) -> Check:
    """`outcome_true`. `steps`: ACT steps of the bundle's structure."""

    def reading(rung: Rung) -> Reading:
        size, kind = config.evaluation.batch_size, config.loss.cross_entropy
        return read(model.decoder, steps, rung.batch, direct_contexts(model, rung.batch, size), kind, size)

    probe = float(reading(arm.probe).loss.mean())
    faults = []
    if loss.probe_end is None or not abs(loss.probe_end - probe) <= NATS * probe + 1e-3:
        faults.append(f"probe loss is {loss.probe_end}, read again {probe:.4g}")
    for rung, found in zip(arm.rungs, rungs, strict=False):
        faults += _rung_faults(rung, found, reading(rung))
    said = f"{sum(r.score.n for r in rungs)} answers and the probe's losses read a second time"
    return check("outcome_true", not faults, "; ".join(faults[:3]) or said)


def _rung_faults(rung: Rung, found: RungEvidence, mine: Reading) -> list[str]:
    faults = []
    again, count = int(mine.exact.sum()), len(mine.exact)
    if abs(again - found.score.k) > max(1.0, COUNT * count) or count != found.score.n:
        faults.append(f"{rung.name}: {found.score.k} of {found.score.n} exact, read again {again} of {count}")
    copied = int(((rung.batch.inputs == rung.batch.labels) | (rung.batch.labels == IGNORE)).all(axis=1).sum())
    null = found.nulls.get("copy_input")
    if null is not None and null.k != copied:
        faults.append(f"{rung.name}: copying the input answers {null.k}, counted again {copied}")
    own = found.score.k / found.score.n
    for name, other in found.nulls.items():
        if other.lift_ci95 is None:
            continue
        low, high = other.lift_ci95
        if not low - LIFT <= own - other.k / other.n <= high + LIFT:
            faults.append(f"{rung.name}: {own - other.k / other.n:+.1%} over {name} lies outside of its own interval")
    return faults


def spread_faults(points: list[int], total: int, evaluations: int) -> list[str]:
    """Are the run's evaluations spread over it? Two at its very end show no plateau."""
    gaps = np.diff([0, *points])
    allowed = SPREAD * total / max(1, min(evaluations, total)) + 1
    return [f"no evaluation for {gaps.max()} of {total} updates"] if len(gaps) and gaps.max() > allowed else []

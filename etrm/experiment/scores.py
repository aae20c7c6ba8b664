"""From answers to rung evidence: own score with its interval by task, and every null on the same queries.

Legend: N queries, G tasks.
"""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import torch

from etrm.config.schema import RunConfig
from etrm.data.episodes import Batch
from etrm.evaluation import controls
from etrm.evaluation.controls import Answers, answer, contexts_of
from etrm.evaluation.plan import tasks_needed
from etrm.evaluation.statistics import RungResult, nominal_chance, null_p, rung_result, task_differences
from etrm.experiment.arms import Rung
from etrm.experiment.evidence import NullEvidence, RungEvidence, Score
from etrm.models.etrm import ETRM

USEFUL = 0.02  # the seed's threshold of a useful pass@1


def task_means(values: np.ndarray, batch: Batch) -> np.ndarray:
    """Mean of per-query values (N,) for each task that occurs, (G,)."""
    return np.array([values[batch.task == t].mean() for t in np.unique(batch.task)])


def result_of(name: str, exact: np.ndarray, rung: Rung) -> RungResult:
    """k of n by task for a rung's queries."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for task, right in zip(rung.batch.task, exact, strict=True):
        counts[rung.task_ids[task]][0] += int(right)
        counts[rung.task_ids[task]][1] += 1
    return rung_result(name, {t: (k, n) for t, (k, n) in counts.items()})


def score_of(name: str, found: Answers, rung: Rung) -> Score:
    """The score of answers to a rung's queries."""
    result = result_of(name, found.exact, rung)
    return Score(result.k, result.n, result.tasks, result.ci95)


FEW = 6  # tasks that differ; with fewer, resampling them pretends to know more than was seen


def lift(own: RungResult, null: RungResult) -> tuple[float, float] | None:
    """95 % interval of own rate minus the null's: resampled by task, or, where hardly a task differs, from the two
    rates' own intervals (0 of 61 against 0 of 61 shows no lift of zero).
    """
    gaps = task_differences(own, null)
    if gaps is None:
        return None
    if np.count_nonzero(gaps) < FEW:
        return own.ci95[0] - null.ci95[1], own.ci95[1] - null.ci95[0]
    rng = np.random.default_rng(0)
    drawn = rng.choice(gaps, size=(4000, len(gaps))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


SAME = 1e-5  # of the table's deviation: contexts closer than this are one context


def reads_nothing(contexts: torch.Tensor, model: ETRM) -> bool:
    """Whether every query gets one and the same context (N, T, D), whatever its demonstrations."""
    spread = (contexts - contexts[:1]).abs().amax(dim=(0, 2))  # (T,)
    return bool((spread <= SAME * model.spec.context_std.to(spread)).all())


def rung_evidence(
    rung: Rung, model: ETRM, untrained: ETRM, constant: torch.Tensor, config: RunConfig, side: int
) -> RungEvidence:
    """Answer a rung's queries with the trained encoder and with every null."""
    size, kind, batch = config.evaluation.batch_size, config.loss.cross_entropy, rung.batch
    own_contexts = contexts_of(model, batch, size)
    own = result_of(rung.name, answer(model.decoder, batch, own_contexts, size, kind).exact, rung)
    exact = {
        name: answer(model.decoder, batch, contexts(), size, kind).exact
        for name, contexts in controls.null_contexts(
            model, untrained, constant, batch, size, config.system.seed
        ).items()
    }
    exact |= {"copy_input": controls.copy_input(batch), "best_dihedral": controls.best_dihedral(batch, side)}
    nulls = {name: result_of(name, found, rung) for name, found in exact.items()}
    evidence = {
        name: NullEvidence(null.k, null.n, null_p(own, [null]), lift(own, null)) for name, null in nulls.items()
    }
    if reads_nothing(own_contexts, model):
        # One context for all tasks: mismatched demonstrations are the same system, so the lift is zero, not sampled.
        evidence["mismatched"] = replace(evidence["mismatched"], lift_ci95=(0.0, 0.0))
    needed = tasks_needed(own, USEFUL, list(nulls.values()))
    score = Score(own.k, own.n, own.tasks, own.ci95)
    return RungEvidence(rung.name, score, evidence, rung.known, nominal_chance(own.tasks), needed)

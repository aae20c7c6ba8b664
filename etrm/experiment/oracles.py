"""The two oracles of an arm: free contexts optimised through the frozen decoder, on many labelled pairs and on
demonstrations only.

Restarts begin at the table's mean and at a random table row; the one that fits its own pairs better is kept. The
queries that score an oracle are never among the pairs that fit it.
"""

import numpy as np
import torch

from etrm.config.schema import RunConfig
from etrm.data.episodes import Batch
from etrm.evaluation.controls import answer, oracle
from etrm.experiment.arms import Arm, Rung
from etrm.experiment.evidence import OracleEvidence, Score
from etrm.experiment.scores import result_of
from etrm.models.bundle import Bundle
from etrm.models.trm import table_context

RESTARTS = 2
SOLVED = 0.5  # share of a task's queries from which it counts as steered


def measure_oracles(arm: Arm, bundle: Bundle, config: RunConfig) -> tuple[OracleEvidence | None, OracleEvidence | None]:
    """(many labelled pairs, demonstrations only); None where the arm defines no such pairs."""
    return _measure(arm, bundle, config, arm.oracle_many), _measure(arm, bundle, config, arm.oracle_demos)


def _measure(arm: Arm, bundle: Bundle, config: RunConfig, sets: tuple[Batch, Batch] | None) -> OracleEvidence | None:
    if sets is None:
        return None
    pairs, queries = sets
    tasks = len(np.unique(pairs.task))
    per_task = len(pairs) // tasks
    rng = np.random.default_rng(config.system.seed)
    rows = torch.from_numpy(rng.integers(len(bundle.table), size=tasks))
    starts = (bundle.context_mean.expand(tasks, -1, -1), table_context(bundle.table[rows], bundle.structure))
    kind, updates = config.loss.cross_entropy, config.evaluation.oracle_updates
    tried = [oracle(bundle.decoder, start, pairs, per_task, updates, kind, config.system.seed) for start in starts]
    better = torch.from_numpy(tried[1][1] < tried[0][1]).view(-1, 1, 1)
    context = torch.where(better, tried[1][0], tried[0][0])  # (G, T, D)
    owner = torch.from_numpy(queries.task)
    found = answer(bundle.decoder, queries, context[owner], config.evaluation.batch_size, kind)
    rung = Rung("oracle", queries, arm.rungs[-1].task_ids, False)
    result = result_of("oracle", found.exact, rung)
    solved = sum(k >= SOLVED * n for k, n in result.per_task)
    return OracleEvidence(solved, Score(result.k, result.n, result.tasks, result.ci95), RESTARTS)

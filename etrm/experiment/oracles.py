"""The two oracles of an arm: free contexts optimised through the frozen decoder, on many labelled pairs and on
demonstrations only.

Restarts begin at the table's mean and at random table rows; of each task the one that fits its own pairs best is kept.
The queries that score an oracle are never among the pairs that fit it. `python -m etrm.experiment.oracles
--config-name cfg_calibration --restarts 8` searches longer than a run does.
"""

import argparse
import sys

import numpy as np
import torch

from etrm.config.compose import load
from etrm.config.schema import RunConfig
from etrm.data.episodes import Batch
from etrm.errors import EtrmError
from etrm.evaluation.controls import answer, oracle
from etrm.experiment.arms import Arm, Rung, build_arm
from etrm.experiment.evidence import OracleEvidence, Score
from etrm.experiment.scores import result_of
from etrm.models.bundle import Bundle, load_bundle
from etrm.models.trm import table_context

RESTARTS = 2
SOLVED = 0.5  # share of a task's queries from which it counts as steered


def measure_oracles(
    arm: Arm, bundle: Bundle, config: RunConfig, restarts: int = RESTARTS
) -> tuple[OracleEvidence | None, OracleEvidence | None]:
    """(many labelled pairs, demonstrations only); None where the arm defines no such pairs or asks for no tasks."""
    sets = (arm.oracle_many, arm.oracle_demos)
    found = [None if s is None or not len(s[1]) else _measure(arm, bundle, config, s, restarts) for s in sets]
    return found[0], found[1]


def _measure(arm: Arm, bundle: Bundle, config: RunConfig, sets: tuple[Batch, Batch], restarts: int) -> OracleEvidence:
    pairs, queries = sets
    tasks = len(np.unique(pairs.task))
    per_task = len(pairs) // tasks
    rng = np.random.default_rng(config.system.seed)
    kind, updates = config.loss.cross_entropy, config.evaluation.oracle_updates
    context = bundle.context_mean.expand(tasks, -1, -1)  # (G, T, D)
    best = np.full(tasks, np.inf)
    start = context
    for restart in range(restarts):
        if restart:
            rows = torch.from_numpy(rng.integers(len(bundle.table), size=tasks))
            start = table_context(bundle.table[rows], bundle.structure)
        found, fit = oracle(bundle.decoder, start, pairs, per_task, updates, kind, config.system.seed + restart)
        context = torch.where(torch.from_numpy(fit < best).view(-1, 1, 1), found, context)
        best = np.minimum(best, fit)
    owner = torch.from_numpy(queries.task)
    answered = answer(bundle.decoder, queries, context[owner], config.evaluation.batch_size, kind)
    rung = Rung("oracle", queries, arm.rungs[-1].task_ids, False)
    result = result_of("oracle", answered.exact, rung)
    solved = sum(k >= SOLVED * n for k, n in result.per_task)
    return OracleEvidence(solved, Score(result.k, result.n, result.tasks, result.ci95), restarts)


def main(arguments: list[str] | None = None) -> int:
    """Measure both oracles of a config's arm and print them."""
    parser = argparse.ArgumentParser(prog="python -m etrm.experiment.oracles", description=__doc__)
    parser.add_argument("--config-name", required=True, help="a file of config/, without .yaml")
    parser.add_argument("--restarts", type=int, default=RESTARTS, help="starts a task, the table's mean first")
    parser.add_argument("overrides", nargs="*", help="key=value")
    options = parser.parse_intermixed_args(arguments)
    if options.restarts < 1:
        parser.error(f"--restarts {options.restarts}: expected at least 1")
    try:
        config = load(RunConfig, options.config_name, options.overrides)
        bundle = load_bundle(config.bundle)
        found = measure_oracles(build_arm(config, bundle), bundle, config, options.restarts)
    except EtrmError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    for form, oracle_found in zip(("many labelled pairs", "demonstrations only"), found, strict=True):
        if oracle_found is None:
            print(f"{form}: not defined on this arm")
            continue
        score = oracle_found.score
        print(
            f"{form}: {oracle_found.solved} of {score.tasks} tasks steered, {score.k} of {score.n} queries exact, "
            f"{oracle_found.restarts} restarts"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

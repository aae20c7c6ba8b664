"""H4 as a sweep on the toy arm: learning rate x warm-up of the default encoder, at an equal number of updates.

Prints a table (`-s` or on failure). Asserted is only what H4 asks: that the default is not far behind the best.
"""

import itertools
from dataclasses import replace

import pytest

from etrm.config.compose import load
from etrm.config.schema import RunConfig
from etrm.experiment.arms import build_arm
from etrm.experiment.leaderboard import train_cell
from etrm.models.bundle import load_bundle

pytestmark = [pytest.mark.sweep, pytest.mark.slow]

UPDATES = 300
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)
WARMUPS = (0, 20, 60)
SLACK = 0.25  # nats a token of validation loss that the default may lie above the best of the grid


def test_the_default_rate_and_warmup_are_near_the_best_of_the_grid(tmp_path):
    config = load(RunConfig, "cfg_micro", [f"budget.updates={UPDATES}"])
    bundle = load_bundle(config.bundle)
    arm = build_arm(config, bundle)
    found = {}
    for lr, warmup in itertools.product(RATES, WARMUPS):
        own = replace(config, optim=replace(config.optim, lr=lr, warmup_updates=warmup))
        found[lr, warmup] = train_cell(own, bundle, arm, tmp_path)
    own = train_cell(config, bundle, arm, tmp_path)
    table = [f"lr {lr:g}, warm-up {w}: {r.validation} {r.validation_loss:.2f}" for (lr, w), r in found.items()]
    print("\n".join((f"validation (k, n) and loss after {UPDATES} updates", *table)))
    best = min(r.validation_loss for r in found.values())
    assert own.validation_loss <= best + SLACK, (
        f"lr {config.optim.lr:g}, warm-up {config.optim.warmup_updates}: {own.validation_loss:.2f}; " + "; ".join(table)
    )

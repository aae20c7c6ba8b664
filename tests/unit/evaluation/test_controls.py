"""The positive control asks each query with its own row; the constant context is as strong as it can be made in the
run's time, whatever the run's own optimiser.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from etrm.config.compose import load
from etrm.config.schema import RunConfig
from etrm.data.episodes import RuleSource
from etrm.data.families import benchmark
from etrm.errors import DataError
from etrm.evaluation import controls
from etrm.evaluation.controls import constant_context, own_rows
from etrm.experiment.outcome import sufficed
from etrm.models.bundle import load_bundle
from etrm.models.encoders import build_encoder
from etrm.models.etrm import ETRM
from etrm.models.trm import table_context

pytestmark = pytest.mark.fast


def test_each_query_gets_its_own_row_and_one_without_a_row_is_no_silent_last_one() -> None:
    bundle, b = load_bundle("micro"), benchmark("micro-2")
    members = b.split().train[:3]
    queries = RuleSource(members, b, [bundle.row_of(m.id) for m in members]).each(2, np.random.default_rng(0))
    contexts = own_rows(bundle.decoder, bundle.table, queries)
    assert torch.equal(contexts, table_context(bundle.table[queries.row], bundle.structure))
    lacking = replace(queries, row=np.array([0, 0, 1, -1, 2, -1]))
    with pytest.raises(DataError, match="2 of 6 queries have no row"):
        own_rows(bundle.decoder, bundle.table, lacking)


def constant(updates: int, batch_size: int, joins: int = -1, **optim: object) -> tuple[torch.Tensor, list[float]]:
    """The constant context of `micro` after some updates, under a run with these fields of `optim` whose decoder joins
    after `joins` updates (-1: never).
    """
    config, bundle, b = load(RunConfig, "cfg_micro"), load_bundle("micro"), benchmark("micro-2")
    config = replace(config, optim=replace(config.optim, **optim), budget=replace(config.budget, batch_size=batch_size))
    config = replace(config, freeze=replace(config.freeze, decoder_updates=joins))
    model = ETRM(build_encoder(config.encoder, bundle.spec()), bundle.decoder, bundle.spec())
    return constant_context(config, model, RuleSource(b.split().train, b), updates)


@pytest.mark.thorough
def test_the_constant_context_does_not_depend_on_how_the_run_trains_its_encoder() -> None:
    first, losses = constant(3, 8)
    for optim in (
        {"name": "adamw"},
        {"name": "adam_atan2"},
        {"lr": 1e-5, "warmup_updates": 2, "cooldown_share": 0.0, "min_ratio": 0.5},
        {"beta1": 0.5, "beta2": 0.5, "weight_decay": 1.0, "clip_norm": 1e-3},
    ):
        again, found = constant(3, 8, **optim)
        assert torch.equal(again, first) and found == losses, optim
    assert constant(3, 8, joins=100)[1] == losses, "a run whose decoder joins late"


@pytest.mark.thorough
def test_the_constant_contexts_rate_is_near_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last losses after as many updates as the arm gives it: a tenth or ten times the rate leaves it higher."""
    chosen, own = controls.CONSTANT_RATE, constant(50, 64)[1][-1]
    for factor in (0.1, 10.0):
        monkeypatch.setattr(controls, "CONSTANT_RATE", chosen * factor)
        assert constant(50, 64)[1][-1] > own + 0.05, factor


@pytest.mark.parametrize(
    ("curve", "constant", "own", "enough"),
    [
        ([3.0, 2.0, 1.8, 1.8], 1.8, 0.1, True),
        ([3.0, 2.0, 1.8, 1.8], 1.8, 1.5, True),
        ([3.0, 2.0, 1.8, 1.8], 1.8, 1.7, False),  # it fell by 0.2 in the second half, and may again
        ([3.0, 2.0, 2.1, 2.2], 2.2, 2.1, True),
        ([3.0, 2.0, 2.1, 2.2], 2.2, 2.2, False),
        ([1.8], 1.8, 0.1, False),
        ([], 1.8, 0.1, False),
    ],
)
def test_a_constant_context_that_still_falls_towards_the_encoder_was_not_trained_enough(
    curve: list[float], constant: float, own: float, enough: bool
) -> None:
    assert sufficed(curve, constant, own) is enough

"""The oracle's fit, by which its restarts are compared, at any number of updates."""

import numpy as np
import pytest
import torch

from etrm.data.episodes import RuleSource
from etrm.data.families import benchmark
from etrm.evaluation.controls import oracle
from etrm.models.bundle import load_bundle

pytestmark = pytest.mark.fast

TASKS, PAIRS = 2, 3


@pytest.mark.parametrize("updates", [1, 5, 12])
def test_the_fit_is_a_number_however_few_updates(updates: int) -> None:
    bundle = load_bundle("micro")
    rules = benchmark(bundle.provenance.benchmark)
    source = RuleSource(rules.split().validation[:TASKS], rules)
    pairs = source.each(PAIRS, np.random.default_rng(0))
    start = bundle.spec().context_mean.expand(TASKS, -1, -1)
    context, fit = oracle(bundle.decoder, start, pairs, PAIRS, updates, "softmax", 0)
    assert fit.shape == (TASKS,) and np.isfinite(fit).all() and not torch.equal(context, start)

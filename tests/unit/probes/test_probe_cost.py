"""What watching costs: at most three normal steps at the embedded scale, and nothing where no probe is on.

Both sides run in one process, interleaved; the median of the ratios is what is gated. The finite-difference audit,
which repeats the pass by design, is apart. Run with `pytest -m benchmark`.
"""

import statistics
import time

import numpy as np
import pytest
import torch

from etrm import declared
from etrm.config.compose import load
from etrm.config.schema import RunConfig
from etrm.experiment.arms import build_arm
from etrm.models.bundle import load_bundle
from etrm.models.encoders import build_encoder
from etrm.models.etrm import ETRM, Episodes, fresh_carry
from etrm.probes.graph_breaks import observe
from etrm.training.update import LossHead

pytestmark = pytest.mark.benchmark
MOST = 3.0


@pytest.fixture(params=["cfg_micro", "cfg_calibration"])
def step(request):
    config = load(RunConfig, request.param)
    bundle = load_bundle(config.bundle)
    torch.manual_seed(0)
    head = LossHead(ETRM(build_encoder(config.encoder, bundle.spec()), bundle.decoder, bundle.spec()), config.loss)
    head.train()
    head.decoder.eval()
    source = build_arm(config, bundle).source
    new = Episodes.of(source.sample(config.budget.batch_size, np.random.default_rng(0)), torch.device("cpu"))
    generator = torch.Generator()

    def loss():
        generator.manual_seed(0)
        return head(fresh_carry(head.decoder, new), new, 0.1, generator)[2].lm.sum()

    return head, loss


def test_observing_costs_at_most_three_steps(benchmark, step):
    head, loss = step
    trained = list(head.model.encoder.parameters())

    def normal():
        torch.autograd.grad(loss(), trained)

    def observed():
        assert observe(head, loss, frozen=["model.decoder"]).ok

    def seconds(run):
        begun = time.perf_counter()
        run()
        return time.perf_counter() - begun

    for run in (normal, observed, normal):
        run()
    ratios = [seconds(observed) / seconds(normal) for _ in range(9)]
    ratio = statistics.median(ratios)
    benchmark.extra_info["ratio"] = ratio
    benchmark.pedantic(observed, rounds=3)
    assert ratio <= MOST, f"observing costs {ratio:.2f} steps: {[round(r, 2) for r in ratios]}"


def test_off_a_declared_truncation_is_a_plain_detach(benchmark):
    """No probe listens, so `truncate` compares with None and detaches: one function call beside the detach itself."""
    value = torch.zeros(4, requires_grad=True) * 1.0

    def many(call):
        begun = time.perf_counter()
        for _ in range(2000):
            call()
        return time.perf_counter() - begun

    pairs = [(many(lambda: declared.truncate(value, "carry")), many(lambda: value.detach())) for _ in range(9)]
    ratio = statistics.median(a / b for a, b in pairs)
    benchmark.extra_info["ratio"] = ratio
    benchmark(lambda: declared.truncate(value, "carry"))
    assert declared._listener is None
    assert ratio <= MOST, f"a declaration costs {ratio:.2f} plain detaches where nothing listens"

"""Breaks are named with place, samples and tokens; what is meant or harmless is not reported; nothing is left behind.

B batch · T tokens · D features. The full table of kinds and models is tests/experiments/test_graph_break_bank.py.
"""

import gc
import random
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etrm.errors import ProbeError
from etrm.probes.graph_breaks import observe
from etrm.probes.samples import observe_samples

pytestmark = pytest.mark.fast
B, T, D = 4, 3, 6
X = torch.randn(B, T, D, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    """An encoder and a head; `change` is what happens to the context between them."""

    def __init__(self, change=lambda c: c) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.head = nn.Linear(D, D), nn.Linear(D, 1)
        self.change = change

    def losses(self):
        context = self.encoder(X)  # (B, T, D)
        return self.head(torch.tanh(self.change(context))).square().mean((1, 2))

    def loss(self):
        return self.losses().mean()


def rows(*kept):
    mask = torch.zeros(B, 1, 1, dtype=torch.bool)
    mask[list(kept)] = True
    return lambda c: torch.where(mask, c, c.detach())


def tokens(*kept):
    mask = torch.zeros(1, T, 1, dtype=torch.bool)
    mask[:, list(kept)] = True
    return lambda c: torch.where(mask, c, c.detach())


@pytest.mark.parametrize("share", [1e-1, 1e-2])
def test_a_cut_whose_effect_is_near_the_losss_rounding_is_found(share):
    """A hundredth of the value then moves the loss by less than fp32 can show."""
    model = Model(lambda c: c - share * c.detach())
    report = observe(model, lambda: 300.0 + model.loss())
    assert [(item.kind, item.severity) for item in report.findings] == [(".detach()", "weakened")]


def test_a_healthy_model_has_nothing_to_report():
    model = Model()
    report = observe(model, model.loss, optimisers=[torch.optim.SGD(model.parameters())])
    assert report.ok
    assert report.lost == ()
    assert report.forward_passes == 1
    assert set(report.layers()) == {"encoder", "head"}
    assert "No gradient break" in str(report)


def test_the_finding_reads_like_a_traceback():
    model = Model(lambda c: c.detach())
    text = str(observe(model, model.loss))
    line = test_the_finding_reads_like_a_traceback.__code__.co_firstlineno + 1
    assert f'File "{__file__}", line {line}, in ' in text
    assert "model = Model(lambda c: c.detach())" in text
    assert "parameters without gradient: encoder.weight, encoder.bias" in text
    assert "samples that lost their path: 0-3" in text


@pytest.mark.parametrize(("kept", "lost"), [((0, 2), (1, 3)), ((1, 2, 3), (0,))])
def test_samples_that_lost_their_path_are_named(kept, lost):
    model = Model(rows(*kept))
    (finding,) = observe(model, model.loss).findings
    assert (finding.severity, finding.samples, finding.parameters) == ("cut", lost, ())
    cover, report = observe_samples(model.encoder, model.losses)
    assert cover.lost_samples == lost
    assert report.findings[0].kind == ".detach()"


def test_tokens_that_lost_their_path_are_named():
    model = Model(tokens(1))
    (finding,) = observe(model, model.loss).findings
    assert (finding.severity, finding.samples, finding.tokens) == ("cut", (), (0, 2))


def test_a_detach_beside_another_path_is_weakened():
    model = Model(lambda c: c + 0.5 * c.detach())
    (finding,) = observe(model, model.loss).findings
    assert (finding.severity, finding.shape, finding.dtype) == ("weakened", (B, T, D), "float32")


def metric(c):
    seen = [c.detach().abs().mean().item(), c.argmax(-1).tolist(), float(c.detach().numpy().sum())]
    assert len(seen) == 3
    return c


def threshold(c):
    return torch.where(c.detach().mean((1, 2), keepdim=True) > 0, c, 2 * c)


def early_stop(c):
    for _ in range(5):
        new = 0.5 * torch.tanh(c)
        if (new - c).detach().norm() < 1.0:
            break
        c = new
    return c


def guard(c):
    if not bool(torch.isfinite(c).all()):
        raise ValueError("not finite")
    return c


def redundant(c):
    return c + 0.0 * c.detach()


@pytest.mark.parametrize("change", [metric, threshold, early_stop, guard, redundant])
def test_metrics_decisions_and_stopping_rules_are_harmless(change):
    model = Model(change)
    report = observe(model, model.loss)
    assert report.ok, str(report)
    assert report.harmless


def test_a_decision_that_is_the_only_path_is_reported():
    model = Model(lambda c: (c > 0).float())
    (finding,) = observe(model, model.loss).findings
    assert (finding.kind, finding.parameters) == ("comparison", ("encoder.weight", "encoder.bias"))


def test_a_zero_gate_that_trains_is_transient_and_a_zero_constant_is_not():
    class Gated(Model):
        def __init__(self, trains):
            super().__init__(lambda c: X + c * self.gate)
            self.gate = nn.Parameter(torch.zeros(1)) if trains else torch.zeros(1)

    opening, shut = Gated(True), Gated(False)
    report = observe(opening, opening.loss)
    assert report.ok
    assert report.transient[0].parameters == ("encoder.weight", "encoder.bias")
    assert not observe(shut, shut.loss).ok


def test_custom_functions_are_judged_by_their_result():
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, c):
            return torch.from_numpy(2 * c.detach().numpy())

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    model = Model(Twice.apply)
    assert observe(model, model.loss).ok


def test_the_loss_is_judged_even_where_it_does_not_repeat():
    model, calls = Model(lambda c: c.detach()), []

    def drifting():
        calls.append(0)
        return model.loss() + len(calls)

    (finding,) = observe(model, drifting).findings
    assert finding.severity == "cut"
    assert "does not repeat" in finding.note


def test_a_frozen_decoder_is_declared_by_name():
    model = Model()
    model.head.requires_grad_(False)
    report = observe(model, model.loss)
    assert [item.kind for item in report.findings] == ["requires_grad is False"]
    assert observe(model, model.loss, frozen=["head"]).ok
    assert observe(model, model.loss, frozen=["head.*"]).ok
    assert observe(model.encoder, model.loss).ok


def test_optimisers_are_compared_by_identity():
    model = Model()
    sgd = torch.optim.SGD
    assert observe(model, model.loss, optimisers=[sgd(model.encoder.parameters()), sgd(model.head.parameters())]).ok
    twice = observe(model, model.loss, optimisers=[sgd(model.parameters()), sgd(model.head.parameters())])
    assert [item.kind for item in twice.findings] == ["in two optimiser groups"]


def test_observing_leaves_no_trace():
    class Stateful(Model):
        def __init__(self):
            super().__init__(lambda c: F.dropout(c, 0.5) + random.random() + float(np.random.rand()) + c.detach())
            self.norm = nn.BatchNorm1d(T)
            self.carry = torch.zeros(1)

        def loss(self):
            self.carry = self.carry + 1
            self.fresh = True
            value = (
                self.norm(self.change(self.encoder(X))).sigmoid().square().mean()
                + self.head(X).mean()
                + self.carry.mean()
            )
            value.backward()
            return value

    model = Stateful()
    model.head.weight.grad = torch.ones(1, D)
    carry, buffers = model.carry, {name: value.clone() for name, value in model.named_buffers()}
    weights = {name: value.clone() for name, value in model.named_parameters()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    report = observe(model, model.loss)
    assert [item.severity for item in report.findings] == ["weakened"]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
    assert model.carry is carry
    assert not hasattr(model, "fresh")
    assert all(torch.equal(buffers[name], value) for name, value in model.named_buffers())
    assert all(torch.equal(weights[name], value) for name, value in model.named_parameters())
    assert torch.equal(model.head.weight.grad, torch.ones(1, D))
    assert model.encoder.weight.grad is None


def test_a_backward_call_in_a_healthy_pass_leaves_no_gradient():
    model = Model()

    def loss():
        value = model.loss()
        value.backward()
        return value

    assert observe(model, loss).forward_passes == 1
    assert all(value.grad is None for value in model.parameters())


@pytest.mark.thorough
def test_memory_returns_to_its_level():
    model, kept = Model(rows(0)), []

    def loss():
        value = model.loss()
        kept.append(weakref.ref(value))
        return value

    def tensors():
        gc.collect()
        return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())

    observe(model, loss)
    before = tensors()
    report = observe(model, loss)
    assert tensors() == before
    assert not report.ok
    assert all(ref() is None for ref in kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    for change, ok in ((lambda c: c, True), (lambda c: c.detach(), False), (lambda c: c + c.detach(), False)):
        model = Model(change).to(dtype)

        def loss(model=model, dtype=dtype):
            context = model.encoder(X.to(dtype))
            return model.head(torch.tanh(model.change(context))).float().square().mean()

        assert observe(model, loss).ok is ok


def test_a_distributed_wrapper_is_looked_through(lone_group):
    model = Model(rows(0))
    wrapped = nn.parallel.DistributedDataParallel(model)
    model.forward = model.loss
    for _ in range(2):
        assert observe(wrapped, wrapped).findings[0].samples == (1, 2, 3)
    wrapped().backward()
    assert model.encoder.weight.grad.abs().sum() > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_runs_eagerly_while_it_is_watched():
    model = Model(lambda c: c.detach())
    model.forward = model.loss
    compiled = torch.compile(model, backend="eager")
    (finding,) = observe(compiled, compiled).findings
    assert (finding.kind, finding.place.file) == (".detach()", __file__)


@pytest.mark.gpu
def test_a_model_on_a_gpu():
    model = Model(rows(0, 1)).cuda()

    def loss():
        context = model.encoder(X.cuda())
        mask = torch.tensor([True, True, False, False], device="cuda")[:, None, None]
        return model.head(torch.tanh(torch.where(mask, context, context.detach()))).square().mean()

    (finding,) = observe(model, loss).findings
    assert finding.samples == (2, 3)


def test_what_cannot_be_observed_says_why():
    model = Model()
    with pytest.raises(ProbeError, match="ReLU has no parameters"):
        observe(nn.ReLU(), model.loss)
    with pytest.raises(ProbeError, match="all 4 parameters of Model have requires_grad=False"):
        observe(Model().requires_grad_(False), model.loss)
    with pytest.raises(ProbeError, match=r"shape \(4,\); reduce it"):
        observe(model, model.losses)
    with pytest.raises(ProbeError, match="returned float"):
        observe(model, lambda: model.loss().item())
    with pytest.raises(ProbeError, match="a loss is floating point"):
        observe(model, lambda: model.losses().argmax())
    with pytest.raises(ProbeError, match="gradient mode is off"), torch.no_grad():
        observe(model, model.loss)
    with pytest.raises(ProbeError, match="uninitialised"):
        observe(nn.LazyLinear(3), model.loss)
    with pytest.raises(ProbeError, match="meta device"):
        on_meta = nn.Linear(2, 1, device="meta")
        observe(on_meta, lambda: on_meta(torch.zeros(1, 2, device="meta")).sum())
    with pytest.raises(ProbeError, match="one loss a sample"):
        observe_samples(model, model.loss)
    with pytest.raises(ProbeError, match="use_reentrant=False"):
        leaf = X.clone().requires_grad_()
        observe(model, lambda: torch.utils.checkpoint.checkpoint(model.encoder, leaf, use_reentrant=True).mean())
    with pytest.raises(RuntimeError, match="the model's own error"):
        observe(model, lambda: (_ for _ in ()).throw(RuntimeError("the model's own error")))

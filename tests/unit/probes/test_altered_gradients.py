"""Hooks, custom functions and values of an earlier pass: what arrives must be this loss's gradient.

B batch · D features. Each test has its healthy twin, since a hook or a function as such is nothing wrong.
"""

import pytest
import torch
from torch import nn

from etrm.probes.altered_gradients import _projected
from etrm.probes.graph_breaks import observe

pytestmark = pytest.mark.fast
X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    def __init__(self, change=lambda h: h) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.head, self.change = nn.Linear(3, 5), nn.Linear(5, 1), change

    def loss(self):
        return self.head(torch.tanh(self.change(self.encoder(X)))).square().mean()


def kinds(model):
    return [(item.kind, item.severity) for item in observe(model, model.loss).findings]


def hooked(function):
    def change(h):
        h.register_hook(function)
        return h

    return change


@pytest.mark.parametrize("factor", [0.5, 1e-12, -1.0, 100.0])
def test_a_hook_that_changes_the_gradient_is_found_and_one_that_looks_is_not(factor):
    assert kinds(Model(hooked(lambda g: g * factor))) == [("hook changes the gradient", "weakened")]
    seen = []
    assert kinds(Model(hooked(lambda g: seen.append(g.norm())))) == []
    assert seen
    assert kinds(Model(hooked(lambda g: g.clone()))) == []


def test_hooks_of_parameters_and_modules_are_held_to_the_same():
    model = Model()
    model.head.weight.register_hook(lambda g: g * 3)
    (finding,) = observe(model, model.loss).findings
    assert "3 times" in finding.note and "head.weight" in finding.note
    model = Model()
    model.head.register_full_backward_hook(lambda m, given, out: (given[0] * 2,))
    assert kinds(model) == [("hook changes the gradient", "weakened")]
    model = Model()
    model.head.register_full_backward_hook(lambda m, given, out: None)
    assert kinds(model) == []


def test_a_post_accumulate_hook_is_tried_on_a_stand_in():
    model = Model()
    model.head.weight.register_post_accumulate_grad_hook(lambda p: p.grad.zero_())
    (finding,) = observe(model, model.loss).findings
    assert (finding.severity, finding.parameters) == ("cut", ("head.weight",))
    model = Model()
    before = model.head.weight.clone()
    optimisers = {model.head.weight: torch.optim.SGD([model.head.weight], lr=1.0)}
    model.head.weight.register_post_accumulate_grad_hook(lambda p: optimisers[p].step())
    assert kinds(model) == []
    assert torch.equal(model.head.weight, before)


def function(backward, **members):
    def forward(ctx, h):
        return h * 2

    return type("Odd", (torch.autograd.Function,), {
        "forward": staticmethod(forward), "backward": staticmethod(backward), **members
    })  # fmt: skip


def test_a_custom_backward_is_the_derivative_of_its_forward():
    true = function(lambda ctx, g: 2 * g)
    doubled = function(lambda ctx, g: 4 * g)
    bound = doubled.apply
    assert kinds(Model(true.apply)) == []
    for change in (doubled.apply, lambda h: bound(h)):
        (finding,) = observe(*pair(change)).findings
        assert "2 times the derivative" in finding.note


def pair(change):
    model = Model(change)
    return model, model.loss


def test_a_backward_that_is_meant_to_be_another_is_declared():
    reversal = function(lambda ctx, g: -g, declared="reversal")
    report = observe(*pair(reversal.apply))
    assert report.ok
    assert [item.declared for item in report.expected] == ["reversal"]


def test_a_value_computed_before_the_pass_is_stale():
    model = Model()
    model.tied = model.encoder.weight.clone()
    model.change = lambda h: h + X @ model.tied.T
    (finding,) = observe(model, model.loss).findings
    assert (finding.kind, finding.severity) == ("computed before this pass", "weakened")
    model = Model()
    model.spare = model.encoder.weight.clone()  # kept, and not used
    assert kinds(model) == []


def test_a_gradient_that_turns_nan_names_the_operation():
    (finding, *_) = observe(*pair(lambda h: torch.nan_to_num(h / 0.0, posinf=1.0, neginf=-1.0))).findings
    assert finding.kind == "gradient is not finite"
    assert "nan_to_num" in finding.place.source


def test_memory_written_through_numpy_is_found():
    def change(h):
        h = h * 1.0
        array = h.detach().numpy()
        array *= 0.5
        return h

    assert ("in-place write through numpy", "weakened") in kinds(Model(change))
    assert kinds(Model(lambda h: (h.detach().numpy().sum(), h)[1])) == []


def test_a_cache_in_a_list_or_dict_is_put_back():
    model = Model()
    model.kept = {"old": 1}

    def change(h):
        model.kept["new"] = h.detach()
        return h

    model.change = change
    assert kinds(model) == []
    assert model.kept == {"old": 1}


def test_a_scaled_gradient_is_found_whatever_its_elements_sum_to():
    """One projection with positive weights lost sight of a gradient whose elements cancel in it."""
    for seed in range(50):
        noise = torch.randn(1, 64, generator=torch.Generator().manual_seed(seed))
        for push in (noise - noise.mean(), noise * torch.linspace(-1, 1, 64)):
            weight = nn.Parameter(torch.zeros(64))
            weight.register_hook(lambda g: g * 1e-9)
            module = nn.Module()
            module.weight = weight
            found = observe(module, lambda w=weight, p=push: (w * p).sum()).findings
            assert [item.kind for item in found] == ["hook changes the gradient"], seed
            sums, size = _projected(push)
            assert float(sums.norm()) > 0.1 * size

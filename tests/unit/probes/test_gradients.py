"""Norms, coverage and the four states; every judgement must survive a change of the loss's scale.

B batch · T tokens · D hidden size.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from etrm.errors import ProbeError
from etrm.probes.gradient_audit import gradient_audit
from etrm.probes.gradients import (
    classify,
    coverage,
    coverage_over_steps,
    gradient_norms,
    gradients_of,
    update_ratios,
    weights_of,
)

pytestmark = pytest.mark.fast
B, T, D = 4, 3, 5
X = torch.randn(B, T, D, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.head = nn.Linear(D, D), nn.Linear(D, 1)

    def losses(self, change=lambda c: c) -> tuple[Tensor, Tensor]:
        context = self.encoder(X)  # (B, T, D)
        return self.head(torch.tanh(change(context))).square().mean((1, 2)), context


def state_of(model: Model, change=lambda c: c, scale: float = 1.0, **more):
    losses, context = model.losses(change)
    cover = coverage(scale * losses, model.encoder, context)
    loss = scale * losses.mean()
    gradients = gradients_of(model.encoder, loss, retain_graph=True)
    return classify(gradients, weights_of(model.encoder), loss.item(), [cover], **more)


def only(*samples: int):
    keep = torch.zeros(B, 1, 1)
    keep[list(samples)] = 1.0
    return lambda c: torch.where(keep.bool(), c, c.detach())


def only_tokens(*tokens: int):
    keep = torch.zeros(1, T, 1)
    keep[:, list(tokens)] = 1.0
    return lambda c: torch.where(keep.bool(), c, c.detach())


def test_norms_scale_with_the_loss_because_nothing_is_clipped():
    model = Model()
    small = gradient_norms(gradients_of(model, model.losses()[0].mean()))
    large = gradient_norms(gradients_of(model, 1000 * model.losses()[0].mean()))
    assert large.total == pytest.approx(1000 * small.total, rel=1e-5)
    assert set(small.per_layer) == {"encoder", "head"}
    squares = sum(value**2 for value in small.per_parameter.values())
    assert small.total == pytest.approx(squares**0.5)
    assert "encoder.weight" in str(small)


@settings(deadline=None, derandomize=True, max_examples=12)
@given(exponent=st.integers(-12, 12))
def test_states_do_not_depend_on_the_loss_scale(exponent):
    scale = 10.0**exponent
    assert state_of(Model(), scale=scale).state == "intact"
    assert state_of(Model(), lambda c: c.detach(), scale=scale).state == "blocked"
    assert state_of(Model(), only(0, 2), scale=scale).state == "partial"
    assert state_of(Model(), lambda c: 1e-9 * c, scale=scale).state == "vanishing"


def test_partial_names_the_samples_tokens_and_parameters():
    by_sample = state_of(Model(), only(0, 2))
    assert by_sample.samples == (1, 3)
    by_token = state_of(Model(), only_tokens(1))
    assert by_token.samples == ()
    assert by_token.tokens == tuple((i, t) for i in range(B) for t in (0, 2))
    model = Model()
    gradients = gradients_of(model, model.losses()[0].mean())
    gradients["encoder.bias"] = None
    assert classify(gradients, weights_of(model), 1.0).parameters == ("encoder.bias",)
    assert "encoder.bias" in str(classify(gradients, weights_of(model), 1.0))


def test_finite_differences_overrule_a_gradient_that_looks_alive():
    model = Model()

    class Weak(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h):
            return h * 1.0

        @staticmethod
        def backward(ctx, g):
            return g * 1e-4

    audit = gradient_audit(lambda: model.losses(Weak.apply)[0].mean(), model.encoder, model=model)
    assert state_of(model, Weak.apply).state == "intact"
    assert state_of(model, Weak.apply, truth=audit).state == "vanishing"
    cut = gradient_audit(lambda: model.losses(lambda c: c.detach())[0].mean(), model.encoder, model=model)
    assert state_of(model, truth=cut).state == "blocked"


def test_a_fitted_sample_owes_no_gradient():
    losses = torch.stack([p.square().sum() for p in (torch.ones(2), torch.zeros(2))])
    weight = torch.ones(2, requires_grad=True)
    cover = coverage(losses * torch.stack([weight.sum(), (weight * 0).sum()]), {"weight": weight})
    assert cover.lost_samples == ()
    assert cover.complete


def test_coverage_sees_a_loss_that_reads_another_samples_context():
    model = Model()
    losses, context = model.losses(lambda c: c + 0.1 * c.roll(1, 0))
    assert coverage(losses, model.encoder, context).crossed == tuple((i, (i - 1) % B) for i in range(B))


def test_a_loss_that_reads_only_anothers_context_leaves_its_own_without():
    model = Model()
    losses, context = model.losses(lambda c: c.roll(1, 0))
    cover = coverage(losses, model.encoder, context)
    assert cover.lost_samples == ()
    assert cover.lost_tokens == tuple((i, t) for i in range(B) for t in range(T))


def test_an_encoder_that_is_called_once_fails_from_the_second_step_on():
    model, held = Model(), []

    def step(k):
        context = model.encoder(X) if k == 0 else held[-1]
        held.append(context.detach())
        return model.head(torch.tanh(context)).square().mean((1, 2)), model.encoder, context

    fractions = [cover.fraction for cover in coverage_over_steps(step, 4)]
    assert fractions == [1.0, 0.0, 0.0, 0.0]


def test_update_ratios():
    model = Model()
    before = weights_of(model)
    with torch.no_grad():
        model.encoder.weight.mul_(1.01)
        model.head.bias.zero_()
    ratios = update_ratios(before, model)
    assert ratios["encoder.weight"] == pytest.approx(0.01, rel=1e-4)
    assert ratios["encoder.bias"] == 0.0
    assert ratios["head.bias"] == pytest.approx(1.0)
    nothing = {"w": torch.zeros(2)}
    assert update_ratios(nothing, {"w": torch.ones(2)}) == {"w": float("inf")}
    with pytest.raises(ProbeError, match=r"'encoder\.weight'"):
        update_ratios({}, model)


def test_bad_input_says_why():
    model = Model()
    losses, context = model.losses()
    with pytest.raises(ProbeError, match=r"shape \(B,\); got \(\)"):
        coverage(losses.mean(), model)
    with pytest.raises(ProbeError, match="one row for each of 4 losses"):
        coverage(losses, model, context[:2])
    with pytest.raises(ProbeError, match="not finite"):
        classify({"w": torch.tensor([float("nan")])}, {"w": torch.ones(1)}, 1.0)
    with pytest.raises(ProbeError, match="empty"):
        classify({}, {}, 1.0)
    with pytest.raises(ProbeError, match="empty"):
        gradient_norms({})
    with pytest.raises(ProbeError, match="frozen"):
        gradients_of(Model().requires_grad_(False))

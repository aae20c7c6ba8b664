"""Losses against a float64 reference written from the formula, and at every logit where fp32 could break.

Legend: B batch, S canvas cells, V vocabulary.
"""

import math

import pytest
import torch
from torch import Tensor

from etrm.data.grids import IGNORE, PAD
from etrm.training.losses import CrossEntropy, log_stablemax, step_loss, token_losses

pytestmark = pytest.mark.fast

KINDS: tuple[CrossEntropy, ...] = ("stablemax", "softmax")
both_kinds = pytest.mark.parametrize("kind", KINDS)


def reference(logits: list[float], label: int, kind: CrossEntropy) -> float:
    """Cross-entropy of one token in Python floats, from the definition."""
    shift = max(logits)
    mass = [(x + 1 if x >= 0 else 1 / (1 - x)) if kind == "stablemax" else math.exp(x - shift) for x in logits]
    return -math.log(mass[label] / sum(mass))


@both_kinds
def test_token_losses_equal_the_float64_formula(kind: CrossEntropy) -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 12, generator=g) * 4
    labels = torch.randint(0, 12, (3, 5), generator=g)
    mine = token_losses(logits, labels, kind)
    for b in range(3):
        for s in range(5):
            expected = reference(logits[b, s].double().tolist(), int(labels[b, s]), kind)
            assert mine[b, s].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@both_kinds
def test_a_uniform_guess_costs_the_logarithm_of_the_vocabulary(kind: CrossEntropy) -> None:
    assert token_losses(torch.zeros(1, 1, 12), torch.zeros(1, 1, dtype=torch.int64), kind).item() == pytest.approx(
        2.4849066
    )


@both_kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("where", ["label", "other"])
@pytest.mark.parametrize("value", [-1e4, -1.0, -1e-8, 0.0, 1e-8, 1.0, 1e4])
def test_gradients_are_finite_at_every_logit(kind: CrossEntropy, dtype: torch.dtype, where: str, value: float) -> None:
    """Fault 46: 1/(1-x) on the branch that is not taken is infinite at exactly 1.0, and 0 x inf is NaN."""
    logits = torch.zeros(1, 1, 4)
    logits[..., 0 if where == "label" else 1] = value
    logits = logits.to(dtype).requires_grad_()
    loss = step_loss(logits, torch.zeros(1), torch.zeros(1, 1, dtype=torch.int64), kind).lm.sum()
    loss.backward()
    assert torch.isfinite(loss) and logits.grad is not None and bool(torch.isfinite(logits.grad).all())


@pytest.mark.parametrize("value", [-1e4, -3.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 3.0, 1e4])
def test_the_stablemax_slope_is_that_of_its_formula_also_where_its_sides_join(value: float) -> None:
    """log s has slope 1/(x+1) above and 1/(1-x) below, so 1 at zero from either side; never 0 and never 2."""
    x = torch.tensor([value, 0.5], requires_grad=True)
    (slope,) = torch.autograd.grad(log_stablemax(x)[0], x)
    log_slope = 1 / (1 + abs(value))
    own = value + 1 if value >= 0 else 1 / (1 - value)
    own_slope = 1.0 if value >= 0 else 1 / (1 - value) ** 2
    assert slope[0].item() == pytest.approx(log_slope - own_slope / (own + 1.5), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("value", [-2.0, 0.0, 2.0])
def test_stablemax_gradients_equal_finite_differences_in_float64(value: float) -> None:
    logits, step = [value, 0.7, -0.3], 1e-6
    x = torch.tensor([[logits]], requires_grad=True)
    (grad,) = torch.autograd.grad(token_losses(x, torch.tensor([[0]]), "stablemax").sum(), x)
    for i in range(3):
        up, down = ([v + sign * step * (j == i) for j, v in enumerate(logits)] for sign in (1, -1))
        slope = (reference(up, 0, "stablemax") - reference(down, 0, "stablemax")) / (2 * step)
        assert grad[0, 0, i].item() == pytest.approx(slope, rel=1e-3, abs=1e-5)


def sample(labels: list[list[int]], predicted: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Logits that predict `predicted` with a margin of 3, and the labels."""
    logits = torch.nn.functional.one_hot(torch.tensor(predicted), 12).float() * 3
    return logits, torch.tensor(labels)


@both_kinds
def test_ignored_cells_change_nothing_and_get_no_gradient(kind: CrossEntropy) -> None:
    labels = torch.tensor([[3, IGNORE, 5, IGNORE]])
    logits = torch.randn(1, 4, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = step_loss(logits, torch.zeros(1), labels, kind)
    other = logits.detach().clone()
    other[:, 1] += torch.arange(12.0)
    assert torch.equal(step_loss(other, torch.zeros(1), labels, kind).lm, loss.lm)
    loss.lm.sum().backward()
    assert logits.grad is not None
    assert not logits.grad[0, [1, 3]].any() and logits.grad[0, [0, 2]].any(dim=-1).all()
    expected = token_losses(logits[:, [0, 2]], labels[:, [0, 2]], kind).mean()
    assert loss.lm.item() == pytest.approx(expected.item(), rel=1e-6)


@both_kinds
def test_a_sample_without_scored_cells_contributes_nothing_at_all(kind: CrossEntropy) -> None:
    """Filler rows: no loss, no halting loss, no gradient, and never counted as exact."""
    labels = torch.tensor([[3, 4], [IGNORE, IGNORE]])
    logits = torch.randn(2, 2, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
    halt = torch.tensor([0.3, 0.3], requires_grad=True)
    loss = step_loss(logits, halt, labels, kind)
    (loss.lm.sum() + loss.halt.sum()).backward()
    assert logits.grad is not None and halt.grad is not None
    assert loss.lm[1] == 0 and loss.halt[1] == 0 and not loss.exact[1] and loss.token_accuracy[1] == 0
    assert not logits.grad[1].any() and halt.grad[1] == 0
    assert logits.grad[0].any() and halt.grad[0] != 0


def test_the_mean_is_over_a_samples_own_scored_cells_and_samples_do_not_mix() -> None:
    labels = torch.tensor([[3, IGNORE, IGNORE], [4, 5, 6]])
    logits = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(1))
    both = step_loss(logits, torch.zeros(2), labels, "stablemax").lm
    for i in range(2):
        alone = step_loss(logits[i : i + 1], torch.zeros(1), labels[i : i + 1], "stablemax").lm
        assert both[i].item() == pytest.approx(alone.item(), rel=1e-6)


def test_exact_means_every_scored_cell_and_the_halting_target_is_exact() -> None:
    logits, labels = sample([[3, 4, IGNORE], [3, 4, 5]], [[3, 4, 9], [3, 4, 9]])
    halt = torch.tensor([1.5, 1.5])
    loss = step_loss(logits, halt, labels, "softmax")
    assert loss.exact.tolist() == [True, False]
    assert loss.token_accuracy.tolist() == pytest.approx([1.0, 2 / 3])
    assert loss.halt.tolist() == pytest.approx([math.log1p(math.exp(-1.5)), math.log1p(math.exp(1.5))])


def test_the_halting_loss_sends_no_gradient_into_the_logits() -> None:
    logits, labels = sample([[3, 4]], [[3, 4]])
    logits.requires_grad_()
    halt = torch.zeros(1, requires_grad=True)
    (grad,) = torch.autograd.grad(step_loss(logits, halt, labels, "softmax").halt.sum(), [logits], allow_unused=True)
    assert grad is None


def test_losses_of_low_precision_logits_are_fp32() -> None:
    logits, labels = sample([[3, 4]], [[3, 4]])
    loss = step_loss(logits.bfloat16(), torch.zeros(1).bfloat16(), labels, "stablemax")
    assert loss.lm.dtype == loss.halt.dtype == torch.float32


def test_padding_is_ignored_by_its_label_not_by_its_token() -> None:
    """PAD as a label would teach the decoder to predict padding; encoded labels carry IGNORE instead."""
    logits = torch.zeros(1, 2, 12)
    scored = step_loss(logits, torch.zeros(1), torch.tensor([[3, PAD]]), "softmax")
    ignored = step_loss(
        logits + torch.arange(2.0).view(1, 2, 1), torch.zeros(1), torch.tensor([[3, IGNORE]]), "softmax"
    )
    assert scored.token_accuracy.item() == 0.5 and ignored.token_accuracy.item() == 0.0

"""A block that mixes positions gives what the plain formula gives, values and gradients, however its input lies."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from etrm.models.layers import Block, rms_norm

pytestmark = pytest.mark.fast

B, L, D, EPS = 3, 7, 8, 1e-5


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
    return F.linear(gate * torch.sigmoid(gate) * up, down)


def norm(x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(dim=-1, keepdim=True) + EPS).sqrt()


def plain(block: Block, x: Tensor) -> Tensor:
    """The block from its definition: mix positions, normalise over them, mix features, normalise over those."""
    mixing = [p.double() for p in block.mlp_t.parameters()]
    turned = x.transpose(1, 2)
    x = norm(turned + swiglu(turned, *mixing)).transpose(1, 2)
    return norm(x + swiglu(x, *(p.double() for p in block.mlp.parameters())))


@pytest.mark.parametrize("laid", ["as batches", "as positions"])
def test_a_mixing_block_is_its_definition(laid: str) -> None:
    torch.manual_seed(0)
    block = Block(D, 2, 4.0, EPS, L, mlp_t=True).double()
    x = torch.randn(B, L, D, dtype=torch.float64)
    if laid == "as positions":
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    x.requires_grad_()
    weight = torch.randn(B, L, D, dtype=torch.float64)
    found, expected = block(x, None), plain(block, x)
    torch.testing.assert_close(found, expected)
    leaves = [x, *block.parameters()]
    for mine, theirs in zip(
        torch.autograd.grad((found * weight).sum(), leaves),
        torch.autograd.grad((expected * weight).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_a_second_block_takes_what_the_first_leaves_without_a_copy() -> None:
    block = Block(D, 2, 4.0, EPS, L, mlp_t=True)
    left = block(torch.randn(B, L, D), None)
    turned = left.transpose(0, 1)
    assert left.shape == (B, L, D) and turned.contiguous().data_ptr() == left.data_ptr()


def test_the_norm_runs_over_the_axis_that_is_named() -> None:
    x = torch.randn(4, 5, 6)
    torch.testing.assert_close(rms_norm(x, EPS, 0).square().mean(dim=0), torch.ones(5, 6), atol=1e-3, rtol=0)
    torch.testing.assert_close(rms_norm(x, EPS).square().mean(dim=-1), torch.ones(4, 5), atol=1e-3, rtol=0)

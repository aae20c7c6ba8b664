"""Tiled attention against fp64 and beside torch's own bf16 kernel; runs of positions that do not see each other.

Legend: B batch, N heads, L positions, E head size.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from etrm.models import layers
from etrm.models.attention import runs_of, tiled_attention
from etrm.models.layers import SHORT, Attention, RotaryEmbedding, attend

pytestmark = pytest.mark.fast

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
BEHIND = 2.0  # times the error of torch's kernel, at most; measured 0.6 to 1.4


def qkv(spread: float, length: int, shape: tuple[int, int] = (2, 3), size: int = 16) -> list[Tensor]:
    """Queries and keys of deviation `spread`, values and an outer gradient of 1: four (B, N, L, E) in bf16."""
    g = torch.Generator().manual_seed(length)
    scales = (spread, spread, 1.0, 1.0)
    return [(torch.randn(*shape, length, size, generator=g) * s).bfloat16() for s in scales]


def values_and_gradients(kernel: Kernel, tensors: list[Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    leaves = [t.to(dtype, copy=True).requires_grad_() for t in tensors[:3]]
    mixed = kernel(*leaves)
    mixed.backward(tensors[3].to(dtype))
    return {"mixed": mixed.detach()} | {n: t.grad for n, t in zip("qkv", leaves, strict=True) if t.grad is not None}


def dense(lengths: tuple[int, ...]) -> Kernel:
    """Attention written out over all positions, with everything outside a position's own run masked."""
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    strange = owner.unsqueeze(0) != owner.unsqueeze(1)  # (L, L)

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(strange, -torch.inf)
        return scores.softmax(dim=-1) @ v

    return kernel


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize(("spread", "centre"), [(0.3, 0.0), (1.0, 0.0), (3.0, 0.0), (6.0, 0.0), (1.0, 3.0)])
def test_values_and_gradients_are_as_close_to_fp64_as_those_of_torchs_kernel(
    spread: float, centre: float, size: int
) -> None:
    """Rounding the scores themselves to bf16 fails here at a spread of 3: their rounding grows with their size. Where
    values and gradients lie off zero, dP and the sum over dP * P nearly cancel: rounding that sum to bf16 fails.
    """
    tensors = qkv(spread, 300, size=size)
    tensors[2], tensors[3] = tensors[2] + centre, tensors[3] + centre / 3
    exact = values_and_gradients(F.scaled_dot_product_attention, tensors, torch.float64)
    torchs = values_and_gradients(F.scaled_dot_product_attention, tensors, torch.bfloat16)
    ours = values_and_gradients(tiled_attention, tensors, torch.bfloat16)
    assert set(ours) == set(exact) == {"mixed", "q", "k", "v"}
    for name in exact:
        assert error(ours[name], exact[name]) <= BEHIND * error(torchs[name], exact[name]), name


@pytest.mark.parametrize("lengths", [(200,), (1, 150, 49), (60, 70, 70), (200,) * 3])
def test_each_run_attends_to_itself_alone(lengths: tuple[int, ...]) -> None:
    tensors = qkv(1.0, sum(lengths))
    exact = values_and_gradients(dense(lengths), tensors, torch.float64)
    ours = values_and_gradients(lambda q, k, v: tiled_attention(q, k, v, lengths), tensors, torch.bfloat16)
    for name in exact:
        assert error(ours[name], exact[name]) < 0.01, name


@pytest.mark.parametrize("lengths", [(5,), (1, 3, 6), (SHORT + 1, 2)])
def test_runs_in_fp32_equal_the_masked_form(lengths: tuple[int, ...]) -> None:
    """The path of fp32, where each run goes through whatever attention its length asks for."""
    tensors = [t.float() for t in qkv(1.0, sum(lengths))]
    exact = values_and_gradients(dense(lengths), tensors, torch.float32)
    ours = values_and_gradients(lambda q, k, v: attend(q, k, v, False, lengths), tensors, torch.float32)
    for name in exact:
        torch.testing.assert_close(ours[name], exact[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_the_cache_size_changes_how_many_heads_go_together_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = qkv(1.0, 200, (2, 4))
    whole = values_and_gradients(tiled_attention, tensors, torch.bfloat16)
    monkeypatch.setattr("etrm.models.attention.CACHE", 1)
    single = values_and_gradients(tiled_attention, tensors, torch.bfloat16)
    for name in whole:
        torch.testing.assert_close(single[name], whole[name], rtol=2e-2, atol=2e-2)


def test_one_far_larger_score_neither_overflows_nor_vanishes() -> None:
    q, k, v, g = qkv(1.0, 200)
    k[:, :, 7] *= 100.0
    found = values_and_gradients(tiled_attention, [q, k, v, g], torch.bfloat16)
    assert all(bool(torch.isfinite(t).all()) for t in found.values())
    exact = values_and_gradients(F.scaled_dot_product_attention, [q, k, v, g], torch.float64)
    assert error(found["mixed"], exact["mixed"]) < 0.01


@pytest.mark.parametrize(("length", "dtype", "tiled"), [
    (SHORT + 1, torch.bfloat16, True), (SHORT, torch.bfloat16, False), (SHORT + 1, torch.float32, False),
])  # fmt: skip
def test_long_bf16_sequences_take_the_tiled_form(
    monkeypatch: pytest.MonkeyPatch, length: int, dtype: torch.dtype, tiled: bool
) -> None:
    taken: list[int] = []

    def seen(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...] | None) -> Tensor:
        taken.append(q.shape[2])
        return tiled_attention(q, k, v, lengths)

    monkeypatch.setattr(layers, "tiled_attention", seen)
    layer = Attention(32, 2)
    for fused in (False, True):
        layer.fused = fused
        mixed = layer(torch.randn(1, length, 32, dtype=dtype), RotaryEmbedding(16, length, 1e4)())
        assert mixed.shape == (1, length, 32) and mixed.dtype == dtype
    assert taken == ([length] * 2 if tiled else [])


def test_runs_cover_every_position_once_in_order() -> None:
    assert list(runs_of(6, (1, 2, 3))) == [slice(0, 1), slice(1, 3), slice(3, 6)]
    assert list(runs_of(6, None)) == [slice(0, 6)]

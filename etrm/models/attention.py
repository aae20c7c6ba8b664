"""Full attention on the CPU in bf16, a few heads at a time, for sequences too long for the plain form.

Notable: torch's fused CPU kernel multiplies tiles too small for the machine's bf16 matrix units, and the plain form
writes all B x N x L x L scores to memory. Here the scores of a few heads are made and used while they are still in the
cache. They are made in fp32, as torch's kernel keeps its own: a bf16 product could only leave rounded, and rounding
grows with the scores. Where a gradient is asked for the weights are kept for it, 2 N L^2 bytes a sample: making them
again took a quarter of the backward pass (times: docs/performance.md). The error against fp64 stays within twice that
of torch's kernel (tests/unit/models/test_attention.py).
Maths: P = softmax(S), dS = P * (dP - sum(dP * P)); the sum equals dO . O (arXiv 2205.14135).

Legend: B batch, N heads, L positions, E head size, R runs (stretches of positions that attend only to themselves).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CACHE = 4 << 20  # bytes of fp32 scores alive at once


def runs_of(length: int, lengths: tuple[int, ...] | None) -> Iterator[slice]:
    """The stretches of positions that attend to each other: all of them, or consecutive ones of `lengths`."""
    start = 0
    for size in (length,) if lengths is None else lengths:
        yield slice(start, start + size)
        start += size


def _parts(query: Tensor, lengths: tuple[int, ...] | None) -> Iterator[tuple[int, slice, slice]]:
    """(batch index, heads, positions) of every part whose scores are made at once."""
    batch, heads, length, _ = query.shape
    for b in range(batch):
        for run in runs_of(length, lengths):
            scores = 4 * (run.stop - run.start) ** 2  # bytes of one head
            together = max(1, CACHE // max(1, scores))
            for first in range(0, heads, together):
                yield b, slice(first, min(first + together, heads)), run


def _less(rows: Tensor, columns: Tensor, offset: Tensor) -> Tensor:
    """rows @ columns^T - offset, rounded to bf16 only then. (n, l, E), (n, m, E), (n, l) fp32 -> (n, l, m).

    The offset rides along as two more columns: the product adds up in fp32, so what is near the offset stays exact.
    """
    high = offset.to(rows.dtype)
    low = (offset - high.float()).to(rows.dtype)
    wide = torch.cat((rows, high.unsqueeze(-1), low.unsqueeze(-1)), dim=-1)
    minus = columns.new_full((*columns.shape[:-1], 2), -1.0)
    return torch.bmm(wide, torch.cat((columns, minus), dim=-1).transpose(1, 2))


def _empty(like: Tensor) -> Tensor:
    """An empty (B, N, L, E) that lies in memory as (B, L, N, E), so that joining the heads again copies nothing."""
    batch, heads, length, size = like.shape
    return like.new_empty(batch, length, heads, size).transpose(1, 2)


class _Tiled(torch.autograd.Function):
    """`tiled_attention` with its own backward pass."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...] | None) -> Tensor:
        mixed = _empty(query)
        kept: list[Tensor] = []
        with torch.autocast("cpu", enabled=False):
            wide_query, wide_key = query.float() * query.shape[-1] ** -0.5, key.float()
            for part in _parts(query, lengths):
                scores = torch.bmm(wide_query[part], wide_key[part].transpose(1, 2))  # (n, l, l) fp32
                weights = scores.softmax(dim=-1).to(query.dtype)  # P
                mixed[part] = torch.bmm(weights, value[part])
                if any(ctx.needs_input_grad):
                    kept.append(weights)
        ctx.save_for_backward(query, key, value, mixed, *kept)
        ctx.lengths = lengths
        return mixed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, mixed, *kept = ctx.saved_tensors
        to_query, to_key, to_value = _empty(query), _empty(query), _empty(query)
        grad, scale = grads[0], query.shape[-1] ** -0.5
        with torch.autocast("cpu", enabled=False):
            drawn = (grad.float() * mixed.float()).sum(dim=-1)  # (B, N, L), the sum over dP * P, over mass
            for part, weights in zip(_parts(query, ctx.lengths), kept, strict=True):
                q, k, v, g = query[part], key[part], value[part], grad[part]
                to_value[part] = torch.bmm(weights.transpose(1, 2), g)
                to_scores = _less(g, v, drawn[part]).mul_(weights)  # dS
                to_query[part] = torch.bmm(to_scores, k)
                to_key[part] = torch.bmm(to_scores.transpose(1, 2), q)
        return to_query.mul_(scale), to_key.mul_(scale), to_value, None


def tiled_attention(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...] | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(E)) V within each run. (B, N, L, E) each and returned; `lengths` add up to L."""
    mixed: Tensor = _Tiled.apply(query, key, value, lengths)
    return mixed

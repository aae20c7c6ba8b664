"""Full attention on the CPU in bf16, a few heads at a time, for sequences too long for the plain form.

Notable: torch's fused CPU kernel multiplies tiles too small for the machine's bf16 matrix units, and the plain form
writes all B x N x L x L scores to memory. Here the scores of a few heads are made and used while they are still in the
cache; the backward pass makes them again instead of keeping them (times: docs/performance.md). A product can only leave
as bf16, so scores are rounded after their row's maximum was taken off (see `_less`): that keeps the error against fp64
within twice that of torch's kernel, which keeps its scores in fp32 (tests/unit/models/test_attention.py).
Maths: P = W / sum W with W = exp(S - max S), dS = P * (dP - sum(dP * P)); the sum equals dO . O (arXiv 2205.14135).

Legend: B batch, N heads, L positions, E head size, R runs (stretches of positions that attend only to themselves).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CACHE = 4 << 20  # bytes of scores alive at once; measured best between 2 and 4 MB


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
            scores = query.element_size() * (run.stop - run.start) ** 2  # bytes of one head
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
        query = query * query.shape[-1] ** -0.5
        mixed = _empty(query)
        largest, mass = query.new_empty((2, *query.shape[:-1]), dtype=torch.float32)  # (B, N, L) each
        with torch.autocast("cpu", enabled=False):
            for part in _parts(query, lengths):
                q, k, v = query[part], key[part], value[part]  # (n, l, E) each
                largest[part] = torch.bmm(q, k.transpose(1, 2)).amax(dim=-1).float()
                weights = _less(q, k, largest[part]).exp_()  # (n, l, l), W: not yet divided by their sum
                mass[part] = weights.sum(dim=-1, dtype=torch.float32)
                mixed[part] = torch.bmm(weights, v) / mass[part].unsqueeze(-1)
        ctx.save_for_backward(query, key, value, mixed, largest, mass)
        ctx.lengths = lengths
        return mixed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, mixed, largest, mass = ctx.saved_tensors
        to_query, to_key, to_value = _empty(query), _empty(query), _empty(query)
        # 1 / mass is left to the small factors, since W is only exact while its rows' largest is 1.
        grad = (grads[0].float() / mass.unsqueeze(-1)).to(query.dtype)  # (B, N, L, E)
        with torch.autocast("cpu", enabled=False):
            drawn = (grad.float() * mixed.float()).sum(dim=-1)  # (B, N, L), the sum over dP * P, over mass
            for part in _parts(query, ctx.lengths):
                q, k, v, g = query[part], key[part], value[part], grad[part]
                weights = _less(q, k, largest[part]).exp_()
                to_value[part] = torch.bmm(weights.transpose(1, 2), g)
                to_scores = _less(g, v, drawn[part]).mul_(weights)  # dS
                to_query[part] = torch.bmm(to_scores, k)
                to_key[part] = torch.bmm(to_scores.transpose(1, 2), q)
        return to_query.mul_(query.shape[-1] ** -0.5), to_key, to_value, None


def tiled_attention(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...] | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(E)) V within each run. (B, N, L, E) each and returned; `lengths` add up to L.

    Queries are scaled first, which rounds them where sqrt(E) is no power of two; the official E is 64.
    """
    mixed: Tensor = _Tiled.apply(query, key, value, lengths)
    return mixed

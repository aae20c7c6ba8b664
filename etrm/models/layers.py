"""Layers of the Tiny Recursive Model (TRM): scaled init, SwiGLU, RoPE, attention, post-norm block.

Written from the published facts (arXiv 2510.04871 and the public implementation's tensor names): no biases, weights
kept in fp32 and cast on use, RMSNorm without gain, full (non-causal) attention. Numbers are held to the official ones
by tests/unit/models/test_parity.py.

Legend: B batch, L positions (context then grid cells), D hidden, N heads, E head size, I SwiGLU inner width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etrm.models.attention import runs_of, tiled_attention

SHORT = 128  # positions up to which plain attention is used on the CPU


def trunc_normal_(tensor: Tensor, std: float, generator: torch.Generator | None = None) -> Tensor:
    """Fill `tensor` in place with a normal of standard deviation `std`, truncated at two deviations (LeCun style)."""
    with torch.no_grad():
        nn.init.trunc_normal_(tensor, std=1.0, a=-2.0, b=2.0, generator=generator)
        # A normal cut at +-2 has deviation 0.8796; dividing restores the one asked for.
        return tensor.mul_(std / 0.8796256610342398)


def at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    """The type to compute in where bf16 is too coarse: fp32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def rms_norm(x: Tensor, eps: float, axis: int = -1) -> Tensor:
    """RMSNorm over one axis without gain, computed in fp32 (at least) and returned in x's dtype; shape kept."""
    wide = x.to(at_least_fp32(x.dtype))
    # Spelled out: torch's own rms_norm rounds otherwise, which the recursion amplifies, and is slower on the CPU.
    return (wide * torch.rsqrt(wide.square().mean(dim=axis, keepdim=True) + eps)).to(x.dtype)


class CastedLinear(nn.Module):
    """Linear map without bias by default; the fp32 weight is cast to the input's dtype on use. (…, in) -> (…, out)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(trunc_normal_(torch.empty(out_features, in_features), std=in_features**-0.5))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class CastedEmbedding(nn.Module):
    """Embedding whose fp32 rows are cast to `dtype` on use. (…) int -> (…, D)."""

    def __init__(self, rows: int, size: int, std: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.embedding_weight = nn.Parameter(trunc_normal_(torch.empty(rows, size), std=std))

    def forward(self, index: Tensor) -> Tensor:
        return F.embedding(index, self.embedding_weight.to(self.dtype))


def swiglu_width(size: int, expansion: float) -> int:
    """Inner width of a SwiGLU of `size`: two thirds of expansion x size, rounded up to a multiple of 256."""
    return -(round(expansion * size * 2 / 3) // -256) * 256


class SwiGLU(nn.Module):
    """silu(gate) * up, projected down. (…, D) -> (…, D). Of gate_up_proj (over the first axis, of both projections)
    only the weights are used: a hook belongs on the whole.
    """

    def __init__(self, size: int, expansion: float) -> None:
        super().__init__()
        inner = swiglu_width(size, expansion)
        self.gate_up_proj = CastedLinear(size, inner * 2)
        self.down_proj = CastedLinear(inner, size)

    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        """`axis` -1: over the last axis; 0: over the first, (D, …) -> (D, …), without turning the tensor."""
        # Two products: the halves of one would be joined again in the backward pass, which costs more than it saves.
        halves = self.gate_up_proj.weight.to(x.dtype).chunk(2)
        if axis == 0:
            flat = x.reshape(len(x), -1)
            gate, up = (w @ flat for w in halves)  # (I, …) each
            return (self.down_proj.weight.to(x.dtype) @ (F.silu(gate) * up)).view_as(x)
        gate, up = (F.linear(x, w) for w in halves)  # (…, I) each
        return self.down_proj(F.silu(gate) * up)


class RotaryEmbedding(nn.Module):
    """Cosine and sine tables of RoPE for `positions` places. Returns two (L, E) tensors of `dtype`."""

    cos: Tensor
    sin: Tensor

    def __init__(self, head_size: int, positions: int, base: float, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        inverse = 1.0 / (base ** (torch.arange(0, head_size, 2, dtype=dtype) / head_size))  # (E/2,)
        angles = torch.outer(torch.arange(positions, dtype=dtype), inverse)  # (L, E/2)
        angles = torch.cat((angles, angles), dim=-1)  # (L, E)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.cos, self.sin


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE. x (B, L, N, E), cos and sin (L, E); their dtype inside, x's dtype out."""
    wide = x.to(cos.dtype)
    first, second = wide.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (wide * cos.unsqueeze(-2) + turned * sin.unsqueeze(-2)).to(x.dtype)


def attend(query: Tensor, key: Tensor, value: Tensor, fused: bool, lengths: tuple[int, ...] | None = None) -> Tensor:
    """Full attention, (B, N, L, E) each and returned; `fused` asks for torch's kernel on short sequences too.

    With `lengths` the positions are consecutive runs of those lengths, and each run attends to itself alone.
    """
    length, on_cpu = key.shape[-2], query.device.type == "cpu"
    if on_cpu and query.dtype is torch.bfloat16 and (length > SHORT or lengths is not None):
        return tiled_attention(query, key, value, lengths)
    if lengths is not None:
        runs = [[x[:, :, run] for x in (query, key, value)] for run in runs_of(length, lengths)]
        return torch.cat([attend(q, k, v, fused) for q, k, v in runs], dim=2) if runs else value
    if not fused and on_cpu and length <= SHORT:
        # Measured: on short sequences torch's fused CPU kernel costs up to five times this in its bf16 backward pass.
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)  # (B, N, L, L)
        return scores.softmax(dim=-1) @ value
    return F.scaled_dot_product_attention(query, key, value)


class Attention(nn.Module):
    """Full self-attention with one qkv projection. (B, L, D) -> (B, L, D).

    `fused` is set on official weights: a recursion of dozens of blocks turns another rounding of attention into other
    logits.
    """

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.fused = False
        self.heads = heads
        self.head_size = size // heads
        self.qkv_proj = CastedLinear(size, 3 * heads * self.head_size)
        self.o_proj = CastedLinear(heads * self.head_size, size)

    def forward(
        self, x: Tensor, cos_sin: tuple[Tensor, Tensor] | None, lengths: tuple[int, ...] | None = None
    ) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv_proj(x).view(batch, length, 3 * self.heads, self.head_size)
        query, key, value = qkv.split(self.heads, dim=2)  # (B, L, N, E) each
        if cos_sin is not None:
            query, key = rotate(query, *cos_sin), rotate(key, *cos_sin)
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))  # (B, N, L, E) each
        mixed = attend(query, key, value, self.fused, lengths)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, self.heads * self.head_size))


class Block(nn.Module):
    """Post-norm block: attention (or, with `mlp_t`, a SwiGLU over positions), then a SwiGLU over features.

    (B, L, D) -> (B, L, D). With `mlp_t` the first norm runs over positions, as in the official code. `lengths` (of
    attention only) parts the positions into runs that do not see each other.
    """

    def __init__(self, size: int, heads: int, expansion: float, eps: float, positions: int, mlp_t: bool) -> None:
        super().__init__()
        self.eps = eps
        self.mixes_positions = mlp_t
        if mlp_t:
            self.mlp_t = SwiGLU(positions, expansion)
        else:
            self.self_attn = Attention(size, heads)
        self.mlp = SwiGLU(size, expansion)

    def forward(
        self, x: Tensor, cos_sin: tuple[Tensor, Tensor] | None, lengths: tuple[int, ...] | None = None
    ) -> Tensor:
        if self.mixes_positions:
            first = x.transpose(0, 1).contiguous()  # (L, B, D): contiguous already behind the first block
            first = rms_norm(first + self.mlp_t(first, 0), self.eps, 0)
            return rms_norm(first + self.mlp(first), self.eps).transpose(0, 1)
        x = rms_norm(x + self.self_attn(x, cos_sin, lengths), self.eps)
        return rms_norm(x + self.mlp(x), self.eps)


def embedding_scale(size: int) -> float:
    """The factor sqrt(D) by which TRM multiplies its whole input sequence."""
    return math.sqrt(size)

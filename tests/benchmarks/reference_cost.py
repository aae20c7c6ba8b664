"""What the reference code computes for one ACT step, in plain PyTorch: the baseline that stands beside every benchmark.

Written from the facts of its cost, not from its text: ten demonstration slots whether used or not, every one of the
canvas's cells computed, the encoder run again at every ACT step (also in evaluation), fp32 weights cast at each call,
torch's attention kernel, RMSNorm and RoPE in fp32 step by step, stablemax in float64. Its parameters are random: only
its time is used, and the tests hold its count of parameters and operations to the published ones.

Legend: B batch, K slots (10), S canvas cells, T context tokens, D hidden, L positions, N heads, E head size.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOTS = 10


@dataclass(frozen=True)
class Sizes:
    """The reference's own numbers; the embedded scale passes smaller ones."""

    vocab: int = 12
    cells: int = 900
    tokens: int = 16
    hidden: int = 512
    heads: int = 8
    inner: int = 1536
    layers: int = 2
    h_cycles: int = 3
    l_cycles: int = 4
    steps: int = 16
    dtype: torch.dtype = torch.bfloat16


class Linear(nn.Module):
    """An fp32 weight, cast at every call."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * inputs**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


def norm(x: Tensor) -> Tensor:
    wide = x.to(torch.float32)
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


def angles(size: int, positions: int) -> tuple[Tensor, Tensor]:
    """RoPE's cosines and sines, (L, E) each."""
    inverse = 1.0 / 10000.0 ** (torch.arange(0, size, 2) / size)
    angle = torch.outer(torch.arange(positions).float(), inverse).repeat(1, 2)
    return angle.cos(), angle.sin()


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    wide = x.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]).to(x.dtype)


class Block(nn.Module):
    """Post-norm attention and SwiGLU."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.heads = s.heads
        self.qkv, self.out = Linear(s.hidden, 3 * s.hidden), Linear(s.hidden, s.hidden)
        self.up, self.down = Linear(s.hidden, 2 * s.inner), Linear(s.inner, s.hidden)

    def forward(self, x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)  # (B, L, N, E) each
        q, k = turn(q, *cos_sin), turn(k, *cos_sin)
        mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        x = norm(x + self.out(mixed.transpose(1, 2).flatten(2)))
        gate, up = self.up(x).chunk(2, dim=-1)
        return norm(x + self.down(F.silu(gate) * up))


class Encoder(nn.Module):
    """The `standard` encoder over ten slots of 2S tokens."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.s = s
        self.inputs, self.outputs = (nn.Parameter(torch.randn(s.vocab, s.hidden) * s.hidden**-0.5) for _ in range(2))
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.layers))
        self.project = Linear(s.hidden, s.hidden)
        self.queries = nn.Parameter(torch.randn(s.tokens, s.hidden) * 0.02)
        self.query, self.key, self.value, self.out = (Linear(s.hidden, s.hidden) for _ in range(4))
        self.up, self.down = Linear(s.hidden, 2 * s.inner), Linear(s.inner, s.hidden)
        for name, table in zip(("cos", "sin"), angles(s.hidden // s.heads, 2 * s.cells), strict=True):
            self.register_buffer(name, table)

    def forward(self, demo_inputs: Tensor, demo_labels: Tensor, mask: Tensor) -> Tensor:
        s, batch = self.s, len(mask)
        tables = self.inputs.to(s.dtype), self.outputs.to(s.dtype)
        x = torch.cat((F.embedding(demo_inputs, tables[0]), F.embedding(demo_labels, tables[1])), dim=2)
        x = s.hidden**0.5 * x.flatten(0, 1)  # (B*K, 2S, D)
        for block in self.blocks:
            x = block(x, (self.cos, self.sin))
        real = (torch.cat((demo_inputs, demo_labels), dim=2).flatten(0, 1) != 0).unsqueeze(-1)
        demos = self.project((x * real).sum(1) / real.sum(1).clamp(min=1)).view(batch, SLOTS, -1)
        x = self.queries.to(s.dtype).expand(batch, -1, -1)  # (B, T, D)
        q, k, v = (f(t).unflatten(-1, (s.heads, -1)).transpose(1, 2) for f, t in
                   ((self.query, x), (self.key, demos), (self.value, demos)))  # fmt: skip
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        x = norm(x + self.out(mixed.transpose(1, 2).flatten(2)))
        gate, up = self.up(x).chunk(2, dim=-1)
        return norm(x + self.down(F.silu(gate) * up))


class Decoder(nn.Module):
    """One ACT step: H cycles of L updates, all but the last without gradient."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.s = s
        self.embedding = nn.Parameter(torch.randn(s.vocab, s.hidden) * s.hidden**-0.5)
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.layers))
        self.head, self.halt = Linear(s.hidden, s.vocab), Linear(s.hidden, 2)
        self.start = nn.Parameter(torch.randn(2, s.hidden), requires_grad=False)
        for name, table in zip(("cos", "sin"), angles(s.hidden // s.heads, s.cells + s.tokens), strict=True):
            self.register_buffer(name, table)

    def fresh(self, batch: int) -> tuple[Tensor, Tensor]:
        shape = (batch, self.s.cells + self.s.tokens, self.s.hidden)
        return tuple(row.to(self.s.dtype).expand(shape) for row in self.start)

    def mix(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, (self.cos, self.sin))
        return x

    def cycle(self, high: Tensor, low: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        for _ in range(self.s.l_cycles):
            low = self.mix(low + (high + x))
        return self.mix(high + low), low

    def forward(self, carry: tuple[Tensor, Tensor], inputs: Tensor, context: Tensor) -> tuple[Tensor, ...]:
        x = torch.cat((context.to(self.s.dtype), F.embedding(inputs, self.embedding.to(self.s.dtype))), dim=1)
        x = self.s.hidden**0.5 * x
        high, low = carry
        with torch.no_grad():
            for _ in range(self.s.h_cycles - 1):
                high, low = self.cycle(high, low, x)
        high, low = self.cycle(high, low, x)
        return high.detach(), low.detach(), self.head(high[:, self.s.tokens :]), self.halt(high[:, 0])[:, 0].float()


def stablemax64(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over each sample's scored tokens, (B,) float64. labels are -100 where ignored."""
    x = logits.to(torch.float64)
    mass = torch.where(x < 0, 1 / (1 - x + 1e-30), x + 1)
    log_p = torch.log(mass / mass.sum(-1, keepdim=True))
    picked = log_p.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    scored = labels != -100
    return -(picked * scored).sum(-1) / scored.sum(-1).clamp(min=1)


class Reference(nn.Module):
    """Encoder and decoder; the decoder frozen."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.s = s
        self.encoder, self.decoder = Encoder(s), Decoder(s)
        self.decoder.requires_grad_(False)

    def slots(self, demos: Tensor) -> Tensor:
        """(B, K, ...) padded to ten slots."""
        return torch.cat((demos, demos.new_zeros(len(demos), SLOTS - demos.shape[1], *demos.shape[2:])), dim=1)

    def loss(self, inputs: Tensor, labels: Tensor, demo_inputs: Tensor, demo_labels: Tensor, mask: Tensor) -> Tensor:
        """One ACT step from fresh states, and its loss (scalar)."""
        context = self.encoder(self.slots(demo_inputs), self.slots(demo_labels), self.slots(mask))
        _, _, logits, halt = self.decoder(self.decoder.fresh(len(inputs)), inputs, context)
        right = ((logits.argmax(-1) == labels) | (labels == -100)).all(-1)
        halting = F.binary_cross_entropy_with_logits(halt, right.to(halt.dtype), reduction="sum")
        return stablemax64(logits, labels).sum() + 0.5 * halting

    @torch.inference_mode()
    def answer(self, inputs: Tensor, demo_inputs: Tensor, demo_labels: Tensor, mask: Tensor) -> Tensor:
        """Every ACT step of an evaluation, the encoder run again at each: tokens (B, S)."""
        high, low = self.decoder.fresh(len(inputs))
        for _ in range(self.s.steps):
            context = self.encoder(self.slots(demo_inputs), self.slots(demo_labels), self.slots(mask))
            high, low, logits, _ = self.decoder((high, low), inputs, context)
        return logits.argmax(-1)

"""Readers of one demonstration: input and output grid -> one vector. Shared by the reference's encoders.

Three are published (public ETRM code; facts only, written anew): `TwoRuns` reads the pair as two token runs and
averages over non-PAD tokens (post-norm, as TRM's own blocks); `ClassToken` lets a CLS token travel through pre-norm
blocks; `LatentProgram` is that of Latent Program Networks (Bonnet and Macfarlane, arXiv 2411.08706): small, LayerNorm
without affine, learned row, column and channel embeddings. All attend over PAD cells too, as published; a slot without
a demonstration leaves as zeros.

Legend: B batch, K demonstrations, S canvas cells, H encoder size, E head size.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etrm.data.grids import PAD
from etrm.models.encoders import masked_mean
from etrm.models.layers import (
    Attention,
    Block,
    CastedEmbedding,
    CastedLinear,
    RotaryEmbedding,
    SwiGLU,
    embedding_scale,
    rms_norm,
)

EPS = 1e-5
THETA = 10000.0
LPN_SIZE, LPN_HEADS, LPN_LAYERS, LPN_EXPANSION = 128, 8, 2, 4  # as published; the config's sizes do not reach it


def shown_only(demos: Tensor, mask: Tensor) -> Tensor:
    """Zeros where no demonstration is, so that nothing of a padded slot is seen. (B, K, H), (B, K) bool."""
    return torch.where(mask.unsqueeze(-1), demos, 0.0)


class TwoRuns(nn.Module):
    """Two embedding tables, 2S tokens with RoPE, `layers` post-norm blocks, mean over non-PAD tokens, linear map.

    (B, K, S), (B, K, S), (B, K) -> (B, K, H).
    """

    def __init__(self, cells: int, vocab: int, size: int, heads: int, layers: int) -> None:
        super().__init__()
        std = 1.0 / embedding_scale(size)
        self.size = size
        self.embed_input = CastedEmbedding(vocab, size, std, torch.float32)
        self.embed_output = CastedEmbedding(vocab, size, std, torch.float32)
        self.rotary = RotaryEmbedding(size // heads, 2 * cells, THETA)
        self.blocks = nn.ModuleList(Block(size, heads, 4.0, EPS, 2 * cells, mlp_t=False) for _ in range(layers))
        self.out = CastedLinear(size, size)

    def forward(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> Tensor:
        batch, count, cells = demo_inputs.shape
        pair = torch.cat((self.embed_input(demo_inputs), self.embed_output(demo_labels)), dim=2)  # (B, K, 2S, H)
        x = embedding_scale(self.size) * pair.view(batch * count, 2 * cells, self.size)
        cos_sin = self.rotary()
        for block in self.blocks:
            x = block(x, cos_sin)
        real = torch.cat((demo_inputs, demo_labels), dim=2).view(batch * count, 2 * cells) != PAD
        demos = self.out(masked_mean(x, real, dim=1)).view(batch, count, self.size)
        return shown_only(demos, demo_mask)


class PreNormBlock(nn.Module):
    """Attention, then SwiGLU, each on a normed copy and added. (B, L, H), two (L, E) -> (B, L, H)."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.self_attn = Attention(size, heads)
        self.mlp = SwiGLU(size, 4.0)

    def forward(self, x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.self_attn(rms_norm(x, EPS), cos_sin)
        return x + self.mlp(rms_norm(x, EPS))


class ClassToken(nn.Module):
    """A CLS token before 2S tokens, `layers` pre-norm blocks, RoPE on all but CLS; answers RMSNorm(CLS).

    (B, K, S), (B, K, S), (B, K) -> (B, K, H).
    """

    def __init__(self, cells: int, vocab: int, size: int, heads: int, layers: int) -> None:
        super().__init__()
        std = 1.0 / embedding_scale(size)
        self.size = size
        self.embed_input = CastedEmbedding(vocab, size, std, torch.float32)
        self.embed_output = CastedEmbedding(vocab, size, std, torch.float32)
        self.cls = nn.Parameter(torch.randn(size) * std)
        self.rotary = RotaryEmbedding(size // heads, 2 * cells, THETA)
        self.blocks = nn.ModuleList(PreNormBlock(size, heads) for _ in range(layers))

    def forward(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> Tensor:
        batch, count, cells = demo_inputs.shape
        pair = torch.cat((self.embed_input(demo_inputs), self.embed_output(demo_labels)), dim=2)  # (B, K, 2S, H)
        cls = self.cls.expand(batch * count, 1, -1)
        x = embedding_scale(self.size) * torch.cat((cls, pair.view(batch * count, 2 * cells, self.size)), dim=1)
        cos, sin = self.rotary()
        cos_sin = (F.pad(cos, (0, 0, 1, 0), value=1.0), F.pad(sin, (0, 0, 1, 0)))  # (1 + 2S, E), CLS is not turned
        for block in self.blocks:
            x = block(x, cos_sin)
        return shown_only(rms_norm(x[:, 0], EPS).view(batch, count, self.size), demo_mask)


class LatentProgramBlock(nn.Module):
    """Pre-LayerNorm block without affine: attention, then a SiLU MLP. (B, L, H) -> (B, L, H)."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.self_attn = Attention(size, heads)
        self.up = CastedLinear(size, LPN_EXPANSION * size)
        self.down = CastedLinear(LPN_EXPANSION * size, size)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(F.layer_norm(x, x.shape[-1:]), None)
        return x + self.down(F.silu(self.up(F.layer_norm(x, x.shape[-1:]))))


class LatentProgram(nn.Module):
    """LPN's reader at its published size (LPN_SIZE, LPN_HEADS, LPN_LAYERS). (B, K, S), (B, K, S), (B, K) -> (B, K, H).

    The square canvas is read by row and column; which grid a cell is of is the channel's embedding.
    """

    size = LPN_SIZE

    def __init__(self, cells: int, vocab: int) -> None:
        super().__init__()
        side, size = math.isqrt(cells), self.size
        std = size**-0.5
        self.embed = CastedEmbedding(vocab, size, std, torch.float32)
        self.row, self.column = (nn.Parameter(torch.randn(side, size) * std) for _ in range(2))
        self.channel = nn.Parameter(torch.randn(2, size) * std)
        self.cls = nn.Parameter(torch.randn(size) * std)
        self.blocks = nn.ModuleList(LatentProgramBlock(size, LPN_HEADS) for _ in range(LPN_LAYERS))

    def forward(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> Tensor:
        batch, count, cells = demo_inputs.shape
        place = (self.row.unsqueeze(1) + self.column).view(cells, self.size)  # (S, H)
        grids = torch.stack((demo_inputs, demo_labels), dim=2)  # (B, K, 2, S)
        x = self.embed(grids) + self.channel.unsqueeze(1) + place  # (B, K, 2, S, H)
        cls = self.cls.expand(batch * count, 1, -1)
        x = torch.cat((cls, x.view(batch * count, 2 * cells, self.size)), dim=1)
        for block in self.blocks:
            x = block(x)
        demos = F.layer_norm(x[:, 0], x.shape[-1:]).view(batch, count, self.size)
        return shown_only(demos, demo_mask)

"""The reference's `standard` encoder: a demonstration as two token runs, mean-pooled, then set cross-attention.

Kept as published (facts: separate embeddings for input and output grids, 2S tokens with RoPE, two post-norm blocks,
mean over non-PAD tokens, learned queries attending over the demonstrations' vectors, unit RMS a token) so that its
collapse can be shown. The one change: its query tokens are fp32, since bf16 parameters cannot follow small updates.

Legend: B batch, K demonstrations, S canvas cells, T context tokens, D decoder size, H encoder size.
"""

import torch
from torch import Tensor, nn

from etrm.config.schema import EncoderConfig
from etrm.data.grids import PAD
from etrm.models.encoders import EncoderSpec, masked_mean, register
from etrm.models.layers import Block, CastedEmbedding, CastedLinear, RotaryEmbedding, SwiGLU, embedding_scale, rms_norm

EPS = 1e-5


class SetAttention(nn.Module):
    """T learned queries attend over each sample's demonstration vectors. (B, K, H), (B, K) bool -> (B, T, H)."""

    def __init__(self, tokens: int, size: int, heads: int, layers: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(tokens, size) * 0.02)
        self.attention = nn.ModuleList(
            nn.MultiheadAttention(size, heads, bias=False, batch_first=True) for _ in range(layers)
        )
        self.mlp = nn.ModuleList(SwiGLU(size, 4.0) for _ in range(layers))

    def forward(self, demos: Tensor, mask: Tensor) -> Tensor:
        x = self.queries.expand(demos.shape[0], -1, -1)  # (B, T, H)
        # A sample without demonstrations attends to its (zero) first slot instead of nothing, which would be NaN.
        hidden = ~(mask | (~mask.any(dim=1, keepdim=True) & (torch.arange(mask.shape[1], device=mask.device) == 0)))
        for attention, mlp in zip(self.attention, self.mlp, strict=True):
            mixed, _ = attention(x, demos, demos, key_padding_mask=hidden, need_weights=False)
            x = rms_norm(x + mixed, EPS)
            x = rms_norm(x + mlp(x), EPS)
        return x


class Standard(nn.Module):
    """See the file's top. Output tokens have unit RMS, whatever the decoder's own contexts have."""

    def __init__(self, spec: EncoderSpec, config: EncoderConfig) -> None:
        super().__init__()
        size = config.hidden_size
        std = 1.0 / embedding_scale(size)
        self.size = size
        self.embed_input = CastedEmbedding(spec.vocab_size, size, std, torch.float32)
        self.embed_output = CastedEmbedding(spec.vocab_size, size, std, torch.float32)
        self.rotary = RotaryEmbedding(size // config.num_heads, 2 * spec.seq_len, 10000.0)
        self.blocks = nn.ModuleList(
            Block(size, config.num_heads, 4.0, EPS, 2 * spec.seq_len, mlp_t=False) for _ in range(config.layers)
        )
        self.out = CastedLinear(size, size)
        self.set = SetAttention(spec.context_tokens, size, config.num_heads, config.set_layers)
        self.to_context = CastedLinear(size, spec.hidden_size)

    def forward(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> Tensor:
        batch, count, cells = demo_inputs.shape
        pair = torch.cat((self.embed_input(demo_inputs), self.embed_output(demo_labels)), dim=2)  # (B, K, 2S, H)
        x = embedding_scale(self.size) * pair.view(batch * count, 2 * cells, self.size)
        cos_sin = self.rotary()
        for block in self.blocks:
            x = block(x, cos_sin)
        real = torch.cat((demo_inputs, demo_labels), dim=2).view(batch * count, 2 * cells) != PAD
        demos = self.out(masked_mean(x, real, dim=1)).view(batch, count, self.size)  # (B, K, H)
        # A slot attends nowhere else than to itself, so what stands in an unused one must not be seen at all.
        demos = torch.where(demo_mask.unsqueeze(-1), demos, 0.0)
        return rms_norm(self.to_context(self.set(demos, demo_mask)), EPS)  # (B, T, D)


@register("standard")
def standard(spec: EncoderSpec, config: EncoderConfig) -> nn.Module:
    """The reference's encoder at the config's size."""
    return Standard(spec, config)

"""The `aligned` encoder: input and output of one cell stand in ONE token, so that a rule is visible without search.

An encoder that reads a demonstration as two sequences first has to discover which input cell belongs to which output
cell; the public ones settle on a constant context before they do. Here a cell's token is the sum of its input, output
and place embeddings. Context tokens travel through the blocks as learned queries, are averaged over the
demonstrations, refined together, and leave centred and scaled to the contexts the decoder was trained with.

Legend: B batch, K demonstrations, S canvas cells, T context tokens, D decoder size, H encoder size.
"""

import torch
from torch import Tensor, nn

from etrm.config.schema import EncoderConfig
from etrm.models.encoders import EncoderSpec, MatchStatistics, masked_mean, register, start_small
from etrm.models.layers import Block, CastedEmbedding, CastedLinear, embedding_scale

EPS = 1e-5


class Aligned(nn.Module):
    """See the file's top."""

    def __init__(self, spec: EncoderSpec, config: EncoderConfig) -> None:
        super().__init__()
        size = self.size = config.hidden_size
        self.tokens = spec.context_tokens
        std = 1.0 / embedding_scale(size)
        self.embed_input = CastedEmbedding(spec.vocab_size, size, std, torch.float32)
        self.embed_output = CastedEmbedding(spec.vocab_size, size, std, torch.float32)
        self.place = nn.Parameter(torch.randn(spec.seq_len, size) * std)
        self.queries = nn.Parameter(torch.randn(spec.context_tokens, size) * std)
        length = spec.context_tokens + spec.seq_len
        self.blocks = nn.ModuleList(
            Block(size, config.num_heads, 4.0, EPS, length, mlp_t=False) for _ in range(config.layers)
        )
        self.refine = nn.ModuleList(
            Block(size, config.num_heads, 4.0, EPS, spec.context_tokens, mlp_t=False) for _ in range(config.set_layers)
        )
        self.to_context = CastedLinear(size, spec.hidden_size)
        start_small(self.to_context)
        self.match = MatchStatistics(spec)

    def forward(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> Tensor:
        batch, count, cells = demo_inputs.shape
        pair = self.embed_input(demo_inputs) + self.embed_output(demo_labels) + self.place  # (B, K, S, H)
        queries = self.queries.expand(batch * count, -1, -1)  # (B*K, T, H)
        x = embedding_scale(self.size) * torch.cat((queries, pair.view(batch * count, cells, self.size)), dim=1)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        for block in self.blocks:
            x = block(x, None)
        read = x[:, : self.tokens].view(batch, count, self.tokens * self.size)
        context = masked_mean(read, demo_mask, dim=1).view(batch, self.tokens, self.size)  # (B, T, H)
        for block in self.refine:
            context = block(context, None)
        return self.match(self.to_context(context))  # (B, T, D)


@register("aligned")
def aligned(spec: EncoderSpec, config: EncoderConfig) -> nn.Module:
    """The aligned encoder at the config's size."""
    return Aligned(spec, config)

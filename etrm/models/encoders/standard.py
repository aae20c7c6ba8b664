"""The reference's `standard` encoder: a demonstration as two token runs, mean-pooled, then set cross-attention.

Kept as published (facts: separate embeddings for input and output grids, 2S tokens with RoPE, two post-norm blocks,
mean over non-PAD tokens, learned queries attending over the demonstrations' vectors, unit RMS a token) so that its
collapse can be shown. The one change: its query tokens are fp32, since bf16 parameters cannot follow small updates.
Masked demonstrations are not computed at all: nothing of them reaches the context; equal ones are computed once.

`standard_cells` is the same network with the PAD cells hidden from attention, as the mean already hides them. The
published one lets every cell attend to all of them, so the two are different functions of the same weights; but then
only real cells need computing: those of all demonstrations are packed into one row, each at its own RoPE position.

Legend: B batch, K demonstrations, S canvas cells, T context tokens, D decoder size, H encoder size, P different
demonstrations of the batch, N tokens that are computed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etrm.config.schema import EncoderConfig
from etrm.data.grids import PAD
from etrm.models.encoders import EncoderSpec, register
from etrm.models.encoders.set_encoders import EPS, SetAttention
from etrm.models.layers import Block, CastedEmbedding, CastedLinear, RotaryEmbedding, embedding_scale, rms_norm


class Standard(nn.Module):
    """See the file's top. Output tokens have unit RMS, whatever the decoder's own contexts have."""

    def __init__(self, spec: EncoderSpec, config: EncoderConfig, attend_pad: bool) -> None:
        super().__init__()
        size = config.hidden_size
        std = 1.0 / embedding_scale(size)
        self.size = size
        self.attend_pad = attend_pad
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
        given = torch.cat((demo_inputs[demo_mask], demo_labels[demo_mask]), dim=1)
        # Queries of one task in a batch share their demonstrations: each different one is computed once.
        shown, which = given.unique(dim=0, return_inverse=True) if len(given) else (given, slice(None))  # (P, 2S)
        read = self.out(self.pooled(shown))[which]
        # A slot attends nowhere else than to itself, so an unused one must hold nothing at all.
        demos = read.new_zeros(*demo_mask.shape, self.size)  # (B, K, H)
        demos[demo_mask] = read
        return rms_norm(self.to_context(self.set(demos, demo_mask)), EPS)  # (B, T, D)

    def pooled(self, shown: Tensor) -> Tensor:
        """The mean over each demonstration's non-PAD tokens after the blocks. shown (P, 2S) -> (P, H)."""
        real = shown != PAD  # (P, 2S)
        owner, place = real.nonzero(as_tuple=True)  # (N,) each
        table = torch.cat((self.embed_input.embedding_weight, self.embed_output.embedding_weight))  # (2V, H)
        second = torch.arange(shown.shape[1], device=shown.device) >= shown.shape[1] // 2
        rows = shown + second * len(self.embed_input.embedding_weight)  # (P, 2S)
        if torch.is_autocast_enabled(shown.device.type):
            table = table.to(torch.get_autocast_dtype(shown.device.type))
        cos, sin = self.rotary()  # (2S, E) each
        lengths = None
        if self.attend_pad:
            x = F.embedding(rows, table)  # (P, 2S, H)
        else:
            x = F.embedding(rows[real], table).unsqueeze(0)  # (1, N, H)
            cos, sin = cos[place], sin[place]
            lengths = tuple(count for count in real.sum(dim=1).tolist() if count)
        x = embedding_scale(self.size) * x
        for block in self.blocks:
            x = block(x, (cos, sin), lengths)
        read = (x[real] if self.attend_pad else x[0]).float()  # (N, H)
        total = read.new_zeros(len(shown), self.size).index_add(0, owner, read)
        return (total / real.sum(dim=1, keepdim=True).clamp(min=1)).to(x.dtype)


@register("standard")
def standard(spec: EncoderSpec, config: EncoderConfig) -> nn.Module:
    """The reference's encoder at the config's size."""
    return Standard(spec, config, attend_pad=True)


@register("standard_cells")
def standard_cells(spec: EncoderSpec, config: EncoderConfig) -> nn.Module:
    """The same without PAD in its attention, over real cells only."""
    return Standard(spec, config, attend_pad=False)

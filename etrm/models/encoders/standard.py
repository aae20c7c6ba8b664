"""The reference's `standard` encoder: a demonstration as two token runs, mean-pooled, then set cross-attention.

Kept as published (facts: separate embeddings for input and output grids, 2S tokens with RoPE, two post-norm blocks,
mean over non-PAD tokens, learned queries attending over the demonstrations' vectors, unit RMS a token) so that its
collapse can be shown. The one change: its query tokens are fp32, since bf16 parameters cannot follow small updates.

Legend: B batch, K demonstrations, S canvas cells, T context tokens, D decoder size, H encoder size.
"""

from torch import Tensor, nn

from etrm.config.schema import EncoderConfig
from etrm.models.encoders import EncoderSpec, register
from etrm.models.encoders.grid_encoders import TwoRuns
from etrm.models.encoders.set_encoders import EPS, SetAttention
from etrm.models.layers import CastedLinear, rms_norm


class Standard(nn.Module):
    """See the file's top. Output tokens have unit RMS, whatever the decoder's own contexts have."""

    def __init__(self, spec: EncoderSpec, config: EncoderConfig) -> None:
        super().__init__()
        size, heads = config.hidden_size, config.num_heads
        self.grid = TwoRuns(spec.seq_len, spec.vocab_size, size, heads, config.layers)
        self.set = SetAttention(spec.context_tokens, size, heads, config.set_layers)
        self.to_context = CastedLinear(size, spec.hidden_size)

    def forward(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> Tensor:
        demos = self.grid(demo_inputs, demo_labels, demo_mask)  # (B, K, H)
        return rms_norm(self.to_context(self.set(demos, demo_mask)), EPS)  # (B, T, D)


@register("standard")
def standard(spec: EncoderSpec, config: EncoderConfig) -> nn.Module:
    """The reference's encoder at the config's size."""
    return Standard(spec, config)

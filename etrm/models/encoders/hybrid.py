"""The reference's `hybrid_standard` and `hybrid_variational`: a CLS token a demonstration, then set cross-attention.

`layers` are those of the grid reader (published with 4), `set_layers` those of the set encoder (1). The variational one
averages the set encoder's tokens into one vector, samples a latent of the same size and maps it to all tokens.

Legend: B batch, K demonstrations, T context tokens, D decoder size, H encoder size.
"""

from torch import Tensor, nn

from etrm.config.schema import EncoderConfig
from etrm.models.encoders import Encoded, EncoderSpec, register
from etrm.models.encoders.grid_encoders import ClassToken
from etrm.models.encoders.set_encoders import EPS, KL_WEIGHT, Gaussian, SetAttention, ToTokens
from etrm.models.layers import CastedLinear, rms_norm


class HybridStandard(nn.Module):
    """See the file's top. Output tokens have unit RMS."""

    def __init__(self, spec: EncoderSpec, config: EncoderConfig) -> None:
        super().__init__()
        size, heads = config.hidden_size, config.num_heads
        self.grid = ClassToken(spec.seq_len, spec.vocab_size, size, heads, config.layers)
        self.set = SetAttention(spec.context_tokens, size, heads, config.set_layers)
        self.to_context = CastedLinear(size, spec.hidden_size)

    def forward(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> Tensor:
        tokens = self.set(self.grid(demo_inputs, demo_labels, demo_mask), demo_mask)  # (B, T, H)
        return rms_norm(self.to_context(tokens), EPS)


class HybridVariational(nn.Module):
    """See the file's top. Output tokens are not normalised; `.losses` holds the weighted KL term."""

    def __init__(self, spec: EncoderSpec, config: EncoderConfig) -> None:
        super().__init__()
        size, heads = config.hidden_size, config.num_heads
        self.grid = ClassToken(spec.seq_len, spec.vocab_size, size, heads, config.layers)
        self.set = SetAttention(spec.context_tokens, size, heads, config.set_layers)
        self.latent = Gaussian(size, size)
        self.to_tokens = ToTokens(size, spec.context_tokens, spec.hidden_size)

    def forward(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> Encoded:
        tokens = self.set(self.grid(demo_inputs, demo_labels, demo_mask), demo_mask)  # (B, T, H)
        latent, divergence = self.latent(rms_norm(tokens.mean(dim=1), EPS))
        return Encoded(self.to_tokens(latent), {"kl": KL_WEIGHT * divergence.mean()})


@register("hybrid_standard")
def hybrid_standard(spec: EncoderSpec, config: EncoderConfig) -> nn.Module:
    """The reference's hybrid encoder at the config's size."""
    return HybridStandard(spec, config)


@register("hybrid_variational")
def hybrid_variational(spec: EncoderSpec, config: EncoderConfig) -> nn.Module:
    """The reference's variational hybrid encoder at the config's size."""
    return HybridVariational(spec, config)

"""The reference's encoders after Latent Program Networks (arXiv 2411.08706): one latent a demonstration, averaged.

`lpn` and `lpn_var` keep the paper's size (hidden 128, 8 heads, 2 layers, latent 32: constants of grid_encoders.py and
of this file) and read no size of the config. `lpn_standard` and `lpn_variational` put the reference's own CLS reader in
its place (published with 8 and 6 `layers`). The variational ones sample a latent for every demonstration and average
the samples. No set encoder stands in between, so `set_layers` is read by none of them; outputs are not normalised.

Legend: B batch, K demonstrations, T context tokens, D decoder size, H reader's size, Z latent size.
"""

from torch import Tensor, nn

from etrm.config.schema import EncoderConfig
from etrm.models.encoders import Encoded, EncoderSpec, masked_mean, register
from etrm.models.encoders.grid_encoders import ClassToken, LatentProgram
from etrm.models.encoders.set_encoders import KL_WEIGHT, Gaussian, ToTokens

LATENT = 32  # of lpn_var, as published


class MeanOfDemonstrations(nn.Module):
    """A reader's vectors averaged over demonstrations and mapped to tokens."""

    def __init__(self, reader: LatentProgram | ClassToken, spec: EncoderSpec) -> None:
        super().__init__()
        self.grid = reader
        self.to_tokens = ToTokens(reader.size, spec.context_tokens, spec.hidden_size)

    def forward(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> Tensor:
        demos = self.grid(demo_inputs, demo_labels, demo_mask)  # (B, K, H)
        context: Tensor = self.to_tokens(masked_mean(demos, demo_mask, dim=1))
        return context


class MeanOfLatents(nn.Module):
    """A latent sampled for each demonstration, averaged and mapped to tokens; `.losses` holds the weighted KL term."""

    def __init__(self, reader: LatentProgram | ClassToken, latent: int, spec: EncoderSpec) -> None:
        super().__init__()
        self.grid = reader
        self.latent = Gaussian(reader.size, latent)
        self.to_tokens = ToTokens(latent, spec.context_tokens, spec.hidden_size)

    def forward(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> Encoded:
        latents, divergence = self.latent(self.grid(demo_inputs, demo_labels, demo_mask))  # (B, K, Z), (B, K)
        per_sample = masked_mean(divergence.unsqueeze(-1), demo_mask, dim=1)  # (B, 1)
        context = self.to_tokens(masked_mean(latents, demo_mask, dim=1))
        return Encoded(context, {"kl": KL_WEIGHT * per_sample.mean()})


def _class_token(spec: EncoderSpec, config: EncoderConfig) -> ClassToken:
    return ClassToken(spec.seq_len, spec.vocab_size, config.hidden_size, config.num_heads, config.layers)


@register("lpn")
def lpn(spec: EncoderSpec, config: EncoderConfig) -> nn.Module:
    """The paper's encoder at its own size."""
    return MeanOfDemonstrations(LatentProgram(spec.seq_len, spec.vocab_size), spec)


@register("lpn_var")
def lpn_var(spec: EncoderSpec, config: EncoderConfig) -> nn.Module:
    """The paper's variational encoder at its own size, latent LATENT."""
    return MeanOfLatents(LatentProgram(spec.seq_len, spec.vocab_size), LATENT, spec)


@register("lpn_standard")
def lpn_standard(spec: EncoderSpec, config: EncoderConfig) -> nn.Module:
    """The reference's larger one, at the config's size."""
    return MeanOfDemonstrations(_class_token(spec, config), spec)


@register("lpn_variational")
def lpn_variational(spec: EncoderSpec, config: EncoderConfig) -> nn.Module:
    """The reference's larger variational one, at the config's size; its latent is as wide as the reader."""
    return MeanOfLatents(_class_token(spec, config), config.hidden_size, spec)

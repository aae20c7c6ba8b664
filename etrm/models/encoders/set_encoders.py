"""From one vector a demonstration to one context a task, and the latent of the variational encoders.

Shared by the reference's encoders (public ETRM code; facts only, written anew). The KL term is a mean over samples of
the sum over latent dimensions, so that its weight against the LM loss (a mean over samples too) is the same at every
batch size: the published code added a batch mean to a batch sum.

Legend: B batch, K demonstrations, T context tokens, D decoder size, H encoder size, Z latent size.
"""

import torch
from torch import Tensor, nn

from etrm.models.layers import CastedLinear, SwiGLU, rms_norm

EPS = 1e-5
KL_WEIGHT = 1e-4  # as published
CLAMP = 10.0  # of log sigma squared, as published


class CrossAttention(nn.Module):
    """T tokens attend over each sample's demonstration vectors, then a SwiGLU, post-norm.

    (B, T, H), (B, K, H), (B, K) bool -> (B, T, H). Vectors of slots without a demonstration must be zeros already.
    """

    def __init__(self, size: int, heads: int, layers: int) -> None:
        super().__init__()
        self.attention = nn.ModuleList(
            nn.MultiheadAttention(size, heads, bias=False, batch_first=True) for _ in range(layers)
        )
        self.mlp = nn.ModuleList(SwiGLU(size, 4.0) for _ in range(layers))

    def forward(self, x: Tensor, demos: Tensor, mask: Tensor) -> Tensor:
        # A sample without demonstrations attends to its (zero) first slot instead of nothing, which would be NaN.
        hidden = ~(mask | (~mask.any(dim=1, keepdim=True) & (torch.arange(mask.shape[1], device=mask.device) == 0)))
        for attention, mlp in zip(self.attention, self.mlp, strict=True):
            mixed, _ = attention(x, demos, demos, key_padding_mask=hidden, need_weights=False)
            x = rms_norm(x + mixed, EPS)
            x = rms_norm(x + mlp(x), EPS)
        return x


class SetAttention(nn.Module):
    """The same asked by T learned queries. (B, K, H), (B, K) bool -> (B, T, H)."""

    def __init__(self, tokens: int, size: int, heads: int, layers: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(tokens, size) * 0.02)
        self.read = CrossAttention(size, heads, layers)

    def forward(self, demos: Tensor, mask: Tensor) -> Tensor:
        found: Tensor = self.read(self.queries.expand(demos.shape[0], -1, -1), demos, mask)
        return found


class ToTokens(nn.Module):
    """One vector to all context tokens by a linear map, not normalised (as published). (B, Z) -> (B, T, D) fp32."""

    def __init__(self, size: int, tokens: int, width: int) -> None:
        super().__init__()
        self.shape = (tokens, width)
        self.linear = CastedLinear(size, tokens * width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).float().view(-1, *self.shape)


class Gaussian(nn.Module):
    """Mean and log variance by linear maps, sampled in training, the mean in evaluation. (…, H) -> (…, Z), (…).

    The second answer is the KL divergence to a unit Gaussian, summed over Z. The log variance starts at 0; the mean
    does not, or the first update would send no gradient past it.
    """

    def __init__(self, size: int, latent: int) -> None:
        super().__init__()
        self.mean = CastedLinear(size, latent)
        self.log_variance = CastedLinear(size, latent)
        with torch.no_grad():
            self.log_variance.weight.zero_()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.mean(x).float()
        spread = self.log_variance(x).float().clamp(-CLAMP, CLAMP)
        divergence = 0.5 * (mean.square() + spread.exp() - 1.0 - spread).sum(dim=-1)
        if self.training:
            mean = mean + (0.5 * spread).exp() * torch.randn_like(mean)
        return mean, divergence

"""The `correspondence` encoder: which output cell follows which input cell, counted over all cells of all
demonstrations.

A rule that moves cells shows itself in the joint counts of (colour at input cell q, colour at output cell p): for the
right pairing of q with p they are concentrated, for a wrong one they are the product of the marginals. Each head
learns one soft pairing W (S, S) and multiplies the mixed input with the output cell by cell (a gated spatial mixing,
cf. gMLP, arXiv 2105.08050); the products are summed over cells and averaged over demonstrations BEFORE any
nonlinearity, so that three demonstrations count as one sample of 3 x S cells. A residual MLP then reads the counts.

Legend: B batch, K demonstrations, S canvas cells, M heads, C channels a head, T context tokens, D decoder size, H
encoder size.
"""

import torch
from torch import Tensor, nn

from etrm.config.schema import EncoderConfig
from etrm.declared import no_gradient, truncate
from etrm.models.encoders import EncoderSpec, MatchStatistics, masked_mean, register, start_small
from etrm.models.layers import CastedLinear, SwiGLU, rms_norm

EPS = 1e-5
CHANNELS = 16


class RunningStandardise(nn.Module):
    """Subtract the running mean and divide by the running deviation of each feature; (B, F) -> (B, F) fp32.

    Counts differ little between tasks beside their common mean, and a context that starts constant stays so for long.
    Unlike batch norm a sample is never normalised by its neighbours, in training or evaluation.
    """

    mean: Tensor
    square: Tensor
    seen: Tensor

    def __init__(self, features: int, momentum: float = 0.02) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("square", torch.ones(features))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with no_gradient("running_statistics"):
                self.seen += 1
                # Early updates average over all batches so far; later ones forget.
                rate = max(self.momentum, 1.0 / int(self.seen))
                self.mean.lerp_(x.mean(dim=0), rate)
                self.square.lerp_((x - self.mean).square().mean(dim=0), rate)
        mean, square = truncate(self.mean, "running_statistics"), truncate(self.square, "running_statistics")
        return (x - mean) * torch.rsqrt(square + 1e-6)


class Correspondence(nn.Module):
    """See the file's top. `num_heads` pairings of 16 channels; `layers` SwiGLU blocks of width `hidden_size`."""

    def __init__(self, spec: EncoderSpec, config: EncoderConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        width = self.heads * CHANNELS
        self.tokens, self.size = spec.context_tokens, spec.hidden_size
        self.embed_input = nn.Embedding(spec.vocab_size, width)
        self.embed_output = nn.Embedding(spec.vocab_size, width)
        self.pairing = nn.Parameter(torch.randn(self.heads, spec.seq_len, spec.seq_len) * spec.seq_len**-0.5)
        self.standardise = RunningStandardise(width)
        self.read = CastedLinear(width, config.hidden_size)
        self.blocks = nn.ModuleList(SwiGLU(config.hidden_size, 4.0) for _ in range(config.layers))
        self.to_context = CastedLinear(config.hidden_size, spec.context_tokens * spec.hidden_size)
        start_small(self.to_context)
        self.match = MatchStatistics(spec)

    def forward(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> Tensor:
        batch, count, cells = demo_inputs.shape
        x = self.embed_input(demo_inputs).view(batch, count, cells, self.heads, CHANNELS)
        y = self.embed_output(demo_labels).view(batch, count, cells, self.heads, CHANNELS)
        mixed = torch.einsum("mpq,bkqmc->bkpmc", self.pairing, x)  # input as seen from output cell p
        counts = (mixed.float() * y.float()).sum(dim=2).flatten(2) * cells**-0.5  # (B, K, M*C)
        h = self.read(self.standardise(masked_mean(counts, demo_mask, dim=1)))  # (B, H)
        for block in self.blocks:
            h = h + block(rms_norm(h, EPS))
        context = self.to_context(rms_norm(h, EPS)).view(batch, self.tokens, self.size)
        return self.match(context)  # (B, T, D)


@register("correspondence")
def correspondence(spec: EncoderSpec, config: EncoderConfig) -> nn.Module:
    """The correspondence encoder at the config's size."""
    return Correspondence(spec, config)

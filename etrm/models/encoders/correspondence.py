"""The `correspondence` encoder: which output cell follows which input cell, counted over all cells of all
demonstrations.

A pairing says which input cell stands behind each output cell. Under the right one the joint counts of (colour there,
colour here) are concentrated, under a wrong one they are the product of the marginals. Eight pairings are given, the
dihedral transforms about each grid's own middle (the symmetries that ARC tasks are augmented with); FREE more are
learned soft ones, (S, S) each, for rules that move cells otherwise (a gated spatial mixing, cf. gMLP, arXiv
2105.08050). Counts are averaged over demonstrations BEFORE any nonlinearity, so that three demonstrations count as one
sample of 3 x S cells. Every pairing is then one hypothesis token; context tokens attend over them (`layers` blocks),
are refined together (`set_layers` blocks) and leave centred and scaled to the decoder's own contexts. `hidden_size` and
`num_heads` are those of the blocks.

Legend: B batch, K demonstrations, S canvas cells, M pairings, V vocabulary, T context tokens, D decoder size, H encoder
size.
"""

import math
from itertools import product

import torch
from torch import Tensor, nn

from etrm.config.schema import EncoderConfig
from etrm.data.grids import COLOUR0, PAD
from etrm.models.encoders import EncoderSpec, MatchStatistics, register, start_small
from etrm.models.layers import Block, CastedLinear, rms_norm

EPS = 1e-5
GIVEN = 8  # the dihedral group
VIEWS = tuple(product((False, True), repeat=3))  # (transposed, rows flipped, columns flipped) of each
FREE = 8
CELLS = 12.0  # scale of the counts: a colour pair that stands in every twelfth cell counts 1


def extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First occupied place and number of places up to the last one. (..., N) bool -> two (...) int64; 0, 0 if none."""
    count = occupied.shape[-1]
    places = torch.arange(count, device=occupied.device)
    first = torch.where(occupied, places, count).amin(dim=-1)
    last = torch.where(occupied, places, -1).amax(dim=-1)
    return torch.where(last < 0, 0, first), torch.where(last < 0, 0, last + 1 - first)


def dihedral_views(grids: Tensor) -> Tensor:
    """Each grid under the eight dihedral transforms about its own middle, its top-left corner kept; PAD around it.

    grids (..., S) tokens on a square canvas -> (..., 8, S). Frame tokens (EOS) are left out: they say nothing about
    which cell goes where.
    """
    side = math.isqrt(grids.shape[-1])
    square = grids.unflatten(-1, (side, side))
    coloured = square >= COLOUR0
    top, height = (t[..., None, None] for t in extent(coloured.any(dim=-1)))
    left, width = (t[..., None, None] for t in extent(coloured.any(dim=-2)))
    top, height, left, width = (t.unsqueeze(-3) for t in (top, height, left, width))  # (..., 1, 1, 1)
    turned, flip_rows, flip_columns = (
        torch.tensor(bits, device=grids.device).view(GIVEN, 1, 1) for bits in zip(*VIEWS, strict=True)
    )
    line = torch.arange(side, device=grids.device)
    row, column = line.view(side, 1) - top, line.view(1, side) - left  # from the grid's own corner
    across, down = torch.where(turned, column, row), torch.where(turned, row, column)  # (..., 8, side, side)
    inside = (across >= 0) & (across < height) & (down >= 0) & (down < width)
    source_row = top + torch.where(flip_rows, height - 1 - across, across)
    source_column = left + torch.where(flip_columns, width - 1 - down, down)
    place = torch.where(inside, source_row * side + source_column, 0)
    token = grids.gather(-1, place.flatten(-3)).view(place.shape)
    return torch.where(inside & (token >= COLOUR0), token, PAD).flatten(-2)


class Correspondence(nn.Module):
    """See the file's top."""

    given = GIVEN  # pairings that `pairs` counts

    def __init__(self, spec: EncoderSpec, config: EncoderConfig) -> None:
        super().__init__()
        size, cells = config.hidden_size, spec.seq_len
        self.vocab, self.tokens = spec.vocab_size, spec.context_tokens
        self.pairing = nn.Parameter(torch.randn(FREE, cells, cells) * cells**-0.5)
        self.read = CastedLinear(spec.vocab_size**2, size)
        self.names = nn.Parameter(torch.randn(self.given + FREE, size))
        self.queries = nn.Parameter(torch.randn(spec.context_tokens, size))
        length = spec.context_tokens + self.given + FREE
        self.blocks = nn.ModuleList(
            Block(size, config.num_heads, 4.0, EPS, length, mlp_t=False) for _ in range(config.layers)
        )
        self.refine = nn.ModuleList(
            Block(size, config.num_heads, 4.0, EPS, spec.context_tokens, mlp_t=False) for _ in range(config.set_layers)
        )
        self.to_context = CastedLinear(size, spec.hidden_size)
        start_small(self.to_context)
        self.match = MatchStatistics(spec)

    def pairs(self, demo_inputs: Tensor, demo_labels: Tensor) -> Tensor:
        """What stands behind each output cell, and in it, as one number below V * V: (B, K, given, S)."""
        return dihedral_views(demo_inputs) * self.vocab + demo_labels.unsqueeze(2)

    def counts(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> Tensor:
        """Joint colour counts under every pairing, averaged over cells and demonstrations: (B, M, V * V) fp32."""
        batch, _, cells = demo_inputs.shape
        shown = demo_mask.float()  # (B, K)
        pairs = self.pairs(demo_inputs, demo_labels)  # (B, K, given, S)
        given = torch.zeros(batch, self.given, self.vocab**2, device=demo_inputs.device)
        weight = shown[:, :, None, None].expand(pairs.shape)
        index = pairs.transpose(1, 2).flatten(2)  # (B, given, K*S)
        given = given.scatter_add(2, index, weight.transpose(1, 2).flatten(2))
        colours = torch.arange(self.vocab, device=demo_inputs.device)
        x = (demo_inputs.unsqueeze(2) == colours.view(-1, 1)).float()  # (B, K, V, S)
        y = (demo_labels.unsqueeze(3) == colours).float() * shown[:, :, None, None]  # (B, K, S, V)
        with torch.autocast(demo_inputs.device.type, enabled=False):
            # Ordered so that neither product needs its operands turned: a copy costs as much as the product.
            behind = x.flatten(0, 2) @ self.pairing.flatten(0, 1).t()  # the input as seen from each output cell
            behind = behind.view(-1, self.vocab * FREE, cells)  # (B*K, V*M, S)
            free = (behind @ y.flatten(0, 1)).view(*shown.shape, self.vocab, FREE, self.vocab).sum(dim=1)
            free = free.transpose(1, 2).flatten(2)  # (B, M, V*V)
        scale = CELLS / (cells * shown.sum(dim=1).clamp(min=1.0))
        return torch.cat((given, free), dim=1) * scale[:, None, None]

    def openings(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> Tensor:
        """What the context tokens are before they attend: learned queries, the same for all; (B, T, H)."""
        return self.queries.expand(len(demo_inputs), -1, -1)

    def forward(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> Tensor:
        counts = self.counts(demo_inputs, demo_labels, demo_mask)
        hypotheses = rms_norm(self.read(counts).float(), EPS) + self.names  # (B, M, H)
        x = torch.cat((self.openings(demo_inputs, demo_labels, demo_mask), hypotheses), dim=1)
        for block in self.blocks:
            x = block(x, None)
        context = x[:, : self.tokens]  # (B, T, H)
        for block in self.refine:
            context = block(context, None)
        return self.match(self.to_context(context))  # (B, T, D)


@register("correspondence")
def correspondence(spec: EncoderSpec, config: EncoderConfig) -> nn.Module:
    """The correspondence encoder at the config's size."""
    return Correspondence(spec, config)

"""The `relations` encoder: as `correspondence`, with more that may stand behind an output cell.

Beside the eight dihedral views of the input, counted are its cells up to REACH away (rules that shift), and the same
two of the output itself: how an output is symmetric or in which order its colours lie tells of rules that complete or
that let cells fall, which no pairing of cells describes. Everything else is `correspondence`.

Legend: B batch, K demonstrations, S canvas cells, V vocabulary.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etrm.config.schema import EncoderConfig
from etrm.data.grids import PAD
from etrm.models.encoders import EncoderSpec, register
from etrm.models.encoders.correspondence import GIVEN, Correspondence, dihedral_views

REACH = 2  # cells, along rows and along columns
NEIGHBOURS = (2 * REACH + 1) ** 2


def neighbours(grids: Tensor) -> Tensor:
    """For each cell the tokens of the cells up to REACH away, itself included; PAD beyond the canvas.

    grids (..., S) tokens on a square canvas -> (..., NEIGHBOURS, S), by row and column of the step.
    """
    side = math.isqrt(grids.shape[-1])
    wide = F.pad(grids.unflatten(-1, (side, side)), (REACH,) * 4, value=PAD)
    steps = range(2 * REACH + 1)
    return torch.stack([wide[..., r : r + side, c : c + side].flatten(-2) for r in steps for c in steps], dim=-2)


class Relations(Correspondence):
    """See the file's top."""

    given = 2 * (GIVEN + NEIGHBOURS)

    def pairs(self, demo_inputs: Tensor, demo_labels: Tensor) -> Tensor:
        """As `Correspondence.pairs`: views and neighbours of the input, then of the output; (B, K, given, S)."""
        behind = [of(grids) for grids in (demo_inputs, demo_labels) for of in (dihedral_views, neighbours)]
        return torch.cat(behind, dim=2) * self.vocab + demo_labels.unsqueeze(2)


@register("relations")
def relations(spec: EncoderSpec, config: EncoderConfig) -> nn.Module:
    """The relations encoder at the config's size."""
    return Relations(spec, config)

"""The `cell_reader` encoder: as `correspondence`, and its context tokens first read every cell of all demonstrations.

Counts forget where a pair of colours stood. Here each context token attends once over the cells of all demonstrations
(a set reading by learned queries, cf. Lee et al., arXiv 1810.00825). A cell is a word, what stands there in the input
AND in the output, one of V * V, and a place: u = word + place over its rms, x = u + perceptron(u). Grids that do not
belong together make other cells. Everything else is `correspondence`.

Equal cells are computed once a batch: of 10,000 cells of an ARC batch 1,700 differ. And since the queries are learned,
the same for every task, what a cell is worth to a query is too: a task's reading is a sum over the cells that differ,
weighted by how often it has them, one product of matrices. The function is that of plain attention with bounded scores
(tests/unit/models/test_cell_reader.py); its memory is U * T * H numbers a batch, 4 GB at the official scale's worst and
twice that in the backward pass.

Legend: B batch, K demonstrations, S canvas cells, V vocabulary, T context tokens, H encoder size, N heads, E head size,
U cells of the batch that differ.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etrm.config.schema import EncoderConfig
from etrm.models.encoders import EncoderSpec, register
from etrm.models.encoders.correspondence import EPS, Correspondence
from etrm.models.layers import CastedLinear, rms_norm

MOST = 30.0  # bounds a score, smoothly, so that no task's weights all vanish beside another task's


class CellReader(Correspondence):
    """See the file's top."""

    def __init__(self, spec: EncoderSpec, config: EncoderConfig) -> None:
        super().__init__(spec, config)
        size = config.hidden_size
        self.num_heads = config.num_heads
        self.words = nn.Parameter(torch.randn(spec.vocab_size**2, size))
        self.places = nn.Parameter(torch.randn(spec.seq_len, size))
        self.perceptron = nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size))
        self.keys_values = CastedLinear(size, 2 * size)
        self.ask = nn.Parameter(torch.randn(spec.context_tokens, size))

    def cells(self, kinds: Tensor) -> Tensor:
        """Vectors of cells numbered word * S + place: (U) int64 -> (U, H) fp32."""
        places = len(self.places)
        seen = F.embedding(kinds // places, self.words) + F.embedding(kinds % places, self.places)
        seen = rms_norm(seen, EPS)
        return seen + self.perceptron(seen)

    def openings(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> Tensor:
        """The learned queries, and what each has read in the cells; of no demonstration nothing: (B, T, H)."""
        places = torch.arange(demo_inputs.shape[2], device=demo_inputs.device)
        cells = (demo_inputs.long() * self.vocab + demo_labels) * len(places) + places  # (B, K, S)
        kinds, which = cells.unique(return_inverse=True)  # (U), (B, K, S)
        shown = demo_mask.float().unsqueeze(2).expand(cells.shape).flatten(1)
        often = shown.new_zeros(len(cells), len(kinds)).scatter_add(1, which.flatten(1), shown)  # (B, U)
        with torch.autocast(demo_inputs.device.type, enabled=False):
            ask = self.ask.view(self.tokens, self.num_heads, -1)  # (T, N, E)
            key, value = self.keys_values(self.cells(kinds)).view(len(kinds), 2, *ask.shape[1:]).unbind(dim=1)
            score = torch.einsum("une,tne->utn", key, ask) * ask.shape[2] ** -0.5
            worth = (MOST * (score / MOST).tanh() - MOST).exp()  # (U, T, N)
            total = (often @ worth.flatten(1)).view(-1, *ask.shape[:2], 1)  # (B, T, N, 1)
            read = (often @ (worth.unsqueeze(3) * value.unsqueeze(1)).flatten(1)).view(-1, *ask.shape)  # (B, T, N, E)
            return self.queries + (read / torch.where(total > 0, total, 1.0)).flatten(2)


@register("cell_reader")
def cell_reader(spec: EncoderSpec, config: EncoderConfig) -> nn.Module:
    """The cell reader at the config's size."""
    return CellReader(spec, config)

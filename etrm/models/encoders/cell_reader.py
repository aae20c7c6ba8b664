"""The `cell_reader` encoder: as `correspondence`, and its context tokens first read every cell of all demonstrations.

Counts forget where a pair of colours stood. Here each context token attends once over the cells of all demonstrations
(a set reading by learned queries, cf. Lee et al., arXiv 1810.00825). A cell is a word, what stands there in the input
AND in the output, one of V * V, and a place: x = u / rms(u), u = word + place. Grids that do not belong together make
other words. Everything else is `correspondence`.

No x is ever formed: its score and its share of what is read are sums of a word's part and a place's part, scaled by
1 / rms(u), and all three are tables of the weights alone. What is left a cell is to look them up (the function is that
of plain attention; tests/unit/models/test_cell_reader.py).

Legend: B batch, K demonstrations, S canvas cells, V vocabulary, T context tokens, H encoder size, N heads, E head size,
Q = T * N what asks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etrm.config.schema import EncoderConfig
from etrm.models.encoders import EncoderSpec, register
from etrm.models.encoders.correspondence import EPS, Correspondence
from etrm.models.layers import CastedLinear


class CellReader(Correspondence):
    """See the file's top."""

    def __init__(self, spec: EncoderSpec, config: EncoderConfig) -> None:
        super().__init__(spec, config)
        size = config.hidden_size
        self.num_heads = config.num_heads
        self.words = nn.Parameter(torch.randn(spec.vocab_size**2, size))
        self.places = nn.Parameter(torch.randn(spec.seq_len, size))
        self.keys_values = CastedLinear(size, 2 * size)
        self.ask = nn.Parameter(torch.randn(spec.context_tokens, size))

    def scales(self) -> Tensor:
        """1 / rms of word + place, of every word at every place: (V * V, S) fp32."""
        of_words, of_places = (part.square().mean(dim=1) for part in (self.words, self.places))
        across = self.words @ self.places.t() * (2.0 / self.words.shape[1])
        return (of_words.unsqueeze(1) + of_places + across + EPS).rsqrt()

    def openings(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> Tensor:
        """The learned queries, and what each has read in the cells: (B, T, H)."""
        heads, kinds = (self.tokens, self.num_heads), len(self.words)
        with torch.autocast(demo_inputs.device.type, enabled=False):
            key, value = self.keys_values.weight.view(2, self.num_heads, -1, self.words.shape[1])  # (N, E, H) each
            ask = self.ask.view(*heads, -1)  # (T, N, E)
            asked = torch.einsum("tne,neh->htn", ask, key).flatten(1) * ask.shape[-1] ** -0.5  # (H, Q)
            words = demo_inputs.long() * self.vocab + demo_labels  # (B, K, S)
            scale = self.scales()[words, torch.arange(words.shape[2], device=words.device)].unsqueeze(3)  # (B, K, S, 1)
            score = scale * (F.embedding(words, self.words @ asked) + self.places @ asked)  # (B, K, S, Q)
            shown = demo_mask[:, :, None, None]
            # Finite, so that of no demonstration at all nothing is read, instead of NaN.
            score = score.masked_fill(~shown, torch.finfo(score.dtype).min)
            paid = scale * shown * score.flatten(1, 2).softmax(dim=1).view(score.shape)  # (B, K, S, Q)
            which = words.flatten(1).unsqueeze(2).expand(-1, -1, paid.shape[3])  # (B, K*S, Q)
            to_words = paid.new_zeros(len(paid), kinds, paid.shape[3]).scatter_add(1, which, paid.flatten(1, 2))
            to_places = paid.sum(dim=1)  # (B, S, Q)
            read = to_words.transpose(1, 2) @ self.words + to_places.transpose(1, 2) @ self.places  # (B, Q, H)
            found = torch.einsum("btnh,neh->btne", read.unflatten(1, heads), value)
            return self.queries + found.flatten(2)


@register("cell_reader")
def cell_reader(spec: EncoderSpec, config: EncoderConfig) -> nn.Module:
    """The cell reader at the config's size."""
    return CellReader(spec, config)

"""What the context tokens read in the cells of the demonstrations, against loops over cells."""

import pytest
import torch
from torch import Tensor

from etrm.config.schema import EncoderConfig
from etrm.models.encoders.cell_reader import MOST, CellReader
from etrm.models.encoders.correspondence import EPS
from tests.encoder_samples import CLOSE, SPEC, S, T, V, demos

pytestmark = pytest.mark.fast

SIZE, HEADS = 16, 2


@pytest.fixture
def net() -> CellReader:
    torch.manual_seed(0)
    return CellReader(SPEC, EncoderConfig("cell_reader", SIZE, HEADS, 1, 0))


def naive_openings(net: CellReader, inputs: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """One episode by loops: softmax over the shown demonstrations' cells, by head. (K, S), (K, S), (K) -> (T, H)."""
    cells = []
    for k in torch.nonzero(mask).flatten().tolist():
        for place in range(S):
            token = net.words[int(inputs[k, place]) * V + int(labels[k, place])] + net.places[place]
            token = token / (token.square().mean() + EPS).sqrt()
            up, down = net.perceptron[0], net.perceptron[2]
            hidden = up.weight @ token + up.bias
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
            cells.append(token + down.weight @ hidden + down.bias)
    keys, values = (torch.stack(cells) @ net.keys_values.weight.t()).split(SIZE, dim=1)
    each = SIZE // HEADS
    read = torch.empty(T, SIZE)
    for token in range(T):
        for head in range(HEADS):
            own = slice(head * each, (head + 1) * each)
            score = keys[:, own] @ net.ask[token, own] / each**0.5
            paid = (MOST * (score / MOST).tanh()).softmax(dim=0)
            read[token, own] = paid @ values[:, own]
    return net.queries + read


def test_what_is_read_is_that_of_a_loop_over_the_cells(net: CellReader) -> None:
    inputs, labels, mask = demos()
    mask[0, 1:] = False
    with torch.no_grad():
        found = net.openings(inputs, labels, mask)
        for b in range(len(inputs)):
            torch.testing.assert_close(found[b], naive_openings(net, inputs[b], labels[b], mask[b]), **CLOSE)


def test_exchanged_outputs_are_read_otherwise_though_both_grids_are_the_same(net: CellReader) -> None:
    """What the null of permuted outputs takes away: which cell of an input goes with which of an output."""
    inputs, labels, mask = demos()
    mask[:] = True
    with torch.no_grad():
        right, wrong = net.openings(inputs, labels, mask), net.openings(inputs, labels.roll(1, dims=1), mask)
    assert not torch.allclose(right, wrong, rtol=1e-2, atol=1e-2)


def test_where_a_pair_stands_is_read_beside_how_often(net: CellReader) -> None:
    """Counts of the identity pairing do not change when input and output are moved alike; the places do."""
    inputs, labels, mask = demos()
    with torch.no_grad():
        here, moved = (net.openings(inputs.roll(n, dims=2), labels.roll(n, dims=2), mask) for n in (0, 1))
    assert not torch.allclose(here, moved, rtol=1e-2, atol=1e-2)


def test_a_task_whose_cells_all_score_low_beside_another_tasks_is_read_as_well(net: CellReader) -> None:
    """The weights of all tasks share one scale; without a bound on the scores the lower ones would all vanish."""
    inputs, labels, mask = demos()
    with torch.no_grad():
        net.ask *= 1e4
        found = net.openings(inputs, labels, mask)
        for b in range(len(inputs)):
            torch.testing.assert_close(found[b], naive_openings(net, inputs[b], labels[b], mask[b]), **CLOSE)
    net.openings(inputs, labels, mask).square().sum().backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in net.parameters())

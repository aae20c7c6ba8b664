"""Counts of colour pairs under pairings of cells, against loops over cells."""

import numpy as np
import pytest
import torch

from etrm.config.schema import EncoderConfig
from etrm.data.augment import dihedral
from etrm.data.grids import COLOUR0, EOS, PAD, VOCAB, crop, encode_grid
from etrm.models.bundle import load_bundle
from etrm.models.encoders.correspondence import CELLS, FREE, GIVEN, VIEWS, Correspondence, dihedral_views
from etrm.models.encoders.relations import NEIGHBOURS, REACH, Relations, neighbours

pytestmark = pytest.mark.fast

SIDE = 5
DIHEDRAL_IDS = {  # (transposed, rows flipped, columns flipped) of the view -> augmentation id
    (False, False, False): 0,
    (False, False, True): 4,
    (False, True, False): 5,
    (False, True, True): 2,
    (True, False, False): 6,
    (True, False, True): 1,
    (True, True, False): 3,
    (True, True, True): 7,
}


def random_canvas(seed: int, shape: tuple[int, int]) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(encode_grid(rng.integers(0, 10, shape), SIDE))


@pytest.mark.parametrize("shape", [(5, 5), (3, 4), (1, 2), (4, 4)])
def test_the_eight_views_are_the_grids_own_transforms_at_its_own_corner(shape: tuple[int, int]) -> None:
    canvas = random_canvas(0, shape)
    seen = dihedral_views(canvas)
    assert seen.shape == (GIVEN, SIDE * SIDE) and sorted(DIHEDRAL_IDS) == sorted(VIEWS)
    grid = crop(canvas.numpy(), SIDE)
    for view, bits in zip(seen.numpy(), VIEWS, strict=True):
        turned = dihedral(grid, DIHEDRAL_IDS[bits])
        expected = np.full((SIDE, SIDE), PAD)
        expected[: turned.shape[0], : turned.shape[1]] = turned.astype(np.int64) + COLOUR0
        assert np.array_equal(view.reshape(SIDE, SIDE), expected), bits


def test_a_grid_away_from_the_corner_turns_where_it_stands_and_an_empty_one_is_empty() -> None:
    canvas = torch.full((SIDE, SIDE), PAD)
    canvas[2, 1:4] = torch.tensor([4, 5, 6])
    views = dihedral_views(canvas.flatten())
    flipped = canvas.clone()
    flipped[2, 1:4] = torch.tensor([6, 5, 4])
    assert torch.equal(views[VIEWS.index((False, False, True))], flipped.flatten())
    assert torch.equal(dihedral_views(torch.full((2, 25), EOS)), torch.full((2, GIVEN, 25), PAD))


def test_neighbours_are_the_cells_a_step_away() -> None:
    canvas = random_canvas(1, (5, 4)).view(SIDE, SIDE)
    found = neighbours(canvas.flatten()).view(NEIGHBOURS, SIDE, SIDE)
    steps = [(r, c) for r in range(-REACH, REACH + 1) for c in range(-REACH, REACH + 1)]
    for view, (down, right) in zip(found, steps, strict=True):
        for row in range(SIDE):
            for column in range(SIDE):
                inside = 0 <= row + down < SIDE and 0 <= column + right < SIDE
                expected = canvas[row + down, column + right] if inside else PAD
                assert view[row, column] == expected


def naive_counts(net: Correspondence, inputs: torch.Tensor, labels: torch.Tensor, shown: list[int]) -> np.ndarray:
    """Counts (M, V, V) of one episode by loops: (token behind, token here), each cell of each shown demonstration."""
    pairing = net.pairing.detach().numpy()
    counts = np.zeros((net.given + FREE, VOCAB, VOCAB))
    for k in shown:
        views = [dihedral_views(inputs[k])]
        if isinstance(net, Relations):
            views += [neighbours(inputs[k]), dihedral_views(labels[k]), neighbours(labels[k])]
        for cell, here in enumerate(labels[k].tolist()):
            for m, view in enumerate(torch.cat(views)):
                counts[m, view[cell], here] += 1
            for m in range(FREE):
                for other, behind in enumerate(inputs[k].tolist()):
                    counts[net.given + m, behind, here] += pairing[m, cell, other]
    return counts * CELLS / (len(labels[0]) * max(1, len(shown)))


@pytest.mark.parametrize("kind", [Correspondence, Relations])
def test_counts_are_those_of_a_loop_over_the_cells(kind: type[Correspondence]) -> None:
    torch.manual_seed(0)
    net = kind(load_bundle("cal-1").spec(), EncoderConfig("x", 16, 2, 1, 0))
    inputs, labels = (torch.stack([random_canvas(seed, (4, 5)) for seed in seeds]) for seeds in ((2, 3, 4), (5, 6, 7)))
    mask = torch.tensor([[True, False, True]])
    found = net.counts(inputs[None], labels[None], mask)[0].view(-1, VOCAB, VOCAB)
    np.testing.assert_allclose(found.detach().numpy(), naive_counts(net, inputs, labels, [0, 2]), rtol=1e-4, atol=1e-5)

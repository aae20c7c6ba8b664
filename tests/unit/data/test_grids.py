"""Canvas encoding against golden numbers of the public TRM implementation, and the laws of crop and of canonical
hashes.

The golden file holds nine grid pairs that the public TRM dataset builder (commit e7b6871) encoded on a 30x30 canvas,
one hex digit a token, with the sha256 of each input grid and the crop of each encoded output. Comparison is exact.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etrm.data.arc import Pair, Task
from etrm.data.augment import Augmentation, dihedral
from etrm.data.grids import (
    EOS,
    IGNORE,
    PAD,
    VOCAB,
    canonical_pair_hash,
    canonical_task_hashes,
    check_grid,
    crop,
    encode_grid,
    grid_hash,
    labels_of,
)
from etrm.errors import DataError

pytestmark = pytest.mark.fast
law = settings(deadline=None, derandomize=True, max_examples=60)

GOLDEN = json.loads((Path(__file__).parents[1] / "data_golden" / "grid_encoding.json").read_text(encoding="utf-8"))
CASES = [pytest.param(case, id=f"case{i}") for i, case in enumerate(GOLDEN["cases"])]


def noise(h: int, w: int, colours: int, seed: int) -> np.ndarray:
    """Cells of numpy's generator: hypothesis' own arrays are nearly constant, and constant grids hide transforms."""
    return np.random.default_rng(seed).integers(0, colours, (h, w)).astype(np.uint8)


def grids(max_side: int = 30) -> st.SearchStrategy[np.ndarray]:
    sides = st.integers(1, max_side)
    return st.builds(noise, sides, sides, st.integers(1, 10), st.integers(0, 999))


permutations = st.permutations(range(1, 10)).map(lambda order: (0, *order))


@pytest.mark.parametrize("case", CASES)
def test_encoding_equals_golden(case):
    for side in ("input", "output"):
        tokens = encode_grid(check_grid(case[side], side), 30)
        assert "".join(f"{token:x}" for token in tokens) == case[f"{side}_tokens"]
        assert tokens.dtype == np.int64


@pytest.mark.parametrize("case", CASES)
def test_hash_equals_golden(case):
    assert grid_hash(check_grid(case["input"], "golden")) == case["input_sha256"]


@pytest.mark.parametrize("case", CASES)
def test_crop_of_golden_tokens_equals_golden(case):
    tokens = np.array([int(digit, 16) for digit in case["output_tokens"]])
    assert crop(tokens, 30).tolist() == case["cropped_output"]


@law
@given(grids(), st.data())
def test_crop_undoes_encode_on_any_canvas_that_fits(grid, data):
    side = data.draw(st.integers(max(grid.shape), 30))
    assert np.array_equal(crop(encode_grid(grid, side), side), grid)


@law
@given(grids(8), st.integers(0, 4), st.integers(0, 4))
def test_border_is_eos_under_and_right_with_pad_elsewhere(grid, top, left):
    h, w = grid.shape
    canvas = encode_grid(grid, 12, (top, left)).reshape(12, 12)
    assert np.array_equal(canvas[top : top + h, left : left + w], grid + 2)
    below = int(top + h < 12) * w
    right = int(left + w < 12) * h
    assert (canvas == EOS).sum() == below + right
    assert (canvas == PAD).sum() == 144 - h * w - below - right
    if below:
        assert (canvas[top + h, left : left + w] == EOS).all()
    if right:
        assert (canvas[top : top + h, left + w] == EOS).all()


def test_full_canvas_has_no_eos():
    assert EOS not in encode_grid(np.zeros((30, 30), np.uint8), 30)
    assert EOS not in encode_grid(np.zeros((5, 5), np.uint8), 5)


@pytest.mark.parametrize("offset", [(3, 0), (0, 3), (-1, 0), (0, -1)])
def test_a_grid_that_leaves_the_canvas_is_refused(offset):
    with pytest.raises(DataError, match=r"3x3 grid at offset .* leaves the 5x5 canvas.*fits"):
        encode_grid(np.zeros((3, 3), np.uint8), 5, offset)


@pytest.mark.parametrize("side", [0, 31])
def test_impossible_sides_are_refused(side):
    with pytest.raises(DataError, match=f"side is {side}, expected 1..30"):
        encode_grid(np.zeros((1, 1), np.uint8), side)


def test_labels_ignore_pad_only():
    labels = labels_of(np.arange(VOCAB))
    assert labels.tolist() == [IGNORE, *range(1, VOCAB)]
    assert labels.dtype == np.int64


@pytest.mark.parametrize(
    ("rows", "shape"),
    [
        (["0000", "2222", "2222", "2222"], (0, 0)),  # the corner is no colour
        (["1222", "2222", "2222", "2222"], (0, 0)),
        (["2220", "2222", "2000", "0000"], (2, 3)),
        (["2222", "2200", "0000", "0000"], (1, 4)),  # 1x4 ties with 2x2: the flatter one
        (["2222", "2200", "2200", "0000"], (3, 2)),
        (["2022", "2222", "2222", "2222"], (4, 1)),
        (["22c2", "2222", "0000", "0000"], (2, 2)),  # 12 is beyond the vocabulary
    ],
)
def test_crop_takes_the_largest_rectangle_of_colours(rows, shape):
    assert crop(np.array([int(token, 16) for token in "".join(rows)]), 4).shape == shape


@law
@given(st.integers(0, 12), st.integers(0, 999))
def test_crop_is_the_best_of_all_rectangles(holes, seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, 12, 36)
    tokens[rng.integers(1, 36, holes)] = rng.choice([0, 1, 12], holes)
    canvas = tokens.reshape(6, 6)
    best = (0, 0)
    for h in range(1, 7):
        for w in range(1, 7):
            block = canvas[:h, :w]
            if ((block >= 2) & (block <= 11)).all() and h * w > best[0] * best[1]:
                best = (h, w)
    grid = crop(tokens, 6)
    assert grid.shape == best
    assert grid.dtype == np.uint8


def test_crop_refuses_a_wrong_number_of_tokens():
    with pytest.raises(DataError, match="35 tokens do not fill a 6x6 canvas"):
        crop(np.zeros(35, np.int64), 6)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([], r"expected a non-empty list of rows, found \[\]"),
        ([[]], r"row 0 is \[\]"),
        ([[1, 2], [3]], "row 1 has 1 cells but row 0 has 2"),
        ([[1, 10]], "row 0, column 1 is 10"),
        ([[1], [-1]], "row 1, column 0 is -1"),
        ([[1.0]], "column 0 is 1.0"),
        ([[True]], "column 0 is True"),
        ([[None]], "column 0 is None"),
        ([[[1]]], r"column 0 is \[1\]"),
        ([[10**30]], "column 0 is 10000"),
        ("12", "found '12'"),
        ([1, 2], "row 0 is 1"),
        ([[0] * 31], r"shape \(1, 31\)"),
        ([[0]] * 31, r"shape \(31, 1\)"),
        (np.zeros((0, 3), np.uint8), r"shape \(0, 3\)"),
        (np.zeros((3,), np.uint8), r"shape \(3,\)"),
        (np.zeros((2, 2)), "dtype float64"),
        (np.array([[0, 300]]), "row 0, column 1 is 300"),
    ],
)
def test_malformed_grids_are_refused_with_place_and_remedy(grid, message):
    with pytest.raises(DataError, match=rf"^here: .*{message}.*write a rectangle of 1..30"):
        check_grid(grid, "here")


def test_check_grid_returns_a_copy():
    given_grid = np.zeros((2, 2), np.uint8)
    check_grid(given_grid, "here")[0, 0] = 5
    assert given_grid[0, 0] == 0


@pytest.mark.parametrize("t", range(8))
@settings(law, max_examples=15)
@given(grids(6), grids(6), permutations)
def test_canonical_hash_does_not_see_augmentations(t, inp, out, colours):
    augmentation = Augmentation(t, colours)
    assert canonical_pair_hash(inp, out) == canonical_pair_hash(augmentation.apply(inp), augmentation.apply(out))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (([[0, 1]], [[1]]), ([[2, 1]], [[1]])),  # the background is a colour of its own
        (([[1, 2, 2]], [[1]]), ([[1, 2, 2]], [[2]])),  # which colour is kept
        (([[1, 2]], [[3]]), ([[1, 2]], [[1]])),  # the output's colour is new
        (([[1, 2]], [[1, 2]]), ([[1, 2]], [[1], [2]])),  # the output is transposed, the input is not
        (([[1]], [[2]]), ([[1]], [[1]])),
        (([[1, 1]], [[1]]), ([[1]], [[1, 1]])),  # the same cells, other shapes
    ],
)
def test_canonical_hash_tells_different_rules_apart(first, second):
    assert canonical_pair_hash(*map(np.array, first)) != canonical_pair_hash(*map(np.array, second))


@settings(law, max_examples=30)
@given(grids(6), grids(6), st.permutations(range(10)), st.integers(0, 7))
def test_a_hash_without_black_does_not_see_any_of_the_ten_colours_renamed(inp, out, colours, t):
    """With black kept it does, where black and another colour change places."""
    renamed = [dihedral(np.array(colours, dtype=np.uint8)[grid], t) for grid in (inp, out)]
    assert canonical_pair_hash(inp, out, black_stays=False) == canonical_pair_hash(*renamed, black_stays=False)
    one, two = np.array([[0, 0, 1]]), np.array([[1, 1, 0]])
    assert canonical_pair_hash(one, one) != canonical_pair_hash(two, two)
    assert canonical_pair_hash(one, one, False) == canonical_pair_hash(two, two, False)
    assert canonical_pair_hash(one, two, False) != canonical_pair_hash(one, one, False), (
        "which colour is kept still counts"
    )


def test_task_hashes_hold_demonstrations_and_queries():
    one, two = Pair(np.array([[1]]), np.array([[2]])), Pair(np.array([[1, 0]]), np.array([[2]]))
    assert canonical_task_hashes(Task("t", (one,), (two,), "test")) == {
        canonical_pair_hash(one.input, one.output),
        canonical_pair_hash(two.input, two.output),
    }

"""Grids and the padded square canvas the decoder reads: encode, crop back, hash, and canonical hashes for duplicates.

Notable: the token layout, the EOS border and the crop reproduce the public TRM implementation bit for bit (its dataset
builder and its ARC evaluator), because a pretrained decoder has seen no other writing. `canonical_pair_hash` is ours:
it is equal for two pairs exactly when a dihedral transform and a renaming of the colours 1..9 (where asked, of all ten)
turn one into the other.

Legend: h, w grid height and width (1..30) · side canvas height = width · S = side * side cells, row-major.
Tokens: 0 PAD, 1 EOS, 2..11 the colours 0..9.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from etrm.errors import DataError

PAD = 0
EOS = 1
COLOUR0 = 2
VOCAB = 12
IGNORE = -100
MAX_SIDE = 30
COLOURS = 10

_COLOUR_SET = frozenset(range(COLOURS))
_REMEDY = f"write a rectangle of 1..{MAX_SIDE} x 1..{MAX_SIDE} integers 0..{COLOURS - 1}"


class PairLike(Protocol):
    """One demonstration or query: two grids (h, w)."""

    @property
    def input(self) -> np.ndarray: ...
    @property
    def output(self) -> np.ndarray: ...


class TaskLike(Protocol):
    """Anything with demonstrations and queries; `etrm.data.arc.Task` is the one we use."""

    @property
    def demos(self) -> Sequence[PairLike]: ...
    @property
    def queries(self) -> Sequence[PairLike]: ...


def check_grid(grid: object, where: str) -> np.ndarray:
    """Validate a grid given as nested lists or an integer array; return a fresh C-ordered copy, (h, w) uint8.

    `where` names the file and place for the message. Raises DataError for anything but a 1..30 x 1..30 rectangle of
    integers 0..9 (ragged, empty, too large, floats, booleans, NaN).
    """
    if not isinstance(grid, np.ndarray):
        grid = _array_of_lists(grid, where)
    if grid.ndim != 2 or not all(1 <= n <= MAX_SIDE for n in grid.shape):
        raise DataError(f"{where}: grid has shape {grid.shape}, expected (1..{MAX_SIDE}, 1..{MAX_SIDE}); {_REMEDY}")
    if grid.dtype.kind not in "iu":
        raise DataError(f"{where}: grid has dtype {grid.dtype}, expected integers; {_REMEDY}")
    if grid.min() < 0 or grid.max() >= COLOURS:
        row, column = np.argwhere((grid < 0) | (grid >= COLOURS))[0]
        raise DataError(f"{where}: row {row}, column {column} is {grid[row, column]}, expected 0..9; {_REMEDY}")
    return np.array(grid, dtype=np.uint8, order="C")


def _array_of_lists(grid: object, where: str) -> np.ndarray:
    """Nested lists to an int64 array; the place of the first ragged row or non-integer cell is in the message."""
    if not isinstance(grid, list | tuple) or not grid:
        raise DataError(f"{where}: expected a non-empty list of rows, found {_shown(grid)}; {_REMEDY}")
    width = len(grid[0]) if isinstance(grid[0], list | tuple) else -1
    for r, row in enumerate(grid):
        if not isinstance(row, list | tuple) or not row:
            raise DataError(f"{where}: row {r} is {_shown(row)}, expected a non-empty list of cells; {_REMEDY}")
        if len(row) != width:
            raise DataError(f"{where}: row {r} has {len(row)} cells but row 0 has {width}; {_REMEDY}")
        if set(map(type, row)) == {int} and _COLOUR_SET.issuperset(row):
            continue
        for c, cell in enumerate(row):  # the slow walk only names the place
            if isinstance(cell, bool) or not isinstance(cell, int | np.integer) or not 0 <= cell < COLOURS:
                raise DataError(f"{where}: row {r}, column {c} is {_shown(cell)}, expected 0..9; {_REMEDY}")
    return np.array(grid, dtype=np.int64)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def encode_grid(grid: np.ndarray, side: int, offset: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Write a grid (h, w) on a PAD canvas at (row, column) `offset`; return (side * side,) int64 tokens.

    An EOS row lies directly under the grid over its width and an EOS column directly right of it over its height; their
    corner stays PAD, and a grid that touches the canvas border gets no EOS on that side. Raises DataError if it does
    not fit.
    """
    grid = check_grid(grid, "encode_grid")
    _check_side(side)
    (top, left), (h, w) = offset, grid.shape
    bottom, right = top + h, left + w
    if top < 0 or left < 0 or bottom > side or right > side:
        raise DataError(
            f"encode_grid: a {h}x{w} grid at offset {offset} leaves the {side}x{side} canvas; "
            "choose a smaller offset or filter tasks with etrm.data.arc.fits(task, side)"
        )
    canvas = np.full((side, side), PAD, dtype=np.int64)
    canvas[top:bottom, left:right] = grid.astype(np.int64) + COLOUR0
    if bottom < side:
        canvas[bottom, left:right] = EOS
    if right < side:
        canvas[top:bottom, right] = EOS
    return canvas.reshape(-1)  # (S,)


def labels_of(tokens: np.ndarray) -> np.ndarray:
    """Targets of tokens (...,): the same integers as int64 with PAD replaced by IGNORE (-100), so EOS and colours are
    scored.
    """
    return np.where(tokens == PAD, IGNORE, tokens).astype(np.int64)


def crop(tokens: np.ndarray, side: int) -> np.ndarray:
    """Read a grid back from tokens (side * side,): the largest top-left rectangle of colour tokens, (h, w) uint8.

    Of two equally large rectangles the flatter one wins, as in TRM's evaluator; no colour in the corner gives shape (0,
    0).
    """
    _check_side(side)
    if tokens.size != side * side:
        raise DataError(f"crop: {tokens.size} tokens do not fill a {side}x{side} canvas ({side * side} cells)")
    canvas = tokens.reshape(side, side)
    colour = (canvas >= COLOUR0) & (canvas < VOCAB)
    runs = np.logical_and.accumulate(colour, axis=1).sum(axis=1)  # (side,) leading colours of each row
    widths = np.minimum.accumulate(runs)  # (side,) width that the top r+1 rows share
    areas = widths * np.arange(1, side + 1)
    best = int(areas.argmax())
    h, w = (best + 1, int(widths[best])) if areas[best] else (0, 0)
    return (canvas[:h, :w] - COLOUR0).astype(np.uint8)


def _check_side(side: int) -> None:
    if not 1 <= side <= MAX_SIDE:
        raise DataError(f"canvas side is {side}, expected 1..{MAX_SIDE}; set the side of the decoder bundle")


def grid_hash(grid: np.ndarray) -> str:
    """sha256 hex of one byte per dimension, then the cells (h, w) row-major as bytes; 0-sized crops are fine."""
    return hashlib.sha256(_bytes_of(grid)).hexdigest()


def _bytes_of(grid: np.ndarray) -> bytes:
    return bytes(grid.shape) + np.ascontiguousarray(grid, dtype=np.uint8).tobytes()


DIHEDRAL: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda grid: grid,
    lambda grid: grid.T[::-1],  # counter-clockwise; slices, since np.rot90 takes ten times as long to give the same
    lambda grid: grid[::-1, ::-1],
    lambda grid: grid[::-1].T,
    lambda grid: grid[:, ::-1],
    lambda grid: grid[::-1],
    lambda grid: grid.T,
    lambda grid: grid[::-1, ::-1].T,  # transpose along the other diagonal
)


def dihedral_views(grid: np.ndarray) -> Iterator[np.ndarray]:
    """The eight dihedral transforms of a grid as views, in the ids 0..7 of TRM's augmentation names (see
    `augment.dihedral`).
    """
    return (turn(grid) for turn in DIHEDRAL)


def canonical_pair_hash(inp: np.ndarray, out: np.ndarray, black_stays: bool = True) -> str:
    """sha256 hex of a pair that no dihedral transform and no renaming of colours (1..9, or all ten) changes.

    The least of the eight transforms of the pair, each with its colours renamed by first appearance over the input then
    the output, row-major; 0 stays 0, as in the augmentations, unless `black_stays` is false: then no renaming of all
    ten colours changes it either.
    """
    forms = list(zip(dihedral_views(np.asarray(inp)), dihedral_views(np.asarray(out)), strict=True))
    least = min((a.shape, b.shape) for a, b in forms)  # a form begins with its shapes, so no other can be the least
    renamed = (_renamed(a, b, black_stays) for a, b in forms if (a.shape, b.shape) == least)
    return hashlib.sha256(min(renamed)).hexdigest()


def _renamed(inp: np.ndarray, out: np.ndarray, black_stays: bool) -> bytes:
    cells = inp.astype(np.uint8).tobytes() + out.astype(np.uint8).tobytes()
    renamed = range(1 if black_stays else 0, COLOURS)
    first = sorted((at, colour) for colour in renamed if (at := cells.find(colour)) >= 0)
    table = bytearray(256)
    for name, (_, colour) in enumerate(first, start=1):
        table[colour] = name
    return bytes(inp.shape) + bytes(out.shape) + cells.translate(bytes(table))


def canonical_task_hashes(task: TaskLike) -> frozenset[str]:
    """The canonical pair hashes of all demonstrations and queries of a task."""
    return frozenset(canonical_pair_hash(pair.input, pair.output) for pair in (*task.demos, *task.queries))

"""Augmentations: a dihedral transform and a permutation of the colours 1..9, applied alike to every grid of a task.

Notable: ids, order and names are those of the public TRM dataset builder (`base|||t3|||0312456789`), so a row of its
puzzle table can be found by name. The permutation string maps colour i to the digit at position i. Colour 0 is the
background and stays fixed; the canonical hashes in `grids` rely on that.

Legend: h, w grid height and width · t dihedral id: 0 identity, 1..3 rotations by 90, 180, 270 degrees
counter-clockwise, 4 left-right flip, 5 up-down flip, 6 transpose, 7 anti-transpose.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from etrm.data.grids import COLOURS, DIHEDRAL, TaskLike, grid_hash
from etrm.errors import DataError

TRANSFORMS = 8
INVERSE_DIHEDRAL: tuple[int, ...] = (0, 3, 2, 1, 4, 5, 6, 7)
SEPARATOR = "|||"

_NAME_FORM = f"base_id{SEPARATOR}t<0..7>{SEPARATOR}<ten digits, 0 first>"


def dihedral(grid: np.ndarray, t: int) -> np.ndarray:
    """Transform a grid (h, w) by id t; return a fresh C-ordered (h, w) or (w, h) array of the same dtype. DataError if
    t is not 0..7.
    """
    if not 0 <= t < TRANSFORMS:
        raise DataError(f"dihedral id is {t}, expected 0..7; see the legend of etrm/data/augment.py")
    return np.array(DIHEDRAL[t](grid), order="C")


@dataclass(frozen=True)
class Augmentation:
    """A dihedral id and where each colour goes: colour i becomes `colours[i]`. DataError unless a permutation that
    fixes 0.
    """

    transform: int
    colours: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.transform < TRANSFORMS:
            raise DataError(f"augmentation has dihedral id {self.transform}, expected 0..7")
        if sorted(self.colours) != list(range(COLOURS)) or self.colours[0] != 0:
            raise DataError(
                f"augmentation has colours {self.colours}, expected a permutation of 0..9 that keeps 0 in place; "
                "make one with sample_augmentations(task, count, rng)"
            )

    def apply(self, grid: np.ndarray) -> np.ndarray:
        """Augment a grid (h, w), 0-sized included; return a fresh uint8 array."""
        return dihedral(np.array(self.colours, dtype=np.uint8)[grid], self.transform)

    def invert(self, grid: np.ndarray) -> np.ndarray:
        """Undo `apply`: invert(apply(grid)) equals grid."""
        back = np.argsort(np.array(self.colours)).astype(np.uint8)  # the inverse of a permutation
        return dihedral(back[grid], INVERSE_DIHEDRAL[self.transform])

    def name(self, base_id: str) -> str:
        """The augmented task's id; the identity keeps the base id, as TRM does. DataError if `base_id` is already
        augmented.
        """
        if self == IDENTITY:
            return base_id
        if SEPARATOR in base_id:
            raise DataError(
                f"'{base_id}' is already augmented; augment its base task '{base_id.split(SEPARATOR)[0]}' instead"
            )
        return f"{base_id}{SEPARATOR}t{self.transform}{SEPARATOR}{''.join(map(str, self.colours))}"


IDENTITY = Augmentation(0, tuple(range(COLOURS)))


def parse_name(name: str) -> tuple[str, Augmentation]:
    """Split an id into (base_id, augmentation); without separators it is the identity. DataError if malformed."""
    base_id, *rest = name.split(SEPARATOR)
    if not rest:
        return name, IDENTITY
    if len(rest) == 2 and base_id:
        transform, digits = rest
        wanted = {f"t{t}" for t in range(TRANSFORMS)}
        if transform in wanted and sorted(digits) == list("0123456789") and digits[0] == "0":
            return base_id, Augmentation(int(transform[1]), tuple(int(d) for d in digits))
    raise DataError(f"augmented id '{name}' is malformed, expected {_NAME_FORM}")


def sample_augmentations(
    task: TaskLike, count: int, rng: np.random.Generator, retries: int = 5, colours: bool = True
) -> list[Augmentation]:
    """Up to `count` augmentations (identity first and counted) whose augmented tasks all differ.

    Draws at most count * retries times, so a symmetric task, or `colours=False` (dihedral only), may give fewer. The
    draws depend on `rng` and the task alone. Raises DataError if count or retries is below 1.
    """
    if count < 1 or retries < 1:
        raise DataError(f"sample_augmentations: count is {count} and retries {retries}, expected both to be at least 1")
    found = {augmented_hash(task, IDENTITY): IDENTITY}
    for _ in range(count * retries):
        if len(found) >= count:
            break
        transform = int(rng.integers(TRANSFORMS))
        order = rng.permutation(np.arange(1, COLOURS)) if colours else np.arange(1, COLOURS)
        augmentation = Augmentation(transform, (0, *(int(colour) for colour in order)))
        found.setdefault(augmented_hash(task, augmentation), augmentation)
    return list(found.values())


def augmented_hash(task: TaskLike, augmentation: Augmentation) -> str:
    """sha256 hex of all grids of the augmented task, demonstrations then queries, in order."""
    digest = hashlib.sha256()
    for pair in (*task.demos, *task.queries):
        for grid in (pair.input, pair.output):
            digest.update(grid_hash(augmentation.apply(grid)).encode())
    return digest.hexdigest()

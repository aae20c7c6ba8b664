"""Procedural rule families: members are rules (grid -> grid) whose truth is known, so that the instrument can be
calibrated.

A member composes a spatial part with a recolouring of the non-black colours. Members that agree on every one of 1,000
random inputs are the same rule; `distinct` drops the later one, and a split by member is then a split by rule.

Legend: H, W grid height and width; colour 0 is black and never recoloured.
"""

import functools
import hashlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from etrm.errors import DataError

Grid = np.ndarray  # (..., H, W) uint8, colours 0..9; rules act on the last two axes
Rule = Callable[[Grid], Grid]


@dataclass(frozen=True)
class Member:
    """One rule of a family. `colours` maps colour i to colours[i]; `spatial` names an entry of SPATIAL."""

    family: str
    spatial: str
    colours: tuple[int, ...]

    @property
    def id(self) -> str:
        """Stable name, for example `dihedral_recolour/transpose/02143`."""
        return f"{self.family}/{self.spatial}/{''.join(map(str, self.colours))}"

    def __call__(self, grids: Grid) -> Grid:
        """Apply the rule to one grid (H, W) or to many (..., H, W); square grids keep their shape."""
        return np.asarray(self.colours, dtype=np.uint8)[SPATIAL[self.spatial](grids)]


def _fall(grids: Grid) -> Grid:
    """Every coloured cell drops to the lowest free place of its column, order kept."""
    order = np.argsort(grids != 0, axis=-2, kind="stable")
    return np.take_along_axis(grids, order, axis=-2)


def _turned(rule: Rule, quarter_turns: int) -> Rule:
    """The same rule acting in another direction: turn, apply, turn back."""
    return lambda grids: np.rot90(rule(np.rot90(grids, quarter_turns, (-2, -1))), -quarter_turns, (-2, -1))


def _complete_left_right(grids: Grid) -> Grid:
    """The left half is mirrored onto the right one; a middle column stays."""
    half = grids.shape[-1] // 2
    done = grids.copy()
    done[..., grids.shape[-1] - half :] = grids[..., :half][..., ::-1]
    return done


def _frame(grids: Grid) -> Grid:
    """The inside is kept; the frame takes the colour of the top-left cell."""
    done = grids.copy()
    done[..., [0, -1], :] = grids[..., :1, :1]
    done[..., :, [0, -1]] = grids[..., :1, :1]
    return done


def _rot(quarter_turns: int) -> Rule:
    return lambda grids: np.rot90(grids, quarter_turns, (-2, -1))


SPATIAL: Mapping[str, Rule] = {
    "identity": lambda g: g,
    "rot90": _rot(1),
    "rot180": _rot(2),
    "rot270": _rot(3),
    "flip_left_right": lambda g: g[..., ::-1],
    "flip_up_down": lambda g: g[..., ::-1, :],
    "transpose": lambda g: np.swapaxes(g, -1, -2),
    "antitranspose": lambda g: np.swapaxes(np.rot90(g, 2, (-2, -1)), -1, -2),
    "shift_up": lambda g: np.roll(g, -1, axis=-2),
    "shift_down": lambda g: np.roll(g, 1, axis=-2),
    "shift_left": lambda g: np.roll(g, -1, axis=-1),
    "shift_right": lambda g: np.roll(g, 1, axis=-1),
    "fall_down": _fall,
    "fall_left": _turned(_fall, 1),
    "fall_up": _turned(_fall, 2),
    "fall_right": _turned(_fall, 3),
    "mirror_right": _complete_left_right,
    "mirror_down": _turned(_complete_left_right, 1),
    "frame": _frame,
}

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "dihedral_recolour": (
        "identity",
        "rot90",
        "rot180",
        "rot270",
        "flip_left_right",
        "flip_up_down",
        "transpose",
        "antitranspose",
    ),
    "shift_recolour": ("shift_up", "shift_down", "shift_left", "shift_right"),
    "fall_recolour": ("fall_down", "fall_left", "fall_up", "fall_right"),
    "complete_recolour": ("mirror_right", "mirror_down", "frame"),
}


def members(family: str, colours: int) -> tuple[Member, ...]:
    """Every member of a family over `colours` non-black colours, in a fixed order: spatial parts x permutations."""
    if family not in FAMILIES:
        raise DataError(f"no rule family {family!r}; there are {', '.join(FAMILIES)}")
    permutations = [(0, *p) for p in itertools.permutations(range(1, colours + 1))]
    return tuple(Member(family, spatial, p) for spatial in FAMILIES[family] for p in permutations)


def random_grids(count: int, side: int, colours: int, black: float, rng: np.random.Generator) -> Grid:
    """(count, side, side) uint8 grids: a cell is black with probability `black`, else one of `colours`, uniformly."""
    grids = rng.integers(1, colours + 1, size=(count, side, side), dtype=np.uint8)
    grids[rng.random(grids.shape) < black] = 0
    return grids


def distinct(
    rules: tuple[Member, ...], side: int, colours: int, black: float, inputs: int = 1000, seed: int = 0
) -> tuple[Member, ...]:
    """The members that are different rules: of two that agree on all of `inputs` random grids the first is kept.

    The grids are drawn as the benchmark draws its own: without black, say, every fall is the identity.
    """
    rng = np.random.default_rng(seed)
    probes = random_grids(inputs, side, colours, black, rng)
    seen: dict[bytes, Member] = {}
    for member in rules:
        seen.setdefault(hashlib.sha256(member(probes).tobytes()).digest(), member)
    return tuple(seen.values())


@dataclass(frozen=True)
class Benchmark:
    """A fixed calibration benchmark. Changing any field makes another benchmark: give it another version."""

    version: str
    families: tuple[str, ...]
    side: int
    colours: int
    black: float
    demos: int
    held_out: int
    validation: int
    split_seed: int

    @functools.cache  # noqa: B019  (a handful of benchmarks, each for the life of the process)
    def split(self) -> "Split":
        """Members by rule: train (the decoder's and the encoder's), validation and locked test.

        Every spatial part and every recolouring of a held-out member also occurs in training: only the composition is
        new.
        """
        rules = tuple(m for family in self.families for m in members(family, self.colours))
        rules = distinct(rules, self.side, self.colours, self.black)
        order = np.random.default_rng(self.split_seed).permutation(len(rules))
        held = [rules[i] for i in order[: self.held_out]]
        train = tuple(rules[i] for i in sorted(order[self.held_out :]))
        for part in ("spatial", "colours"):
            unseen = {getattr(m, part) for m in held} - {getattr(m, part) for m in train}
            if unseen:
                raise DataError(f"{self.version}: {part} {sorted(map(str, unseen))} occurs in no training member")
        return Split(train, tuple(held[: self.validation]), tuple(held[self.validation :]))


@dataclass(frozen=True)
class Split:
    """Members of a benchmark; the three parts share no rule."""

    train: tuple[Member, ...]
    validation: tuple[Member, ...]
    test: tuple[Member, ...]


BENCHMARKS: Mapping[str, Benchmark] = {
    "micro-2": Benchmark("micro-2", ("dihedral_recolour",), 3, 4, 0.0, 3, 44, 12, 1),
    "cal-1": Benchmark("cal-1", ("dihedral_recolour",), 5, 4, 0.2, 3, 52, 12, 1),
    "cal-2": Benchmark("cal-2", tuple(FAMILIES), 5, 4, 0.2, 3, 208, 24, 1),
}


def benchmark(version: str) -> Benchmark:
    """The benchmark of that version; DataError lists the known ones."""
    if version not in BENCHMARKS:
        raise DataError(f"no benchmark {version!r}; there are {', '.join(BENCHMARKS)}")
    return BENCHMARKS[version]

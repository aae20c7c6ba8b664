"""Procedural rules against per-cell definitions, and the split of each benchmark by rule."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from etrm.data.families import (
    BENCHMARKS,
    FAMILIES,
    SPATIAL,
    Benchmark,
    Member,
    benchmark,
    distinct,
    members,
    random_grids,
)
from etrm.errors import DataError

pytestmark = pytest.mark.fast

Cells = list[list[int]]
every_benchmark = pytest.mark.parametrize("version", BENCHMARKS)


def moved(grid: Cells, source: Callable[[int, int, int, int], tuple[int, int]]) -> Cells:
    """The grid whose cell (r, c) comes from `source(r, c, last row, last column)` of a square grid."""
    h, w = len(grid), len(grid[0])
    return [[grid[y][x] for y, x in (source(r, c, h - 1, w - 1) for c in range(w))] for r in range(h)]


def fall(grid: Cells, down: int, right: int) -> Cells:
    """Coloured cells drop in one direction, one place at a time, until nothing moves."""
    h, w, cells = len(grid), len(grid[0]), [list(row) for row in grid]
    dropped = True
    while dropped:
        dropped = False
        for r in range(h):
            for c in range(w):
                y, x = r + down, c + right
                if 0 <= y < h and 0 <= x < w and cells[r][c] and not cells[y][x]:
                    cells[y][x], cells[r][c], dropped = cells[r][c], 0, True
    return cells


def framed(grid: Cells) -> Cells:
    h, w = len(grid), len(grid[0])
    return [[grid[0][0] if r in (0, h - 1) or c in (0, w - 1) else grid[r][c] for c in range(w)] for r in range(h)]


NAIVE: dict[str, Callable[[Cells], Cells]] = {
    "identity": lambda g: g,
    "rot90": lambda g: moved(g, lambda r, c, h, w: (c, w - r)),
    "rot180": lambda g: moved(g, lambda r, c, h, w: (h - r, w - c)),
    "rot270": lambda g: moved(g, lambda r, c, h, w: (h - c, r)),
    "flip_left_right": lambda g: moved(g, lambda r, c, h, w: (r, w - c)),
    "flip_up_down": lambda g: moved(g, lambda r, c, h, w: (h - r, c)),
    "transpose": lambda g: moved(g, lambda r, c, h, w: (c, r)),
    "antitranspose": lambda g: moved(g, lambda r, c, h, w: (w - c, h - r)),
    "shift_up": lambda g: moved(g, lambda r, c, h, w: ((r + 1) % (h + 1), c)),
    "shift_down": lambda g: moved(g, lambda r, c, h, w: ((r - 1) % (h + 1), c)),
    "shift_left": lambda g: moved(g, lambda r, c, h, w: (r, (c + 1) % (w + 1))),
    "shift_right": lambda g: moved(g, lambda r, c, h, w: (r, (c - 1) % (w + 1))),
    "fall_down": lambda g: fall(g, 1, 0),
    "fall_up": lambda g: fall(g, -1, 0),
    "fall_left": lambda g: fall(g, 0, -1),
    "fall_right": lambda g: fall(g, 0, 1),
    "mirror_right": lambda g: moved(g, lambda r, c, h, w: (r, min(c, w - c))),
    "mirror_down": lambda g: moved(g, lambda r, c, h, w: (min(r, h - r), c)),
    "frame": framed,
}


def grids(count: int, side: int, colours: int = 4, black: float = 0.4, seed: int = 0) -> np.ndarray:
    return random_grids(count, side, colours, black, np.random.default_rng(seed))


def test_every_spatial_part_has_a_naive_twin_and_a_family() -> None:
    assert set(NAIVE) == set(SPATIAL) == {s for parts in FAMILIES.values() for s in parts}


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", SPATIAL)
def test_a_spatial_part_equals_its_cell_by_cell_definition(name: str, side: int) -> None:
    for grid in grids(12, side):
        assert np.asarray(SPATIAL[name](grid)).tolist() == NAIVE[name](grid.tolist()), grid


@pytest.mark.parametrize("name", SPATIAL)
def test_a_rule_on_a_batch_equals_the_rule_on_each_grid_and_leaves_its_input_alone(name: str) -> None:
    rule, given = Member("any", name, (0, 3, 1, 4, 2)), grids(24, 4).reshape(4, 6, 4, 4)
    before = given.copy()
    batch = rule(given)
    assert batch.shape == given.shape and batch.dtype == np.uint8
    assert np.array_equal(given, before), "a rule that writes into its input would change the demonstration"
    single = np.stack([rule(g) for g in given.reshape(-1, 4, 4)]).reshape(given.shape)
    assert np.array_equal(batch, single)


def test_the_recolouring_comes_after_the_spatial_part_and_keeps_black() -> None:
    rule = Member("any", "flip_left_right", (0, 2, 3, 1))
    assert rule(np.array([[0, 1], [2, 3]], dtype=np.uint8)).tolist() == [[2, 0], [1, 3]]


def test_members_are_all_parts_times_all_permutations_once_each_with_unique_ids() -> None:
    listed = members("shift_recolour", 3)
    assert len(listed) == 4 * 6 == len({m.id for m in listed}) and listed == members("shift_recolour", 3)
    assert all(m.colours[0] == 0 and sorted(m.colours) == [0, 1, 2, 3] for m in listed)
    assert listed[0].id == "shift_recolour/shift_up/0123"
    with pytest.raises(DataError, match="dihedral_recolour"):
        members("absent", 3)


def test_grids_have_the_asked_share_of_black_and_all_colours_alike() -> None:
    drawn = grids(400, 5, colours=4, black=0.2)
    assert drawn.shape == (400, 5, 5) and drawn.dtype == np.uint8
    shares = np.bincount(drawn.ravel(), minlength=5) / drawn.size
    assert len(shares) == 5 and np.allclose(shares, 0.2, atol=0.02)
    assert grids(10, 3, black=0.0).min() == 1


def test_two_rules_that_act_alike_are_one_and_the_first_stays() -> None:
    alike = (Member("a", "identity", (0, 1, 2)), Member("b", "identity", (0, 1, 2)), Member("a", "rot90", (0, 1, 2)))
    assert distinct(alike, 3, 2, 0.2) == (alike[0], alike[2])
    assert len(distinct(tuple(Member("a", s, (0, 1, 2)) for s in ("rot90", "rot270", "rot180")), 1, 2, 0.2)) == 1


def test_whether_rules_differ_is_judged_on_the_benchmarks_own_grids() -> None:
    """Without black cells nothing falls, so a fall is the identity there and another rule elsewhere."""
    rules = (Member("a", "identity", (0, 1, 2)), Member("b", "fall_down", (0, 1, 2)))
    assert len(distinct(rules, 3, 2, 0.0)) == 1 and len(distinct(rules, 3, 2, 0.2)) == 2


@pytest.mark.thorough
@every_benchmark
def test_no_two_members_of_a_benchmark_agree_on_a_thousand_other_inputs(version: str) -> None:
    b = benchmark(version)
    split = b.split()
    listed = (*split.train, *split.validation, *split.test)
    probes = grids(1000, b.side, b.colours, b.black, seed=12345)
    assert len({m(probes).tobytes() for m in listed}) == len(listed)


@pytest.mark.thorough
@every_benchmark
def test_the_split_by_rule_is_disjoint_complete_and_the_same_every_time(version: str) -> None:
    b = benchmark(version)
    split = b.split()
    parts = (split.train, split.validation, split.test)
    again: Any = Benchmark.split
    assert split == again.__wrapped__(b) and b.version == version  # computed anew, past the cache
    assert sum(map(len, parts)) == len({m.id for part in parts for m in part})
    assert (len(split.validation), len(split.test)) == (b.validation, b.held_out - b.validation)
    assert len(split.validation) > 0 and len(split.test) > 0 and len(split.train) > len(split.test)
    assert replace(b, split_seed=b.split_seed + 1).split() != split


@every_benchmark
def test_every_part_and_every_recolouring_of_a_held_out_member_occurs_in_training(version: str) -> None:
    split = benchmark(version).split()
    for held in (*split.validation, *split.test):
        assert any(held.spatial == m.spatial for m in split.train) and any(
            held.colours == m.colours for m in split.train
        )
        assert not any((held.spatial, held.colours) == (m.spatial, m.colours) for m in split.train)


FIXED = {
    "micro-2": "c8cf2b75f243194a",
    "cal-1": "3f75023b7d30dedd",
    "cal-2": "cd8c83404433be4c",
}  # a change of members or split needs another version


@pytest.mark.parametrize("version", FIXED)
def test_a_published_benchmark_stays_as_it_was(version: str) -> None:
    split = benchmark(version).split()
    listed = "\n".join(" ".join(m.id for m in part) for part in (split.train, split.validation, split.test))
    assert hashlib.sha256(listed.encode()).hexdigest()[:16] == FIXED[version]


def test_a_split_that_would_hold_out_a_whole_part_is_refused() -> None:
    with pytest.raises(DataError, match=r"greedy: (spatial|colours).*no training member"):
        Benchmark("greedy", ("dihedral_recolour",), 3, 3, 0.0, 3, 46, 4, 1).split()


@pytest.mark.parametrize(
    ("field", "value"), [("families", ("shift_recolour",)), ("colours", 5), ("held_out", 10), ("validation", 5)]
)
def test_every_field_of_a_benchmark_that_splits_changes_the_split(field: str, value: object) -> None:
    b = BENCHMARKS["micro-2"]
    assert replace(b, **{field: value}).split() != b.split()


def test_an_unknown_benchmark_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match="micro-2, cal-1, cal-2"):
        benchmark("cal-9")

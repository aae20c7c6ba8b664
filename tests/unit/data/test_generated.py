"""Generated pairs: never a held-back one, never in what is asked, and a file that says when it is damaged."""

from pathlib import Path

import numpy as np
import pytest

from etrm.data.arc import Pair
from etrm.data.arc_split import arc_benchmark, cut_arc, split_arc, taught
from etrm.data.generated import generated_pairs, supplemented, write_pairs
from etrm.data.grids import canonical_pair_hash
from etrm.errors import DataError

pytestmark = pytest.mark.fast

SUPPLEMENTED = ("arc-3", "arc-4", "arc-5")
PAIRS = {
    "one": [Pair(np.eye(3, dtype=np.uint8), np.ones((1, 2), dtype=np.uint8))],
    "two": [Pair(np.full((2, 2), n, dtype=np.uint8), np.full((4, 1), 9, dtype=np.uint8)) for n in (1, 2)],
}


def test_pairs_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.npz", PAIRS, "{}")
    assert generated_pairs("pairs", tmp_path) == {task: tuple(pairs) for task, pairs in PAIRS.items()}


def test_a_missing_or_damaged_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "pairs.npz"
    with pytest.raises(DataError, match=r"pairs\.npz is missing"):
        generated_pairs("pairs", tmp_path)
    write_pairs(path, PAIRS, "{}")
    held = dict(np.load(path))
    np.savez(path, **{name: value for name, value in held.items() if name != "of"})
    with pytest.raises(DataError, match="lacks"):
        generated_pairs("pairs", tmp_path)
    np.savez(path, **(held | {"cells": held["cells"][1:]}))
    with pytest.raises(DataError, match="26 cells, 27 expected"):
        generated_pairs("pairs", tmp_path)


@pytest.mark.parametrize("version", SUPPLEMENTED)
def test_the_shipped_pairs_fit_the_canvas_and_are_many_and_different(version: str) -> None:
    b = arc_benchmark(version)
    for task, pairs in generated_pairs(b.generated).items():
        assert 50 <= len(set(pairs)) == len(pairs) <= 500, task
        assert max(max(p.input.shape + p.output.shape) for p in pairs) <= b.side


@pytest.mark.thorough
@pytest.mark.parametrize("version", SUPPLEMENTED)
def test_no_shipped_pair_is_a_held_back_one_turned_or_recoloured(version: str) -> None:
    """As our augmentations recolour, black stays black; arc-5's pairs differ also if it does not."""
    b = arc_benchmark(version)
    split = cut_arc(b)  # also the queries of decoder tasks that have no generated pairs
    kept = [p for t in (*split.validation, *split.unseen) for p in (*t.demos, *t.queries)]
    kept += [p for t in split.decoder for p in t.queries]
    black_stays = version in ("arc-3", "arc-4")
    forbidden = {canonical_pair_hash(p.input, p.output, black_stays) for p in kept}
    drawn = [p for pairs in generated_pairs(b.generated).values() for p in pairs]
    found = {canonical_pair_hash(p.input, p.output, black_stays) for p in drawn}
    assert not found & forbidden and len(found) > 10_000


@pytest.mark.parametrize("version", ["arc-4", "arc-5"])
def test_some_pairs_are_as_large_as_a_query_that_no_demonstration_is(version: str) -> None:
    """A mixer of positions that never saw a size answers nothing of it."""
    b = arc_benchmark(version)
    larger = {t.id: {p.input.shape for p in t.queries} - {p.input.shape for p in t.demos} for t in split_arc(b).decoder}
    asked = {task: shapes for task, shapes in larger.items() if shapes}
    met = [
        task for task, shapes in asked.items() if shapes & {p.input.shape for p in generated_pairs(b.generated)[task]}
    ]
    assert len(asked) >= 8 and len(met) >= len(asked) - 1


@pytest.mark.parametrize("version", ["arc-4", "arc-5"])
def test_only_what_trains_on_them_sees_them_and_queries_stay(version: str) -> None:
    b = arc_benchmark(version)
    split = split_arc(b)
    task = split.train[0]
    more = supplemented(task, b.generated)
    assert more.queries == task.queries and more.demos == (*task.demos, *generated_pairs(b.generated)[task.id])
    assert taught(b, (task,)) == (more,) and taught(arc_benchmark("arc-1"), (task,)) == (task,)
    with pytest.raises(DataError, match="no generated pairs"):
        supplemented(split.unseen[0], b.generated)

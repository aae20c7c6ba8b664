"""The whole of ARC-AGI-1 or -2 at its own split: training tasks for the encoder, evaluation tasks for its score.

Notable: an augmentation is a number, drawn with each sample and computed then, so that nothing like TRM's 876,406
augmented puzzles is ever held. Number 0 is the identity; a task's numbers are fixed by seed and task id, and two of
them may by chance act alike on its grids ("up to" as many augmentations). Tasks that occur in both splits (by canonical
hash: also turned or recoloured) leave the evaluation, by name.

Legend: S canvas cells, side x side.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from etrm.data.arc import Pair, Task, Version, fits, load_arc, overlaps
from etrm.data.augment import IDENTITY, Augmentation
from etrm.data.episodes import ArcQuery, ArcSource, Batch
from etrm.errors import DataError

ARC_AGI: dict[str, Version] = {"arc-agi-1": 1, "arc-agi-2": 2}


@dataclass(frozen=True)
class ArcAgi:
    """Base tasks of both splits, in the seed's order; what was left out and why."""

    train: tuple[Task, ...]
    evaluation: tuple[Task, ...]
    duplicates: tuple[tuple[str, str], ...]  # (training id, evaluation id), excluded from the evaluation
    too_large: int  # tasks of both splits whose grids do not fit the canvas


def arc_agi(
    name: str, side: int, train_tasks: int, evaluation_tasks: int, seed: int, trained: Sequence[Task] = ()
) -> ArcAgi:
    """The first tasks of each split in a seeded shuffle; 0 asks for all that fit a side x side canvas.

    No evaluation task repeats one of the training split, nor one of `trained`: what else a model was trained on.
    Raises DataError for another name, and where more tasks are asked for than there are.
    """
    if name not in ARC_AGI:
        raise DataError(f"no benchmark {name!r}; there are {', '.join(ARC_AGI)}")
    version = ARC_AGI[name]
    everything = [load_arc(version, "training"), load_arc(version, "evaluation")]
    train, test = ([t for t in part if fits(t, side)] for part in everything)
    on_canvas = f"tasks on a {side}x{side} canvas"
    chosen = first_tasks(train, train_tasks, seed, f"{name} training {on_canvas}", "data.train_tasks")
    duplicates = overlaps([*train, *trained], test)
    repeated = {evaluation for _, evaluation in duplicates}
    test = [t for t in test if t.id not in repeated]
    asked = first_tasks(test, evaluation_tasks, seed, f"{name} evaluation {on_canvas}", "evaluation_tasks")
    return ArcAgi(chosen, asked, duplicates, sum(not fits(t, side) for part in everything for t in part))


def first_tasks(tasks: Sequence[Task], count: int, seed: int, what: str, key: str) -> tuple[Task, ...]:
    """The first `count` of a seeded shuffle, 0: all. DataError, naming `key`, if there are fewer, or none at all."""
    if not 0 <= count <= len(tasks) or not tasks:
        raise DataError(f"{key} is {count}, but there are {len(tasks)} {what}; set {key} between 0 (all) and that")
    order = np.random.default_rng(seed).permutation(len(tasks))
    return tuple(tasks[i] for i in order[: count or None])


def numbered_augmentation(task_id: str, number: int, colours: bool, seed: int) -> Augmentation:
    """Augmentation `number` of a task: 0 is the identity, every other one is drawn from (seed, number, task id)."""
    if number == 0:
        return IDENTITY
    rng = np.random.default_rng([seed, number, *task_id.encode()])
    transform = int(rng.integers(8))
    order = rng.permutation(np.arange(1, 10)) if colours else np.arange(1, 10)
    return Augmentation(transform, (0, *(int(colour) for colour in order)))


class ArcAgiSource(ArcSource):
    """Episodes of ARC tasks, augmented as they are drawn.

    A training query is one of the task's own queries, with all demonstrations shown; with `leave_one_out` also a
    demonstration, answered from the others. Meant for tasks whose queries are not evaluated (ARC's training split).
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        augmentations: int,
        colours: bool,
        side: int,
        max_demos: int,
        leave_one_out: bool,
        seed: int,
        row_of: Callable[[str], int] = lambda name: -1,
    ) -> None:
        if not tasks or augmentations < 1 or max_demos < 1:
            raise DataError(
                f"{len(tasks)} tasks, {augmentations} augmentations and at most {max_demos} demonstrations: "
                "each must be at least 1; see data.train_tasks, data.augmentations and data.max_demos"
            )
        super().__init__(tasks, [()] * len(tasks), side, max_demos, row_of, leave_one_out)
        self.count, self.colours, self.seed = augmentations, colours, seed

    def numbered(self, task: int, number: int) -> Augmentation:
        """Augmentation `number` of the task at that index."""
        return numbered_augmentation(self.task_ids[task], number, self.colours, self.seed)

    def sample(self, count: int, rng: np.random.Generator) -> Batch:
        """`count` episodes: task, augmentation, query and order of demonstrations, each uniform."""
        return self.encode([self._drawn(int(task), rng) for task in rng.integers(len(self.tasks), size=count)])

    def _drawn(self, index: int, rng: np.random.Generator) -> ArcQuery:
        task = self.tasks[index]
        augmentation = self.numbered(index, int(rng.integers(self.count)))
        lone = self.leave_one_out and len(task.demos) > 1  # a lone demonstration has none to be answered from
        asked = int(rng.integers(len(task.queries) + (len(task.demos) if lone else 0)))
        left_out = asked - len(task.queries)  # negative: one of the task's own queries
        shown: list[Pair] = [d for i, d in enumerate(task.demos) if i != left_out]
        shown = [shown[i] for i in rng.permutation(len(shown))[: self.max_demos]]
        pair = task.queries[asked] if left_out < 0 else task.demos[left_out]
        return ArcQuery(index, asked, augmentation, tuple(shown), pair, self.row_of(augmentation.name(task.id)))

    def asked(self, votes: int) -> list[ArcQuery]:
        """Every query of every task under its augmentations 0..votes-1 that differ, for an evaluation."""
        distinct = [list(dict.fromkeys(self.numbered(t, n) for n in range(votes))) for t in range(len(self.tasks))]
        return self.queries(distinct)

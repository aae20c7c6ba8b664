"""TRM's own protocol on ARC-AGI: one table row an augmented task, no demonstrations shown, evaluation tasks included.

The decoder learns every pair of the training tasks and the demonstrations of the evaluation tasks, whose queries it
then answers with their rows; so its score says nothing about unknown tasks. After TRM's data set builder (its paper and
public repository), with three differences: augmentations are those of `arc_agi` (drawn from their number when needed),
a pair's place on the canvas is drawn afresh each time, and ConceptARC's 160 tasks are not there.

Legend: B batch, S canvas cells, side x side.
"""

from collections.abc import Sequence

import numpy as np

from etrm.data.arc import Task, fits, load_arc
from etrm.data.arc_agi import ARC_AGI, first_tasks, numbered_augmentation
from etrm.data.augment import IDENTITY
from etrm.data.episodes import ArcQuery, ArcSource, Batch
from etrm.data.grids import PAD, encode_grid, labels_of
from etrm.errors import DataError


class TableSource(ArcSource):
    """Episodes without demonstrations whose context is a table row.

    `taught` says of each task whether its queries may be learned (training tasks) or are held back (evaluation tasks).
    `row_names[r]` names row r's augmented task; a task has as many rows as its first `augmentations` numbers give
    different ones.
    """

    def __init__(
        self, tasks: Sequence[Task], taught: Sequence[bool], augmentations: int, colours: bool, side: int, seed: int
    ) -> None:
        if not tasks or len(tasks) != len(taught) or augmentations < 1:
            raise DataError(
                f"{len(tasks)} tasks, {len(taught)} marks and {augmentations} augmentations: one mark a task, and at "
                "least one of each; see data.train_tasks and data.augmentations"
            )
        self.taught, self.colours, self.seed = tuple(taught), colours, seed
        names: list[str] = []
        self.numbers: list[np.ndarray] = []  # of the task's different augmentations, (rows of the task,)
        self.first_row: list[int] = []
        for task in tasks:
            own: dict[str, int] = {}
            for number in range(augmentations):
                own.setdefault(numbered_augmentation(task.id, number, colours, seed).name(task.id), number)
            self.first_row.append(len(names))
            self.numbers.append(np.fromiter(own.values(), dtype=np.int32))
            names += own
        self.row_names = tuple(names)
        super().__init__(tasks, [()] * len(tasks), side, 1, leave_one_out=False)

    def sample(self, count: int, rng: np.random.Generator) -> Batch:
        """`count` episodes: task, row and pair, each uniform; a pair stands in the corner as often as one of the task's
        does in TRM's data (once an augmented task), else anywhere that both of its grids fit.
        """
        cells = self.side**2
        tokens = np.empty((2, count, cells), dtype=np.int64)
        index = rng.integers(len(self.tasks), size=count)  # (B,)
        rows = np.empty(count, dtype=np.int64)
        for i, t in enumerate(index):
            task, own = self.tasks[t], int(rng.integers(len(self.numbers[t])))
            pairs = (*task.demos, *(task.queries if self.taught[t] else ()))
            pair = pairs[rng.integers(len(pairs))]
            seen = numbered_augmentation(task.id, int(self.numbers[t][own]), self.colours, self.seed)
            grids = seen.apply(pair.input), seen.apply(pair.output)
            at = (0, 0) if rng.random() < 1 / len(pairs) else self._place(grids, rng)
            tokens[:, i] = [encode_grid(grid, self.side, at) for grid in grids]
            rows[i] = self.first_row[t] + own
        nothing = np.full((count, 1, cells), PAD, dtype=np.int64)
        mask = np.zeros((count, 1), dtype=bool)
        return Batch(tokens[0], labels_of(tokens[1]), nothing, nothing, mask, index, rows)

    def held_out(self) -> Batch:
        """Each held-back query as it stands in the data, with the row of its task's identity."""
        asked = [
            ArcQuery(t, q, IDENTITY, (), pair, self.first_row[t])
            for t, task in enumerate(self.tasks)
            if not self.taught[t]
            for q, pair in enumerate(task.queries)
        ]
        return self.encode(asked)

    def _place(self, grids: tuple[np.ndarray, np.ndarray], rng: np.random.Generator) -> tuple[int, int]:
        free = [self.side - max(grid.shape[axis] for grid in grids) for axis in (0, 1)]
        return int(rng.integers(free[0] + 1)), int(rng.integers(free[1] + 1))


def table_source(name: str, tasks: int, augmentations: int, colours: bool, side: int, seed: int) -> TableSource:
    """The first `tasks` of each split of arc-agi-1 or -2 in a seeded shuffle (0: all that fit), as TRM trains on them.

    Raises DataError where more are asked for than there are.
    """
    version = ARC_AGI[name]
    train, test = ([t for t in load_arc(version, split) if fits(t, side)] for split in ("training", "evaluation"))
    chosen = [
        first_tasks(part, tasks, seed, f"{name} {word} tasks on a {side}x{side} canvas", "data.train_tasks")
        for part, word in ((train, "training"), (test, "evaluation"))
    ]
    taught = [True] * len(chosen[0]) + [False] * len(chosen[1])
    return TableSource((*chosen[0], *chosen[1]), taught, augmentations, colours, side, seed)

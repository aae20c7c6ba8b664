"""Does an episode follow its ARC task: does one augmentation of the task's own pairs give all of its pairs?

The augmentation is undone rather than every pair augmented beforehand: with generated pairs a task has thousands of
augmented ones, and a lookup of all would fill the memory.

Legend: B batch, K demonstrations, S canvas cells.
"""

from collections.abc import Sequence

import numpy as np

from etrm.data.arc import Task
from etrm.data.augment import Augmentation
from etrm.data.episodes import Batch
from etrm.data.grids import crop, encode_grid, labels_of

Key = tuple[tuple[int, ...], bytes, tuple[int, ...], bytes]  # shape and cells of input and output


class TaskReading:
    """A task's pairs, demonstrations and queries, and the augmentations under which they may be shown."""

    def __init__(self, task: Task, augmentations: Sequence[Augmentation], side: int) -> None:
        self.side = side
        pairs = (*task.demos, *task.queries)
        self.pairs = {_key(p.input, p.output) for p in pairs}
        self.palettes = {(_palette(p.input), _palette(p.output)) for p in pairs}
        self.augmentations = [(a, np.argsort(a.colours)) for a in augmentations]

    def explains(self, batch: Batch, i: int) -> bool:
        """Of episode i: is every pair, the query's included, one of the task's under one and the same augmentation?"""
        shown = batch.demo_mask[i]
        asked = self._grids(batch.inputs[i], batch.labels[i], labels=True)
        pairs = [asked, *map(self._grids, batch.demo_inputs[i][shown], batch.demo_labels[i][shown])]
        read = [p for p in pairs if p is not None]
        if len(read) < len(pairs):
            return False
        used = [[_palette(grid) for grid in pair] for pair in read]
        return any(self._undone(augmentation, back, read, used) for augmentation, back in self.augmentations)

    def _undone(
        self,
        augmentation: Augmentation,
        back: np.ndarray,
        pairs: Sequence[tuple[np.ndarray, np.ndarray]],
        used: Sequence[Sequence[frozenset[int]]],
    ) -> bool:
        for pair, palettes in zip(pairs, used, strict=True):
            # Colours first: they rule out most augmentations, and cost a tenth of turning the grids.
            given, answer = (frozenset(int(back[c]) for c in palette) for palette in palettes)
            if (given, answer) not in self.palettes:
                return False
            if _key(*(augmentation.invert(grid) for grid in pair)) not in self.pairs:
                return False
        return True

    def _grids(
        self, given: np.ndarray, answer: np.ndarray, labels: bool = False
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """The two grids written on the canvas at its corner; None where the tokens are no such writing."""
        grids = crop(given, self.side), crop(np.where(answer < 0, 0, answer), self.side)
        if not all(grid.size for grid in grids):
            return None
        written = [encode_grid(grid, self.side) for grid in grids]
        if labels and np.array_equal(labels_of(written[1]), answer):
            written[1] = labels_of(written[1])
        right = np.array_equal(written[0], given) and np.array_equal(written[1], answer)
        return grids if right else None


def _palette(grid: np.ndarray) -> frozenset[int]:
    return frozenset(np.flatnonzero(np.bincount(grid.ravel(), minlength=1)).tolist())


def _key(given: np.ndarray, answer: np.ndarray) -> Key:
    return given.shape, np.ascontiguousarray(given).tobytes(), answer.shape, np.ascontiguousarray(answer).tobytes()

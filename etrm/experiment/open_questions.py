"""Which questions of a long evaluation still have to be asked.

With `decide` k a query is asked no further once no vote to come can change its k most voted grids or their order, so
pass@1 to pass@k are those of all votes. Votes are judged without the right answer. Queries are then asked in turn, one
augmentation each, so that what is left of a query shrinks while others are asked.

Legend: a row is a place in `Questions.rows`; h, w a predicted grid's height and width.
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from etrm.data.grids import grid_hash
from etrm.evaluation.voting import QueryKey, decided, shard_queries
from etrm.experiment.questions import Questions

Drawn = tuple[np.ndarray, float]  # the predicted grid (h, w), 0-sized where none was drawn, and its halt logit


class OpenQuestions:
    """The rows without an answer, of which `wave` gives the next ones; `decide` 0 asks them all."""

    def __init__(self, questions: Questions, there: Mapping[int, Drawn], decide: int) -> None:
        self._rows, self._decide = questions.rows, decide
        self._left = Counter(self._key(row) for row in range(len(self._rows)))  # votes a query has not got yet
        self._votes: dict[QueryKey, Counter[str]] = {key: Counter() for key in self._left}
        for row, (grid, _) in there.items():
            self.answered(row, grid)
        rows = range(len(self._rows))
        self._waiting = [row for row in (self._in_turn() if decide else rows) if row not in there]
        self._next = 0

    def _key(self, row: int) -> QueryKey:
        task, query, _ = self._rows[row]
        return task, query

    def _in_turn(self) -> list[int]:
        places: Counter[QueryKey] = Counter()
        order = []
        for row in range(len(self._rows)):
            order.append((places[self._key(row)], row))
            places[self._key(row)] += 1
        return [row for _, row in sorted(order)]

    def __len__(self) -> int:
        """How many rows are open as things stand."""
        return sum(not self._closed(row) for row in self._waiting[self._next :])

    def _closed(self, row: int) -> bool:
        key = self._key(row)
        return bool(self._decide) and decided(list(self._votes[key].values()), self._left[key], self._decide)

    def share(self, rank: int, world: int) -> None:
        """Keep this rank's part: every world-th row, or with `decide` all rows of every world-th query."""
        if self._decide:
            mine = set(shard_queries(list(self._votes), rank, world))
            self._waiting = [row for row in self._waiting if self._key(row) in mine]
        else:
            self._waiting = shard_queries(self._waiting, rank, world)

    def wave(self, size: int) -> list[int]:
        """The next `size` open rows, fewer at the end. What was decided stays so, so none is looked at twice."""
        found: list[int] = []
        while self._next < len(self._waiting) and len(found) < size:
            row = self._waiting[self._next]
            self._next += 1
            if not self._closed(row):
                found.append(row)
        return found

    def answered(self, row: int, grid: np.ndarray) -> None:
        """Count the answer (h, w) of a row, as it was drawn."""
        if self._decide:
            key = self._key(row)
            self._left[key] -= 1
            self._votes[key][grid_hash(self._rows[row][2].invert(grid))] += 1

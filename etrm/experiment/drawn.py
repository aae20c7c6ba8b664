"""Watching what training really draws, to its end: distinct episodes, true to their task, evenly over the tasks.

A sampler that repeats itself, a prefetch buffer that is written over, a list of tasks that runs out: they begin after
the first batches, where no rehearsal looks.

Legend: B batch, G tasks.
"""

import hashlib
import math
from collections.abc import Callable

import numpy as np

from etrm.data.episodes import Batch, Source

KEPT = 0.9  # of the distinct questions that even draws give on average
LOOKED_AT = 2  # episodes of each batch that are held against their task
SIGMAS = 8.0  # of the chi-square statistic of the draws by task; even draws exceed 6 once in a million runs


class CountingSource:
    """A source that passes draws on and remembers each question (task, query and label) by its digest."""

    def __init__(self, source: Source, explains: Callable[[Batch, int, str], bool]) -> None:
        self.source, self.explains = source, explains
        self.task_ids, self.side = source.task_ids, source.side
        self.drawn = 0
        self.seen: set[bytes] = set()
        self.counts = np.zeros(len(source.task_ids), dtype=np.int64)
        self.untrue: list[str] = []
        self._batches = 0

    def sample(self, count: int, rng: np.random.Generator) -> Batch:
        """The wrapped source's own draw."""
        batch = self.source.sample(count, rng)
        self.drawn += len(batch)
        self._batches += 1
        np.add.at(self.counts, batch.task, 1)
        for i in {(self._batches * 7 + k * 31) % len(batch) for k in range(LOOKED_AT)}:
            if not self.explains(batch, i, self.task_ids[batch.task[i]]):
                self.untrue.append(f"batch {self._batches}, episode {i}: not of {self.task_ids[batch.task[i]]}")
        for task, given, answer in zip(batch.task, batch.inputs, batch.labels, strict=True):
            self.seen.add(
                hashlib.blake2b(given.tobytes() + answer.tobytes() + bytes([task % 256]), digest_size=8).digest()
            )
        return batch

    def faults(self) -> list[str]:
        """What is wrong with the draws so far, in words."""
        found = []
        if self.untrue:
            found.append(f"{len(self.untrue)} episodes looked at do not follow their task; {self.untrue[0]}")
        groups, expected = len(self.counts), self.drawn / len(self.counts)
        spread = float(((self.counts - expected) ** 2).sum() / max(expected, 1e-12))
        if spread > groups - 1 + SIGMAS * math.sqrt(2 * max(groups - 1, 1)) + SIGMAS:
            never = int((self.counts == 0).sum())
            most = self.task_ids[int(self.counts.argmax())]
            found.append(f"draws are uneven: {never} of {groups} tasks never, {most} {self.counts.max()} times, "
                         f"{expected:.0f} expected")  # fmt: skip
        return found


def least_distinct(slots: int, pool: int | None) -> int:
    """How many distinct questions a run of `slots` even draws from `pool` (None: endless) must at least have shown."""
    expected = slots if pool is None else pool * (1 - math.exp(-slots / pool))
    return int(KEPT * expected)

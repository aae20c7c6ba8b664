"""Counting what training really drew: distinct episodes by content, so that a sampler that repeats itself shows.

Legend: B batch.
"""

import hashlib
import math

import numpy as np

from etrm.data.episodes import Batch, Source

KEPT = 0.9  # of the distinct questions that even draws give on average


class CountingSource:
    """A source that passes draws on and remembers each question (task, query and label) by its digest."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.task_ids, self.side = source.task_ids, source.side
        self.drawn = 0
        self.seen: set[bytes] = set()

    def sample(self, count: int, rng: np.random.Generator) -> Batch:
        """The wrapped source's own draw."""
        batch = self.source.sample(count, rng)
        self.drawn += len(batch)
        for task, given, answer in zip(batch.task, batch.inputs, batch.labels, strict=True):
            self.seen.add(
                hashlib.blake2b(given.tobytes() + answer.tobytes() + bytes([task % 256]), digest_size=8).digest()
            )
        return batch


def least_distinct(slots: int, pool: int | None) -> int:
    """How many distinct questions a run of `slots` even draws from `pool` (None: endless) must at least have shown."""
    expected = slots if pool is None else pool * (1 - math.exp(-slots / pool))
    return int(KEPT * expected)

"""Distinct questions are counted by content, and the least number follows from the pool."""

import numpy as np
import pytest

from etrm.data.episodes import Batch, RuleSource
from etrm.data.families import benchmark
from etrm.experiment.drawn import CountingSource, least_distinct

pytestmark = pytest.mark.fast


def source() -> RuleSource:
    b = benchmark("cal-1")
    return RuleSource(b.split().train, b)


def true(batch: Batch, i: int, task: str) -> bool:
    return True


def test_fresh_draws_are_distinct_and_a_stuck_sampler_is_not() -> None:
    counting = CountingSource(source(), true)
    assert not counting.seen
    rng = np.random.default_rng(0)
    for _ in range(5):
        counting.sample(16, rng)
    assert (counting.drawn, len(counting.seen)) == (80, 80)
    stuck = CountingSource(source(), true)
    for _ in range(5):
        stuck.sample(16, np.random.default_rng(0))
    assert len(stuck.seen) == 16


def test_draws_are_passed_on_unchanged() -> None:
    plain, counted = (
        source().sample(8, np.random.default_rng(1)),
        CountingSource(source(), true).sample(8, np.random.default_rng(1)),
    )
    assert np.array_equal(plain.inputs, counted.inputs) and np.array_equal(plain.demo_labels, counted.demo_labels)


def test_the_least_number_grows_with_the_draws_and_ends_at_the_pool() -> None:
    assert least_distinct(1000, None) == 900
    assert least_distinct(1000, 10**9) in (899, 900) and least_distinct(10**6, 100) == 90
    assert least_distinct(100, 100) == int(0.9 * 100 * (1 - np.exp(-1)))


@pytest.mark.thorough
def test_even_draws_are_even_and_a_list_that_runs_dry_is_not() -> None:
    rng = np.random.default_rng(2)
    for least, faulty in ((None, False), (8, True), (100, True)):
        counting = CountingSource(source(), true)
        for number in range(200):
            if least is not None and number > 50:
                inner = counting.source
                assert isinstance(inner, RuleSource)
                drawn = inner.episodes(rng.integers(least, size=64), rng)
                np.add.at(counting.counts, drawn.task, 1)
                counting.drawn += 64
            else:
                counting.sample(64, rng)
        assert bool(counting.faults()) is faulty, counting.faults()


def test_an_episode_that_is_not_its_tasks_is_told() -> None:
    counting = CountingSource(source(), lambda batch, i, task: counting.drawn < 100)
    for _ in range(4):
        counting.sample(32, np.random.default_rng(0))
    assert "batch 4, episode" in counting.faults()[0]

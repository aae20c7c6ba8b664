"""Distinct questions are counted by content, and the least number follows from the pool."""

import numpy as np
import pytest

from etrm.data.episodes import RuleSource
from etrm.data.families import benchmark
from etrm.experiment.drawn import CountingSource, least_distinct

pytestmark = pytest.mark.fast


def source() -> RuleSource:
    b = benchmark("cal-1")
    return RuleSource(b.split().train, b)


def test_fresh_draws_are_distinct_and_a_stuck_sampler_is_not() -> None:
    counting = CountingSource(source())
    assert not counting.seen
    rng = np.random.default_rng(0)
    for _ in range(5):
        counting.sample(16, rng)
    assert (counting.drawn, len(counting.seen)) == (80, 80)
    stuck = CountingSource(source())
    for _ in range(5):
        stuck.sample(16, np.random.default_rng(0))
    assert len(stuck.seen) == 16


def test_draws_are_passed_on_unchanged() -> None:
    plain, counted = (
        source().sample(8, np.random.default_rng(1)),
        CountingSource(source()).sample(8, np.random.default_rng(1)),
    )
    assert np.array_equal(plain.inputs, counted.inputs) and np.array_equal(plain.demo_labels, counted.demo_labels)


def test_the_least_number_grows_with_the_draws_and_ends_at_the_pool() -> None:
    assert least_distinct(1000, None) == 900
    assert least_distinct(1000, 10**9) in (899, 900) and least_distinct(10**6, 100) == 90
    assert least_distinct(100, 100) == int(0.9 * 100 * (1 - np.exp(-1)))

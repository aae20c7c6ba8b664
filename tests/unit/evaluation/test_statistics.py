"""Intervals, sign flips, Holm and decisions: known values, simulated coverage, and the counts that misled the seed."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from etrm.errors import EvaluationError
from etrm.evaluation.statistics import (
    RungResult,
    clopper_pearson,
    decide,
    decide_rungs,
    decision,
    holm,
    intra_task_correlation,
    nominal_chance,
    rung_result,
    sign_flip_test,
    task_differences,
)

pytestmark = pytest.mark.fast

task_counts = st.integers(1, 4).flatmap(lambda asked: st.tuples(st.integers(0, asked), st.just(asked)))


def single(k: int, n: int, name: str = "own") -> RungResult:
    """k of n tasks solved, one query each."""
    return rung_result(name, [(1, 1)] * k + [(0, 1)] * (n - k))


@pytest.mark.parametrize(
    ("k", "n", "low", "high"), [(0, 4, 0, 0.602), (0, 32, 0, 0.109), (0, 400, 0, 0.0092), (4, 32, 0.035, 0.290)]
)
def test_one_query_a_task_gets_the_exact_interval(k: int, n: int, low: float, high: float) -> None:
    result = single(k, n)
    assert result.ci95 == pytest.approx((low, high), abs=5e-4)
    reference = stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    assert result.ci95 == pytest.approx((reference.low, reference.high))
    assert (result.k, result.n, result.tasks, result.rate) == (k, n, n, k / n)
    assert f"{k} of {n}" in str(result)


@pytest.mark.parametrize("tasks", [1, 4, 32, 400])
def test_nothing_or_everything_solved_does_not_collapse_the_interval(tasks: int) -> None:
    assert rung_result("none", [(0, 4)] * tasks).ci95 == pytest.approx(clopper_pearson(0, tasks))
    assert rung_result("all", [(4, 4)] * tasks).ci95 == pytest.approx(clopper_pearson(tasks, tasks))


def test_one_solved_query_does_not_narrow_the_interval_below_none_solved() -> None:
    none, one = rung_result("none", [(0, 4)] * 32), rung_result("one", [(1, 4)] + [(0, 4)] * 31)
    assert one.ci95[1] >= none.ci95[1]


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.lists(task_counts, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_interval_holds_the_rate_and_ignores_the_order_of_tasks(pairs: list[tuple[int, int]], rng) -> None:
    result = rung_result("any", pairs, seed=3, resamples=500)
    low, high = result.ci95
    assert 0.0 <= low <= result.rate <= high <= 1.0
    shuffled = list(pairs)
    rng.shuffle(shuffled)
    assert rung_result("any", shuffled, seed=3, resamples=500).ci95 == pytest.approx(result.ci95, abs=1e-12)


@pytest.mark.parametrize(
    ("tasks", "rate", "correlation"), [(8, 0.5, 0.5), (32, 0.05, 0.05), (32, 0.5, 0.05), (32, 0.1, 0.8)]
)
def test_coverage_on_beta_binomial_tasks(tasks: int, rate: float, correlation: float) -> None:
    rng, size, covered = np.random.default_rng(11), 1 / correlation - 1, 0
    for seed in range(300):
        solved = rng.binomial(4, rng.beta(rate * size, (1 - rate) * size, tasks))
        low, high = rung_result("sim", [(int(s), 4) for s in solved], seed=seed, resamples=500).ci95
        covered += low <= rate <= high
    assert covered / 300 >= 0.93


def test_coverage_where_few_tasks_are_wholly_solved_and_the_rest_never() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for seed in range(300):
        solved = 4 * (rng.random(32) < 0.08)
        low, high = rung_result("sim", [(int(s), 4) for s in solved], seed=seed, resamples=500).ci95
        covered += low <= 0.08 <= high
    assert covered / 300 >= 0.93


@pytest.mark.parametrize("pairs", [[], [(2, 1)], [(-1, 2)], [(0, 0)], {"a": (1, 1), "b": (3, 2)}])
def test_impossible_counts_are_refused(pairs) -> None:
    with pytest.raises(EvaluationError, match="rung 'bad'"):
        rung_result("bad", pairs)


def test_sign_flip_matches_its_definition_by_brute_force() -> None:
    values = np.array([0.5, -0.25, 0.75, 0.0, 0.25, 1.0])
    sums = [np.dot(signs, values) for signs in itertools.product((1, -1), repeat=len(values))]
    result = sign_flip_test(values, resamples=10, seed=0)
    assert result.exact and result.informative == 5 and result.tasks == 6
    assert result.p_greater == pytest.approx(np.mean(np.array(sums) >= values.sum() - 1e-12))
    assert result.p_two_sided == pytest.approx(np.mean(np.abs(sums) >= values.sum() - 1e-12))


def test_sign_flip_sampled_agrees_with_the_exact_sign_test_and_is_seeded() -> None:
    values = np.array([1.0] * 14 + [-1.0] * 6)
    exact = stats.binomtest(14, 20, alternative="greater").pvalue
    result = sign_flip_test(values, resamples=20_000, seed=1)
    assert not result.exact
    assert result.p_greater == pytest.approx(exact, abs=0.01)
    assert result == sign_flip_test(values, resamples=20_000, seed=1)
    assert sign_flip_test(np.ones(40), resamples=999, seed=0).p_greater == pytest.approx(1 / 1000)


def test_sign_flip_without_any_difference_or_with_bad_input() -> None:
    assert sign_flip_test(np.zeros(5), 10, 0).p_greater == 1.0
    for bad in (np.array([]), np.array([np.nan]), np.ones((3, 4))):
        with pytest.raises(EvaluationError, match="one difference a task"):
            sign_flip_test(bad, 10, 0)


def test_sign_flip_of_the_null_is_level_over_correlated_queries() -> None:
    """Queries of a task move together, so flipping single queries would call this null significant far too often."""
    rng = np.random.default_rng(2)
    hits = 0
    for seed in range(300):
        own, null = (8 * (rng.random(10) < 0.5) for _ in range(2))  # whole tasks solved or not
        pair = [
            rung_result(name, [(int(s), 8) for s in solved], resamples=2) for name, solved in (("o", own), ("n", null))
        ]
        differences = task_differences(*pair)
        assert differences is not None and differences.shape == (10,)
        hits += sign_flip_test(differences, 500, seed).p_greater < 0.05
    assert hits / 300 < 0.08


def test_differences_pair_by_task_id_and_refuse_other_queries() -> None:
    own, null = rung_result("own", {"a": (2, 2), "b": (0, 2)}), rung_result("null", {"b": (1, 2), "a": (0, 2)})
    differences = task_differences(own, null)
    assert differences is not None and differences.tolist() == [1.0, -0.5]
    assert task_differences(own, rung_result("other", {"a": (0, 2), "c": (0, 2)})) is None
    assert task_differences(own, rung_result("fewer", {"a": (0, 2), "b": (0, 1)})) is None


def test_holm_known_values_and_order() -> None:
    assert holm({"c": 0.03, "a": 0.01, "b": 0.04}) == pytest.approx({"c": 0.06, "a": 0.03, "b": 0.06})
    assert holm({"x": 0.9, "y": 0.8}) == {"x": 1.0, "y": 1.0}
    assert holm({}) == {}
    with pytest.raises(EvaluationError, match="'x'"):
        holm({"x": float("nan")})


@pytest.mark.parametrize(
    ("k", "n", "expected"),
    [
        (0, 4, "undecided"),
        (0, 32, "undecided"),
        (0, 400, "below"),
        (4, 32, "undecided"),
        (5, 32, "above"),
        (5, 100, "undecided"),
    ],
)
def test_decisions_at_the_useful_rate_against_a_null_on_the_same_tasks(k: int, n: int, expected: str) -> None:
    """4 of 32 against a paired 0 of 32 has p = 1/16: above 2 %, but not shown above its null."""
    assert decide(single(k, n), 0.02, single(0, n, "null")) == expected


def test_four_of_32_is_above_when_the_nulls_are_known_well() -> None:
    assert decide(single(4, 32), 0.02, single(0, 400, "null")) == "above"
    told = decision(single(4, 32), 0.02, single(0, 32, "mismatched"))
    assert told.p_null == 0.0625 and "mismatched" in told.reason and "4 tasks that differ" in told.reason


def test_every_null_must_be_beaten() -> None:
    own, weak, strong = single(16, 32), single(0, 32, "weak"), single(15, 32, "strong")
    assert decide(own, 0.02, [weak]) == "above"
    assert decide(own, 0.02, [weak, strong]) == "undecided"
    assert "strong" in decision(own, 0.02, [weak, strong]).reason
    with pytest.raises(EvaluationError, match="no null"):
        decide(own, 0.02, [])


def test_percent_instead_of_fraction_is_refused() -> None:
    with pytest.raises(EvaluationError, match="not percent"):
        decide(single(4, 32), 2.0, single(0, 32))


def test_correction_over_rungs_is_applied() -> None:
    """5 of 32 (p = 1/32) passes alone and beside a clearly solved rung, but not beside an equally uncertain twin."""
    results = {"seen_task": single(20, 32), "unseen_task": single(5, 32)}
    nulls = {name: [single(0, 32, "null")] for name in results}
    alone = decide_rungs({"unseen_task": single(5, 32)}, 0.02, {"unseen_task": nulls["unseen_task"]})
    assert alone["unseen_task"].word == "above"
    both = decide_rungs(results, 0.02, nulls)
    assert (both["seen_task"].word, both["unseen_task"].word) == ("above", "above")  # the larger p keeps its own alpha
    twins = decide_rungs({"a": single(5, 32), "b": single(5, 32)}, 0.02, {"a": [single(0, 32)], "b": [single(0, 32)]})
    assert [told.word for told in twins.values()] == ["undecided", "undecided"]
    assert twins["a"].p_null == pytest.approx(0.0625)
    with pytest.raises(EvaluationError, match="differ"):
        decide_rungs(results, 0.02, {})


def test_an_encoder_no_better_than_its_null_is_rarely_called_above() -> None:
    rng = np.random.default_rng(8)
    words = []
    for _ in range(200):
        own, null = (rung_result("drawn", [(int(s), 1) for s in rng.random(24) < 0.4]) for _ in range(2))
        words.append(decide(own, 0.0, null))  # threshold 0: only the null can stop an "above"
    assert words.count("above") / 200 < 0.08 and "below" not in words


def test_intra_task_correlation_at_its_ends_and_between() -> None:
    assert intra_task_correlation([(4, 4), (0, 4), (4, 4), (0, 4)]) == pytest.approx(1.0)
    assert intra_task_correlation([(2, 4)] * 6) == 0.0
    assert intra_task_correlation([(0, 4)] * 6) == 1.0
    rng = np.random.default_rng(0)
    solved = rng.binomial(4, rng.beta(0.7, 0.7, 4000))
    assert intra_task_correlation([(int(s), 4) for s in solved]) == pytest.approx(1 / 2.4, abs=0.03)


def test_nominal_chance_is_the_seeds() -> None:
    assert nominal_chance(400) == 0.0025
    with pytest.raises(EvaluationError, match="tasks=0"):
        nominal_chance(0)

"""Intervals, sign flips, Holm and decisions: known values, simulated coverage, and the counts that misled the seed."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from etrm.errors import EvaluationError
from etrm.evaluation.statistics import (
    RESAMPLES,
    Decision,
    RungResult,
    SignFlip,
    clopper_pearson,
    cluster_interval,
    decision,
    holm,
    intra_task_correlation,
    nominal_chance,
    null_p,
    rung_result,
    sign_flip_test,
    small_sample_factor,
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


def test_exact_interval_of_one_success_and_of_counts_that_cannot_be() -> None:
    """The lower bound p of 1 of n solves 1 - (1 - p)**n = 0.025."""
    assert clopper_pearson(1, 4)[0] == pytest.approx(1 - 0.975 ** (1 / 4))
    assert clopper_pearson(0.5, 4)[0] > 0
    for k, n in ((0, 0), (1, 0), (-1, 4), (5, 4), (0, -1)):
        with pytest.raises(EvaluationError) as caught:
            clopper_pearson(k, n)
        assert str(caught.value) == (
            f"clopper_pearson got k={k}, n={n}; expected 0 <= k <= n and n > 0: check the counts"
        )


def test_small_sample_factor_by_the_table_of_t() -> None:
    """Quantiles 97.5 % of t as printed: 2.131 at 15 degrees of freedom, 3.182 at 3, 2.069 at 23, 2.571 at 5."""
    factors = small_sample_factor(np.array([16, 24]), np.array([4, 6]))
    assert factors == pytest.approx([(2.131 / 3.182) ** 2, (2.069 / 2.571) ** 2], abs=5e-4)


def test_interval_of_six_tasks_worked_out_by_hand() -> None:
    """9 of 24: residuals 1.5, -0.5, 0.5, -1.5, 1.5, -1.5, their squares sum to 9.5; variance 6/5 * 9.5 / 24**2."""
    size = 0.375 * 0.625 / (6 / 5 * 9.5 / 24**2) * (stats.t.ppf(0.975, 23) / stats.t.ppf(0.975, 5)) ** 2
    assert 6 < size < 24
    k = 0.375 * size
    expected = stats.beta.ppf(0.025, k, size - k + 1), stats.beta.ppf(0.975, k + 1, size - k)
    pairs = [(solved, 4) for solved in (3, 1, 2, 0, 3, 0)]
    assert cluster_interval(pairs, 0, 2000) == pytest.approx(expected)


def test_the_bootstrap_widens_the_interval_where_it_is_the_widest() -> None:
    """One draw of 27 takes the only solved task three times, more than the 2.5 % of the upper tail: the bound is 1."""
    assert cluster_interval([(0, 2), (0, 1), (1, 1)], 0, 20_000)[1] == 1.0
    assert cluster_interval([(2, 2), (1, 1), (0, 1)], 0, 20_000)[0] == 0.0


@pytest.mark.parametrize(
    "pairs", [[(1, 4)] + [(0, 4)] * 31, [(2, 4), (0, 4), (1, 4)], [(1, 1), (2, 5), (0, 3), (1, 9)]]
)
def test_interval_of_failures_mirrors_that_of_successes(pairs: list[tuple[int, int]]) -> None:
    low, high = cluster_interval(pairs, 0, 4000)
    mirrored = cluster_interval([(asked - solved, asked) for solved, asked in pairs], 0, 4000)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=0.01)
    assert (mirrored[0] == pytest.approx(1 - high)) or pairs[0] != (1, 4)


def test_a_result_names_how_its_interval_was_computed_and_is_seeded() -> None:
    assert single(1, 3).method == "exact binomial (one query a task)"
    pairs = [(0, 2), (0, 1), (1, 1), (3, 9)]
    results = [rung_result("any", pairs, *seed, resamples=50) for seed in ((), (0,), (1,))]
    assert results[0].method == "resampled by task, with exact bounds"
    assert results[0] == results[1] != results[2]


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


@pytest.mark.parametrize(("solved", "asked"), [(2, 1), (-1, 2), (0, 0), (3, 2), (1, 2.5), (0.5, 2), (0, -1)])
def test_impossible_counts_are_refused(solved: float, asked: float) -> None:
    with pytest.raises(EvaluationError) as caught:
        rung_result("bad", {"a": (1, 1), "b": (solved, asked)})  # type: ignore[dict-item]
    assert str(caught.value) == (
        f"rung 'bad', task 'b': {solved} solved of {asked} asked, expected whole numbers with 0 <= solved <= asked and "
        "asked >= 1: count each evaluated query once"
    )


def test_a_rung_without_tasks_is_refused() -> None:
    with pytest.raises(EvaluationError, match=r"^rung 'bad' has no task, expected at least one: check the split"):
        rung_result("bad", [])


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
    assert sign_flip_test(np.zeros(5), 10, 0) == SignFlip(1.0, 1.0, 5, 0, True)
    for bad in (np.array([]), np.array([np.nan]), np.ones((3, 4))):
        with pytest.raises(EvaluationError) as caught:
            sign_flip_test(bad, 10, 0)
        assert str(caught.value) == (
            f"sign_flip_test got shape {bad.shape}, expected (tasks,) of finite numbers, at least one: "
            "pass one difference a task, averaged over its queries"
        )


def test_sign_flip_of_one_task_and_at_the_end_of_enumeration() -> None:
    """All of G tasks better: one pattern of 2**G is as good, two are as far from zero."""
    assert sign_flip_test([0.5, 0.0], 10, 0) == SignFlip(0.5, 1.0, 2, 1, True)
    assert sign_flip_test([-0.5], 10, 0) == SignFlip(1.0, 1.0, 1, 1, True)
    assert sign_flip_test(np.ones(14), 10, 0) == SignFlip(2.0**-14, 2.0**-13, 14, 14, True)
    assert not sign_flip_test(np.ones(15), 10, 0).exact
    assert sign_flip_test(np.ones(40), 999, 0) == SignFlip(0.001, 0.001, 40, 40, False)  # the observed pattern counts


def test_sign_flip_does_not_depend_on_the_unit_or_the_precision_of_the_differences() -> None:
    """0.1 + 0.2 and 0.3 tie on paper but not in binary, wherever they are scaled and stored."""
    exact = sign_flip_test([1, 2, -3, 4], 10, 0)
    assert (exact.p_greater, exact.p_two_sided) == (5 / 16, 10 / 16)
    tenths = np.array([0.1, 0.2, -0.3, 0.4])
    for values in (tenths, tenths * 1e-7, tenths * 1e7):
        assert sign_flip_test(values, 10, 0) == exact
    narrow = (np.arange(1, 11) / 3 * np.where(np.arange(10) % 4, 1, -1)).astype(np.float32)
    assert sign_flip_test(narrow, 10, 0) == sign_flip_test(narrow.astype(np.float64), 10, 0)


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


def test_a_result_with_more_counts_than_task_ids_loses_none_of_them_silently() -> None:
    own = rung_result("own", {"a": (2, 2), "b": (0, 2)})
    broken = replace(own, per_task=(*own.per_task, (1, 2)))
    for pair in ((own, broken), (broken, own)):
        with pytest.raises(ValueError, match="longer"):
            task_differences(*pair)


def test_holm_known_values_and_order() -> None:
    assert holm({"c": 0.03, "a": 0.01, "b": 0.04}) == pytest.approx({"c": 0.06, "a": 0.03, "b": 0.06})
    assert holm({"x": 0.9, "y": 0.8}) == {"x": 1.0, "y": 1.0}
    assert holm({}) == {}
    assert holm({"x": 0.0, "y": 1.0}) == {"x": 0.0, "y": 1.0}
    for bad in (float("nan"), -0.1, 1.5):
        with pytest.raises(EvaluationError, match=f"^holm got p={bad} for 'x', expected 0 <= p <= 1: check"):
            holm({"y": 0.5, "x": bad})


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
    assert decision(single(k, n), 0.02, single(0, n, "null")).word == expected


def test_four_of_32_is_above_when_the_nulls_are_known_well() -> None:
    assert decision(single(4, 32), 0.02, single(0, 400, "null")).word == "above"
    told = decision(single(4, 32), 0.02, single(0, 32, "mismatched"))
    assert told.p_null == 0.0625 and "mismatched" in told.reason and "4 tasks that differ" in told.reason


def test_every_null_must_be_beaten() -> None:
    own, weak, strong = single(16, 32), single(0, 32, "weak"), single(15, 32, "strong")
    assert decision(own, 0.02, [weak]).word == "above"
    assert decision(own, 0.02, [weak, strong]).word == "undecided"
    assert "strong" in decision(own, 0.02, [weak, strong]).reason
    with pytest.raises(EvaluationError, match="no null"):
        decision(own, 0.02, [])


@pytest.mark.parametrize(
    ("threshold", "alpha", "correction"),
    [(2.0, 0.05, 1.0), (1.0, 0.05, 1.0), (1.5, 0.05, 1.0), (-0.1, 0.05, 1.0), (0.02, 0.0, 1.0), (0.02, 1.0, 1.0),
     (0.02, 1.5, 1.0), (0.02, 5.0, 1.0), (0.02, 0.05, 0.5)],
)  # fmt: skip
def test_percent_instead_of_fraction_is_refused(threshold: float, alpha: float, correction: float) -> None:
    with pytest.raises(EvaluationError) as caught:
        decision(single(4, 32), threshold, single(0, 32), alpha, correction=correction)
    assert str(caught.value) == (
        f"threshold={threshold}, alpha={alpha}, correction={correction}: expected 0 <= threshold < 1, "
        "0 < alpha < 1, correction >= 1 (fractions, not percent)"
    )


def bounded(low: float, high: float, name: str = "own") -> RungResult:
    """5 of 8 tasks with an interval set by hand."""
    return replace(single(5, 8, name), ci95=(low, high))


SPANS = "5 of 8 over 8 tasks, 95 % interval [30.00%, 80.00%]"


def test_a_decision_says_what_it_rests_on() -> None:
    """5 of 8 against 0 of 8: five tasks differ, one pattern of 32 is as good, p = 1/32."""
    own, null, p = bounded(0.3, 0.8), single(0, 8, "null"), 1 / 32
    beaten = f"{SPANS}, is above 20.00% and beats every null"
    assert decision(own, 0.2, null) == Decision("above", beaten, p)
    assert decision(own, 0.9, null) == Decision("below", f"{SPANS}, lies below 90.00%", p)
    assert decision(own, 0.5, null) == Decision("undecided", f"{SPANS}, contains 50.00%", p)
    missed = f"{SPANS}, is above 20.00% but does not beat the null 'null' (0 of 8; p = 0.0625 over 5 tasks that differ)"
    assert decision(own, 0.2, null, correction=2.0) == Decision("undecided", missed, 0.0625)
    capped = decision(own, 0.2, null, correction=50.0)
    assert capped == Decision("undecided", missed.replace("0.0625", "1"), 1.0)
    elsewhere = replace(rung_result("null", {"other": (1, 8)}), ci95=(0.0, 0.35))
    unpaired = (
        f"{SPANS}, is above 20.00% but does not beat the null 'null' (1 of 8; its upper bound is 35.00%; "
        "it was asked other queries, so pairing is impossible)"
    )
    assert decision(own, 0.2, elsewhere) == Decision("undecided", unpaired, None)
    assert decision(own, 0.2, [elsewhere, null]).p_null == p
    assert decision(own, 0.2, replace(elsewhere, ci95=(0.0, 0.25))) == Decision("above", beaten, None)


def test_touching_a_limit_decides_nothing() -> None:
    own, null = bounded(0.3, 0.8), single(0, 8, "null")
    assert decision(own, 0.8, null).word == "undecided"
    assert decision(own, 0.3, null).word == "undecided"
    assert decision(own, 0.2, null, alpha=1 / 32).word == "undecided"
    assert decision(own, 0.0, null).word == "above"
    assert decision(own, 0.2, replace(rung_result("null", {"other": (1, 8)}), ci95=(0.0, 0.3))).word == "undecided"


def test_a_sampled_p_value_is_that_of_the_seed_asked_for() -> None:
    """24 tasks differ, so patterns are drawn; alpha just above the lowest p of 40 seeds tells that seed from others."""
    own, null = rung_result("own", [(1, 1)] * 17 + [(0, 1)] * 7), rung_result("null", [(0, 1)] * 17 + [(1, 1)] * 7)
    differences = task_differences(own, null)
    assert differences is not None
    p = {seed: sign_flip_test(differences, RESAMPLES, seed).p_greater for seed in range(40)}
    lowest = min(p, key=p.__getitem__)
    alpha = p[lowest] + 1e-9
    assert sum(value <= p[lowest] for value in p.values()) == 1 and p[0] != p[1]
    assert null_p(own, [null], lowest) == decision(own, 0.02, null, seed=lowest).p_null == p[lowest]
    assert null_p(own, [null]) == decision(own, 0.02, null).p_null == p[0]
    assert decision(own, 0.02, null, alpha, lowest).word == "above"
    assert decision(own, 0.02, null, alpha).word == "undecided"


def test_without_an_own_seed_all_decisions_use_seed_0() -> None:
    own, null = rung_result("own", [(1, 1)] * 17 + [(0, 1)] * 7), rung_result("null", [(0, 1)] * 17 + [(1, 1)] * 7)
    first, second = (decision(own, 0.02, null, seed=seed).p_null for seed in (0, 1))
    assert first is not None and second is not None and first != second
    words = [decision(own, 0.02, null, (first + second) / 2, *seed).word for seed in ((), (0,), (1,))]
    assert words[0] == words[1] != words[2]


def test_a_rung_asked_other_queries_than_its_null_is_decided_without_a_p_value() -> None:
    own, elsewhere = single(16, 32), rung_result("null", {"other": (0, 400)})
    assert null_p(own, [elsewhere]) is None
    assert decision(own, 0.02, elsewhere).p_null is None


def test_an_encoder_no_better_than_its_null_is_rarely_called_above() -> None:
    rng = np.random.default_rng(8)
    words = []
    for _ in range(200):
        own, null = (rung_result("drawn", [(int(s), 1) for s in rng.random(24) < 0.4]) for _ in range(2))
        words.append(decision(own, 0.0, null).word)  # threshold 0: only the null can stop an "above"
    assert words.count("above") / 200 < 0.08 and "below" not in words


def test_intra_task_correlation_at_its_ends_and_between() -> None:
    assert intra_task_correlation([(4, 4), (0, 4), (4, 4), (0, 4)]) == pytest.approx(1.0)
    assert intra_task_correlation([(2, 4)] * 6) == 0.0
    for unknown in ([(0, 4)] * 6, [(4, 4)] * 6, [(1, 2)], [(1, 1), (0, 1), (0, 1)]):
        assert intra_task_correlation(unknown) == 1.0
    # between = 0.75 / 2, within = 1.25 / 5, typical size = (8 - 24 / 8) / 2: 0.125 / (0.375 + 1.5 * 0.25)
    assert intra_task_correlation([(3, 4), (0, 2), (1, 2)]) == pytest.approx(1 / 6)
    # two tasks: between = 0.5, within = 0.25, typical size 4: 0.25 / (0.5 + 3 * 0.25)
    assert intra_task_correlation([(3, 4), (1, 4)]) == pytest.approx(0.2)
    rng = np.random.default_rng(0)
    solved = rng.binomial(4, rng.beta(0.7, 0.7, 4000))
    assert intra_task_correlation([(int(s), 4) for s in solved]) == pytest.approx(1 / 2.4, abs=0.03)


def test_nominal_chance_is_the_seeds() -> None:
    assert nominal_chance(400) == 0.0025
    assert nominal_chance(1) == 1.0
    with pytest.raises(EvaluationError, match="tasks=0"):
        nominal_chance(0)

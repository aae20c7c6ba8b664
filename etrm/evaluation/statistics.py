"""What a count of solved queries can and cannot say: intervals by task, paired tests, corrections, decisions.

The task is the unit everywhere, because the queries of one task stand or fall together.
- Interval: Clopper-Pearson (Biometrika 26, 1934) where each task has one query. Otherwise the envelope of a percentile
  bootstrap over tasks and of Korn and Graubard's interval (Survey Methodology 24, 1998: Clopper-Pearson at the
  effective sample size of a clustered sample); `cluster_interval` says what holds at 0 of n, n of n and few tasks.
- Comparison with a null: sign flips of the per-task differences (Fisher's randomisation test), exact when small.
- Correction over rungs: Holm (Scand. J. Stat. 6, 1979).
- `decide` may answer "undecided", and `decision` then says why; `etrm.evaluation.plan` says how many tasks would do.

Legend: G tasks, Q queries of one task, k solved, n asked. Rates and p-values are fractions of 1, never percent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from etrm.errors import EvaluationError

DecisionWord = Literal["above", "below", "undecided"]
TAIL = 0.025  # each side of a 95 % interval
RESAMPLES = 10_000
EXACT_TASKS = 14  # 2**14 sign patterns are enumerated, more are sampled


@dataclass(frozen=True)
class RungResult:
    """One rung's outcome. `per_task[i]` = (solved, asked) of `task_ids[i]`; `method` names how `ci95` was computed."""

    name: str
    k: int
    n: int
    tasks: int
    per_task: tuple[tuple[int, int], ...]
    ci95: tuple[float, float]
    task_ids: tuple[str, ...]
    method: str

    @property
    def rate(self) -> float:
        """Solved over asked, k / n."""
        return self.k / self.n

    def __str__(self) -> str:
        low, high = self.ci95
        return f"{self.name}: {self.k} of {self.n} ({self.tasks} tasks), 95 % interval [{low:.1%}, {high:.1%}]"


@dataclass(frozen=True)
class SignFlip:
    """p-values of one sign-flip test; `informative` tasks differ from zero, `exact` tells enumeration from sampling."""

    p_greater: float
    p_two_sided: float
    tasks: int
    informative: int
    exact: bool


@dataclass(frozen=True)
class Decision:
    """A decision with its reason. `p_null` is the largest paired p over the nulls, corrected for the number of rungs
    (None: no null is on the same queries). How many tasks would decide: `etrm.evaluation.plan.tasks_needed`."""

    word: DecisionWord
    reason: str
    p_null: float | None


def clopper_pearson(k: float, n: float) -> tuple[float, float]:
    """Exact 95 % binomial interval; k and n may be fractional (effective sizes), 0 <= k <= n, n > 0."""
    if not (n > 0 and 0 <= k <= n):
        raise EvaluationError(f"clopper_pearson got k={k}, n={n}; expected 0 <= k <= n and n > 0: check the counts")
    low = 0.0 if k <= 0 else float(special.betaincinv(k, n - k + 1, TAIL))
    high = 1.0 if k >= n else float(special.betaincinv(k + 1, n - k, 1 - TAIL))
    return low, high


def small_sample_factor(n: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    """Korn and Graubard's (t[n-1] / t[tasks-1])**2, elementwise: the distrust that a variance from few tasks earns."""
    return np.asarray((special.stdtrit(n - 1, 1 - TAIL) / special.stdtrit(tasks - 1, 1 - TAIL)) ** 2)


def cluster_interval(per_task: Sequence[tuple[int, int]], seed: int, resamples: int) -> tuple[float, float]:
    """95 % interval of the pooled rate k / n, resampled by task.

    Returned is the widest of three, because each alone fails somewhere:
    1. percentile bootstrap over tasks (collapses to a point at 0 of n and n of n, undercovers with few tasks);
    2. Clopper-Pearson at n_eff = p(1-p)/var(p) * (t[n-1]/t[G-1])**2, var by the ratio estimator over tasks, kept within
       [G', n] where G' = n**2 / sum(asked**2) (= G for equal tasks) is the size under full intra-task correlation.
       If tasks show no variance (all, none, or all alike) the correlation is unknown and n_eff = G';
    3. the upper bound is never below that of 0 of G', the lower never above that of G' of G': one more solved query
       must not lower the upper bound.
    """
    table = np.asarray(per_task, dtype=np.int64)  # (G, 2)
    tasks = len(table)
    k, n = (int(total) for total in table.sum(axis=0))
    rate = k / n
    kinds, counts = np.unique(table, axis=0, return_counts=True)  # (kinds, 2), (kinds,)
    # Equal tasks are interchangeable, so drawing how often each kind appears is the same bootstrap, and order-free.
    draws = np.random.default_rng(seed).multinomial(tasks, counts / tasks, size=resamples)  # (R, kinds)
    sums = draws @ kinds  # (R, 2)
    low, high = (float(q) for q in np.quantile(sums[:, 0] / sums[:, 1], [TAIL, 1 - TAIL]))
    full = n * n / float((table[:, 1] ** 2).sum())
    residuals = table[:, 0] - rate * table[:, 1]  # (G,)
    variance = 0.0 if tasks == 1 else tasks / (tasks - 1) * float((residuals**2).sum()) / n**2
    size = full
    if variance > 1e-15:
        size = rate * (1 - rate) / variance * float(small_sample_factor(np.array(n), np.array(tasks)))
        size = min(max(size, full), float(n))
    cp_low, cp_high = clopper_pearson(rate * size, size)
    return min(low, cp_low, clopper_pearson(full, full)[0]), max(high, cp_high, clopper_pearson(0.0, full)[1])


def rung_result(
    name: str,
    per_task: Mapping[str, tuple[int, int]] | Sequence[tuple[int, int]],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> RungResult:
    """Counts per task -> rate and 95 % interval. A sequence gets its positions as task ids ("0", "1", ...).

    Raises EvaluationError on no task, a task without queries, or more solved than asked.
    """
    named = per_task if isinstance(per_task, Mapping) else {str(i): pair for i, pair in enumerate(per_task)}
    if not named:
        raise EvaluationError(f"rung '{name}' has no task, expected at least one: check the split and its filters")
    for task_id, (solved, asked) in named.items():
        if int(asked) != asked or int(solved) != solved or asked < 1 or not 0 <= solved <= asked:
            raise EvaluationError(
                f"rung '{name}', task '{task_id}': {solved} solved of {asked} asked, expected whole numbers with "
                "0 <= solved <= asked and asked >= 1: count each evaluated query once"
            )
    pairs = tuple((int(solved), int(asked)) for solved, asked in named.values())
    k, n = sum(solved for solved, _ in pairs), sum(asked for _, asked in pairs)
    if n == len(pairs):
        interval, method = clopper_pearson(k, n), "exact binomial (one query a task)"
    else:
        interval, method = cluster_interval(pairs, seed, resamples), "resampled by task, with exact bounds"
    return RungResult(name, k, n, len(pairs), pairs, interval, tuple(named), method)


def nominal_chance(tasks: int) -> float:
    """The seed's chance level, 1 / tasks. Reported beside the measured nulls, never used as the null: guessing a whole
    grid right is far rarer (copy-input solves 0 of 419 ARC-1 evaluation queries)."""
    if tasks < 1:
        raise EvaluationError(f"nominal_chance got tasks={tasks}, expected >= 1: check the split")
    return 1.0 / tasks


def sign_flip_test(differences_by_task: Sequence[float] | np.ndarray, resamples: int, seed: int) -> SignFlip:
    """Paired randomisation test of mean difference 0; differences (G,) float, one a task (own rate - null rate).

    Zero differences carry no sign and are left out (the p-value is the same). Up to 14 informative tasks every sign
    pattern is enumerated; beyond, `resamples` patterns are drawn and the observed one is counted in (p is never 0).
    """
    values = np.asarray(differences_by_task, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise EvaluationError(
            f"sign_flip_test got shape {values.shape}, expected (tasks,) of finite numbers, at least one: "
            "pass one difference a task, averaged over its queries"
        )
    informative = values[values != 0.0]
    count = informative.size
    if count == 0:
        return SignFlip(1.0, 1.0, values.size, 0, True)
    exact = count <= EXACT_TASKS
    if exact:
        bits = np.arange(2**count)[:, None] >> np.arange(count) & 1  # (2**count, count)
    else:
        bits = np.random.default_rng(seed).integers(0, 2, size=(resamples, count), dtype=np.int8)  # (R, count)
    sums, observed = (1.0 - 2.0 * bits) @ informative, float(informative.sum())
    slack = 1e-9 * float(np.abs(informative).sum())  # sums that are equal on paper must tie in floating point
    greater = int((sums >= observed - slack).sum())
    either = int((np.abs(sums) >= abs(observed) - slack).sum())
    extra = 0 if exact else 1
    return SignFlip(
        (greater + extra) / (len(sums) + extra), (either + extra) / (len(sums) + extra), values.size, count, exact
    )


def task_differences(own: RungResult, null: RungResult) -> np.ndarray | None:
    """Own minus null solved rate for each task (G,), in own's order; None if the two did not ask the same queries."""
    theirs = dict(zip(null.task_ids, null.per_task, strict=True))
    if set(theirs) != set(own.task_ids):
        return None
    pairs = [(mine, theirs[task_id]) for task_id, mine in zip(own.task_ids, own.per_task, strict=True)]
    if any(mine[1] != other[1] for mine, other in pairs):
        return None
    return np.array([(mine[0] - other[0]) / mine[1] for mine, other in pairs])


def holm(pvalues: Mapping[str, float]) -> dict[str, float]:
    """Holm-adjusted p-values by name, in the given order; compare each with alpha. Raises on a p outside [0, 1]."""
    for name, p in pvalues.items():
        if not 0.0 <= p <= 1.0:
            raise EvaluationError(f"holm got p={p} for '{name}', expected 0 <= p <= 1: check that test's input")
    adjusted: dict[str, float] = {}
    running = 0.0
    for rank, name in enumerate(sorted(pvalues, key=lambda key: pvalues[key])):
        running = max(running, min(1.0, (len(pvalues) - rank) * pvalues[name]))
        adjusted[name] = running
    return {name: adjusted[name] for name in pvalues}


def null_p(result: RungResult, nulls: Sequence[RungResult], seed: int = 0) -> float | None:
    """Largest one-sided paired p over the nulls asked on the same queries (all must be beaten, so the worst counts)."""
    ps = [flips.p_greater for null in nulls if (flips := _against(result, null, seed)) is not None]
    return max(ps) if ps else None


def _against(result: RungResult, null: RungResult, seed: int) -> SignFlip | None:
    """The paired test against one null, None where it was not asked the same queries."""
    differences = task_differences(result, null)
    return None if differences is None else sign_flip_test(differences, RESAMPLES, seed)


def decision(
    result: RungResult,
    threshold: float,
    null: RungResult | Sequence[RungResult],
    alpha: float = 0.05,
    seed: int = 0,
    correction: float = 1.0,
) -> Decision:
    """Is the rung above the threshold and its nulls, below the threshold, or undecided? With the reason.

    above: lower bound > threshold, and every null is beaten: one asked on the same queries by the one-sided paired
    sign-flip test (p times `correction`, Holm's factor for this rung, < alpha), others by lower bound > upper bound.
    below: upper bound < threshold. Anything else is undecided.
    """
    nulls = [null] if isinstance(null, RungResult) else list(null)
    if not nulls:
        raise EvaluationError(f"rung '{result.name}' has no null to beat: measure mismatched demonstrations first")
    if not (0.0 <= threshold < 1.0 and 0.0 < alpha < 1.0 and correction >= 1.0):
        raise EvaluationError(
            f"threshold={threshold}, alpha={alpha}, correction={correction}: expected 0 <= threshold < 1, "
            "0 < alpha < 1, correction >= 1 (fractions, not percent)"
        )
    low, high = result.ci95
    tests = [_against(result, other, seed) for other in nulls]
    paired = [min(1.0, flips.p_greater * correction) for flips in tests if flips is not None]
    worst = max(paired) if paired else None
    spans = f"{result.k} of {result.n} over {result.tasks} tasks, 95 % interval [{low:.2%}, {high:.2%}]"
    if high < threshold:
        return Decision("below", f"{spans}, lies below {threshold:.2%}", worst)
    if low <= threshold:
        return Decision("undecided", f"{spans}, contains {threshold:.2%}", worst)
    for other, flips in zip(nulls, tests, strict=True):
        if flips is None:
            beaten = low > other.ci95[1]
            how = f"its upper bound is {other.ci95[1]:.2%}; it was asked other queries, so pairing is impossible"
        else:
            beaten = flips.p_greater * correction < alpha
            how = f"p = {min(1.0, flips.p_greater * correction):.3g} over {flips.informative} tasks that differ"
        if not beaten:
            missed = f"does not beat the null '{other.name}' ({other.k} of {other.n}; {how})"
            return Decision("undecided", f"{spans}, is above {threshold:.2%} but {missed}", worst)
    return Decision("above", f"{spans}, is above {threshold:.2%} and beats every null", worst)


def intra_task_correlation(per_task: Sequence[tuple[int, int]]) -> float:
    """Intra-task correlation of solved queries, the ANOVA estimator (Fleiss), 0 where it is negative; at most 1.

    1.0 (full correlation, the cautious end) where it cannot be estimated: one task, one query a task, all or none.
    """
    table = np.asarray(per_task, dtype=np.float64)  # (G, 2)
    tasks, n = len(table), float(table[:, 1].sum())
    rate = float(table[:, 0].sum()) / n
    if tasks < 2 or n == tasks or rate in (0.0, 1.0):
        return 1.0
    rates = table[:, 0] / table[:, 1]
    between = float((table[:, 1] * (rates - rate) ** 2).sum()) / (tasks - 1)
    within = float((table[:, 1] * rates * (1 - rates)).sum()) / (n - tasks)
    typical = (n - float((table[:, 1] ** 2).sum()) / n) / (tasks - 1)
    return max(0.0, (between - within) / (between + (typical - 1) * within))

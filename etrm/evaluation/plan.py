"""How many tasks, queries and minutes an evaluation needs before it can say anything; run it before the run.

    python -m etrm.evaluation.plan --effect 0.05 --null 0.0 --queries-per-task 4 --seconds-per-query 0.01 [--json]

Two questions with different answers: will the interval exclude a threshold (`tasks_to_decide`), and will the paired
test beat a null measured on the same queries (`tasks_to_beat`)? Both shrink q queries a task to q / (1 + (q - 1) rho)
independent ones (Kish's design effect; rho is the intra-task correlation) and then compute binomial power exactly; with
one query a task nothing is approximate. At null 0 the paired test needs at least 5 solved tasks (2**-5 < 0.05).
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

from etrm.errors import EvaluationError
from etrm.evaluation.statistics import (
    TAIL,
    RungResult,
    decision,
    intra_task_correlation,
    small_sample_factor,
)

TASK_LIMIT = 1_000_000  # a design that needs more tasks is refused by name
ALPHA = 0.05  # one-sided, of the paired test
DEFAULT_CORRELATION = 0.5  # used by the command where --correlation is not given, and printed


@dataclass(frozen=True)
class PlanRow:
    """One power level: tasks, queries (tasks * queries_per_task), evaluations (queries * conditions), minutes."""

    power: float
    tasks: int
    queries: int
    evaluations: int
    minutes: float


@dataclass(frozen=True)
class Plan:
    """What it takes to tell `null + effect` from `null` (and from `threshold`, if one was given), for each power."""

    effect: float
    null: float
    threshold: float | None
    queries_per_task: int
    intra_task_correlation: float
    conditions: int
    seconds_per_query: float
    rows: tuple[PlanRow, ...]

    def __str__(self) -> str:
        aim = f"to tell {self.null + self.effect:.1%} from a null of {self.null:.1%}"
        if self.threshold is not None:
            aim += f" and from the threshold {self.threshold:.1%}"
        lines = [
            f"{aim}, {self.queries_per_task} queries a task, intra-task correlation {self.intra_task_correlation:g}, "
            f"{self.conditions} conditions on the same queries, {self.seconds_per_query:g} s a query:"
        ]
        lines += [
            f"  power {row.power:.0%}: {row.tasks} tasks, {row.queries} queries, {row.minutes:.1f} minutes"
            for row in self.rows
        ]
        return "\n".join(lines)


def tasks_to_decide(
    rate: float, threshold: float, queries_per_task: float, intra_task_correlation: float, power: float = 0.8
) -> int:
    """Fewest tasks for which the 95 % interval excludes the threshold with that power, if `rate` is the true rate.

    Above or below is taken from rate vs threshold. Power saws up and down with the number of tasks, so the answer is
    the first number after which it never falls below `power` again. EvaluationError if rate equals the threshold.
    """
    _check_design(queries_per_task, intra_task_correlation, power, rate=rate, threshold=threshold)
    if rate == threshold:
        raise EvaluationError(f"rate and threshold are both {rate}: no number of tasks can tell them apart; move one")

    def powers(tasks: np.ndarray) -> np.ndarray:
        sizes = _effective_sizes(tasks, queries_per_task, intra_task_correlation)  # (C,) whole numbers
        if rate > threshold:
            needed = stats.binom.isf(TAIL, sizes, threshold) + 1  # fewest solved whose lower bound is above
            return np.asarray(stats.binom.sf(needed - 1, sizes, rate))
        allowed = stats.binom.ppf(TAIL, sizes, threshold) - 1  # most solved whose upper bound is below
        possible = 1 - TAIL ** (1 / tasks) < threshold  # the interval's floor: 0 of `tasks`
        return np.where(possible & (allowed >= 0), stats.binom.cdf(allowed, sizes, rate), 0.0)

    return _settled(powers, power, f"rate {rate} against threshold {threshold}")


def tasks_to_beat(
    rate: float,
    null_rate: float,
    queries_per_task: float,
    intra_task_correlation: float,
    power: float = 0.8,
    alpha: float = ALPHA,
) -> int:
    """Fewest tasks for which the one-sided paired sign test beats a null measured on the same queries with that power.

    Cautious: own and null are taken as independent given the query, which makes the most discordant pairs.
    """
    _check_design(queries_per_task, intra_task_correlation, power, rate=rate, null_rate=null_rate)
    if rate <= null_rate or not 0.0 < alpha < 1.0:
        raise EvaluationError(
            f"rate={rate}, null_rate={null_rate}, alpha={alpha}: expected rate > null_rate and 0 < alpha < 1: "
            "ask for a positive effect"
        )
    wins, losses = rate * (1 - null_rate), null_rate * (1 - rate)

    def powers(tasks: np.ndarray) -> np.ndarray:
        pairs = _kish_sizes(tasks, queries_per_task, intra_task_correlation)
        return np.array([_sign_test_power(int(n), wins, losses, alpha) for n in pairs])

    return _settled(powers, power, f"rate {rate} against null {null_rate}", dense=False)


def tasks_needed(result: RungResult, threshold: float, nulls: Sequence[RungResult], power: float = 0.8) -> int | None:
    """How many tasks would turn an undecided rung into a decided one, if its observed rates are the true ones.

    None where it is decided already, where more tasks cannot help (rate at the threshold or at a null) or where more
    than a million would be needed.
    """
    if decision(result, threshold, nulls).word != "undecided" or result.rate == threshold:
        return None
    size, rho = result.n / result.tasks, intra_task_correlation(result.per_task)
    try:
        answer = tasks_to_decide(result.rate, threshold, size, rho, power)
        if result.rate > threshold:
            if any(result.rate <= null.rate for null in nulls):
                return None
            answer = max([answer, *(tasks_to_beat(result.rate, null.rate, size, rho, power) for null in nulls)])
    except EvaluationError:
        return None
    return answer


def plan(
    effect: float,
    null: float,
    queries_per_task: int,
    seconds_per_query: float,
    intra_task_correlation: float,
    conditions: int = 2,
    threshold: float | None = None,
    powers: Sequence[float] = (0.8, 0.9),
) -> Plan:
    """Tasks, queries and minutes to tell null + effect from a null measured on the same queries, one row a power.

    conditions: how many times each query is answered (own demonstrations and each null); seconds_per_query: of one
    answer in one condition, augmentations included; threshold: also require the interval to exclude it.
    """
    if effect <= 0 or null < 0 or effect + null > 1 or seconds_per_query < 0 or conditions < 1 or not powers:
        raise EvaluationError(
            f"plan got effect={effect}, null={null}, seconds_per_query={seconds_per_query}, conditions={conditions}: "
            "expected effect > 0, null >= 0, effect + null <= 1, seconds >= 0, conditions >= 1 (fractions, not percent)"
        )
    rows = []
    for power in powers:
        tasks = tasks_to_beat(null + effect, null, queries_per_task, intra_task_correlation, power)
        if threshold is not None:
            more = tasks_to_decide(null + effect, threshold, queries_per_task, intra_task_correlation, power)
            tasks = max(tasks, more)
        queries = tasks * queries_per_task
        evaluations = queries * conditions
        rows.append(PlanRow(power, tasks, queries, evaluations, evaluations * seconds_per_query / 60))
    return Plan(
        effect, null, threshold, queries_per_task, intra_task_correlation, conditions, seconds_per_query, tuple(rows)
    )


def _check_design(queries_per_task: float, correlation: float, power: float, **rates: float) -> None:
    if queries_per_task < 1 or not 0 <= correlation <= 1 or not 0 < power < 1:
        raise EvaluationError(
            f"queries_per_task={queries_per_task}, intra_task_correlation={correlation}, power={power}: "
            "expected >= 1, within [0, 1] and within (0, 1)"
        )
    for name, value in rates.items():
        if not 0 <= value <= 1:
            raise EvaluationError(f"{name}={value}, expected a fraction within [0, 1] (5 % is 0.05)")


def _kish_sizes(tasks: np.ndarray, queries_per_task: float, correlation: float) -> np.ndarray:
    return np.asarray(np.floor(tasks * queries_per_task / (1 + (queries_per_task - 1) * correlation) + 1e-9))


def _effective_sizes(tasks: np.ndarray, queries_per_task: float, correlation: float) -> np.ndarray:
    """Sizes at which `cluster_interval` will work: Kish's, less what a variance estimated from few tasks costs."""
    sizes = _kish_sizes(tasks, queries_per_task, correlation)
    if queries_per_task > 1:
        several = np.maximum(tasks, 2)  # one task has no variance; the floor below covers it
        sizes = np.floor(sizes * small_sample_factor(several * queries_per_task, several) + 1e-9)
    return np.maximum(sizes, tasks)


def _sign_test_power(pairs: int, wins: float, losses: float, alpha: float) -> float:
    """Power of the exact one-sided sign test on `pairs` pairs with those chances of a win and of a loss each."""
    if pairs < 1:
        return 0.0
    discordant = wins + losses
    low, high = stats.binom.ppf([1e-9, 1 - 1e-9], pairs, discordant)
    counts = np.arange(int(low), int(high) + 1)  # (C,) pairs that differ
    critical = stats.binom.isf(alpha, counts, 0.5) + 1  # fewest wins with p < alpha
    return float(stats.binom.pmf(counts, pairs, discordant) @ stats.binom.sf(critical - 1, counts, wins / discordant))


def _settled(powers: Callable[[np.ndarray], np.ndarray], power: float, what: str, dense: bool = True) -> int:
    """First count of tasks from which on the power holds. Dense: every count is tried; else doubling and bisection."""
    high = 32
    while (tried := powers(np.array([high, 2 * high]))).min() < power:
        high *= 2
        if high > TASK_LIMIT:
            raise EvaluationError(
                f"{what} needs more than {TASK_LIMIT} tasks for power {power}: plan for a larger effect "
                f"(power there {tried[0]:.2f})"
            )
    if not dense:
        low = 0
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if powers(np.array([middle]))[0] >= power else (middle, high)
        return high
    counts = np.arange(1, 2 * high + 1)
    failing = counts[powers(counts) < power]
    return int(failing[-1]) + 1 if failing.size else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; prints the plan as text or JSON. Returns 0, or 2 with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m etrm.evaluation.plan", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--effect", type=float, required=True, help="points above the null to detect, as a fraction")
    parser.add_argument("--null", type=float, required=True, help="the null's solved rate, as a fraction")
    parser.add_argument("--queries-per-task", type=int, required=True)
    parser.add_argument("--seconds-per-query", type=float, required=True, help="one answer in one condition")
    parser.add_argument(
        "--correlation", type=float, default=DEFAULT_CORRELATION, help="intra-task (default %(default)s)"
    )
    parser.add_argument("--conditions", type=int, default=2, help="answers to each query: own and nulls (default 2)")
    parser.add_argument("--threshold", type=float, help="also exclude this rate, e.g. 0.02")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    try:
        answer = plan(
            given.effect,
            given.null,
            given.queries_per_task,
            given.seconds_per_query,
            given.correlation,
            given.conditions,
            given.threshold,
        )
    except EvaluationError as error:
        print(f"plan: {error}", file=sys.stderr)
        return 2
    print(json.dumps(asdict(answer), indent=2) if given.json else answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())

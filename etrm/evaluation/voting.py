"""Votes over augmentations -> pass@k, scored by both published rules over exactly the queries that were evaluated.

Each prediction is cropped, its augmentation inverted, its grid hashed; the grids of one query are ranked by number of
votes, then by mean halt probability, then by hash (so the order of arrival never matters). pass@k: the right grid is
among the k most voted. Rules, both in use on ARC-AGI:
- "fraction of a task's tests" (TRM's evaluator): a task earns solved / asked; the score is the mean over tasks.
- "all tests" (HRM's notebook, ARC Prize): a task earns 1 if every test is solved, else 0.
Notable: the denominator is what was evaluated, never the size of the data set; one `Vote` serves one evaluation and
then refuses; padding rows of a batch are named by `scored=False` and leave no trace.

Legend: S = side * side canvas cells. A query is (task id, index among that task's queries).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.special import expit

from etrm.data.arc import Task
from etrm.data.augment import Augmentation
from etrm.data.grids import VOCAB, check_grid, crop, grid_hash
from etrm.errors import EvaluationError

FRACTION_RULE = "fraction of a task's tests"
ALL_RULE = "all tests"
QueryKey = tuple[str, int]
Row = TypeVar("Row")


@dataclass(frozen=True)
class PassAtK:
    """pass@k of one evaluation. `per_task[task id]` = (solved, asked), ready for `statistics.rung_result`."""

    k: int
    per_task: Mapping[str, tuple[int, int]]

    @property
    def scores(self) -> dict[str, float]:
        """Score by rule, each a fraction of 1 over the evaluated tasks."""
        pairs = self.per_task.values()
        return {
            FRACTION_RULE: math.fsum(solved / asked for solved, asked in pairs) / len(pairs),
            ALL_RULE: sum(solved == asked for solved, asked in pairs) / len(pairs),
        }

    @property
    def k_of_n(self) -> dict[str, str]:
        """The same as counts, e.g. {"queries": "37 of 128 queries", "all tests": "3 of 32 tasks", ...}."""
        pairs = self.per_task.values()
        credit = math.fsum(solved / asked for solved, asked in pairs)
        return {
            "queries": f"{sum(s for s, _ in pairs)} of {sum(a for _, a in pairs)} queries",
            FRACTION_RULE: f"{round(credit, 2):g} of {len(pairs)} tasks",
            ALL_RULE: f"{sum(solved == asked for solved, asked in pairs)} of {len(pairs)} tasks",
        }


@dataclass(frozen=True)
class VoteResult:
    """Outcome of one evaluation. `rank[query]` is the right grid's place (1 = most voted) or None if it got no vote;
    `votes` = (fewest, most) votes a query got; `fillers` = padding rows seen and ignored."""

    by_k: Mapping[int, PassAtK]
    rank: Mapping[QueryKey, int | None]
    votes: tuple[int, int]
    fillers: int

    def pass_at(self, k: int, rule: str) -> float:
        """pass@k by FRACTION_RULE or ALL_RULE; EvaluationError names what is available."""
        if k not in self.by_k or rule not in (FRACTION_RULE, ALL_RULE):
            raise EvaluationError(
                f"no pass@{k} by rule '{rule}'; computed are k in {sorted(self.by_k)} by '{FRACTION_RULE}' and "
                f"'{ALL_RULE}': ask Vote.result for that k"
            )
        return self.by_k[k].scores[rule]


class Vote:
    """Accumulates the predictions of one evaluation. Picklable, so that ranks can be gathered and merged."""

    def __init__(self, truths: Mapping[QueryKey, np.ndarray]) -> None:
        """truths: the right grid (h, w) of every query this evaluation must answer, over all ranks."""
        if not truths:
            raise EvaluationError(
                "Vote got no query to evaluate, expected at least one: check the split and its filters"
            )
        self._truths = {query: grid_hash(check_grid(grid, f"truth of {query}")) for query, grid in truths.items()}
        self._votes: dict[QueryKey, dict[Augmentation, tuple[str, float]]] = {query: {} for query in truths}
        self._fillers = 0
        self._closed = ""

    @classmethod
    def for_tasks(cls, tasks: Sequence[Task]) -> "Vote":
        """Expect every query of these (unaugmented) tasks. Raises EvaluationError on a repeated task id."""
        if len({task.id for task in tasks}) != len(tasks):
            raise EvaluationError("Vote.for_tasks got a task id twice, expected unique ids: drop the duplicates")
        return cls({(task.id, i): query.output for task in tasks for i, query in enumerate(task.queries)})

    def add(
        self,
        task_id: str,
        query_index: int,
        augmentation: Augmentation,
        predicted_tokens: np.ndarray,
        side: int,
        halt_logit: float,
        scored: bool,
    ) -> None:
        """Count one prediction: predicted_tokens (S,) integer tokens 0..11 of the augmented query, halt_logit any real.

        task_id is the base task's. scored=False marks a padding row, which is ignored whatever it holds.
        Raises EvaluationError on an unexpected query, a repeated (task, query, augmentation), bad tokens or a NaN.
        """
        self._check_open()
        if not scored:
            self._fillers += 1
            return
        tokens = np.asarray(predicted_tokens)
        if tokens.shape != (side * side,) or tokens.dtype.kind not in "iu" or tokens.min() < 0 or tokens.max() >= VOCAB:
            raise EvaluationError(
                f"{_place(task_id, query_index, augmentation)}: predicted tokens have shape {tokens.shape}, dtype "
                f"{tokens.dtype}; expected ({side * side},) integers in 0..{VOCAB - 1}: pass the argmax over the "
                "vocabulary"
            )
        self.add_grid(task_id, query_index, augmentation, crop(tokens, side), halt_logit)

    def add_grid(
        self, task_id: str, query_index: int, augmentation: Augmentation, drawn: np.ndarray, halt_logit: float
    ) -> None:
        """Count one prediction given as the grid (h, w) that was cropped from it; 0-sized if no rectangle was drawn.

        Raises EvaluationError on an unexpected query, a repeated (task, query, augmentation) or a NaN.
        """
        self._check_open()
        query = (task_id, query_index)
        where = _place(task_id, query_index, augmentation)
        if query not in self._votes:
            raise EvaluationError(
                f"{where} is not among the {len(self._votes)} queries of this evaluation: check sharding"
            )
        if augmentation in self._votes[query]:
            raise EvaluationError(
                f"{where} was predicted twice: mark padding rows scored=False, one Vote an evaluation"
            )
        if math.isnan(halt_logit):
            raise EvaluationError(f"{where}: halt logit is NaN, expected a number: inspect the checkpoint")
        grid = augmentation.invert(drawn)  # such a 0-sized vote is never right
        self._votes[query][augmentation] = (grid_hash(grid), float(expit(halt_logit)))

    def merge(self, other: "Vote") -> None:
        """Take over another rank's votes; `other` is used up. Raises EvaluationError if a vote is in both."""
        self._check_open()
        if other is self:
            raise EvaluationError("a Vote cannot be merged with itself, expected another rank's: check the gather")
        other._check_open()
        if self._truths != other._truths:
            raise EvaluationError("the Votes to merge expect different queries: build each rank's from the same tasks")
        for query, theirs in other._votes.items():
            if shared := self._votes[query].keys() & theirs.keys():
                names = sorted(augmentation.name(query[0]) for augmentation in shared)
                raise EvaluationError(f"query {query[1]} of {names[0]} was predicted on two ranks: use shard_queries")
        for query, theirs in other._votes.items():
            self._votes[query].update(theirs)
        self._fillers += other._fillers
        other._closed = "merged into another Vote"

    def result(self, ks: Sequence[int]) -> VoteResult:
        """pass@k for each k >= 1. Ends this Vote; raises EvaluationError if an expected query has no prediction."""
        self._check_open()
        if not ks or min(ks) < 1:
            raise EvaluationError(f"pass@k was asked for k in {list(ks)}, expected at least one k, all >= 1")
        missing = [query for query, votes in self._votes.items() if not votes]
        if missing:
            raise EvaluationError(
                f"{len(missing)} of {len(self._votes)} queries were never evaluated, first task '{missing[0][0]}' "
                f"query {missing[0][1]}: merge every rank and evaluate every batch, the last one included"
            )
        self._closed = "finished by result()"
        rank = {query: _rank_of(self._truths[query], votes) for query, votes in self._votes.items()}
        by_k = {}
        for k in ks:
            per_task: dict[str, tuple[int, int]] = {}
            for (task_id, _), place in rank.items():
                solved, asked = per_task.get(task_id, (0, 0))
                per_task[task_id] = (solved + (place is not None and place <= k), asked + 1)
            by_k[k] = PassAtK(k, per_task)
        counts = [len(votes) for votes in self._votes.values()]
        return VoteResult(by_k, rank, (min(counts), max(counts)), self._fillers)

    def _check_open(self) -> None:
        if self._closed:
            raise EvaluationError(
                f"this Vote is {self._closed}, expected a fresh one: build a new Vote for each evaluation"
            )


def _place(task_id: str, query_index: int, augmentation: Augmentation) -> str:
    return f"task '{task_id}', query {query_index}, augmentation '{augmentation.name(task_id)}'"


def _rank_of(truth: str, votes: Mapping[Augmentation, tuple[str, float]]) -> int | None:
    """1-based place of the right grid's hash among the voted ones, None if it got no vote."""
    halts: dict[str, list[float]] = {}
    for grid, halt in votes.values():
        halts.setdefault(grid, []).append(halt)
    # fsum is exact, so votes may come in any order; among equal counts the sum ranks as the mean.
    order = sorted(halts, key=lambda grid: (-len(halts[grid]), -math.fsum(halts[grid]), grid))
    return order.index(truth) + 1 if truth in halts else None


def decided(counts: Sequence[int], left: int, k: int) -> bool:
    """Whether `left` more votes, whatever they say, leave the k most voted grids and their order as they are.

    counts: votes of each grid so far, in any order. Strict: a tie would be broken by halt probabilities.
    """
    most = [*sorted(counts, reverse=True), *[0] * (k + 1)]
    return all(most[place] - most[place + 1] > left for place in range(k))


def shard_queries(queries: Sequence[Row], rank: int, world: int) -> list[Row]:
    """This rank's queries, every world-th from `rank`: over all ranks each query exactly once, sizes within 1."""
    if not (world >= 1 and 0 <= rank < world):
        raise EvaluationError(
            f"rank={rank} of world={world}, expected 0 <= rank < world: check the launcher's environment"
        )
    return list(queries[rank::world])


def padded_batches(rows: Sequence[Row], batch_size: int) -> Iterator[list[tuple[Row, bool]]]:
    """Full batches of (row, scored); the last repeats its first row with scored=False. No row is lost."""
    if batch_size < 1:
        raise EvaluationError(f"batch_size={batch_size}, expected >= 1: set the evaluation's batch size")
    for start in range(0, len(rows), batch_size):
        chunk = list(rows[start : start + batch_size])
        yield [(row, True) for row in chunk] + [(chunk[0], False)] * (batch_size - len(chunk))

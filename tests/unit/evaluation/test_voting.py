"""Votes: the whole augment, predict, invert, vote path; both scoring rules on tiny cases; subsets, fillers, ranks."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etrm.data.arc import Pair, Task
from etrm.data.augment import IDENTITY, Augmentation
from etrm.data.grids import encode_grid
from etrm.errors import EvaluationError
from etrm.evaluation.statistics import rung_result
from etrm.evaluation.voting import ALL_RULE, FRACTION_RULE, Vote, VoteResult, padded_batches, shard_queries

pytestmark = pytest.mark.fast

SIDE = 3
RIGHT = np.array([[1, 2], [3, 4]])
FLIPS = [Augmentation(t, tuple(range(10))) for t in range(8)]


def make_task(task_id: str, outputs: list[np.ndarray]) -> Task:
    return Task(task_id, (Pair(RIGHT, RIGHT),), tuple(Pair(grid, grid) for grid in outputs), "test")


def predict(
    vote: Vote, task_id: str, query: int, augmentation: Augmentation, grid: np.ndarray, halt: float = 0.0
) -> None:
    """Add the prediction that means `grid` in the query's own orientation and colours."""
    vote.add(task_id, query, augmentation, encode_grid(augmentation.apply(grid), SIDE), SIDE, halt, True)


def evaluate(tasks: list[Task], augmentations: list[Augmentation], side: int, batch: int, world: int) -> VoteResult:
    """Perfect predictions through sharding, batching, augmentation and the vote, merged over ranks."""
    rows = [(task, i, aug) for task in tasks for i in range(len(task.queries)) for aug in augmentations]
    votes = []
    for rank in range(world):
        vote = Vote.for_tasks(tasks)
        for filled in padded_batches(shard_queries(rows, rank, world), batch):
            assert len(filled) == batch
            for (task, i, aug), scored in filled:
                tokens = encode_grid(aug.apply(task.queries[i].output), side)
                vote.add(task.id, i, aug, tokens, side, 0.5, scored)
        votes.append(pickle.loads(pickle.dumps(vote)))  # as gathered from another process
    for other in votes[1:]:
        votes[0].merge(other)
    return votes[0].result([1, 2])


@pytest.mark.parametrize("transform", range(8))
def test_perfect_predictions_score_one_for_every_transform_and_size(transform: int) -> None:
    rng = np.random.default_rng(transform)
    colours = (0, *(int(c) for c in rng.permutation(np.arange(1, 10))))
    tasks = []
    for size in range(1, 31):
        shapes = [(size, size), (size, int(rng.integers(1, 31)))]
        tasks.append(make_task(f"size{size}", [rng.integers(0, 10, shape) for shape in shapes]))
    result = evaluate(tasks, [Augmentation(transform, colours)], side=30, batch=7, world=2)
    assert result.by_k[1].scores == {FRACTION_RULE: 1.0, ALL_RULE: 1.0}
    assert result.by_k[1].k_of_n["queries"] == "60 of 60 queries"


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_any_batch_size_and_ranks_lose_nothing(batch: int, world: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tasks = [
        make_task(str(t), [rng.integers(0, 10, rng.integers(1, 7, 2)) for _ in range(rng.integers(1, 4))])
        for t in range(3)
    ]
    colours = [(0, *(int(c) for c in rng.permutation(np.arange(1, 10)))) for _ in range(3)]
    result = evaluate(tasks, [Augmentation(int(rng.integers(8)), c) for c in dict.fromkeys(colours)], 6, batch, world)
    assert result.by_k[1].scores == {FRACTION_RULE: 1.0, ALL_RULE: 1.0}
    assert set(result.rank) == {(task.id, i) for task in tasks for i in range(len(task.queries))}


# (solved tests of each task) -> fraction rule, all-tests rule, strings; worked out by hand.
GOLDEN = [
    ([[1]], 1.0, 1.0, "1 of 1 queries", "1 of 1 tasks", "1 of 1 tasks"),
    ([[0]], 0.0, 0.0, "0 of 1 queries", "0 of 1 tasks", "0 of 1 tasks"),
    ([[1, 0]], 0.5, 0.0, "1 of 2 queries", "0.5 of 1 tasks", "0 of 1 tasks"),
    ([[1, 1], [0]], 0.5, 0.5, "2 of 3 queries", "1 of 2 tasks", "1 of 2 tasks"),
    ([[1, 0], [1], [0, 0, 1]], (0.5 + 1 + 1 / 3) / 3, 1 / 3, "3 of 6 queries", "1.83 of 3 tasks", "1 of 3 tasks"),
    ([[1], [1], [1], [0]], 0.75, 0.75, "3 of 4 queries", "3 of 4 tasks", "3 of 4 tasks"),
]


@pytest.mark.parametrize(("solved", "fraction", "every", "queries", "credit", "whole"), GOLDEN)
def test_golden_table_of_scoring_rules(solved, fraction, every, queries, credit, whole) -> None:
    vote = Vote.for_tasks([make_task(f"t{t}", [RIGHT] * len(tests)) for t, tests in enumerate(solved)])
    for t, tests in enumerate(solved):
        for q, right in enumerate(tests):
            predict(vote, f"t{t}", q, IDENTITY, RIGHT if right else RIGHT.T)
    result = vote.result([1])
    assert result.pass_at(1, FRACTION_RULE) == pytest.approx(fraction)
    assert result.pass_at(1, ALL_RULE) == pytest.approx(every)
    assert result.by_k[1].k_of_n == {"queries": queries, FRACTION_RULE: credit, ALL_RULE: whole}
    rung = rung_result("unseen_task", result.by_k[1].per_task)
    assert (rung.k, rung.tasks) == (sum(map(sum, solved)), len(solved))


def test_votes_rank_by_count_then_mean_halt_probability() -> None:
    wrong, other = RIGHT.T, RIGHT[::-1]

    def rank(cast: list[tuple[np.ndarray, float]]) -> int | None:
        vote = Vote({("t", 0): RIGHT})
        for augmentation, (grid, halt) in zip(FLIPS, cast, strict=False):
            predict(vote, "t", 0, augmentation, grid, halt)
        return vote.result([1]).rank["t", 0]

    assert rank([(RIGHT, -9), (RIGHT, -9), (wrong, 9)]) == 1  # count comes first
    assert rank([(RIGHT, 1), (wrong, 2)]) == 2
    assert rank([(RIGHT, 2), (wrong, 1)]) == 1
    # Mean of probabilities, not of logits: (0.5 + 0.525) / 2 beats (1 + 0.007) / 2.
    assert rank([(RIGHT, 0), (RIGHT, 0.1), (wrong, 50), (wrong, -5), (other, 99)]) == 1
    assert rank([(wrong, 0)]) is None
    assert rank([(RIGHT, -1e4), (wrong, 1e4)]) == 2  # no overflow
    ties = [rank(cast) for cast in ([(RIGHT, 0), (wrong, 0)], [(wrong, 0), (RIGHT, 0)])]
    assert ties[0] == ties[1]  # arrival does not break ties


def test_pass_at_k_looks_at_the_k_most_voted() -> None:
    vote = Vote({("t", 0): RIGHT})
    for augmentation, grid in zip(FLIPS, [RIGHT.T, RIGHT.T, RIGHT], strict=False):
        predict(vote, "t", 0, augmentation, grid)
    result = vote.result([1, 2])
    assert (result.pass_at(1, ALL_RULE), result.pass_at(2, ALL_RULE)) == (0.0, 1.0)
    assert result.votes == (3, 3)
    with pytest.raises(EvaluationError, match="pass@5"):
        result.pass_at(5, ALL_RULE)


@pytest.mark.parametrize("evaluated", [1, 4, 32])
def test_the_denominator_is_what_was_evaluated(evaluated: int) -> None:
    tasks = [make_task(f"t{i}", [RIGHT]) for i in range(400)]
    vote = Vote.for_tasks(tasks[:evaluated])
    for task in tasks[:evaluated]:
        predict(vote, task.id, 0, IDENTITY, RIGHT)
    result = vote.result([1])
    assert result.by_k[1].scores == {FRACTION_RULE: 1.0, ALL_RULE: 1.0}
    assert result.by_k[1].k_of_n[ALL_RULE] == f"{evaluated} of {evaluated} tasks"


def test_fillers_in_any_place_change_nothing() -> None:
    results = []
    for places in ((), (0,), (1,), (0, 1, 2)):
        vote = Vote({("t", 0): RIGHT, ("t", 1): RIGHT})
        for q in range(3):
            if q in places:
                vote.add("elsewhere", 7, IDENTITY, np.full(9, 99), SIDE, float("nan"), False)
            if q < 2:
                predict(vote, "t", q, IDENTITY, RIGHT if q else RIGHT.T)
        result = vote.result([1])
        assert result.fillers == len(places)
        results.append((result.by_k, result.rank, result.votes))
    assert all(result == results[0] for result in results)


def test_a_second_evaluation_needs_a_fresh_vote_and_gives_the_same() -> None:
    task = make_task("t", [RIGHT, RIGHT])
    first, second = (evaluate([task], FLIPS[:3], SIDE, 2, 1) for _ in range(2))
    assert first == second
    vote = Vote.for_tasks([task])
    predict(vote, "t", 0, IDENTITY, RIGHT)
    predict(vote, "t", 1, IDENTITY, RIGHT)
    vote.result([1])
    for reuse in (lambda: vote.result([1]), lambda: predict(vote, "t", 0, FLIPS[1], RIGHT)):
        with pytest.raises(EvaluationError, match="fresh"):
            reuse()


def test_merging_refuses_what_was_counted_twice_and_uses_up_the_other() -> None:
    def one(query: int) -> Vote:
        vote = Vote({("t", 0): RIGHT, ("t", 1): RIGHT})
        predict(vote, "t", query, IDENTITY, RIGHT)
        return vote

    with pytest.raises(EvaluationError, match="two ranks"):
        one(0).merge(one(0))
    with pytest.raises(EvaluationError, match="different queries"):
        one(0).merge(Vote({("t", 0): RIGHT}))
    vote, other = one(0), one(1)
    with pytest.raises(EvaluationError, match="itself"):
        vote.merge(vote)
    vote.merge(other)
    with pytest.raises(EvaluationError, match="fresh"):
        other.result([1])
    assert vote.result([1]).pass_at(1, ALL_RULE) == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task_id": "x"}, "not among"),
        ({"query_index": 5}, "not among"),
        ({"predicted_tokens": np.zeros(4, dtype=int)}, "shape"),
        ({"predicted_tokens": np.zeros(9)}, "integers"),
        ({"predicted_tokens": np.full(9, 12)}, "0..11"),
        ({"halt_logit": float("nan")}, "NaN"),
    ],
)
def test_bad_predictions_are_refused_by_name(change: dict, message: str) -> None:
    good = {"task_id": "t", "query_index": 0, "augmentation": IDENTITY, "predicted_tokens": encode_grid(RIGHT, SIDE)}
    vote = Vote({("t", 0): RIGHT})
    with pytest.raises(EvaluationError, match=message):
        vote.add(**(good | {"side": SIDE, "halt_logit": 0.0, "scored": True} | change))


def test_missing_and_repeated_queries_are_refused() -> None:
    vote = Vote({("t", 0): RIGHT, ("t", 1): RIGHT})
    predict(vote, "t", 0, IDENTITY, RIGHT)
    with pytest.raises(EvaluationError, match="twice"):
        predict(vote, "t", 0, IDENTITY, RIGHT)
    with pytest.raises(EvaluationError, match="task 't' query 1"):
        vote.result([1])
    predict(vote, "t", 1, IDENTITY, RIGHT)  # a refused result does not end the vote
    assert vote.result([1]).pass_at(1, ALL_RULE) == 1.0
    with pytest.raises(EvaluationError, match="no query"):
        Vote({})
    with pytest.raises(EvaluationError, match="twice"):
        Vote.for_tasks([make_task("t", [RIGHT])] * 2)


def test_an_empty_prediction_is_a_wrong_vote() -> None:
    vote = Vote({("t", 0): RIGHT})
    vote.add("t", 0, FLIPS[1], np.zeros(9, dtype=np.int64), SIDE, 0.0, True)
    assert vote.result([1]).rank["t", 0] is None


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(0, 40), st.integers(1, 5), st.integers(1, 9))
def test_shards_and_batches_hold_every_query_once(count: int, world: int, batch: int) -> None:
    seen = []
    for rank in range(world):
        for filled in padded_batches(shard_queries(range(count), rank, world), batch):
            assert len(filled) == batch
            seen += [row for row, scored in filled if scored]
    assert sorted(seen) == list(range(count))
    with pytest.raises(EvaluationError, match="rank"):
        shard_queries(range(count), world, world)
    with pytest.raises(EvaluationError, match="batch_size"):
        list(padded_batches([1], 0))

"""Votes: the whole augment, predict, invert, vote path; both scoring rules on tiny cases; subsets, fillers, ranks."""

import pickle
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etrm.data.arc import Pair, Task
from etrm.data.augment import IDENTITY, Augmentation
from etrm.data.grids import encode_grid
from etrm.errors import EtrmError, EvaluationError
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


def refusal(call: Callable[[], object]) -> str:
    """The sentence with which `call` is refused."""
    with pytest.raises(EtrmError) as caught:
        call()
    return str(caught.value)


def test_merging_refuses_what_was_counted_twice_and_uses_up_the_other() -> None:
    def one(query: int) -> Vote:
        vote = Vote({("t", 0): RIGHT, ("t", 1): RIGHT})
        predict(vote, "t", query, FLIPS[3], RIGHT)
        return vote

    again = f"query 1 of {FLIPS[3].name('t')} was predicted on two ranks: use shard_queries"
    assert refusal(lambda: one(1).merge(one(1))) == again
    assert refusal(lambda: one(0).merge(Vote({("t", 0): RIGHT}))) == (
        "the Votes to merge expect different queries: build each rank's from the same tasks"
    )
    vote, other = one(0), one(1)
    assert refusal(lambda: vote.merge(vote)) == (
        "a Vote cannot be merged with itself, expected another rank's: check the gather"
    )
    vote.merge(other)
    used_up = "this Vote is merged into another Vote, expected a fresh one: build a new Vote for each evaluation"
    assert refusal(lambda: other.result([1])) == refusal(lambda: one(0).merge(other)) == used_up
    assert vote.result([1]).pass_at(1, ALL_RULE) == 1.0
    assert refusal(lambda: vote.merge(one(1))) == used_up.replace("merged into another Vote", "finished by result()")


def test_merging_names_the_first_of_several_shared_votes_and_takes_over_neither() -> None:
    def one() -> Vote:
        vote = Vote({("t", 0): RIGHT})
        for augmentation in FLIPS[1:4]:
            predict(vote, "t", 0, augmentation, RIGHT)
        return vote

    first = min(augmentation.name("t") for augmentation in FLIPS[1:4])
    vote, other = one(), one()
    assert refusal(lambda: vote.merge(other)) == f"query 0 of {first} was predicted on two ranks: use shard_queries"
    assert vote.result([1]).votes == other.result([1]).votes == (3, 3)


def test_merging_adds_up_the_padding_rows_of_all_ranks() -> None:
    votes = [Vote({("t", 0): RIGHT}) for _ in range(3)]
    for vote, padding in zip(votes, (2, 3, 4), strict=True):
        for _ in range(padding):
            vote.add("t", 0, IDENTITY, np.zeros(9), SIDE, 0.0, False)
    predict(votes[0], "t", 0, IDENTITY, RIGHT)
    votes[0].merge(votes[1])
    votes[0].merge(votes[2])
    assert votes[0].result([1]).fillers == 9


HERE = f"task 't', query 0, augmentation '{IDENTITY.name('t')}'"
UNKNOWN = "is not among the 1 queries of this evaluation: check sharding"
SHAPE = "expected (9,) integers in 0..11: pass the argmax over the vocabulary"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task_id": "x"}, f"task 'x', query 0, augmentation 'x' {UNKNOWN}"),
        ({"query_index": 5}, f"{HERE.replace('0', '5')} {UNKNOWN}"),
        ({"predicted_tokens": np.zeros(4, int)}, f"{HERE}: predicted tokens have shape (4,), dtype int64; {SHAPE}"),
        ({"predicted_tokens": np.zeros(9)}, f"{HERE}: predicted tokens have shape (9,), dtype float64; {SHAPE}"),
        ({"predicted_tokens": np.full(9, 12)}, f"{HERE}: predicted tokens have shape (9,), dtype int64; {SHAPE}"),
        ({"predicted_tokens": np.full(9, -1)}, f"{HERE}: predicted tokens have shape (9,), dtype int64; {SHAPE}"),
        ({"halt_logit": float("nan")}, f"{HERE}: halt logit is NaN, expected a number: inspect the checkpoint"),
    ],
)  # fmt: skip
def test_bad_predictions_are_refused_by_name(change: dict, message: str) -> None:
    good = {"task_id": "t", "query_index": 0, "augmentation": IDENTITY, "predicted_tokens": encode_grid(RIGHT, SIDE)}
    vote = Vote({("t", 0): RIGHT})
    assert refusal(lambda: vote.add(**(good | {"side": SIDE, "halt_logit": 0.0, "scored": True} | change))) == message


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.int64])
def test_tokens_of_every_integer_type_are_taken(dtype: type) -> None:
    vote = Vote({("t", 0): RIGHT})
    vote.add("t", 0, IDENTITY, encode_grid(RIGHT, SIDE).astype(dtype), SIDE, 0.0, True)
    assert vote.result([1]).rank["t", 0] == 1


def test_what_cannot_be_asked_is_refused_with_what_can() -> None:
    assert refusal(lambda: Vote({})) == (
        "Vote got no query to evaluate, expected at least one: check the split and its filters"
    )
    assert refusal(lambda: Vote({("t", 4): np.full((2, 2), 11)})).startswith("truth of ('t', 4): row 0, column 0 is 11")
    vote = Vote({("t", 0): RIGHT, ("u", 3): RIGHT})
    predict(vote, "t", 0, IDENTITY, RIGHT)
    assert refusal(lambda: predict(vote, "t", 0, IDENTITY, RIGHT)) == (
        f"{HERE} was predicted twice: mark padding rows scored=False, one Vote an evaluation"
    )
    assert refusal(lambda: vote.result([2, 0])) == "pass@k was asked for k in [2, 0], expected at least one k, all >= 1"
    assert refusal(lambda: vote.result([])) == "pass@k was asked for k in [], expected at least one k, all >= 1"
    assert refusal(lambda: vote.result([1])) == (
        "1 of 2 queries were never evaluated, first task 'u' query 3: "
        "merge every rank and evaluate every batch, the last one included"
    )
    predict(vote, "u", 3, IDENTITY, RIGHT)
    result = vote.result([2, 1])
    assert {k: scored.k for k, scored in result.by_k.items()} == {2: 2, 1: 1}
    assert refusal(lambda: result.pass_at(1, "best")) == (
        "no pass@1 by rule 'best'; computed are k in [1, 2] by 'fraction of a task's tests' and 'all tests': "
        "ask Vote.result for that k"
    )


def test_missing_and_repeated_queries_are_refused() -> None:
    vote = Vote({("t", 0): RIGHT, ("t", 1): RIGHT})
    predict(vote, "t", 0, IDENTITY, RIGHT)
    with pytest.raises(EvaluationError, match="twice"):
        predict(vote, "t", 0, IDENTITY, RIGHT)
    with pytest.raises(EvaluationError, match="task 't' query 1"):
        vote.result([1])
    predict(vote, "t", 1, IDENTITY, RIGHT)  # a refused result does not end the vote
    assert vote.result([1]).pass_at(1, ALL_RULE) == 1.0
    assert refusal(lambda: Vote.for_tasks([make_task("t", [RIGHT])] * 2)) == (
        "Vote.for_tasks got a task id twice, expected unique ids: drop the duplicates"
    )


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

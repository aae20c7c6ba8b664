"""Early end of a decided vote: the scores are those of all votes, whatever is answered and whoever asks."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from etrm.data.augment import Augmentation
from etrm.evaluation.voting import Vote, decided
from etrm.experiment.open_questions import OpenQuestions

pytestmark = pytest.mark.fast

COLOURS = (0, 2, 1, 3, 4, 5, 6, 7, 8, 9)
AUGMENTATIONS = tuple(Augmentation(turn, colours) for turn in range(8) for colours in (COLOURS, tuple(range(10))))


@pytest.mark.thorough
@given(st.lists(st.integers(0, 5), max_size=4), st.integers(0, 4), st.integers(1, 3), st.data())
def test_what_is_decided_no_votes_to_come_can_change(counts: list[int], left: int, k: int, data: st.DataObject) -> None:
    assume(decided(counts, left, k))
    first = sorted(range(len(counts)), key=lambda i: -counts[i])[:k]
    later = [*counts, *[0] * left]  # grids that nobody has drawn yet may get the votes
    for place in data.draw(st.lists(st.integers(0, len(later) - 1), max_size=left) if later else st.just([])):
        later[place] += 1
    assert sorted(range(len(later)), key=lambda i: -later[i])[:k] == first


@pytest.mark.parametrize(
    ("counts", "left", "k", "expected"),
    [
        ([5, 2], 2, 1, True),
        ([5, 2], 3, 1, False),  # a tie, which halt probabilities would break
        ([2, 5], 2, 1, True),
        ([5], 4, 1, True),
        ([5], 1, 2, False),  # the second place is open to a grid that nobody has drawn
        ([5, 2], 1, 2, True),
        ([5, 2, 1], 1, 2, False),
        ([], 0, 1, False),
    ],
)
def test_a_vote_is_decided_when_the_rest_cannot_tie_it(counts: list[int], left: int, k: int, expected: bool) -> None:
    assert decided(counts, left, k) is expected


def evaluation(
    seed: int, queries: int, votes: int
) -> tuple[Any, list[tuple[np.ndarray, float]], dict[Any, np.ndarray]]:
    """Rows of (task, query, augmentation), an answer for each, and truths; most answers of a query agree."""
    rng = np.random.default_rng(seed)
    rows = [(f"task{q // 2}", q % 2, AUGMENTATIONS[v]) for q in range(queries) for v in range(votes)]
    agree = dict(zip([(f"task{q // 2}", q % 2) for q in range(queries)], rng.random(queries), strict=True))
    drawn = []
    for task, query, augmentation in rows:
        grid = np.full((1, 2), 1 if rng.random() < agree[task, query] else rng.integers(2, 5), dtype=np.uint8)
        drawn.append((augmentation.apply(grid), float(rng.normal())))
    truths = {key: np.full((1, 2), rng.integers(1, 4), dtype=np.uint8) for key in agree}
    return SimpleNamespace(rows=tuple(rows)), drawn, truths


def asked(questions: Any, drawn: Any, decide: int, size: int, world: int = 1) -> dict[int, Any]:
    there: dict[int, Any] = {}
    for rank in range(world):
        todo = OpenQuestions(questions, {}, decide)
        todo.share(rank, world)
        while wave := todo.wave(size):
            for row in wave:
                assert row not in there
                there[row] = drawn[row]
                todo.answered(row, drawn[row][0])
    return there


def ranks_of(questions: Any, drawn: Any, truths: Any, rows: Any, ks: list[int]) -> dict[int, Any]:
    vote = Vote(truths)
    for row in rows:
        vote.add_grid(*questions.rows[row], *drawn[row])
    return {k: result.per_task for k, result in vote.result(ks).by_k.items()}


@pytest.mark.thorough
@given(st.integers(0, 10_000), st.sampled_from([1, 2]), st.integers(1, 9), st.integers(1, 3))
def test_the_scores_are_those_of_all_votes(seed: int, decide: int, size: int, world: int) -> None:
    questions, drawn, truths = evaluation(seed, 5, 9)
    ks = list(range(1, decide + 1))
    found = asked(questions, drawn, decide, size, world)
    everything = range(len(questions.rows))
    assert ranks_of(questions, drawn, truths, found, ks) == ranks_of(questions, drawn, truths, everything, ks)
    assert len(OpenQuestions(questions, found, decide)) == 0


def test_agreement_saves_votes_and_without_decide_every_row_is_asked() -> None:
    questions, drawn, _ = evaluation(0, 6, 16)
    drawn = [(a.apply(np.ones((1, 2), dtype=np.uint8)), 0.0) for _, _, a in questions.rows]
    count = len(questions.rows)
    assert list(asked(questions, drawn, 0, 7)) == list(range(count))
    # Nine of sixteen equal votes are a majority; a wave of six asks one of each query.
    assert len(asked(questions, drawn, 1, 6)) == 6 * 9
    assert len(asked(questions, drawn, 2, 6)) == count  # no second grid is ever decided


def test_what_is_on_disk_counts_and_is_not_asked_again() -> None:
    questions, drawn, _ = evaluation(3, 4, 9)
    there = asked(questions, drawn, 1, 4)
    half = dict(list(there.items())[: len(there) // 2])
    todo, again = OpenQuestions(questions, half, 1), dict(half)
    while wave := todo.wave(4):
        for row in wave:
            again[row] = drawn[row]
            todo.answered(row, drawn[row][0])
    assert len(half) < len(again) and again.keys() == there.keys()

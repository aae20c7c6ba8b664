"""ARC-AGI at its own split: augmentations as numbers, training queries, and tasks that occur on both sides.

Legend: h, w grid height and width.
"""

import numpy as np
import pytest

from etrm.data.arc import Pair, Task, load_arc
from etrm.data.arc_agi import ArcAgiSource, arc_agi, numbered_augmentation
from etrm.data.augment import IDENTITY
from etrm.data.grids import encode_grid, labels_of
from etrm.errors import DataError

pytestmark = pytest.mark.fast


def grid(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 10, size=(3, 4)).astype(np.uint8)


def task(name: str, demos: int, queries: int) -> Task:
    key = sum(name.encode())
    pairs = [Pair(grid(100 * key + 2 * i), grid(100 * key + 2 * i + 1)) for i in range(demos + queries)]
    return Task(name, tuple(pairs[:demos]), tuple(pairs[demos:]), "made up")


TASKS = (task("ab", 3, 2), task("cdx", 2, 1), task("ez", 1, 1))


def source(leave_one_out: bool, augmentations: int = 5, max_demos: int = 10) -> ArcAgiSource:
    return ArcAgiSource(TASKS, augmentations, True, 6, max_demos, leave_one_out, seed=1)


def test_repeated_tasks_leave_the_evaluation_by_name() -> None:
    split = arc_agi("arc-agi-1", 30, 32, 0, seed=0)
    assert split.duplicates == (("40853293", "070dd51e"), ("caa06a1f", "50a16a69"))
    assert (len(split.train), len(split.evaluation), split.too_large) == (32, 398, 0)
    assert {"070dd51e", "50a16a69"}.isdisjoint(t.id for t in split.evaluation)


def test_the_first_tasks_of_one_shuffle_are_taken() -> None:
    few, more = (arc_agi("arc-agi-1", 9, n, n, seed=4) for n in (3, 6))
    assert few.train == more.train[:3]
    assert few.evaluation == more.evaluation[:3]
    assert few.train != arc_agi("arc-agi-1", 9, 3, 3, seed=5).train
    everything = arc_agi("arc-agi-1", 9, 0, 0, seed=4)
    assert (len(everything.train), len(everything.evaluation), everything.too_large) == (104, 43, 653)


@pytest.mark.parametrize(
    ("name", "side", "train", "evaluation", "told"),
    [
        ("arc-agi-1", 30, 401, 0, "data.train_tasks is 401, but there are 400"),
        ("arc-agi-1", 30, -1, 0, "data.train_tasks is -1"),
        ("arc-agi-1", 9, 0, 44, "evaluation_tasks is 44, but there are 43"),
        ("arc-agi-1", 2, 0, 0, "there are 0"),
        ("arc-agi-3", 30, 0, 0, "no benchmark 'arc-agi-3'"),
    ],
)
def test_no_split_is_made_up(name: str, side: int, train: int, evaluation: int, told: str) -> None:
    with pytest.raises(DataError) as caught:
        arc_agi(name, side, train, evaluation, seed=0)
    assert told in str(caught.value)


def test_augmentations_are_numbers() -> None:
    assert numbered_augmentation("ab", 0, True, 7) == IDENTITY
    drawn = [numbered_augmentation("ab", n, True, 7) for n in range(200)]
    assert drawn == [numbered_augmentation("ab", n, True, 7) for n in range(200)]
    assert len(set(drawn)) == 200
    assert {a.transform for a in drawn} == set(range(8))
    assert drawn[1:] != [numbered_augmentation("ac", n, True, 7) for n in range(1, 200)]
    assert drawn[1:] != [numbered_augmentation("ab", n, True, 8) for n in range(1, 200)]
    assert all(a.colours == IDENTITY.colours for a in (numbered_augmentation("ab", n, False, 7) for n in range(20)))


def test_no_more_augmentations_are_drawn_than_asked_for() -> None:
    found = source(True, augmentations=5)
    allowed = {t: {found.numbered(t, n) for n in range(5)} for t in range(3)}
    rng = np.random.default_rng(0)
    drawn = [found._drawn(t, rng) for t in range(3) for _ in range(60)]
    assert all(q.augmentation in allowed[q.task] for q in drawn)
    assert {q.augmentation for q in drawn if q.task == 0} == allowed[0]


@pytest.mark.parametrize("leave_one_out", [True, False])
def test_a_query_never_stands_among_its_demonstrations(leave_one_out: bool) -> None:
    found, rng = source(leave_one_out), np.random.default_rng(2)
    asked = set()
    for _ in range(300):
        q = found._drawn(int(rng.integers(3)), rng)
        assert q.asked not in q.shown
        assert q.shown
        assert set(q.shown) <= set(TASKS[q.task].demos)
        if not leave_one_out:
            assert set(q.shown) == set(TASKS[q.task].demos)
        asked.add(q.asked)
    own = {pair for t in TASKS for pair in t.queries}
    lone = {TASKS[2].demos[0]}  # nothing would be left to answer it from
    assert asked == (own | {d for t in TASKS for d in t.demos} - lone if leave_one_out else own)


def test_episodes_are_encoded_under_one_augmentation() -> None:
    found = source(False, augmentations=3, max_demos=2)
    batch = found.sample(16, np.random.default_rng(5))
    assert batch.demo_inputs.shape == (16, 2, 36)
    again = found.sample(16, np.random.default_rng(5))
    assert all(np.array_equal(getattr(batch, n), getattr(again, n)) for n in batch.__dataclass_fields__)
    for i in range(16):
        t = TASKS[batch.task[i]]
        views = [found.numbered(int(batch.task[i]), n) for n in range(3)]
        matching = [
            a
            for a in views
            for q in t.queries
            if np.array_equal(batch.inputs[i], encode_grid(a.apply(q.input), 6))
            and np.array_equal(batch.labels[i], labels_of(encode_grid(a.apply(q.output), 6)))
        ]
        assert matching
        shown = {encode_grid(matching[0].apply(d.input), 6).tobytes() for d in t.demos}
        assert all(batch.demo_inputs[i, k].tobytes() in shown for k in np.flatnonzero(batch.demo_mask[i]))


def test_every_query_is_asked_under_every_vote_once() -> None:
    asked = source(False, augmentations=5).asked(4)
    keys = [(q.task, q.query, q.augmentation) for q in asked]
    assert len(keys) == len(set(keys)) == 4 * (2 + 1 + 1)
    assert all(q.shown == TASKS[q.task].demos for q in asked)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_empty_sources_are_refused(sizes: tuple[int, int, int]) -> None:
    tasks, augmentations, demos = sizes
    with pytest.raises(DataError, match="each must be at least 1"):
        ArcAgiSource(TASKS[:tasks], augmentations, True, 6, demos, False, seed=0)


def test_nothing_is_materialised() -> None:
    found = ArcAgiSource(load_arc(1, "training"), 1000, True, 30, 10, False, seed=0)
    assert found.sample(2, np.random.default_rng(0)).inputs.shape == (2, 900)
    assert sum(len(a) for a in found.augmentations) == 0

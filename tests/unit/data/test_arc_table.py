"""TRM's protocol: what is learned and what is held back, whose row is whose, and where a pair stands on the canvas."""

import numpy as np
import pytest

from etrm.data.arc import Pair, Task, load_arc
from etrm.data.arc_table import TableSource, table_source
from etrm.data.augment import parse_name
from etrm.data.episodes import Batch
from etrm.data.grids import EOS, IGNORE, PAD, labels_of
from etrm.errors import DataError

pytestmark = pytest.mark.fast

SIDE = 7


def task(name: str, demos: int, queries: int) -> Task:
    rng = np.random.default_rng([*name.encode()])

    def pair() -> Pair:
        return Pair(rng.integers(0, 10, (3, 4)).astype(np.uint8), rng.integers(0, 10, (2, 5)).astype(np.uint8))

    return Task(name, tuple(pair() for _ in range(demos)), tuple(pair() for _ in range(queries)), "made up")


TASKS = (task("ab", 3, 2), task("cdx", 2, 1))
TAUGHT = (True, False)


def source(augmentations: int = 6, colours: bool = True) -> TableSource:
    return TableSource(TASKS, TAUGHT, augmentations, colours, SIDE, seed=3)


def read(tokens: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """The grid of a canvas and where it stands, read without the encoder."""
    canvas = tokens.reshape(SIDE, SIDE)
    inside = canvas > EOS
    top, left = (int(np.flatnonzero(inside.any(axis=axis))[0]) for axis in (1, 0))
    h, w = int(inside.any(axis=1).sum()), int(inside.any(axis=0).sum())
    return (canvas[top : top + h, left : left + w] - 2).astype(np.uint8), (top, left)


def asked(batch: Batch, names: tuple[str, ...]) -> list[tuple[str, bytes, bytes]]:
    """Base task, input and output of each episode, with the augmentation of its row's name undone."""
    found = []
    for inputs, labels, row in zip(batch.inputs, batch.labels, batch.row, strict=True):
        base, augmentation = parse_name(names[row])
        grids = [augmentation.invert(read(np.where(t == IGNORE, PAD, t))[0]) for t in (inputs, labels)]
        found.append((base, *(g.tobytes() + bytes(g.shape) for g in grids)))
    return found


def pairs_of(which: Task, held_back: bool) -> set[tuple[str, bytes, bytes]]:
    pairs = which.queries if held_back else which.demos
    return {(which.id, *(g.tobytes() + bytes(g.shape) for g in (p.input, p.output))) for p in pairs}


def test_every_pair_is_learned_but_the_queries_of_evaluation_tasks_which_are_asked_at_the_end() -> None:
    own = source()
    learned = set(asked(own.sample(500, np.random.default_rng(0)), own.row_names))
    assert learned == pairs_of(TASKS[0], False) | pairs_of(TASKS[0], True) | pairs_of(TASKS[1], False)
    held = own.held_out()
    assert set(asked(held, own.row_names)) == pairs_of(TASKS[1], True)
    assert [own.row_names[r] for r in held.row] == ["cdx"]


def test_no_demonstration_is_shown() -> None:
    for batch in (source().sample(20, np.random.default_rng(0)), source().held_out()):
        assert not batch.demo_mask.any() and (batch.demo_inputs == PAD).all() and (batch.demo_labels == PAD).all()


@pytest.mark.thorough
def test_task_row_and_pair_are_uniform() -> None:
    own = source(augmentations=4)
    batch = own.sample(4000, np.random.default_rng(1))
    assert np.abs(np.bincount(batch.task, minlength=2) / 4000 - 0.5).max() < 0.03
    assert np.abs(np.bincount(batch.row, minlength=8) / 4000 - 1 / 8).max() < 0.03
    assert [own.row_names[r].split("|||")[0] for r in batch.row] == [TASKS[t].id for t in batch.task]


@pytest.mark.thorough
def test_input_and_output_stand_at_one_place_mostly_elsewhere_and_everywhere_they_fit() -> None:
    own = source(augmentations=1)
    batch = own.sample(3000, np.random.default_rng(2))
    places = [
        (read(i)[1], read(np.where(t == IGNORE, PAD, t))[1]) for i, t in zip(batch.inputs, batch.labels, strict=True)
    ]
    assert all(a == b for a, b in places)
    # Both grids (3x4, 2x5) fit at 5 x 3 places; one pair in 5 or in 2 is left in the corner, the others land there too.
    assert {a for a, _ in places} == {(r, c) for r in range(5) for c in range(3)}
    corner = np.mean([a == (0, 0) for a, _ in places])
    expected = np.mean([1 / n + (1 - 1 / n) / 15 for n in (5, 2)])
    assert abs(corner - expected) < 0.03


def test_labels_are_the_output_with_padding_left_out() -> None:
    batch = source().sample(50, np.random.default_rng(0))
    assert ((batch.labels == IGNORE) | (batch.labels >= EOS)).all() and (batch.labels == EOS).any()
    assert np.array_equal(labels_of(np.where(batch.labels == IGNORE, PAD, batch.labels)), batch.labels)


def test_a_task_has_a_row_for_each_different_augmentation() -> None:
    turned = source(augmentations=1000, colours=False)  # eight dihedral transforms, whatever was asked for
    assert len(turned.row_names) == len(set(turned.row_names)) == 16
    rows = source(augmentations=50).row_names
    assert len(rows) == len(set(rows)) == 100 and rows[0] == "ab" and rows[50] == "cdx"


def test_both_splits_of_arc_are_there_and_only_evaluation_queries_are_held_back() -> None:
    own = table_source("arc-agi-1", 3, 2, True, 30, seed=0)
    training, evaluation = ({t.id for t in load_arc(1, split)} for split in ("training", "evaluation"))
    assert set(own.task_ids[:3]) <= training and set(own.task_ids[3:]) <= evaluation and len(own.task_ids) == 6
    assert own.taught == (True,) * 3 + (False,) * 3
    assert len(own.held_out()) == sum(len(t.queries) for t in own.tasks[3:])


@pytest.mark.parametrize(("tasks", "marks", "augmentations"), [((), (), 1), (TASKS, (True,), 1), (TASKS, TAUGHT, 0)])
def test_nothing_to_learn_is_refused(tasks: tuple[Task, ...], marks: tuple[bool, ...], augmentations: int) -> None:
    with pytest.raises(DataError, match=r"data\.augmentations"):
        TableSource(tasks, marks, augmentations, True, SIDE, seed=0)

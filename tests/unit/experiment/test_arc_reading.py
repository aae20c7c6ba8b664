"""An episode follows its task only if one augmentation of the task's own pairs gives all of it."""

from dataclasses import replace

import numpy as np
import pytest

from etrm.data.arc import Task
from etrm.data.arc_split import arc_benchmark, split_arc, task_augmentations
from etrm.data.episodes import ArcSource, Batch
from etrm.data.grids import COLOUR0, encode_grid, labels_of
from etrm.experiment.preflight.arc_reading import TaskReading

pytestmark = pytest.mark.fast

SIDE = 9


@pytest.fixture(scope="module")
def task() -> Task:
    return split_arc(arc_benchmark("arc-1")).train[0]


def drawn(task: Task, count: int = 6) -> tuple[TaskReading, Batch]:
    augmentations = task_augmentations(task, 12, True, 0)
    source = ArcSource([task], [augmentations], SIDE, 3)
    return TaskReading(task, augmentations, SIDE), source.sample(count, np.random.default_rng(0))


def explained(reading: TaskReading, batch: Batch) -> list[bool]:
    return [reading.explains(batch, i) for i in range(len(batch))]


def test_what_the_source_draws_is_explained_queries_too(task: Task) -> None:
    reading, batch = drawn(task)
    assert all(explained(reading, batch))
    source = ArcSource([task], [task_augmentations(task, 12, True, 0)], SIDE, 3)
    assert all(explained(reading, source.encode(source.queries())))


def test_a_demonstration_under_another_augmentation_is_not(task: Task) -> None:
    reading, batch = drawn(task)
    source = ArcSource([task], [[task_augmentations(task, 12, True, 0)[n]] for n in (5,)], SIDE, 3)
    other = source.sample(len(batch), np.random.default_rng(1))
    mixed = replace(batch, demo_inputs=other.demo_inputs, demo_labels=other.demo_labels, demo_mask=other.demo_mask)
    same = [np.array_equal(a, b) for a, b in zip(batch.demo_inputs, other.demo_inputs, strict=True)]
    assert explained(reading, mixed) == same and not all(same)


def test_an_augmentation_that_the_arm_does_not_use_is_not(task: Task) -> None:
    _, batch = drawn(task)
    few = TaskReading(task, task_augmentations(task, 1, True, 0), SIDE)
    assert not all(explained(few, batch))


def test_another_cell_another_place_or_another_pair_is_not(task: Task) -> None:
    reading, batch = drawn(task)
    wrong = batch.labels.copy()
    at = wrong[:, 0] >= COLOUR0
    wrong[:, 0] = np.where(at, COLOUR0 + (wrong[:, 0] - COLOUR0 + 1) % 10, COLOUR0)
    assert not any(explained(reading, replace(batch, labels=wrong)))
    demo = task.demos[0]
    if max(demo.input.shape) < SIDE:
        moved = batch.inputs.copy()
        moved[:] = encode_grid(demo.input, SIDE, (1, 0))
        assert not any(explained(reading, replace(batch, inputs=moved)))
    other = split_arc(arc_benchmark("arc-1")).train[1].demos[0]
    foreign = replace(
        batch,
        inputs=np.broadcast_to(encode_grid(other.input, SIDE), batch.inputs.shape),
        labels=np.broadcast_to(labels_of(encode_grid(other.output, SIDE)), batch.labels.shape),
    )
    assert not any(explained(reading, foreign))


def test_a_demonstrations_answer_is_written_as_tokens_not_as_labels(task: Task) -> None:
    """Labels with IGNORE in a demonstration would reach the encoder as a token that does not exist."""
    reading, batch = drawn(task)
    assert not any(explained(reading, replace(batch, demo_labels=labels_of(batch.demo_labels))))

"""The ARC arm with generated pairs: they teach, and nothing of them is asked or shown in an evaluation."""

from dataclasses import replace

import numpy as np
import pytest

from etrm.config.compose import load
from etrm.config.schema import PretrainConfig, RunConfig
from etrm.data.arc_split import arc_benchmark, split_arc, task_augmentations
from etrm.experiment.arms import Arm, build_arm
from etrm.experiment.preflight.arc_reading import TaskReading
from etrm.experiment.preflight.evaluator import vote_faults
from etrm.models.bundle import load_bundle
from etrm.training.pretrain import pretraining_task

SUPPLEMENTED = "arc-5"
pytestmark = [pytest.mark.fast, pytest.mark.thorough]


@pytest.fixture(scope="module")
def arm() -> Arm:
    return build_arm(load(RunConfig, "cfg_arc"), load_bundle(SUPPLEMENTED))


def test_training_draws_as_its_benchmark_says(arm: Arm) -> None:
    def drawn(name: str) -> object:
        return pretraining_task(load(PretrainConfig, name)).source.own_asked  # type: ignore[attr-defined]

    share = arc_benchmark(SUPPLEMENTED).own_asked
    assert arm.source.own_asked == drawn("cfg_pretrain_arc5") == drawn("cfg_pretrain_arc4") == share == 0.1  # type: ignore[attr-defined]
    assert drawn("cfg_pretrain_arc3") == drawn("cfg_pretrain_arc1") == 0.0


def test_what_is_asked_and_shown_is_real(arm: Arm) -> None:
    split = split_arc(arc_benchmark(SUPPLEMENTED))
    real = {t.id: t for t in (*split.train, *split.unseen)}
    for rung in arm.rungs:
        for i, (task, _, augmentation) in enumerate(rung.asked):
            assert TaskReading(real[task], [augmentation], arm.source.side).explains(rung.batch, i), (rung.name, task)
    probe = arm.probe
    kept = [real[probe.task_ids[t]] for t in probe.batch.task]
    drawn = [
        TaskReading(t, task_augmentations(t, 64, True, 0), arm.source.side).explains(probe.batch, i)
        for i, t in enumerate(kept)
    ]
    assert sum(drawn) < len(drawn) / 2  # training, whose draws the probe is, has generated pairs


def test_a_task_without_a_fresh_augmentation_is_not_asked_under_one(arm: Arm) -> None:
    """A vote over no answers is no measurement: before, the evaluator was INVALID."""
    rung = {r.name: r for r in arm.rungs}["unseen_augmentation"]
    assert {task for task, _ in rung.truths} == {task for task, _, _ in rung.asked} == set(rung.task_ids)
    assert len(rung.batch) == len(rung.asked) == arm.planned_queries["unseen_augmentation"]
    seen = {r.name: r for r in arm.rungs}["seen_task"]
    assert set(seen.task_ids) - set(rung.task_ids) == {"6f8cd79b"}


def test_perfect_answers_vote_to_all_also_where_one_input_wants_two_answers(arm: Arm) -> None:
    """Two augmentations of a task may ask the same grid; the demonstrations tell them apart."""
    config, decoder = load(RunConfig, "cfg_arc"), load_bundle(SUPPLEMENTED).decoder
    for rung in arm.rungs:
        wanted: dict[bytes, set[bytes]] = {}
        for asked, right in zip(rung.batch.inputs, rung.batch.labels, strict=True):
            wanted.setdefault(asked.tobytes(), set()).add(right.tobytes())
        assert max(map(len, wanted.values())) > 1
        assert vote_faults(config, rung, decoder, arm.source.side) == []
    first = rung.asked[0]
    others = [i for i, a in enumerate(rung.asked) if a[:2] == first[:2]]
    turned = list(rung.asked)
    for i, j in zip(others, np.roll(others, 1), strict=True):  # each answer turned back as the one before it
        turned[i] = rung.asked[j]
    assert vote_faults(config, replace(rung, asked=tuple(turned)), decoder, arm.source.side)

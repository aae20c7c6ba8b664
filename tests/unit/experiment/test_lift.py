"""The interval of a lift over a null: resampled where tasks differ, wide where hardly one does."""

import pytest
import torch

from etrm.evaluation.statistics import RungResult, rung_result
from etrm.experiment.scores import FEW, SAME, lift, reads_nothing
from etrm.models.bundle import load_bundle
from etrm.models.etrm import ETRM

pytestmark = pytest.mark.fast


def result(right: int, tasks: int) -> RungResult:
    return rung_result("rung", {f"t{i}": (int(i < right), 1) for i in range(tasks)})


@pytest.mark.parametrize("tasks", [4, 32, 61])
def test_nothing_against_nothing_does_not_show_that_nothing_is_gained(tasks: int) -> None:
    found = lift(result(0, tasks), result(0, tasks))
    assert found is not None and found[0] < -0.02 and found[1] > 0.02, f"0 of {tasks} against 0 of {tasks}: {found}"


def test_many_tasks_that_differ_are_resampled() -> None:
    found = lift(result(30, 40), result(0, 40))
    assert found is not None and 0.55 < found[0] < 0.75 < found[1] < 0.95


def test_a_large_rung_without_a_difference_does_show_it() -> None:
    found = lift(result(0, 2000), result(0, 2000))
    assert found is not None and found[1] < 0.02


def test_where_few_differ_the_interval_is_no_narrower_than_resampling() -> None:
    found = lift(result(FEW - 1, 60), result(0, 60))
    assert found is not None and found[0] < 0.02 and found[1] > (FEW - 1) / 60


@pytest.mark.parametrize(("moved", "nothing"), [(0.0, True), (0.1 * SAME, True), (10 * SAME, False)])
def test_an_encoder_reads_nothing_only_where_every_query_gets_one_context(moved: float, nothing: bool) -> None:
    bundle = load_bundle("micro")
    model = ETRM(torch.nn.Identity(), bundle.decoder, bundle.spec())
    contexts = bundle.spec().context_mean.repeat(5, 1, 1)
    contexts[3, -1, 0] += moved * float(bundle.spec().context_std[-1])
    assert reads_nothing(contexts, model) is nothing

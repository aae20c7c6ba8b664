"""What moves weights between two steps is seen, and steps are counted at the optimiser."""

import pytest
import torch

from etrm.experiment.step_watch import StepWatch

pytestmark = pytest.mark.fast


def stepped(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter) -> None:
    optimizer.zero_grad()
    weight.sum().backward()
    optimizer.step()


def test_steps_are_counted_and_foreign_moves_named() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    watch = StepWatch(optimizer)
    for number in range(5):
        if number == 3:
            weight.data.add_(1e-3)
        stepped(optimizer, weight)
    watch.close()
    assert (watch.steps, watch.moved_before) == (5, [4])
    stepped(optimizer, weight)
    assert watch.steps == 5, "a closed watch still counts"


def test_weights_swapped_after_the_last_step_are_seen() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    watch = StepWatch(optimizer)
    stepped(optimizer, weight)
    weight.data.zero_()
    watch.close()
    assert watch.moved_before == [2]

"""Every step is held against the config's rule, what moves weights between two steps is seen, steps are counted."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from etrm.config.compose import load
from etrm.config.schema import OptimConfig, RunConfig
from etrm.experiment.step_watch import TURNS, StepWatch
from etrm.experiment.transcript import rate_of
from etrm.training.optimizers import make_optimizer
from etrm.training.schedule import learning_rate_factor

pytestmark = pytest.mark.fast
TOTAL = 20
OPTIM = replace(load(RunConfig, "cfg_micro").optim, warmup_updates=4)


class Run:
    """A few steps of one weight as the library takes them; `before` may do something to the optimiser at a step."""

    def __init__(self, optim: OptimConfig = OPTIM) -> None:
        torch.manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(3, 4))
        self.optimizer = make_optimizer(optim, [self.weight], optim.lr)
        self.watch = StepWatch(self.optimizer, optim, TOTAL)
        self.optim = optim

    def take(self, steps: int, before: Callable[[int], None] = lambda _: None) -> None:
        for number in range(steps):
            self.optimizer.zero_grad()
            for group in self.optimizer.param_groups:
                group["lr"] = self.optim.lr * learning_rate_factor(number, TOTAL, self.optim)
            (self.weight * torch.cos(number + torch.arange(12.0)).view(3, 4)).sum().backward()
            before(number)
            self.optimizer.step()


@pytest.mark.parametrize("name", ["muon", "adamw", "adam_atan2"])
def test_a_healthy_run_has_nothing_to_report(name: str) -> None:
    run = Run(replace(OPTIM, name=name))
    run.take(TOTAL)
    run.watch.close()
    assert (run.watch.steps, run.watch.moved_before, run.watch.wrong) == (TOTAL, [], [])
    run.take(1)
    assert run.watch.steps == TOTAL, "a closed watch still counts"


def test_foreign_moves_are_named_also_behind_the_last_step() -> None:
    run = Run()
    run.take(5, lambda number: run.weight.data.add_(1e-3) if number == 3 else None)
    run.weight.data.zero_()
    run.watch.close()
    assert run.watch.moved_before == [4, 6]


def test_a_rehearsal_is_not_looked_at() -> None:
    run = Run()
    run.take(2)
    kept, state = run.weight.detach().clone(), run.optimizer.state_dict()
    with run.watch.paused():
        run.take(3)
        run.weight.data.copy_(kept)
        run.optimizer.load_state_dict(state)
    run.watch.close()
    assert (run.watch.steps, run.watch.moved_before) == (2, [])


def _no_gradient(run: Run) -> None:
    run.weight.grad = None


def _decay(run: Run) -> None:
    run.optimizer.param_groups[0]["weight_decay"] = 0.5


def _moments(run: Run) -> None:
    run.optimizer.state.clear()


def _rate(run: Run) -> None:
    run.optimizer.param_groups[0]["lr"] *= 1.1


@pytest.mark.parametrize(
    ("harm", "told"),
    [(_no_gradient, "no weight has a gradient"), (_decay, "weight_decay"), (_moments, "off by"), (_rate, "off by")],
)
def test_a_step_that_is_not_the_configs_is_told_with_its_number(harm: Callable[[Run], None], told: str) -> None:
    run = Run()
    run.take(9, lambda number: harm(run) if number == 8 else None)
    assert len(run.watch.wrong) == 1 and run.watch.wrong[0].startswith("step 9: ") and told in run.watch.wrong[0]


class Many:
    """Six matrices and a vector; those of `off` are moved by a tenth of the rate inside every `each`-th step from
    `since` on.
    """

    def __init__(self, off: list[int], since: int, steps: int, each: int = 1) -> None:
        generator = torch.Generator().manual_seed(0)
        shapes = [(3, 4)] * 6 + [(5,)]
        self.weights = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
        self.optimizer = make_optimizer(OPTIM, self.weights, OPTIM.lr)

        def wrongly(*_: object) -> None:
            if self.watch.steps + 1 >= since and (self.watch.steps + 1) % each == 0:
                for i in off:
                    self.weights[i].data += 0.1 * OPTIM.lr

        self.optimizer.register_step_post_hook(wrongly)  # before the watch's own
        total = max(TOTAL, steps)
        self.watch = StepWatch(self.optimizer, OPTIM, total)
        for number in range(steps):
            for group in self.optimizer.param_groups:
                group["lr"] = OPTIM.lr * learning_rate_factor(number, total, OPTIM)
            for i, weight in enumerate(self.weights):
                weight.grad = torch.cos(number + i + torch.arange(float(weight.numel()))).view(weight.shape)
            self.optimizer.step()


def test_of_several_matrices_some_are_looked_at_each_step_and_every_one_in_its_turn() -> None:
    assert OPTIM.name == "muon"
    assert Many([], 1, TOTAL).watch.wrong == []
    everywhere = Many(list(range(6)), 7, 7).watch.wrong
    assert len(everywhere) == 1 and everywhere[0].startswith("step 7: ")
    for one in range(7):
        told = Many([one], 1, TURNS).watch.wrong
        assert len(told) == (TURNS if one == 6 else 1), (one, told)


@pytest.mark.thorough
@pytest.mark.parametrize("each", [TURNS, 2 * TURNS])
def test_what_goes_wrong_at_every_so_many_steps_meets_each_matrix_in_its_turn(each: int) -> None:
    for one in range(6):
        assert Many([one], 1, 20 * each, each).watch.wrong, (one, each)


def test_the_transcribed_rate_is_the_schedules() -> None:
    for optim in (OPTIM, replace(OPTIM, cooldown_share=0.0), replace(OPTIM, warmup_updates=0, cooldown_share=1.0)):
        for number in range(TOTAL):
            assert rate_of(optim, number, TOTAL) == pytest.approx(optim.lr * learning_rate_factor(number, TOTAL, optim))

"""Plants that begin after the first updates, where no rehearsal before training can see them. Right: INVALID.

Found by somebody who was asked for bugs that the checks miss; each of them once read UNDECIDED or A.

Legend: B batch, T context tokens, D hidden.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etrm.config.schema import OptimConfig
from etrm.data.episodes import Batch, RuleSource
from etrm.faults.bank import Bench, Family, configured, everywhere, fault, on_arm
from etrm.faults.data import Altered
from etrm.faults.gradient import through
from etrm.models.etrm import Episodes
from etrm.training.loop import evaluation_points
from etrm.training.optimizers import make_optimizer
from etrm.training.schedule import learning_rate_factor

Hook = Callable[[torch.optim.Optimizer, int], None]  # (optimiser, steps that it has taken)


def late(id: str, family: Family, happened: str, check: str, naive: str = "C") -> Any:
    """Enter a plant whose bug shows in the run itself."""
    return fault(id, family, happened, verdict="INVALID", check=check, stage="full run", naive=naive)


def shorter(bench: Bench) -> None:
    """A run long enough for the bug to begin and to be seen."""
    configured(bench, "budget", updates=160)
    configured(bench, "optim", warmup_updates=16)


def stepping(id: str, happened: str, before: Hook | None = None, after: Callable[[], Hook] | None = None) -> None:
    """Enter a fault: something happens around the optimiser's steps; `after` makes a hook with a memory of its own."""

    @late(id, "training", happened, "steps_true")
    def plant(bench: Bench) -> Iterator[None]:
        shorter(bench)

        def stand_in(config: OptimConfig, parameters: Any, lr: float) -> torch.optim.Optimizer:
            made = make_optimizer(config, parameters, lr)
            taken = [0]
            follow = after() if after is not None else None

            def ahead(optimizer: torch.optim.Optimizer, *_: Any) -> None:
                if before is not None:
                    before(optimizer, taken[0])

            def behind(optimizer: torch.optim.Optimizer, *_: Any) -> None:
                taken[0] += 1
                if follow is not None:
                    follow(optimizer, taken[0])

            made.register_step_pre_hook(ahead)
            made.register_step_post_hook(behind)
            return made

        with everywhere(make_optimizer, stand_in):
            yield


def _weights(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _scaler_skips(optimizer: torch.optim.Optimizer, taken: int) -> None:
    if taken > 60:
        for p in _weights(optimizer):
            p.grad = None


def _decays_late(optimizer: torch.optim.Optimizer, taken: int) -> None:
    if taken > 100:
        for group in optimizer.param_groups:
            group["weight_decay"] = 30.0


def _forgets(optimizer: torch.optim.Optimizer, taken: int) -> None:
    if taken > 100:
        optimizer.state.clear()


def _slow_weights() -> Hook:
    slow: list[Tensor] = []

    def follow(optimizer: torch.optim.Optimizer, taken: int) -> None:
        if not slow:
            slow.extend(p.detach().clone() for p in _weights(optimizer))
        if taken % 10 == 0:
            with torch.no_grad():
                for p, old in zip(_weights(optimizer), slow, strict=True):
                    p.copy_(old)

    return follow


stepping("loss-scaler-drops-gradients", "after 60 steps a loss scaler saw inf for good", _scaler_skips)
stepping("decay-schedule-runs-away", "a schedule raised the weight decay from step 100 on", _decays_late)
stepping("moments-lost-on-the-way", "the optimiser's state was made anew at every step after a reload", _forgets)
stepping("lookahead-never-moves", "every tenth step went back to slow weights that never moved", after=_slow_weights)


@late("cosine-over-one-epoch", "training", "the cosine was laid over an epoch instead of the run", "steps_true")
def _epoch(bench: Bench) -> Iterator[None]:
    shorter(bench)
    with everywhere(learning_rate_factor, lambda u, n, o: learning_rate_factor(min(u, 99), 100, o)):
        yield


@late("gradient-turns-round", "gradient", "the coefficient of a reversal layer ramped below zero", "gradient_kept", "B")
def _reversal(bench: Bench) -> Iterator[None]:
    shorter(bench)
    passes = [0]

    def change(context: Tensor, _: Episodes) -> Tensor:
        passes[0] += 1
        context = context * 1.0
        if context.requires_grad and passes[0] > 120:
            context.register_hook(lambda g: -g)
        return context

    through(bench, change)
    yield


def streamed(id: str, happened: str, change: Callable[[Any, Batch, int, np.random.Generator], Batch]) -> None:
    """Enter a fault: from some batch of the run on, other episodes are drawn."""

    @late(id, "data", happened, "draws_true")
    def plant(bench: Bench) -> Iterator[None]:
        shorter(bench)
        drawn = [0]
        size = bench.config.budget.batch_size

        def sample(source: Any, count: int, rng: np.random.Generator) -> Batch:
            batch: Batch = source.sample(count, rng)
            drawn[0] += count == size
            return change(source, batch, drawn[0], rng) if count == size else batch

        with on_arm(lambda arm: replace(arm, source=Altered(arm.source, sample))):
            yield


def _overwritten() -> Callable[[Any, Batch, int, np.random.Generator], Batch]:
    kept: list[Batch] = []

    def change(_: Any, batch: Batch, number: int, rng: np.random.Generator) -> Batch:
        last = kept[-1] if kept else batch
        kept[:] = [batch]
        if number <= 100:
            return batch
        return replace(batch, demo_inputs=last.demo_inputs, demo_labels=last.demo_labels)

    return change


def _eight_left(source: RuleSource, batch: Batch, number: int, rng: np.random.Generator) -> Batch:
    return source.episodes(rng.integers(8, size=len(batch)), rng) if number > 60 else batch


def _quarter_missing(source: RuleSource, batch: Batch, number: int, rng: np.random.Generator) -> Batch:
    return source.episodes(rng.integers(len(source.members) * 3 // 4, size=len(batch)), rng)


def _recoloured(_: Any, batch: Batch, number: int, rng: np.random.Generator) -> Batch:
    table = np.arange(12)
    table[3:7] = table[3:7][rng.permutation(4)]
    return replace(batch, labels=table[batch.labels]) if number > 100 else batch


def _locked_rules_too(source: RuleSource, batch: Batch, number: int, rng: np.random.Generator) -> Batch:
    """Episodes of the locked test under the ids of training rules."""
    if number <= 100:
        return batch
    both = RuleSource((*source.members, *source.benchmark.split().test), source.benchmark)
    drawn = both.sample(len(batch), rng)
    return replace(drawn, task=drawn.task % len(source.members))


streamed("locked-test-drawn-later", "the list of rules grew to the whole benchmark on a reload", _locked_rules_too)
streamed(
    "prefetch-buffer-written-over", "demonstrations of the batch before, once the buffer was reused", _overwritten()
)
streamed("sampler-runs-dry", "an exhausted list of tasks left eight of them", _eight_left)
streamed("last-quarter-never-drawn", "an index was drawn below three quarters of the list", _quarter_missing)
streamed("colours-of-answers-later", "an augmentation curriculum recoloured the answers alone", _recoloured)


@late("evaluations-at-the-end", "training", "all evaluations at the very end: a plateau over one update", "budget")
def _at_the_end(bench: Bench) -> Iterator[None]:
    configured(bench, "budget", updates=100)
    configured(bench, "optim", warmup_updates=20)
    with everywhere(evaluation_points, lambda n, k: tuple(range(n - k + 1, n + 1))):
        yield

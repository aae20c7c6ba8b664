"""Plants in the update, the optimiser and the budget. Right: INVALID or UNDECIDED, mostly in the first updates.

Legend: B batch.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from etrm.config.schema import OptimConfig, RunConfig
from etrm.faults.bank import Bench, configured, everywhere, fault, method
from etrm.faults.gradient import through
from etrm.models.etrm import Episodes
from etrm.training.ema import EMA
from etrm.training.loop import encoder_state
from etrm.training.losses import StepLoss, step_loss
from etrm.training.optimizers import make_optimizer
from etrm.training.schedule import learning_rate_factor
from etrm.training.update import LossHead, TrainState, train_batch_encoder


def optimised(
    id: str, happened: str, change: Callable[[torch.optim.Optimizer], None], catalogue: int | None = None
) -> None:
    """Enter a fault: every optimiser is altered when it is made."""

    @fault(id, "training", happened, verdict="INVALID", check="update_true", stage="first updates", catalogue=catalogue)
    def plant(bench: Bench) -> Iterator[None]:
        def stand_in(config: OptimConfig, parameters: Any, lr: float) -> torch.optim.Optimizer:
            made = make_optimizer(config, parameters, lr)
            change(made)
            return made

        with everywhere(make_optimizer, stand_in):
            yield


def _no_zero(optimizer: Any) -> None:
    optimizer.zero_grad = lambda set_to_none=True: None


def _no_step(optimizer: Any) -> None:
    optimizer.step = lambda closure=None: None


def _decay(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        group["weight_decay"] = 30.0


def _ascend(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        group["maximize"] = True


def _betas(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        group["betas"] = (0.0, 0.0)


optimised("zero-grad-missing", "gradients of all updates added up", _no_zero)
optimised("step-skipped-during-freeze", "the only optimiser was skipped while the decoder was frozen", _no_step, 4)
optimised("decay-too-strong", "a decay meant for another optimiser", _decay, 34)
optimised("ascends", "a sign turned in the optimiser's options", _ascend)
optimised("moments-forgotten", "betas lost when the optimiser was made again", _betas)


@fault(
    "learning-rate-zero",
    "training",
    "the schedule's factor was an integer division",
    verdict="INVALID",
    check="update_true",
    stage="first updates",
    catalogue=4,
    naive="B",
)
def rate_zero(bench: Bench) -> Iterator[None]:
    """The schedule gives 0."""
    with everywhere(learning_rate_factor, lambda update, updates, optim: 0.0):
        yield


@fault(
    "optimiser-built-before-loading",
    "training",
    "loading replaced the parameters that the optimiser holds",
    verdict="INVALID",
    check="optimiser_complete",
    stage="first updates",
    catalogue=47,
    naive="B",
)
def stale_optimiser(bench: Bench) -> Iterator[None]:
    """The optimiser steps a copy of the encoder."""

    def stand_in(config: RunConfig, model: LossHead, tasks: int) -> TrainState:
        state = encoder_state(config, model, tasks)
        twin: Any = copy.deepcopy(model.model.encoder)
        state.optimizers["encoder"] = (
            make_optimizer(config.optim, twin.parameters(), config.optim.lr),
            config.optim.lr,
        )
        return state

    with everywhere(encoder_state, stand_in):
        yield


@fault(
    "half-the-encoder-optimised",
    "training",
    "a parameter group was forgotten",
    verdict="B|INVALID",
    check="gradient|optimiser_complete",
    stage="first updates",
    catalogue=4,
)
def half_optimised(bench: Bench) -> Iterator[None]:
    """The optimiser gets every other parameter."""

    def stand_in(config: OptimConfig, parameters: Any, lr: float) -> torch.optim.Optimizer:
        return make_optimizer(config, list(parameters)[::2], lr)

    with everywhere(make_optimizer, stand_in):
        yield


Metrics = dict[str, float]
Real = Callable[..., Metrics]


def updated(
    id: str, happened: str, around: Callable[[Real, tuple[Any, ...]], Metrics], check: str, *,
    verdict: str = "INVALID", stage: Any = "first updates", catalogue: int | None = None, naive: str = "A or C",
) -> None:  # fmt: skip
    """Enter a fault: something happens around each update."""

    @fault(id, "training", happened, verdict=verdict, check=check, stage=stage, catalogue=catalogue, naive=naive)
    def plant(bench: Bench) -> Iterator[None]:
        def stand_in(*arguments: Any) -> Metrics:
            return around(train_batch_encoder, arguments)

        with everywhere(train_batch_encoder, stand_in):
            yield


def _clipped_norm(real: Real, arguments: tuple[Any, ...]) -> Metrics:
    metrics = real(*arguments)
    for name in ("grad/encoder_norm", "grad/total_norm"):
        metrics[name] = min(1.0, metrics[name])
    return metrics


def _tail(real: Real, arguments: tuple[Any, ...]) -> Metrics:
    state: Any = arguments[1]
    if state.step < 0.6 * state.total_steps:
        state.last = real(*arguments)
    else:
        state.step += 1
    return state.last


def _twice(real: Real, arguments: tuple[Any, ...]) -> Metrics:
    real(*arguments)
    arguments[1].step -= 1
    return real(*arguments)


def _weights_put_back(real: Real, arguments: tuple[Any, ...]) -> Metrics:
    encoder = arguments[1].model.model.encoder
    kept = copy.deepcopy(encoder.state_dict())
    metrics = real(*arguments)
    encoder.load_state_dict(kept)
    return metrics


def _early_weights(real: Real, arguments: tuple[Any, ...]) -> Metrics:
    """From update 40 on the weights of update 40 come back: a checkpoint is loaded at every log line."""
    state: Any = arguments[1]
    metrics = real(*arguments)
    encoder: Any = state.model.model.encoder
    if state.step == 40:
        state.kept = copy.deepcopy(encoder.state_dict())
    elif state.step > 40:
        encoder.load_state_dict(state.kept)
    return metrics


updated(
    "norm-after-clip",
    "norms were logged after clipping: 1.000 was called excellent",
    _clipped_norm,
    "update_true",
    catalogue=10,
    naive="A",
)
updated(
    "no-op-tail",
    "past a wrong total the step returned early and the counter went on",
    _tail,
    "budget",
    stage="short run",
    catalogue=9,
    naive="C",
)
updated("two-steps-counted-once", "gradient accumulation stepped twice", _twice, "update_true")
updated(
    "weights-put-back",
    "evaluation weights were swapped in and never out",
    _weights_put_back,
    "update_true",
    catalogue=33,
    naive="B",
)
updated(
    "old-checkpoint-loaded-again",
    "a reload inside the loop took every later update back",
    _early_weights,
    "weights_continuous",
    stage="short run",
    naive="C",
)


def lost(id: str, happened: str, change: Callable[[StepLoss], StepLoss], catalogue: int | None = None) -> None:
    """Enter a fault: the loss is another one."""

    named = "update_true|paths_agree"  # evaluation takes the same loss, and a second reading takes none of it

    @fault(id, "training", happened, verdict="INVALID", check=named, stage="first updates", catalogue=catalogue)
    def plant(bench: Bench) -> Iterator[None]:
        with everywhere(step_loss, lambda *arguments: change(step_loss(*arguments))):
            yield


lost(
    "loss-scaled-by-batch",
    "a sum where a mean was meant",
    lambda found: found._replace(lm=found.lm * len(found.lm)),
    35,
)
lost("halting-loss-weighs-ten", "a weight applied in two places", lambda found: found._replace(halt=found.halt * 10))
lost(
    "loss-over-batch-mean",
    "each sample carries the batch's mean loss",
    lambda found: found._replace(lm=found.lm.mean() * 1.2 + found.lm * 0),
)


@fault(
    "labels-of-the-new-batch",
    "training",
    "continuing samples kept their state but took the new labels",
    verdict="INVALID",
    check="update_true",
    stage="first updates",
    catalogue=23,
    naive="B or C",
)
def new_labels(bench: Bench) -> Iterator[None]:
    """The loss of carried samples is taken on the new batch's labels."""
    whole = Episodes.replaced

    def stand_in(self: Episodes, where: torch.Tensor, new: Episodes) -> Episodes:
        return replace(whole(self, where, new), labels=new.labels)

    with method(Episodes, "replaced", stand_in):
        yield


@fault(
    "demos-of-the-new-batch",
    "training",
    "continuing samples read the new batch's demonstrations",
    verdict="INVALID",
    check="update_true",
    stage="first updates",
    catalogue=23,
    naive="C",
)
def new_demos(bench: Bench) -> Iterator[None]:
    """Carried samples are encoded from another task."""
    whole = Episodes.replaced

    def stand_in(self: Episodes, where: torch.Tensor, new: Episodes) -> Episodes:
        done, fresh = whole(self, where, new), new
        return replace(done, demo_inputs=fresh.demo_inputs, demo_labels=fresh.demo_labels, demo_mask=fresh.demo_mask)

    with method(Episodes, "replaced", stand_in):
        yield


@fault(
    "gradient-dies-later",
    "training",
    "a cache that fills up after some updates cuts the gradient",
    verdict="INVALID",
    check="gradient_kept",
    stage="short run",
    catalogue=2,
    naive="A or C",
)
def dies_later(bench: Bench) -> Iterator[None]:
    """After 80 training forwards the context comes detached."""
    calls = [0]

    def change(c: torch.Tensor, _: Episodes) -> torch.Tensor:
        calls[0] += int(torch.is_grad_enabled() and len(c) == bench.config.budget.batch_size)
        return c.detach() + 0 * c[:1] if calls[0] > 80 else c

    through(bench, change)
    yield


@fault(
    "half-precision-parameter",
    "training",
    "query tokens were bf16 parameters and never moved",
    verdict="INVALID",
    check="trainable_fp32",
    catalogue=32,
    naive="C",
)
def half_precision(bench: Bench) -> Iterator[None]:
    """One trainable tensor in bf16."""

    def edit(head: LossHead) -> None:
        encoder: Any = head.model.encoder
        queries = encoder.queries
        queries.data = queries.data.bfloat16()

    bench.edits.append(edit)
    yield


@fault(
    "average-too-slow",
    "training",
    "EMA 0.999 evaluated after a few hundred updates",
    verdict="UNDECIDED",
    check="average_settled",
    stage="full run",
    catalogue=31,
    naive="C",
)
def slow_average(bench: Bench) -> Iterator[None]:
    """Three quarters of the evaluated weights would be the initial ones."""
    configured(bench, "optim", ema_decay=0.9995)
    yield


@fault(
    "average-of-nothing",
    "training",
    "the average was registered before freezing and never updated",
    verdict="INVALID",
    check="update_true",
    stage="first updates",
    catalogue=33,
    naive="C",
)
def dead_average(bench: Bench) -> Iterator[None]:
    """EMA.update does nothing."""
    configured(bench, "optim", ema_decay=0.9)
    with method(EMA, "update", lambda self, module: None):
        yield


def rated(id: str, happened: str, lr: float) -> None:
    """Enter a fault: the config's base rate is off by a thousand."""

    @fault(
        id,
        "training",
        happened,
        verdict="UNDECIDED|INVALID",
        check="step_size|finite",
        stage="full run",
        naive="B or C",
    )
    def plant(bench: Bench) -> Iterator[None]:
        configured(bench, "optim", lr=lr)
        yield


rated("learning-rate-times-thousand", "3e-4 written as 3e-1", 2.0)
rated("learning-rate-over-thousand", "divided by batch and steps under an Adam-type optimiser", 1e-7)


@fault(
    "samples-in-eval-mode",
    "training",
    "a variational encoder samples in evaluation too",
    verdict="INVALID",
    check="encoder_pure|evaluator_true",
    catalogue=37,
    naive="C",
)
def samples_always(bench: Bench) -> Iterator[None]:
    """Noise on the context whatever the mode."""
    through(bench, lambda c, _: c + 0.1 * torch.randn_like(c))
    yield

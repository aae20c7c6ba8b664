"""The loop: sample, update, log, checkpoint. What is logged is what was executed; a plan that was not fulfilled is an
error.

Metrics are JSON lines `{"step": N, name: value, …}` with N in executed updates. Between two lines the training metrics
are averaged over the updates since the last one (never the last minibatch alone); norms of layers are those of the
logged update.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from etrm.config.schema import BudgetConfig, PretrainConfig, RunConfig
from etrm.data.episodes import Source
from etrm.errors import BudgetError, ConfigError
from etrm.models.etrm import Episodes
from etrm.training.checkpoint import agreed_newest, resume, save_checkpoint
from etrm.training.distributed import ALONE, Ranks
from etrm.training.durable import append_line
from etrm.training.ema import EMA
from etrm.training.memory import keep_freed_memory
from etrm.training.nonfinite import dumping
from etrm.training.optimizers import make_optimizer
from etrm.training.schedule import check_schedule
from etrm.training.update import LossHead, TrainState, train_batch_encoder

Report = Callable[[int, float], None]  # (updates done, loss) -> None, for progress bars
Mirror = Callable[[int, Mapping[str, float]], None]  # (updates done, metrics) -> None, for trackers


@dataclass(frozen=True)
class BudgetRecord:
    """Planned and executed budget. `episodes` counts those that entered a slot (at most batch x updates)."""

    planned_updates: int
    executed_updates: int
    batch_size: int
    episodes: int
    epochs: float
    warmup_share: float
    reached_base_rate: bool

    def as_dict(self) -> dict[str, float]:
        """Plain numbers for JSON."""
        return asdict(self)


def planned_updates(budget: BudgetConfig, tasks: int) -> int:
    """Updates of a budget given either in updates or in epochs (one visit a task each). ConfigError unless exactly one
    is.
    """
    if (budget.updates > 0) == (budget.epochs > 0):
        raise ConfigError(
            f"budget.updates is {budget.updates} and budget.epochs {budget.epochs}; set one and the other to 0"
        )
    updates = budget.updates or budget.epochs * tasks // budget.batch_size
    if updates < 1:
        raise ConfigError(
            f"{budget.epochs} epochs of {tasks} tasks in batches of {budget.batch_size} are less than one update"
        )
    return updates


def evaluation_points(updates: int, evaluations: int) -> tuple[int, ...]:
    """At which executed updates to evaluate: evenly, the last included."""
    return tuple(sorted({max(1, round(updates * (i + 1) / evaluations)) for i in range(evaluations)}))


def encoder_state(config: RunConfig, model: LossHead, tasks: int) -> TrainState:
    """State for an encoder in front of a frozen decoder: the decoder has no gradient and stands in no optimiser."""
    updates = planned_updates(config.budget, tasks)
    check_schedule(updates, config.optim)
    if config.freeze.decoder_updates >= updates:
        raise ConfigError(
            f"freeze.decoder_updates is {config.freeze.decoder_updates}, but the run has {updates} updates, so the "
            "decoder would never join; set it below that, or to -1 to keep it frozen"
        )
    model.decoder.requires_grad_(False).eval()
    encoder = model.model.encoder
    assert isinstance(encoder, nn.Module)
    optimizer = make_optimizer(config.optim, encoder.parameters(), config.optim.lr)
    return _state(config, model, {"encoder": (optimizer, config.optim.lr)}, updates)


def join_decoder(config: RunConfig, state: TrainState) -> None:
    """End of a staged freeze: the decoder gets gradients and an optimiser at `freeze.joint_lr`; the EMA takes it in."""
    state.model.decoder.requires_grad_(True).train()
    optimizer = make_optimizer(config.optim, state.model.decoder.parameters(), config.freeze.joint_lr)
    state.optimizers["decoder"] = (optimizer, config.freeze.joint_lr)
    if state.ema is not None:
        state.ema.track(state.model)


def _state(
    config: RunConfig | PretrainConfig,
    model: LossHead,
    optimizers: dict[str, tuple[torch.optim.Optimizer, float]],
    updates: int,
) -> TrainState:
    keep_freed_memory()
    ema = EMA(model, config.optim.ema_decay) if config.optim.ema_decay > 0 else None
    generator = torch.Generator().manual_seed(config.system.seed)
    return TrainState(model, optimizers, ema, updates, generator=generator)


def pretrain_state(config: PretrainConfig, model: LossHead, tasks: int) -> TrainState:
    """State for a decoder with its puzzle table: two optimisers, the table's at `table.lr_ratio` times the rate."""
    from etrm.training.optimizers import SignSGD

    updates = planned_updates(config.budget, tasks)
    check_schedule(updates, config.optim)
    table = model.model.puzzle_emb.weights  # type: ignore[union-attr]
    assert isinstance(table, nn.Parameter)
    rate = config.optim.lr * config.table.lr_ratio
    betas = (config.optim.beta1, config.optim.beta2)
    rows: torch.optim.Optimizer
    if config.table.optimizer == "sign_sgd":
        rows = SignSGD([table], rate, config.table.weight_decay)
    else:
        rows = torch.optim.AdamW([table], lr=rate, betas=betas, weight_decay=config.table.weight_decay)
    decoder = make_optimizer(config.optim, model.decoder.parameters(), config.optim.lr)
    return _state(config, model, {"decoder": (decoder, config.optim.lr), "table": (rows, rate)}, updates)


class MetricsLog:
    """Appends JSON lines; on resume the file is cut back to the `kept` bytes that the checkpoint knows of."""

    def __init__(self, path: Path, kept: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.truncate(path, kept)
        self.path = path

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line; NaN (no sample halted, say) is written as null."""
        clean = {k: (None if math.isnan(v) else v) for k, v in values.items()}
        append_line(self.path, json.dumps({"step": step, **clean}))


def fit(
    config: RunConfig | PretrainConfig,
    state: TrainState,
    source: Source,
    rng: np.random.Generator,
    device: torch.device,
    log_path: Path,
    checkpoints: Path | None = None,
    at: Mapping[int, Callable[[int], None]] | None = None,
    report: Report | None = None,
    stop_after: int | None = None,
    say: Callable[[str], None] = print,
    ranks: Ranks = ALONE,
    mirror: Mirror | None = None,
    begin: Callable[[int], None] | None = None,
) -> BudgetRecord:
    """Run the planned updates (or up to `stop_after`), resuming from the newest whole checkpoint of `checkpoints` if
    there is one (`say` tells when newer ones had to be passed over; rank 0 decides for all).

    `begin(N)` is called before the first update, N being done already; `at[N](N)` after update N, for evaluations;
    `report(done, loss)` after each; `mirror(N, metrics)` on rank 0 with each line of the log. Every rank draws the same
    global batch and trains on its own part of it. Raises what the update raises, and BudgetError if fewer updates were
    executed than planned.
    """
    every = config.budget.checkpoint_every
    if every % config.budget.log_every:
        # Otherwise a resumed run would average a log line over fewer updates than an uninterrupted one.
        raise ConfigError(
            f"budget.checkpoint_every {every} must be a multiple of budget.log_every {config.budget.log_every}"
        )
    if stop_after is not None and stop_after % config.budget.log_every:
        raise ConfigError(f"stop_after {stop_after} must be a multiple of budget.log_every {config.budget.log_every}")
    kept = 0
    if checkpoints is not None and (found := agreed_newest(checkpoints, log_path, say, ranks)):
        path, payload = found
        if isinstance(config, RunConfig) and 0 <= config.freeze.decoder_updates < payload["step"]:
            join_decoder(config, state)
        resume(path, config, state, rng, payload, ranks)
        kept = payload["log"]["bytes"]
    ranks.check_equal(dict(state.model.named_parameters()), f"before update {state.step + 1}")
    log = MetricsLog(log_path, kept) if ranks.main else None
    if begin is not None:
        begin(state.step)

    def tell(step: int, line: dict[str, float]) -> None:
        if log is not None:
            log.write(step, line)
        if mirror is not None:
            mirror(step, line)

    since: list[dict[str, float]] = []
    last = min(state.total_steps, stop_after or state.total_steps)
    while state.step < last:
        if isinstance(config, RunConfig) and state.step == config.freeze.decoder_updates:
            join_decoder(config, state)
        drawn = source.sample(config.budget.batch_size, rng)
        own = drawn if ranks.size == 1 else drawn.take(ranks.part(len(drawn)))
        batch = Episodes.of(own, device)
        with dumping(config, state, batch, log_path.parent, ranks):
            metrics = train_batch_encoder(config, state, batch, config.budget.batch_size, ranks.rank, ranks.size)
        since.append(metrics)
        if state.step % config.budget.log_every == 0 or state.step == last:
            line = averaged(since)
            since = []
            ranks.by_main(partial(tell, state.step, line))
        if report is not None:
            report(state.step, metrics["train/lm_loss"])
        if at and state.step in at:
            at[state.step](state.step)
        if checkpoints is not None and every and (state.step % every == 0 or state.step == last):
            save_checkpoint(checkpoints, config, state, rng, len(source.task_ids), log_path, ranks)
    if state.step < last:
        raise BudgetError(f"{state.step} of {last} planned updates were executed")
    return BudgetRecord(
        state.total_steps,
        state.step,
        config.budget.batch_size,
        state.episodes_entered,
        state.step * config.budget.batch_size / len(source.task_ids),
        config.optim.warmup_updates / state.total_steps,
        state.step >= config.optim.warmup_updates,
    )


def averaged(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric over the rows that have it; NaN entries (nothing to measure) are left out, all-NaN stays
    NaN.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    result = {}
    for name in names:
        values = [row[name] for row in rows if name in row and not math.isnan(row[name])]
        result[name] = sum(values) / len(values) if values else math.nan
    return result

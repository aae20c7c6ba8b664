"""The update: one ACT step forward, one backward pass, norms before clipping, one optimiser step.

Deep supervision as in TRM: every ACT step has its own loss and its own optimiser step, the carry is cut in between.
Past the planned budget the update refuses instead of doing nothing, so that reported and executed updates cannot part.

Legend: B batch, T context tokens, D hidden.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from etrm.config.schema import LossConfig, PretrainConfig, RunConfig
from etrm.errors import BudgetError, NonFiniteError
from etrm.models.encoders import Encoded
from etrm.models.etrm import Carry, Episodes, StepOutput, act_step, fresh_carry
from etrm.models.trm import TRMDecoder, table_context
from etrm.training.distributed import ALONE, Ranks
from etrm.training.ema import EMA
from etrm.training.losses import StepLoss, step_loss
from etrm.training.schedule import learning_rate_factor


class LossHead(nn.Module):
    """Wraps a context model (ETRM or TableTRM) so that its parts are named `model.encoder.…`, `model.decoder.…`."""

    def __init__(self, model: nn.Module, loss: LossConfig) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    @property
    def decoder(self) -> TRMDecoder:
        """The decoder inside."""
        decoder = self.model.decoder
        assert isinstance(decoder, TRMDecoder)
        return decoder

    def context(self, episodes: Episodes) -> Encoded:
        """The wrapped model's context for episodes."""
        encoded: Encoded = self.model.context(episodes)  # type: ignore[operator]
        return encoded

    def forward(
        self,
        carry: Carry,
        new: Episodes,
        exploration: float,
        generator: torch.Generator | None,
        share: tuple[int, int] = (0, 1),
    ) -> tuple[Carry, StepOutput, StepLoss]:
        """One ACT step and its per-sample losses (B,)."""
        carry, out = act_step(self, carry, new, exploration, generator, share)
        return carry, out, step_loss(out.logits, out.halt, out.episodes.labels, self.loss.cross_entropy)


@dataclass
class TrainState:
    """Everything an update reads and writes. `optimizers` is (optimiser, base learning rate) by name of its part."""

    model: LossHead
    optimizers: dict[str, tuple[torch.optim.Optimizer, float]]
    ema: EMA | None
    total_steps: int
    step: int = 0
    carry: Carry | None = None
    generator: torch.Generator = field(default_factory=torch.Generator)
    teacher: Tensor | None = None  # decoder's table (R, W) while the objective lm+table still teaches
    episodes_entered: int = 0  # fresh episodes that reached a slot


def gradient_norm(parameters: Mapping[str, nn.Parameter]) -> Tensor:
    """Euclidean norm over all gradients of `parameters` (scalar fp32); 0 where none has a gradient."""
    grads = [p.grad for p in parameters.values() if p.grad is not None]
    if not grads:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g.float()) for g in grads]))


def table_loss(encoded: Encoded, rows: Tensor, table: Tensor, decoder: TRMDecoder, ranks: Ranks = ALONE) -> Tensor:
    """Mean squared distance to the decoder's own rows in units of the table's variance; samples without a row are left
    out. With several ranks this rank's part of the mean over all of them.
    """
    known = rows >= 0
    target = table_context(table[rows.clamp(min=0)], decoder.structure)  # (B, T, D)
    gap = (encoded.context.float() - target).pow(2).mean(dim=(1, 2)) / table.var().clamp(min=1e-8)
    return torch.where(known, gap, 0.0).sum() / ranks.total(known.sum()).clamp(min=1)


def check_finite(values: Mapping[str, Tensor], step: int, seed_hint: str) -> None:
    """NonFiniteError naming the first value that is not finite; called before the optimiser moves anything."""
    for name, value in values.items():
        if not bool(torch.isfinite(value).all()):
            raise NonFiniteError(
                f"{name} is not finite at update {step}; no weight was changed by it. Repeat it with: {seed_hint}"
            )


def train_batch_encoder(
    config: RunConfig | PretrainConfig,
    train_state: TrainState,
    batch: Episodes,
    global_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, float]:
    """One update on `batch`; returns the metrics of this update under the seed's names.

    `batch` holds this rank's slots. Loss is summed over samples and divided by `global_batch_size`; gradients stay in
    `.grad` until the next call, so that a pasted loop over `train_state.model.named_parameters()` prints them (summed
    over ranks and after clipping; the logged norms are from before clipping). Metrics are those of the global batch.
    Raises BudgetError past the planned updates and NonFiniteError, on every rank alike, before any weight moves.
    """
    state, model, ranks = train_state, train_state.model, Ranks(rank, world_size)
    if state.step >= state.total_steps:
        raise BudgetError(
            f"update {state.step + 1} of {state.total_steps} was asked for; raise budget.updates to train longer"
        )
    factor = learning_rate_factor(state.step, state.total_steps, config.optim)
    for optimizer, base in state.optimizers.values():
        optimizer.zero_grad(set_to_none=True)
        for group in optimizer.param_groups:
            group["lr"] = base * factor * group.get("lr_ratio", 1.0)
    if state.carry is None:
        state.carry = fresh_carry(model.decoder, batch)
    entered = int(ranks.total(state.carry.halted.sum()))
    carry, out, losses = model(state.carry, batch, config.act.exploration, state.generator, (rank, world_size))
    loss = losses.lm.sum() / global_batch_size + config.loss.halt_weight * losses.halt.sum() / global_batch_size
    for extra in out.encoded.losses.values():
        loss = loss + extra / world_size  # a mean over this rank's samples, as the encoder contract has it
    teaching = state.teacher is not None and state.step < config.loss.table_share * state.total_steps
    if teaching:
        assert state.teacher is not None
        loss = table_loss(out.encoded, out.episodes.row, state.teacher, model.decoder, ranks)
    hint = f"the same config with system.seed={config.system.seed} budget.log_every=1"
    whole = ranks.total(loss)
    check_finite({"the loss": whole}, state.step, hint)
    loss.backward()
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    ranks.reduce_gradients(named.values())
    parts = {
        part: {n: p for n, p in named.items() if n.startswith(f"model.{part}.")} for part in ("encoder", "decoder")
    }
    norms = {part: gradient_norm(params) for part, params in parts.items()}
    total = gradient_norm(named)
    check_finite({"the gradient norm": total}, state.step, hint)
    layers = layer_gradient_norms(named) if (state.step + 1) % config.budget.log_every == 0 else {}
    if config.optim.clip_norm > 0:
        # The optimisers divide the scale out again, but one spike would stay in their moments for many updates.
        scale = (config.optim.clip_norm / (total + 1e-6)).clamp(max=1.0)
        for p in named.values():
            if p.grad is not None:
                p.grad.mul_(scale)
    for optimizer, _ in state.optimizers.values():
        optimizer.step()
    state.carry = carry
    state.step += 1
    state.episodes_entered += entered
    if state.ema is not None:
        state.ema.update(model)
    metrics = step_metrics(losses, out, global_batch_size, ranks) | {
        "grad/encoder_norm": norms["encoder"].item(),
        "grad/decoder_norm": norms["decoder"].item(),
        "grad/total_norm": total.item(),
        "train/lr": config.optim.lr * factor,
    }
    if teaching:
        metrics["train/table_loss"] = whole.item()
    return metrics | layers


def step_metrics(losses: StepLoss, out: StepOutput, global_batch_size: int, ranks: Ranks) -> dict[str, float]:
    """What one ACT step of the whole batch, over all ranks, had as losses, accuracies and contexts."""
    sums = (
        losses.lm.sum(),
        losses.halt.sum(),
        losses.token_accuracy.sum(),
        (losses.exact & out.halted).sum(),
        out.halted.sum(),
        torch.tensor(len(out.halted)),
    )
    lm, halt, tokens, exact, halted, slots = ranks.total(torch.stack([s.to(losses.lm) for s in sums])).tolist()
    context = out.encoded.context.detach().float()  # (B, T, D)
    mean = ranks.total(context.sum(dim=0)) / slots  # (T, D)
    center = mean.mean()
    token_std = (ranks.total((context - mean).square().sum(dim=0)) / slots).sqrt().mean()
    spread = ranks.total((context - center).square().sum(dim=0)) / slots  # (T, D)
    return {
        "train/lm_loss": lm / global_batch_size,
        "train/halt_loss": halt / global_batch_size,
        "train/exact_accuracy": exact_at_halt(exact, halted),
        "train/token_accuracy": tokens / slots,
        "train/halted": halted / slots,
        "train/encoder_token_std": token_std.item(),
        "train/encoder_output_mean": center.item(),
        "train/encoder_output_std": spread.mean().sqrt().item(),
    }


def exact_at_halt(exact: float, halted: float) -> float:
    """Exact rate among the samples that halt at this step (as TRM counts), of counts; NaN where none halts, never 0."""
    return exact / halted if halted else float("nan")


def layer_gradient_norms(parameters: Mapping[str, nn.Parameter]) -> dict[str, float]:
    """`grad/layer/<name>`: the norm of each parameter's gradient; a parameter without one is left out."""
    return {f"grad/layer/{n}": p.grad.norm().item() for n, p in parameters.items() if p.grad is not None}

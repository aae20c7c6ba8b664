"""Does an update do what its config says? Real updates, before training and during it, beside a transcription.

The transcription takes each update's starting point and computes, from the published facts alone, which episodes stand
in the slots, their loss (float64), the gradient, its norm before clipping, and the step of the optimiser. Whatever the
real update does otherwise (stale gradients, another sample's labels, a skipped or scaled step, a norm after clipping)
leaves a gap. Afterwards weights, optimisers, averages, carry and generators are put back bitwise.

Legend: B batch, K demonstrations, S canvas cells, V vocabulary.
"""

import copy
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etrm.config.schema import OptimConfig, RunConfig
from etrm.experiment.arms import Arm
from etrm.experiment.checks import Check, check
from etrm.experiment.second_reading import token_losses
from etrm.experiment.transcript import option_faults, push_of, rate_of
from etrm.models.etrm import Carry, Episodes, fresh_carry
from etrm.training.update import LossHead, TrainState, train_batch_encoder

UPDATES = 3  # a fresh batch, the same samples at their second ACT step, and a refilled one
MOST_SLOTS = 64  # of the run's own batch: what begins behind the sixteenth sample is part of an update too
TOLERANCE = 0.03  # relative; bf16 runs repeat within 0.002, a wrong sample or factor is off by more than 0.1
LEAST_STEP, MOST_STEP = 1e-5, 0.5  # base rate over the typical weight; a step moves each by the rate or less
SURE = 1e-3  # a halt logit nearer to 0 may fall to either side
LAG = 0.01  # share of the initial weights that an average may still hold when it is evaluated
Gradients = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Expected:
    """What one update should have: losses (nats a token, batch mean), the gradient before clipping, by name, and the
    ACT state of each slot after it.
    """

    lm: float
    gradients: Gradients
    steps: Tensor  # (B,) int64
    halt: Tensor  # (B,) logits

    @property
    def norm(self) -> float:
        """Over all parameters."""
        return math.sqrt(sum(float(g.double().square().sum()) for g in self.gradients.values()))


def update_checks(config: RunConfig, arm: Arm, state: TrainState) -> list[Check]:
    """`optimiser_complete`, `update_true`, `step_size` and `average_settled`."""
    held = _holding(state)
    found = [
        check("optimiser_complete", not held, "; ".join(held[:3]) or "every trainable tensor in exactly one optimiser")
    ]
    faults = rehearsed(config, arm, state) if not held else ["not compared: the optimisers hold other tensors"]
    said = f"{UPDATES} updates equal an independent transcription: loss, gradient, norm before clipping, step"
    return [*found, check("update_true", not faults, "; ".join(faults[:3]) or said), *_plan(config, state)]


def trainable(head: LossHead) -> dict[str, nn.Parameter]:
    """The head's trainable parameters by name."""
    return {n: p for n, p in head.named_parameters() if p.requires_grad}


def _holding(state: TrainState) -> list[str]:
    """Trainable tensors that no optimiser or several hold, and tensors held that are no trainable ones of the model."""
    own = {id(p): n for n, p in trainable(state.model).items()}
    groups = [g for optimizer, _ in state.optimizers.values() for g in optimizer.param_groups]
    counts = Counter(id(p) for g in groups for p in g["params"])
    faults = [f"{n} is in {counts[i]} optimisers" for i, n in own.items() if counts[i] != 1]
    strange = [i for i in counts if i not in own]
    return faults + ([f"{len(strange)} tensors held are not the model's trainable ones"] if strange else [])


def _plan(config: RunConfig, state: TrainState) -> list[Check]:
    sizes = [float(p.detach().square().mean().sqrt()) for p in trainable(state.model).values() if p.dim() > 1]
    ratio = config.optim.lr / max(float(np.median(sizes)) if sizes else 1.0, 1e-12)
    lag = config.optim.ema_decay**state.total_steps if config.optim.ema_decay > 0 else 0.0
    return [
        check(
            "step_size",
            LEAST_STEP <= ratio <= MOST_STEP,
            f"base rate {config.optim.lr:g}: {ratio:.2g} of a typical weight, expected {LEAST_STEP:g} to {MOST_STEP:g}",
        ),
        check("average_settled", lag <= LAG, f"{lag:.1%} of the averaged weights would still be the initial ones"),
    ]


def rehearsed(config: RunConfig, arm: Arm, state: TrainState, updates: int = UPDATES) -> list[str]:
    """Run some updates from where the state stands and name every gap; the state is put back whatever happens."""
    head = state.model
    small = replace(config, loss=replace(config.loss, objective="lm", table_share=0.0))
    kept = {f.name: getattr(state, f.name) for f in fields(TrainState)}
    weights = copy.deepcopy(head.state_dict())
    modes = {m: m.training for m in head.modules()}
    moments = {n: copy.deepcopy(o.state_dict()) for n, (o, _) in state.optimizers.items()}
    shadow = None if state.ema is None else {n: s.clone() for n, s in state.ema.shadow.items()}
    random, act = torch.get_rng_state(), state.generator.get_state()
    try:
        state.teacher = None
        head.train()
        head.decoder.eval()
        return _gaps(small, arm, state, updates)
    finally:
        head.load_state_dict(weights)
        head.zero_grad(set_to_none=True)
        for m, mode in modes.items():
            m.training = mode
        for n, (o, _) in state.optimizers.items():
            o.load_state_dict(moments[n])
        for name, value in kept.items():
            setattr(state, name, value)
        if state.ema is not None and shadow is not None:
            state.ema.shadow = shadow
        torch.set_rng_state(random)
        state.generator.set_state(act)


def _gaps(config: RunConfig, arm: Arm, state: TrainState, updates: int) -> list[str]:
    rng = np.random.default_rng([31, state.step])
    head = state.model
    mine = _Moments(state)
    shadow = {} if state.ema is None else state.ema.shadow
    average = {n: shadow.get(n, p.detach()).clone() for n, p in trainable(head).items()}
    slots = min(MOST_SLOTS, config.budget.batch_size) if state.carry is None else len(state.carry.halted)
    for number in range(updates):
        new = Episodes.of(arm.source.sample(slots, rng), torch.device("cpu"))
        carry = fresh_carry(head.decoder, new) if state.carry is None else state.carry
        before = {n: p.detach().clone() for n, p in trainable(head).items()}
        drawn = torch.get_rng_state()
        expected = _expected(config, head, carry, new)
        torch.set_rng_state(drawn)  # an encoder that samples must sample the same
        act = state.generator.get_state()
        metrics = train_batch_encoder(config, state, new, slots)
        faults = [*_compare(config, state, expected, metrics, before, mine), *_halting(config, state, expected, act)]
        faults += option_faults(config.optim, [g for o, _ in state.optimizers.values() for g in o.param_groups])
        if state.ema is not None:
            for n, p in trainable(head).items():
                average[n].lerp_(p.detach(), 1 - config.optim.ema_decay)
            off = [n for n, a in average.items() if not torch.allclose(a, state.ema.shadow[n], atol=1e-6)]
            faults += [f"the average of {off[0]} is not its weights'"] if off else []
        if faults:
            return [f"update {number + 1}: {f}" for f in faults]
    return []


def _expected(config: RunConfig, head: LossHead, carry: Carry, new: Episodes) -> Expected:
    """Loss and gradient of one ACT step on the slots as they must be: a halted slot takes the new episode, others keep
    theirs.
    """
    k = max(new.demo_mask.shape[1], carry.episodes.demo_mask.shape[1])

    def slots(name: str) -> Tensor:
        old, fresh = getattr(carry.episodes, name), getattr(new, name)
        if name.startswith("demo"):
            old, fresh = (F.pad(t, (*(0, 0) * (t.dim() - 2), 0, k - t.shape[1])) for t in (old, fresh))
        return torch.stack([f if h else o for h, f, o in zip(carry.halted, fresh, old, strict=True)])

    episodes = Episodes(**{f.name: slots(f.name) for f in fields(Episodes)})
    decoder = head.decoder
    start = decoder.fresh_latents(len(episodes.inputs))
    latents = type(start)(
        *(torch.where(carry.halted.view(-1, 1, 1), s, c) for s, c in zip(start, carry.latents, strict=True))
    )
    encoded = head.context(episodes)
    _, logits, halt = decoder(latents, episodes.inputs, encoded.context)
    lm, right = token_losses(logits, episodes.labels, config.loss.cross_entropy)
    bce = F.binary_cross_entropy_with_logits(halt.double(), right.double(), reduction="none")
    loss = (lm + config.loss.halt_weight * bce).sum() / len(lm) + sum(encoded.losses.values(), torch.zeros(()))
    own = trainable(head)
    found = torch.autograd.grad(loss, list(own.values()), allow_unused=True)
    gradients = {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(own.items(), found, strict=True)}
    steps = torch.where(carry.halted, 0, carry.steps) + 1
    return Expected(float(lm.detach().mean()), gradients, steps, halt.detach().float())


def _halting(config: RunConfig, state: TrainState, expected: Expected, random: Tensor) -> list[str]:
    """A slot halts at its last ACT step or where the decoder asks for it, after the minimum that it drew if it
    explores.
    """
    assert state.carry is not None
    generator = torch.Generator()
    generator.set_state(random)
    count, most = len(expected.steps), state.model.decoder.structure.halt_max_steps
    explores = torch.rand(count, generator=generator) < config.act.exploration if most > 1 else torch.zeros(count) > 0
    least = torch.randint(2, most + 1, (count,), generator=generator) if most > 1 else torch.ones(count)
    early = (expected.halt > 0) & (expected.steps >= torch.where(explores, least, 0))
    sure = expected.halt.abs() > SURE
    wrong = (state.carry.halted != ((expected.steps >= most) | early)) & sure | (state.carry.steps != expected.steps)
    return [f"{int(wrong.sum())} of {count} slots halt or count their ACT steps otherwise"] if bool(wrong.any()) else []


class _Moments:
    """The moments of the optimiser, transcribed; they begin as its own stand."""

    def __init__(self, state: TrainState) -> None:
        self.mean: Gradients = {}
        self.square: Gradients = {}
        self.steps: Counter[str] = Counter()
        held = {id(p): values for o, _ in state.optimizers.values() for p, values in o.state.items()}
        for name, p in trainable(state.model).items():
            if found := held.get(id(p)):
                first, second = ("exp_avg", "exp_avg_sq") if "exp_avg" in found else ("mean", "square")
                self.mean[name] = found[first].double()
                self.square[name] = found.get(second, torch.zeros_like(p)).double()  # Muon: none of a matrix
                self.steps[name] = int(found["step"])

    def step(self, optim: OptimConfig, name: str, weight: Tensor, gradient: Tensor, lr: float) -> Tensor:
        """The weight after one update more."""
        g = gradient.double()
        zero = torch.zeros_like(g)
        self.steps[name] += 1
        self.mean[name] = optim.beta1 * self.mean.get(name, zero) + (1 - optim.beta1) * g
        self.square[name] = optim.beta2 * self.square.get(name, zero) + (1 - optim.beta2) * g * g
        moved = push_of(optim, g, self.mean[name], self.square[name], self.steps[name])
        return weight.double() * (1 - lr * optim.weight_decay) - lr * moved


def _compare(
    config: RunConfig,
    state: TrainState,
    expected: Expected,
    metrics: Mapping[str, float],
    before: Mapping[str, Tensor],
    mine: _Moments,
) -> list[str]:
    faults = []
    own = trainable(state.model)
    norm, clip = expected.norm, config.optim.clip_norm
    scale = min(1.0, clip / (norm + 1e-6)) if clip > 0 else 1.0
    for name, value in (("train/lm_loss", expected.lm), ("grad/total_norm", norm), ("grad/encoder_norm", norm)):
        if not abs(metrics[name] - value) <= TOLERANCE * abs(value) + 1e-6:
            faults.append(f"{name} is {metrics[name]:.4g}, transcribed {value:.4g}")
    off = sum(float((_gradient(own[n]) - scale * g).double().square().sum()) for n, g in expected.gradients.items())
    if not math.sqrt(off) <= TOLERANCE * scale * norm + 1e-9:
        faults.append(f"the gradient is off by {math.sqrt(off) / max(scale * norm, 1e-12):.2g} of its own norm")
    rate = rate_of(config.optim, state.step - 1, state.total_steps)
    wrong, moved, size = 0.0, 0.0, 0.0
    for n, p in own.items():
        if p.grad is None:
            continue
        after = mine.step(config.optim, n, before[n], p.grad, rate)
        wrong += float((p.detach().double() - after).square().sum())
        moved += float((after - before[n].double()).square().sum())
        size += float(after.square().sum())
    rounding = torch.finfo(torch.float32).eps * math.sqrt(size)  # of the weights themselves
    if not math.sqrt(wrong) <= TOLERANCE * math.sqrt(moved) + rounding:
        faults.append(f"the step is off by {math.sqrt(wrong / max(moved, 1e-24)):.2g} of its own length")
    return faults


def _gradient(p: nn.Parameter) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad

"""Watching the first updates: does each encoder parameter, sample and context token get a gradient from the LM loss
alone?

`gradient_watch` runs real updates, with the carry kept, and looks at coverage (each sample's own loss) and at every
parameter's gradient over the first updates; then it puts the encoder and the random state back, so the run itself is
not touched.

Legend: B batch, T context tokens.
"""

import copy
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from etrm.config.schema import RunConfig
from etrm.data.episodes import Source
from etrm.models.etrm import Episodes, act_step, fresh_carry
from etrm.probes.gradients import Coverage, GradientState, classify, coverage, gradients_of
from etrm.training.losses import step_loss
from etrm.training.optimizers import make_optimizer
from etrm.training.update import LossHead

FIRST = 3  # updates within which every parameter must have had a gradient
THEN = 20  # updates on every one of which it must have one
SAMPLES = 8


@dataclass(frozen=True)
class GradientWatch:
    """What the first FIRST + THEN updates showed. `norms[update][parameter]`: gradient norm, None where there was
    none.
    """

    state: GradientState
    norms: tuple[dict[str, float | None], ...]
    coverages: tuple[Coverage, ...]
    encoder_calls: int
    updates: int
    finite: bool
    by_layer: dict[str, float] = field(default_factory=dict)

    def late(self) -> list[str]:
        """Parameters without a non-zero gradient within the first FIRST updates."""
        return [n for n in self.norms[0] if not any(update[n] for update in self.norms[:FIRST])]

    def missing(self) -> list[tuple[int, str]]:
        """(update, parameter) of every missing or zero gradient in the THEN updates after the first FIRST."""
        return [(FIRST + i, n) for i, update in enumerate(self.norms[FIRST:]) for n, v in update.items() if not v]


def tokens_without_path(context: torch.Tensor, trainable: list[torch.nn.Parameter]) -> set[tuple[int, int]]:
    """(sample, token) of a context (B, T, D) from which no gradient reaches the encoder, whatever the loss gives it.

    The decoder sends a gradient to every token it reads; whether that token hangs on the encoder is another question.
    """
    if not context.requires_grad or not trainable:
        return {(i, t) for i in range(context.shape[0]) for t in range(context.shape[1])}
    lost = set()
    generator = torch.Generator().manual_seed(0)
    for i, t in np.ndindex(context.shape[0], context.shape[1]):
        direction = torch.randn(context.shape[-1], generator=generator)
        found = torch.autograd.grad(context[i, t].float() @ direction, trainable, allow_unused=True, retain_graph=True)
        if not any(g is not None and bool(g.any()) for g in found):
            lost.add((i, t))
    return lost


def gradient_watch(config: RunConfig, head: LossHead, source: Source, device: torch.device) -> GradientWatch:
    """Train FIRST + THEN updates on the LM loss alone, report where gradient arrived, and put the encoder back bitwise.

    Coverage is taken on halt_max_steps + 2 consecutive updates with SAMPLES samples, the carry kept; a one-step test
    would pass an encoder that is read only when a sample halts.
    """
    # The model itself is watched and put back, not a copy: whatever is wrong with this very object must show.
    watched = head
    encoder = watched.model.encoder
    assert isinstance(encoder, torch.nn.Module)
    before = copy.deepcopy(encoder.state_dict())
    random_state = torch.get_rng_state()
    watched.train()
    watched.decoder.requires_grad_(False).eval()
    calls = [0]
    hook = encoder.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    trainable = [p for p in encoder.parameters() if p.requires_grad]
    optimizer = make_optimizer(config.optim, trainable, config.optim.lr * 0.1) if trainable else None
    rng = np.random.default_rng([77, config.system.seed])
    generator = torch.Generator().manual_seed(config.system.seed)
    steps = watched.decoder.structure.halt_max_steps + 2
    norms: list[dict[str, float | None]] = []
    coverages: list[Coverage] = []
    finite = True
    cut: set[tuple[int, int]] = set()
    carry = None
    for update in range(FIRST + THEN):
        new = Episodes.of(source.sample(SAMPLES, rng), device)
        carry = fresh_carry(watched.decoder, new) if carry is None else carry
        carry, out = act_step(watched, carry, new, 0.0, generator)
        losses = step_loss(out.logits, out.halt, out.episodes.labels, config.loss.cross_entropy)
        lm = losses.lm
        if update < steps and lm.requires_grad:
            coverages.append(coverage(lm, encoder, out.encoded.context))
            cut |= tokens_without_path(out.encoded.context, trainable)
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)
        if lm.requires_grad:
            lm.sum().backward()
        gradients = gradients_of(encoder)
        norms.append({n: None if g is None else float(g.double().norm()) for n, g in gradients.items()})
        finite = finite and all(v is None or np.isfinite(v) for v in norms[-1].values())
        if optimizer is not None and finite:
            optimizer.step()
    hook.remove()
    weights = {n: p.detach().clone() for n, p in encoder.named_parameters() if n in gradients}
    gradients = {n: None if g is None else g.detach().clone() for n, g in gradients.items()}
    encoder.zero_grad(set_to_none=True)
    encoder.load_state_dict(before)
    torch.set_rng_state(random_state)
    if not lm.requires_grad or not finite:
        state = GradientState("blocked", 0.0, tuple(gradients), tuple(range(SAMPLES)))
    else:
        state = classify(gradients, weights, float(lm.detach().sum()), coverages)
    if cut and state.state == "intact":
        state = replace(state, state="partial", tokens=tuple(sorted(cut)))
    late = {n: v or 0.0 for n, v in norms[-1].items()}
    return GradientWatch(state, tuple(norms), tuple(coverages), calls[0], FIRST + THEN, finite, late)

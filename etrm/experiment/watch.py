"""Watching the first updates: does each encoder parameter, sample and context token get a gradient from the LM loss
alone?

`gradient_watch` runs real updates, with the carry kept, and looks at coverage (each sample's own loss) and at every
parameter's gradient over the first updates. Once, at the first update that shows something missing, else after FIRST of
them, `etrm.probes.diagnose` compares the gradient with finite differences and names the line. Then the encoder and the
random state are put back, so the run itself is not touched.

Legend: B batch, T context tokens.
"""

import copy
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from etrm.config.schema import RunConfig
from etrm.data.episodes import Source
from etrm.errors import EncoderContractError
from etrm.models.etrm import Carry, Episodes, act_step, fresh_carry
from etrm.probes.diagnosis import Diagnosis, Relation, diagnose
from etrm.probes.exceptions import Tape
from etrm.probes.gradients import Coverage, GradientState, classify, coverage, gradients_of, tokens_without_path
from etrm.training.losses import step_loss
from etrm.training.optimizers import make_optimizer
from etrm.training.update import LossHead

FIRST = 3  # updates within which every parameter must have had a gradient
THEN = 20  # updates on every one of which it must have one
SAMPLES = 8
WHOLE = 256  # of the run's own batch: an encoder that runs in parts may have a gradient in the first of them only


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
    diagnosis: Diagnosis | None = None

    @property
    def place(self) -> str:
        """`path/file.py:LINE  code` of the break, '' where nothing is wrong or no line is known."""
        return self.diagnosis.place if self.diagnosis is not None else ""

    @property
    def relation(self) -> Relation:
        """How autograd's gradient stands to finite differences: true, cut, scaled or invented."""
        return self.diagnosis.relation if self.diagnosis is not None else "unmeasured"

    def late(self) -> list[str]:
        """Parameters without a non-zero gradient within the first FIRST updates."""
        return [n for n in self.norms[0] if not any(update[n] for update in self.norms[:FIRST])]

    def missing(self) -> list[tuple[int, str]]:
        """(update, parameter) of every missing or zero gradient in the THEN updates after the first FIRST."""
        return [(FIRST + i, n) for i, update in enumerate(self.norms[FIRST:]) for n, v in update.items() if not v]


def gradient_watch(config: RunConfig, head: LossHead, source: Source, device: torch.device) -> GradientWatch:
    """Train FIRST + THEN updates on the LM loss alone, report where gradient arrived, and put the encoder back bitwise.

    Coverage is taken on halt_max_steps + 2 consecutive updates with SAMPLES samples, the carry kept; a one-step test
    would pass an encoder that is read only when a sample halts.
    """
    # The model itself is watched and put back, not a copy: whatever is wrong with this very object must show.
    watched = head
    encoder = watched.model.encoder
    assert isinstance(encoder, torch.nn.Module)
    if next(encoder.parameters(), None) is None:
        raise EncoderContractError(f"{config.encoder.name} has no parameters, so there is nothing to train")
    before = copy.deepcopy(encoder.state_dict())
    random_state = torch.get_rng_state()
    watched.train()
    watched.decoder.requires_grad_(False).eval()
    calls = [0]
    hook = encoder.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    trainable = [p for p in encoder.parameters() if p.requires_grad]
    rng = np.random.default_rng([77, config.system.seed])
    if not trainable:
        hook.remove()
        found = diagnose(watched, Episodes.of(source.sample(SAMPLES, rng), device))
        none = dict.fromkeys(n for n, _ in encoder.named_parameters())
        return GradientWatch(found.gradient, (none,), (), 0, 0, True, {}, found)
    optimizer = make_optimizer(config.optim, trainable, config.optim.lr * 0.1)
    generator = torch.Generator().manual_seed(config.system.seed)
    steps = watched.decoder.structure.halt_max_steps + 2
    norms: list[dict[str, float | None]] = []
    coverages: list[Coverage] = []
    finite = True
    cut: set[tuple[int, int]] = set()
    carry: Carry | None = None
    diagnosis: Diagnosis | None = None
    whole = Episodes.of(source.sample(min(WHOLE, config.budget.batch_size), rng), device)
    left_out = samples_without_path(watched, whole)
    calls[0] = 0
    for update in range(FIRST + THEN):
        new = Episodes.of(source.sample(SAMPLES, rng), device)
        before_step = fresh_carry(watched.decoder, new) if carry is None else carry
        carry, out = act_step(watched, before_step, new, 0.0, generator)
        losses = step_loss(out.logits, out.halt, out.episodes.labels, config.loss.cross_entropy)
        lm = losses.lm
        if update < steps and lm.requires_grad:
            coverages.append(coverage(lm, encoder, out.encoded.context))
            cut |= set(tokens_without_path(out.encoded.context, encoder))
        optimizer.zero_grad(set_to_none=True)
        if lm.requires_grad:
            lm.sum().backward()
        gradients = gradients_of(encoder)
        norms.append({n: None if g is None else float(g.double().norm()) for n, g in gradients.items()})
        finite = finite and all(v is None or np.isfinite(v) for v in norms[-1].values())
        missing = update >= FIRST and not all(norms[-1].values())
        starved = not lm.requires_grad or cut or not all(c.complete for c in coverages[-1:])
        if diagnosis is None and (starved or missing or not finite or update == FIRST):
            calls_before = calls[0]
            kept = {n: p.grad for n, p in encoder.named_parameters()}
            encoder.zero_grad(set_to_none=True)
            diagnosis = diagnose(watched, new, carry=before_step, optimisers=[optimizer])
            for name, parameter in encoder.named_parameters():
                parameter.grad = kept[name]
            calls[0] = calls_before
        if finite:
            optimizer.step()
    hook.remove()
    if left_out and (diagnosis is None or diagnosis.ok):
        diagnosis = diagnose(watched, whole, optimisers=[optimizer], audit=False)
    weights = {n: p.detach().clone() for n, p in encoder.named_parameters() if n in gradients}
    gradients = {n: None if g is None else g.detach().clone() for n, g in gradients.items()}
    encoder.zero_grad(set_to_none=True)
    encoder.load_state_dict(before)
    torch.set_rng_state(random_state)
    if not lm.requires_grad or not finite:
        state = GradientState("blocked", 0.0, tuple(gradients), tuple(range(SAMPLES)))
    else:
        state = classify(gradients, weights, float(lm.detach().sum()), coverages)
    if left_out and state.state == "intact":
        state = replace(state, state="partial", samples=left_out)
    if cut and state.state == "intact":
        state = replace(state, state="partial", tokens=tuple(sorted(cut)))
    if diagnosis is not None and not diagnosis.ok and state.state == "intact":
        state = replace(diagnosis.gradient, state=diagnosis.state, notes=(*diagnosis.gradient.notes, diagnosis.detail))
    late = {n: v or 0.0 for n, v in norms[-1].items()}
    return GradientWatch(state, tuple(norms), tuple(coverages), calls[0], FIRST + THEN, finite, late, diagnosis)


def samples_without_path(head: LossHead, episodes: Episodes) -> tuple[int, ...]:
    """Samples of a batch whose own context sends no gradient to the encoder; one backward pass of the encoder each."""
    encoder = head.model.encoder
    assert isinstance(encoder, torch.nn.Module)
    held, random_state = copy.deepcopy(encoder.state_dict()), torch.get_rng_state()
    context = head.context(episodes).context
    weights = [p for p in encoder.parameters() if p.requires_grad]
    direction = torch.randn(context.shape[1:], generator=torch.Generator().manual_seed(0)).to(context)
    lost = []
    for i, own in enumerate(context):
        found = (
            torch.autograd.grad((own * direction).sum(), weights, allow_unused=True, retain_graph=True)
            if context.requires_grad
            else ()
        )
        if not any(g is not None and bool(g.any()) for g in found):
            lost.append(i)
    encoder.load_state_dict(held)
    torch.set_rng_state(random_state)
    return tuple(lost)


def lost_later(config: RunConfig, head: LossHead, source: Source, step: int) -> list[str]:
    """Samples and context tokens without a gradient at this point of a run, over two ACT steps with the carry kept.

    Weights, gradients and random state are left as they were.
    """
    encoder = head.model.encoder
    assert isinstance(encoder, torch.nn.Module)
    random_state = torch.get_rng_state()
    kept = {n: p.grad for n, p in encoder.named_parameters()}
    generator = torch.Generator().manual_seed(step)
    new = Episodes.of(source.sample(SAMPLES, np.random.default_rng([78, step])), torch.device("cpu"))
    carry = fresh_carry(head.decoder, new)
    lost: list[str] = []
    for act in range(2):
        carry, out = act_step(head, carry, new, 0.0, generator)
        lm = step_loss(out.logits, out.halt, out.episodes.labels, config.loss.cross_entropy).lm
        if not lm.requires_grad:
            lost.append(f"the loss of ACT step {act + 1} hangs on no parameter")
            continue
        found = coverage(lm, encoder, out.encoded.context)
        cut = tokens_without_path(out.encoded.context, encoder)
        if not found.complete or cut:
            lost.append(
                f"ACT step {act + 1}: samples {list(found.lost_samples)}, tokens {sorted(cut)[:3]} get no gradient"
            )
    left_out = samples_without_path(
        head,
        Episodes.of(
            source.sample(min(WHOLE, config.budget.batch_size), np.random.default_rng([80, step])), torch.device("cpu")
        ),
    )
    if left_out:
        lost.append(f"samples {list(left_out[:3])} of a whole batch get no gradient ({len(left_out)} in all)")
    for name, parameter in encoder.named_parameters():
        parameter.grad = kept[name]
    torch.set_rng_state(random_state)
    return lost


SLOPE = (0.8, 1.25)  # of the loss's own slope; healthy runs lie within 0.997 and 1.001
SHARES = (0.02, 0.2, 0.002)  # of the loss, by which it is moved to see its slope
FINEST = 3e-6  # length of a move in lengths of the weights; below it their own rounding is moved
NEARLY_NOTHING = 0.02  # nats a token; of so small a loss fp32 shows no slope, and little is left to learn


def slope_later(config: RunConfig, head: LossHead, source: Source, step: int) -> list[str]:
    """Does the loss fall along its gradient as fast as the gradient says, at this point of a run?

    One finite difference along the whole gradient: turned round or scaled it shows, whatever turned it. Two batches
    must agree. Weights, buffers, gradients and random state are left as they were.
    """
    found = [_slope(config, head, source, step, batch) for batch in range(2)]
    wrong = [r for r in found if r is not None and not SLOPE[0] <= r <= SLOPE[1]]
    if len(wrong) < len(found):
        return []
    return [f"the loss changes along its gradient {wrong[0]:.2g} times as fast as the gradient says"]


def _slope(config: RunConfig, head: LossHead, source: Source, step: int, batch: int) -> float | None:
    """Slope of the loss along its gradient in units of what the gradient says; None where fp32 cannot show it."""
    encoder = head.model.encoder
    assert isinstance(encoder, torch.nn.Module)
    weights = [p for p in encoder.parameters() if p.requires_grad]
    kept, held = [p.detach().clone() for p in weights], copy.deepcopy(encoder.state_dict())
    random_state = torch.get_rng_state()
    new = Episodes.of(source.sample(SAMPLES, np.random.default_rng([79, step, batch])), torch.device("cpu"))

    def loss() -> torch.Tensor:
        torch.set_rng_state(random_state)
        _, out = act_step(head, fresh_carry(head.decoder, new), new, 0.0, torch.Generator().manual_seed(step))
        return step_loss(out.logits, out.halt, out.episodes.labels, config.loss.cross_entropy).lm.mean()

    def moved(by: float) -> float:
        encoder.load_state_dict(held)
        with torch.no_grad(), tape.replaying():  # what is declared as cut is held where it was
            for p, old, g in zip(weights, kept, gradient, strict=True):
                p.copy_(old + by * g)
            return float(loss())

    tape = Tape()
    with tape.recording():
        base = loss()
    gradient = [
        torch.zeros_like(p) if g is None else g
        for p, g in zip(weights, torch.autograd.grad(base, weights, allow_unused=True), strict=True)
    ]
    square = sum(float(g.double().square().sum()) for g in gradient)
    size = sum(float(p.detach().double().square().sum()) for p in weights)
    value = float(base.detach())
    ratio = None
    for share in SHARES:  # curvature bends the long ones, rounding the short ones
        by = share * value / max(square, 1e-30)
        if value < NEARLY_NOTHING or not square or by * square**0.5 < FINEST * size**0.5:
            continue
        ratio = (moved(by) - moved(-by)) / (2 * by * square)
        if SLOPE[0] <= ratio <= SLOPE[1]:
            break
    encoder.load_state_dict(held)
    torch.set_rng_state(random_state)
    return ratio

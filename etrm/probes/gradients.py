"""How much gradient arrives, where, for which samples and tokens; and what to call it.

B batch · T context tokens · D hidden size.

Call these before clipping: after clipping every norm is at most the clip and says nothing. Nothing here uses an
absolute threshold, because the size of a gradient changes with the loss's scale. "None" means exactly zero;
"vanishing" compares with what the loss's own floating point could show: the elasticity of parameter tensor p is |g_p|
|p| / |loss|, the relative change of the loss when p changes by its own size. Below `FLOOR` (about 80 roundings of
float32) the loss cannot tell that p exists. Multiplying the loss by any constant leaves elasticities, and so the
state, unchanged.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from etrm.errors import ProbeError
from etrm.probes.subject import Subject, named_parameters, trainable_parameters

if TYPE_CHECKING:
    from etrm.probes.gradient_audit import AuditReport

State = Literal["intact", "partial", "vanishing", "blocked"]
FLOOR = 1e-5
_FITTED = 1e-7


@dataclass(frozen=True)
class GradientNorms:
    """Norms of one backward pass: by parameter (None where no gradient came), by layer, and in total."""

    per_parameter: dict[str, float | None]
    per_layer: dict[str, float]
    total: float

    def __str__(self) -> str:
        width = max(len(name) for name in self.per_parameter)
        rows = [f"{n:<{width}}  {'none' if v is None else f'{v:.4g}'}" for n, v in self.per_parameter.items()]
        return "\n".join([*rows, f"{'total':<{width}}  {self.total:.4g}"])


def gradients_of(
    subject: Subject, loss: Tensor | None = None, *, retain_graph: bool = False
) -> dict[str, Tensor | None]:
    """Gradients by parameter name: of `loss` when given (nothing is accumulated), else what `.grad` holds now."""
    parameters = trainable_parameters(subject)
    if loss is None:
        return {name: value.grad for name, value in parameters.items()}
    if not loss.requires_grad:
        return dict.fromkeys(parameters)
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, retain_graph=retain_graph)
    return dict(zip(parameters, found, strict=True))


def gradient_norms(gradients: Mapping[str, Tensor | None]) -> GradientNorms:
    """Norms by parameter and by layer; a layer is the parameter's module path, the name without its last part."""
    if not gradients:
        raise ProbeError("there are no gradients to measure: the mapping is empty; pass gradients_of(model).")
    norms = {name: None if g is None else float(g.detach().double().norm()) for name, g in gradients.items()}
    squares: dict[str, float] = defaultdict(float)
    for name, norm in norms.items():
        squares[name.rpartition(".")[0]] += (norm or 0.0) ** 2
    layers = {name: value**0.5 for name, value in squares.items()}
    return GradientNorms(norms, layers, sum(squares.values()) ** 0.5)


def weights_of(subject: Subject) -> dict[str, Tensor]:
    """Copies of every parameter, to be handed to `update_ratios` after the optimiser's step."""
    return {name: value.detach().clone() for name, value in named_parameters(subject).items()}


def update_ratios(before: Mapping[str, Tensor], subject: Subject) -> dict[str, float]:
    """|new - old| / |old| by parameter; for a parameter that was all zero, inf when it moved and 0 when not."""
    ratios = {}
    for name, value in named_parameters(subject).items():
        if name not in before:
            raise ProbeError(
                f"parameter '{name}' was not in the weights before the step; call weights_of on the same module."
            )
        moved = float((value.detach().double() - before[name].double()).norm())
        size = float(before[name].double().norm())
        ratios[name] = moved / size if size > 0 else (float("inf") if moved > 0 else 0.0)
    return ratios


@dataclass(frozen=True)
class Coverage:
    """Whose loss trains the encoder.

    Attributes:
        sample_norms: (B,) norm of d loss_i / d parameters.
        token_norms: (B, T) norm of d loss_i / d context_i at each token, or None without a context.
        fitted: (B,) bool; this sample's loss is already zero to rounding, so it owes no gradient.
        crossed: pairs (i, j) where loss_i also depends on the context of another sample j.
    """

    sample_norms: Tensor
    token_norms: Tensor | None
    fitted: Tensor
    crossed: tuple[tuple[int, int], ...] = ()

    @property
    def lost_samples(self) -> tuple[int, ...]:
        """Samples whose own loss gives the encoder no gradient."""
        return tuple(torch.nonzero((self.sample_norms == 0) & ~self.fitted).flatten().tolist())

    @property
    def lost_tokens(self) -> tuple[tuple[int, int], ...]:
        """(sample, token) pairs of the context that get no gradient from the sample's own loss."""
        if self.token_norms is None:
            return ()
        found = torch.nonzero((self.token_norms == 0) & ~self.fitted[:, None]).tolist()
        return tuple((i, t) for i, t in found)

    @property
    def fraction(self) -> float:
        """Share of samples that train the encoder, 0..1."""
        return 1.0 - len(self.lost_samples) / len(self.sample_norms)

    @property
    def complete(self) -> bool:
        """Every sample and every token gets a gradient."""
        return not self.lost_samples and not self.lost_tokens


def coverage(losses: Tensor, subject: Subject, context: Tensor | None = None) -> Coverage:
    """For each sample: does its own loss reach the encoder's parameters, and its own context tokens?

    Args:
        losses: (B,) one loss a sample, still attached to its graph; the graph is kept.
        subject: the encoder, or its parameters by name.
        context: (B, T, D) or (B, D) as it was handed to the decoder, optional.

    Raises:
        ProbeError: losses are not a vector, or the context's batch is another one.
    """
    if losses.ndim != 1 or losses.numel() == 0:
        raise ProbeError(f"coverage needs one loss a sample, shape (B,); got {tuple(losses.shape)}.")
    if context is not None and (context.ndim < 2 or len(context) != len(losses)):
        raise ProbeError(f"context {tuple(context.shape)} does not hold one row for each of {len(losses)} losses.")
    parameters = list(trainable_parameters(subject).values())
    targets = parameters + ([context] if context is not None and context.requires_grad else [])
    norms = torch.zeros(len(losses), dtype=torch.float64)
    tokens = None
    if context is not None:
        tokens = torch.zeros((len(losses), context.shape[1] if context.ndim > 2 else 1), dtype=torch.float64)
    crossed: list[tuple[int, int]] = []
    for i in range(len(losses) if losses.requires_grad else 0):
        found = torch.autograd.grad(losses[i], targets, allow_unused=True, retain_graph=True)
        norms[i] = sum(float(g.double().square().sum()) for g in found[: len(parameters)] if g is not None) ** 0.5
        if tokens is not None and len(found) > len(parameters) and found[-1] is not None:
            by_token = found[-1].detach().double().reshape(*tokens.shape, -1).norm(dim=-1)  # (B, T)
            tokens[i] = by_token[i]
            others = by_token.sum(1) > 0
            others[i] = False
            crossed.extend((i, j) for j in torch.nonzero(others).flatten().tolist())
    size = losses.detach().abs().double().cpu()
    return Coverage(norms, tokens, (size <= _FITTED * size.max()) & (size.max() > 0), tuple(crossed))


def tokens_without_path(context: Tensor, subject: Subject) -> tuple[tuple[int, int], ...]:
    """(sample, token) of a context (B, T, D) from which no gradient reaches the encoder, whatever the loss gives it.

    The decoder sends a gradient to every token it reads; whether that token hangs on the encoder is another question.
    """
    pairs = [(i, t) for i in range(context.shape[0]) for t in range(context.shape[1])]
    trainable = [p for p in named_parameters(subject).values() if p.requires_grad]
    if not context.requires_grad or not trainable:
        return tuple(pairs)
    generator = torch.Generator().manual_seed(0)
    lost = []
    for i, t in pairs:
        direction = torch.randn(context.shape[-1], generator=generator).to(context.device)
        found = torch.autograd.grad(context[i, t].float() @ direction, trainable, allow_unused=True, retain_graph=True)
        if not any(g is not None and bool(g.any()) for g in found):
            lost.append((i, t))
    return tuple(lost)


def coverage_over_steps(step: Callable[[int], tuple[Tensor, Subject, Tensor | None]], steps: int) -> list[Coverage]:
    """Coverage of `steps` consecutive updates; `step(k)` does update k, carry kept, and returns losses, encoder and
    context.

    Give it at least halt_max_steps + 2 steps: an encoder that is called only when a sample halts looks healthy at
    step 1.
    """
    return [coverage(*step(k)) for k in range(steps)]


@dataclass(frozen=True)
class GradientState:
    """The verdict on one backward pass, with the places that made it so."""

    state: State
    elasticity: float
    parameters: tuple[str, ...] = ()
    samples: tuple[int, ...] = ()
    tokens: tuple[tuple[int, int], ...] = ()
    weak: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        lines = [f"gradient {self.state} (elasticity of the loss {self.elasticity:.3g})"]
        for word, items in (("parameters without gradient", self.parameters), ("samples", self.samples)):
            lines.extend([f"  {word}: {', '.join(map(str, items))}"] if items else [])
        lines.extend([f"  tokens (sample, token): {', '.join(map(str, self.tokens))}"] if self.tokens else [])
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def _elasticities(
    gradients: Mapping[str, Tensor | None], weights: Mapping[str, Tensor], loss: float
) -> dict[str, float]:
    """|g| |p| / |loss| by parameter; an all-zero tensor is given the median size of the others' entries."""
    sizes = {name: float(weights[name].detach().double().square().mean()) ** 0.5 for name in gradients}
    typical = sorted(size for size in sizes.values() if size > 0)
    middle = typical[len(typical) // 2] if typical else 1.0
    found = {}
    for name, gradient in gradients.items():
        norm = 0.0 if gradient is None else float(gradient.detach().double().norm())
        found[name] = norm * max(sizes[name], middle) * weights[name].numel() ** 0.5 / abs(loss) if loss else norm
    return found


def classify(
    gradients: Mapping[str, Tensor | None],
    weights: Mapping[str, Tensor],
    loss: float,
    coverages: Iterable[Coverage] = (),
    truth: "AuditReport | None" = None,
    floor: float = FLOOR,
) -> GradientState:
    """One of intact, partial, vanishing, blocked, with the names of what is missing.

    Args:
        gradients, weights: by parameter name, before clipping.
        loss: the loss the gradients belong to; non-zero.
        coverages: of this or of several consecutive updates; any lost sample or token makes the state partial.
        truth: a finite-difference audit; parameters it found cut to zero count as without gradient, whatever `.grad`
            says; a remainder of the true gradient makes the state vanishing.
        floor: elasticity below which the loss cannot see the encoder.
    """
    if not gradients:
        raise ProbeError("there are no gradients to classify: the mapping is empty; pass gradients_of(model).")
    bad = [name for name, g in gradients.items() if g is not None and not bool(torch.isfinite(g).all())]
    if bad:
        raise ProbeError(f"the gradient of '{bad[0]}' is not finite, so it has no state; find the NaN first.")
    lost = {name for name, g in gradients.items() if g is None or not bool(g.detach().any())}
    notes: list[str] = []
    shrunk = False
    for entry in truth.entries if truth is not None else ():
        if entry.name in gradients and entry.status == "cut":
            if any(entry.autograd):
                shrunk = True  # it does arrive, at less than the audit's tolerance of what it should be
            else:
                lost.add(entry.name)
        elif entry.status in ("scaled", "invented"):
            shrunk = shrunk or (entry.ratio is not None and abs(entry.ratio) < 1e-3)
            notes.append(str(entry))
    elasticities = _elasticities(gradients, weights, loss)
    total = sum(value**2 for value in elasticities.values()) ** 0.5
    weak = tuple(name for name, value in elasticities.items() if name not in lost and value < floor)
    watched = list(coverages)
    samples = tuple(sorted({i for item in watched for i in item.lost_samples}))
    tokens = tuple(sorted({pair for item in watched for pair in item.lost_tokens}))
    nobody = bool(watched) and all(item.fraction == 0.0 for item in watched)
    state: State = "intact"
    if len(lost) == len(gradients) or nobody:
        state = "blocked"
    elif lost or samples or tokens:
        state = "partial"
    elif total < floor or shrunk:
        state = "vanishing"
    return GradientState(state, total, tuple(n for n in gradients if n in lost), samples, tokens, weak, tuple(notes))

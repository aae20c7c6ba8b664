"""The loss's true dependence on each tensor, by finite differences in float64, against what autograd reports.

For a direction d of unit root mean square: fd = (L(p + h d) - L(p - h d)) / 2h and ad = <dL/dp, d>. Agreement is
`ok`; a true dependence that autograd does not see is `cut`; autograd seeing what is not there is `invented`; both
seeing different amounts is `scaled`, with the ratio ad / fd fitted over the directions. A tensor that the loss does
not depend on at all is `ok` with fd = 0.

Truncations declared with etrm.declared are recorded in the reference pass and replayed, so that a finite difference
measures the function that autograd differentiates; an undeclared detach is measured against the full dependence and
shows. Where the two disagree
the step is halved: if the differences disagree too (a kink or a rounding inside the step), another direction is drawn.
Central differences, error O(h²): Press et al., Numerical Recipes, section 5.7.
"""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from etrm.errors import ProbeError
from etrm.probes.double import in_double
from etrm.probes.exceptions import Declared, Tape
from etrm.probes.subject import Rerun, Subject, scalar_loss, trainable_parameters, unwrap, watchable

Status = Literal["ok", "cut", "scaled", "invented", "unresolved", "skipped"]
_STEP = 1e-5
_RETRIES = 4


@dataclasses.dataclass(frozen=True)
class AuditEntry:
    """The audit of one tensor, or of one token of the context. `ratio` is ad / fd, None where it has no meaning."""

    name: str
    status: Status
    ratio: float | None
    finite: tuple[float, ...] = ()
    autograd: tuple[float, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        text = f"{self.status:<10} {self.name}"
        if self.status == "scaled" and self.ratio is not None:
            text += f": autograd is {self.ratio:.4g} times the finite difference"
        elif self.status in ("cut", "invented"):
            text += f": finite difference {self.finite[0]:.4g}, autograd {self.autograd[0]:.4g}"
        return f"{text} ({self.reason})" if self.reason else text


@dataclasses.dataclass(frozen=True)
class AuditReport:
    """All entries, and the declared truncations that were held fixed."""

    entries: tuple[AuditEntry, ...]
    declared: tuple[Declared, ...]
    loss: float

    @property
    def failures(self) -> tuple[AuditEntry, ...]:
        """Entries where autograd and the finite difference disagree."""
        return tuple(entry for entry in self.entries if entry.status in ("cut", "scaled", "invented"))

    @property
    def ok(self) -> bool:
        """No disagreement anywhere."""
        return not self.failures

    def status_of(self, name: str) -> Status:
        """The status of one tensor. Raises ProbeError for a name that was not audited."""
        for entry in self.entries:
            if entry.name == name:
                return entry.status
        raise ProbeError(
            f"'{name}' was not audited; audited: {', '.join(entry.name for entry in self.entries[:5])}, ..."
        )

    def __str__(self) -> str:
        lines = [str(entry) for entry in self.entries]
        return "\n".join([*lines, *(f"held fixed: {item}" for item in self.declared)])


class _Probe:
    """An additive perturbation of a module's output, the context; shape (B, T, D) or (B, D)."""

    def __init__(self) -> None:
        self.delta: Tensor | None = None
        self.shape: tuple[int, ...] | None = None

    def hook(self, _: nn.Module, __: Any, output: Any) -> Any:
        """Add the perturbation to a tensor, to `.context` of an object, or to the first of a tuple."""
        if isinstance(output, Tensor):
            return self._shifted(output)
        if hasattr(output, "context"):
            shifted = self._shifted(output.context)
            if dataclasses.is_dataclass(output):
                return dataclasses.replace(output, context=shifted)  # type: ignore[type-var]
            changed = copy.copy(output)
            changed.context = shifted
            return changed
        if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
            return (self._shifted(output[0]), *output[1:])
        raise ProbeError(
            f"the context module returned {type(output).__name__}; expected a tensor or an object with .context."
        )

    def _shifted(self, output: Tensor) -> Tensor:
        self.shape = tuple(output.shape)
        if self.delta is None:
            self.delta = torch.zeros(self.shape, dtype=torch.float64, device=output.device, requires_grad=True)
        return output + self.delta


@contextmanager
def _hooked(module: nn.Module | None, probe: _Probe) -> Iterator[None]:
    handle = module.register_forward_hook(probe.hook) if module is not None else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def _judge(name: str, finite: list[float], autograd: list[float], noise: float, tolerance: float) -> AuditEntry:
    """Name the relation between the two lists of directional derivatives."""
    pair = (tuple(finite), tuple(autograd))
    size_fd, size_ad = math.hypot(*finite), math.hypot(*autograd)
    gap = math.hypot(*(a - f for a, f in zip(autograd, finite, strict=True)))
    if gap <= max(tolerance * max(size_fd, size_ad), noise):
        return AuditEntry(name, "ok", size_ad / size_fd if size_fd > noise else None, *pair)
    if size_ad <= max(tolerance * size_fd, noise):
        return AuditEntry(name, "cut", 0.0, *pair)
    if size_fd <= max(tolerance * size_ad, noise):
        return AuditEntry(name, "invented", None, *pair)
    ratio = sum(a * f for a, f in zip(autograd, finite, strict=True)) / size_fd**2
    left = math.hypot(*(a - ratio * f for a, f in zip(autograd, finite, strict=True)))
    reason = "" if left <= 0.05 * size_ad else "and points elsewhere: part of the dependence is cut or doubled"
    return AuditEntry(name, "scaled", ratio, *pair, reason=reason)


class _Audit:
    """One audit: a repeatable float64 loss, a tape of declared truncations, and a noise level."""

    def __init__(self, loss_fn: Callable[[], Tensor], rerun: Rerun, seed: int) -> None:
        self.loss_fn, self.rerun, self.tape = loss_fn, rerun, Tape()
        self.generator = torch.Generator().manual_seed(seed)

    def start(self) -> Tensor:
        """The loss with its graph, declared truncations recorded. Raises ProbeError when it does not repeat."""
        try:
            with self.tape.recording():
                loss = scalar_loss(self.rerun.run(self.loss_fn))
        except RuntimeError as error:
            if "dtype" in str(error) or "Double" in str(error):
                raise ProbeError(
                    f"the model cannot run in float64: {error}; pass model= what holds every weight."
                ) from error
            raise
        value, again = float(loss.detach()), self.loss()
        if not math.isfinite(value) or abs(value - again) > 1e-9 * max(abs(value), 1e-9):
            found = f"loss_fn gives {value:.9g}, then {again:.9g} from the same weights"
            raise ProbeError(f"{found}; fix its inputs, carry and seeds so that it repeats.")
        return loss

    def loss(self) -> float:
        """The loss of a perturbed pass."""
        with self.tape.replaying():
            return float(scalar_loss(self.rerun.run(self.loss_fn)).detach())

    def derivative(self, target: Tensor, direction: Tensor, step: float) -> float:
        """Central difference of the loss along `direction`; the target is put back exactly."""
        original = target.data
        try:
            target.data = original + step * direction
            above = self.loss()
            target.data = original - step * direction
            return (above - self.loss()) / (2 * step)
        finally:
            target.data = original

    def entry(
        self,
        name: str,
        target: Tensor,
        gradient: Tensor | None,
        where: Any,
        directions: int,
        noise: float,
        tolerance: float,
    ) -> AuditEntry:
        """Audit `target[where]` along random directions."""
        finite: list[float] = []
        autograd: list[float] = []
        rough = 0
        size = float(target.detach().double().square().mean()) ** 0.5 if where is Ellipsis else 0.0
        step = _STEP * max(size, 1e-2) if where is Ellipsis else _STEP
        while len(finite) < directions and rough < _RETRIES * directions:
            direction = torch.zeros(target.shape, dtype=torch.float64, device=target.device)
            drawn = torch.randn(direction[where].shape, generator=self.generator, dtype=torch.float64)
            direction[where] = drawn.to(target.device)
            claimed = 0.0 if gradient is None else float((gradient * direction).sum())
            coarse = self.derivative(target, direction, step)
            # Only a disagreement needs the second step, to tell a wrong gradient from a kink.
            if abs(coarse - claimed) > max(4 * noise / step, 0.1 * tolerance * max(abs(coarse), abs(claimed))):
                fine = self.derivative(target, direction, step / 2)
                if abs(coarse - fine) > 4 * noise / step + 0.1 * tolerance * max(abs(coarse), abs(fine)):
                    rough += 1
                    continue
                coarse = fine
            finite.append(coarse)
            autograd.append(claimed)
        if not finite:
            return AuditEntry(
                name, "unresolved", None, reason="finite differences do not settle: a kink or low precision inside"
            )
        return _judge(name, finite, autograd, 4 * noise / step, tolerance)


def gradient_audit(
    loss_fn: Callable[[], Tensor],
    parameters: Subject,
    *,
    model: nn.Module | None = None,
    context_module: nn.Module | None = None,
    directions: int = 2,
    tolerance: float = 1e-4,
    skip: Mapping[str, str] | None = None,
    seed: int = 0,
) -> AuditReport:
    """Compare autograd with finite differences for every parameter tensor, and for the context by sample and token.

    Args:
        loss_fn: runs the forward pass and returns the scalar loss; deterministic from a given random state.
        parameters: the module whose parameters are audited, or tensors by name; only those that require gradient are.
        model: every module the loss runs through; it is turned to float64 meanwhile. Default: `parameters` if that is
            a module.
        context_module: optional; its output (B, T, D), or `.context` of it, is audited as context[sample, token].
        directions: random directions a tensor.
        tolerance: relative disagreement that still counts as ok.
        skip: reasons by parameter name; these are reported as skipped.
        seed: of the random directions.

    Raises:
        ProbeError: no trainable parameters, a loss that is no scalar or does not repeat, or code that cannot run in
        float64.
    """
    trainable = trainable_parameters(parameters)
    reasons = dict(skip or {})
    unknown = sorted(set(reasons) - set(trainable))
    if unknown:
        raise ProbeError(
            f"skip names '{unknown[0]}', which is no trainable parameter; known: {', '.join(list(trainable)[:5])}."
        )
    root = model if model is not None else (parameters if isinstance(parameters, nn.Module) else None)
    subject: Subject = root if root is not None else trainable
    everything = unwrap(root) if root is not None else None
    probe = _Probe()
    with (
        watchable(subject),
        in_double(everything, list(trainable.values())),
        Rerun(subject) as rerun,
        _hooked(context_module, probe),
        torch.enable_grad(),
    ):
        audit = _Audit(loss_fn, rerun, seed)
        loss = audit.start()
        targets = dict(trainable)
        if probe.delta is not None:
            targets["context"] = probe.delta
        elif context_module is not None:
            raise ProbeError("loss_fn never called context_module, so there is no context to audit.")
        gradients: list[Tensor | None] = [None] * len(targets)
        if loss.requires_grad:
            gradients = list(torch.autograd.grad(loss, list(targets.values()), allow_unused=True))
        value = float(loss.detach())
        noise = 8 * torch.finfo(torch.float64).eps * max(abs(value), 1e-12)
        entries = []
        for (name, target), gradient in zip(targets.items(), gradients, strict=True):
            if name in reasons:
                entries.append(AuditEntry(name, "skipped", None, reason=reasons[name]))
                continue
            for label, where in _parts(name, target, target is probe.delta):
                entries.append(audit.entry(label, target, gradient, where, directions, noise, tolerance))
        return AuditReport(tuple(entries), tuple(audit.tape.seen.values()), value)


def _parts(name: str, target: Tensor, by_token: bool) -> Iterator[tuple[str, Any]]:
    """A parameter as a whole; a context by sample and token."""
    if not by_token:
        yield name, ...
    elif target.ndim < 3:
        yield from ((f"context[{i}]", (i,)) for i in range(target.shape[0]))
    else:
        yield from ((f"context[{i}, {t}]", (i, t)) for i in range(target.shape[0]) for t in range(target.shape[1]))

"""Is a context of the kind the decoder was trained with? Shape, dtype, finiteness, scale and active tokens.

Shape, dtype and finiteness are a contract: another context cannot be read at all. Scale and active tokens are findings
against the bundle's own statistics: the decoder reads such a context, but has never seen one. A context thirty times
too large, or sixteen full tokens in front of a decoder whose own contexts fill one, fails here and nowhere else.
Ratios only, so that no number depends on a bundle's units.

Legend: B batch, T context tokens, D hidden.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from etrm.errors import ProbeError
from etrm.models.encoders import EncoderSpec

LARGEST = 5.0  # a token's RMS over that of the decoder's own contexts; a unit-RMS answer to small rows passes, 30 fails
SMALLEST = 1 / LARGEST
QUIET = 1e-2  # of the active tokens' RMS: below it a token that the decoder's contexts never use counts as silent

Name = Literal["shape", "dtype", "finite", "scale", "active_tokens"]
CONTRACT: tuple[Name, ...] = ("shape", "dtype", "finite")


@dataclass(frozen=True)
class ContextCheck:
    """One question to a context. `ok` is None where an earlier one already made it meaningless."""

    name: Name
    ok: bool | None
    detail: str


@dataclass(frozen=True)
class ContextReport:
    """All five checks; `ratios` is each token's RMS over the decoder's own, None for a token that it never uses."""

    checks: tuple[ContextCheck, ...]
    ratios: tuple[float | None, ...] = ()

    @property
    def contract_ok(self) -> bool:
        """The decoder can read it: shape, dtype and finiteness."""
        return all(c.ok is True for c in self.checks if c.name in CONTRACT)

    @property
    def ok(self) -> bool:
        """Every check holds."""
        return all(c.ok is True for c in self.checks)

    def __str__(self) -> str:
        words = {True: "ok", False: "WRONG", None: "not asked"}
        return "\n".join(f"{words[c.ok]:<9} {c.name}: {c.detail}" for c in self.checks)


def own_rms(spec: EncoderSpec) -> Tensor:
    """RMS of each token of the decoder's own contexts, (T,): from their mean and their deviation around it."""
    return (spec.context_mean.double().square().mean(dim=1) + spec.context_std.double().square()).sqrt()


def context_report(context: Any, spec: EncoderSpec, batch: int | None = None) -> ContextReport:
    """Compare a context with the statistics of the decoder's own.

    Args:
        context: what an encoder answered, (B, T, D); anything else fails the contract and is never an exception.
        spec: sizes and statistics of the decoder's bundle.
        batch: the B expected; any where None.

    Raises:
        ProbeError: the spec's own statistics are not finite or all zero, so nothing can be compared with them.
    """
    own = own_rms(spec)
    if not bool(torch.isfinite(own).all()) or not bool((own > 0).any()):
        raise ProbeError("the bundle's context statistics are not finite or all zero; make the bundle again.")
    if not isinstance(context, Tensor):
        return _unreadable("shape", f"{type(context).__name__}, expected a tensor (B, T, D)")
    expected = (batch if batch is not None else "B", spec.context_tokens, spec.hidden_size)
    shape = tuple(context.shape)
    if len(shape) != 3 or shape[0] == 0 or shape[1:] != expected[1:] or (batch is not None and shape[0] != batch):
        return _unreadable("shape", f"{shape}, expected {expected}")
    checks = [ContextCheck("shape", True, str(shape))]
    if not context.is_floating_point() or context.is_meta:
        where = " on the meta device" if context.is_meta else ""
        return _unreadable("dtype", f"{context.dtype}{where}, expected numbers of a floating type", checks)
    checks.append(ContextCheck("dtype", True, str(context.dtype).removeprefix("torch.")))
    values = context.detach().double().cpu()
    bad = int((~torch.isfinite(values)).flatten(1).any(dim=1).sum())
    if bad:
        return _unreadable("finite", f"NaN or infinite in {bad} of {shape[0]} samples", checks)
    checks.append(ContextCheck("finite", True, f"{shape[0]} of {shape[0]} samples"))
    found = values.square().mean(dim=(0, 2)).sqrt()  # (T,)
    active = own > QUIET * own.max()
    ratios = tuple(float(f / o) if a else None for f, o, a in zip(found, own, active, strict=True))
    return ContextReport((*checks, _scale(ratios), _active(found, own, active)), ratios)


def _unreadable(name: Name, detail: str, before: list[ContextCheck] | None = None) -> ContextReport:
    """A report that ends at a failed check of the contract; what comes after is not asked."""
    done = [*(before or []), ContextCheck(name, False, detail)]
    every: tuple[Name, ...] = (*CONTRACT, "scale", "active_tokens")
    rest = [ContextCheck(n, None, f"not asked: {name} is wrong") for n in every[len(done) :]]
    return ContextReport((*done, *rest))


def _scale(ratios: tuple[float | None, ...]) -> ContextCheck:
    wrong = [(t, r) for t, r in enumerate(ratios) if r is not None and not SMALLEST <= r <= LARGEST]
    if wrong:
        t, ratio = max(wrong, key=lambda item: abs(torch.tensor(max(item[1], 1e-30)).log().item()))
        text = f"token {t} has {ratio:.3g} times the RMS of the decoder's own contexts"
        return ContextCheck("scale", False, f"{text}; {len(wrong)} tokens outside {SMALLEST:g} to {LARGEST:g}")
    shown = ", ".join(f"{r:.2g}" for r in ratios if r is not None)
    return ContextCheck("scale", True, f"RMS over the decoder's own, by token: {shown}")


def _active(found: Tensor, own: Tensor, active: Tensor) -> ContextCheck:
    """Tokens that the decoder's contexts use are not silent, and those that they never use are."""
    loud = [t for t in range(len(own)) if not active[t] and float(found[t]) > QUIET * float(own.max())]
    silent = [t for t in range(len(own)) if active[t] and float(found[t]) <= QUIET * float(own[t])]
    count = int(active.sum())
    if loud or silent:
        parts = [f"tokens {loud} carry a context where the decoder's own are always zero"] if loud else []
        parts += [f"tokens {silent} are silent where the decoder's own are not"] if silent else []
        return ContextCheck("active_tokens", False, f"{'; '.join(parts)} ({count} of {len(own)} are used)")
    return ContextCheck("active_tokens", True, f"{count} of {len(own)}, as the decoder's own")

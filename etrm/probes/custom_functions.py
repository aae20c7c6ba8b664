"""Custom `torch.autograd.Function`s: is their backward the derivative of their own forward?

Checked on the function alone, with the arguments of one pass, by central differences in float64 where it takes
float64. One whose backward is meant to be another thing (a straight-through estimator, a reversal) says so with a class
attribute, `declared = "straight_through"`. Nothing here runs on a graph without such functions.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from etrm.probes.break_report import Finding, Severity
from etrm.probes.interventions import Trial
from etrm.probes.places import Place, is_foreign, place_of, returning_place

Node = Any
_TOLERANCE = 1e-3
_DIRECTIONS = 3


@dataclass
class Applied:
    """One call of a custom function: class, arguments, and the user's line."""

    kind: Any
    args: tuple[Any, ...]
    place: Place


class ApplyRecorder(TorchFunctionMode):
    """Notes the arguments of every user-written `autograd.Function.apply` in a pass, by looking up the stack."""

    def __init__(self) -> None:
        super().__init__()
        self.applied: list[Applied] = []
        self._frames: list[Any] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and not (
            frame.f_code.co_name == "apply" and frame.f_code.co_filename.endswith("function.py")
        ):
            frame = frame.f_back
        if frame is not None and not any(frame is known for known in self._frames):
            kind, given = frame.f_locals.get("cls"), frame.f_locals.get("args")
            if is_users(kind) and isinstance(given, tuple):
                self._frames.append(frame)
                caller = frame.f_back
                while caller is not None and is_foreign(caller.f_code):
                    caller = caller.f_back
                with torch._C.DisableTorchFunction():
                    kept = tuple(a.detach().clone() if isinstance(a, Tensor) else a for a in given)
                wanted = [isinstance(a, Tensor) and a.requires_grad for a in given]
                kept = tuple(
                    a.requires_grad_() if w and a.is_floating_point() else a for a, w in zip(kept, wanted, strict=True)
                )
                self.applied.append(Applied(kind, kept, place_of(caller)))
        return func(*args, **(kwargs or {}))


def is_users(kind: Any) -> bool:
    """Whether `kind` is an autograd.Function written outside torch."""
    return isinstance(kind, type) and kind.__module__.partition(".")[0] != "torch"


def custom_nodes(nodes: Iterable[Node]) -> list[Node]:
    """The nodes of the graph that a user's autograd.Function made."""
    return [n for n in nodes if is_users(getattr(n, "_forward_cls", None))]


def function_findings(recorder: ApplyRecorder, dead: set[Place | None]) -> list[Finding]:
    """Custom functions whose backward is not the derivative of their forward; `dead` places are reported already."""
    found: dict[Any, Finding] = {}
    for item in recorder.applied:
        place = returning_place(item.kind.backward)
        if item.kind in found or place in dead:
            continue
        ratio = _function_ratio(item)
        if ratio is None or abs(ratio - 1) <= 10 * _TOLERANCE:
            continue
        name = item.kind.__name__
        declared = getattr(item.kind, "declared", None)
        note = (
            "its forward does not depend on its input there, and backward says it does"
            if ratio == float("inf")
            else f"it gives {ratio:.4g} times the derivative of its own forward"
        )
        severity: Severity = "weakened" if declared is None else "expected"
        kind = f"{name}.backward is not the derivative of its forward"
        found[item.kind] = Finding(kind, severity, place, declared=declared, note=f"{note}; applied at {item.place}")
    return list(found.values())


def _directions(tensors: list[Tensor], generator: torch.Generator) -> Iterator[list[Tensor]]:
    for _ in range(_DIRECTIONS):
        yield [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for t in tensors]


def _function_ratio(item: Applied) -> float | None:
    """Backward over central difference along random directions; None where the two cannot be compared.

    One direction that agrees is enough: a kink spoils a difference, nothing mends it.
    """
    generator = torch.Generator().manual_seed(0)
    for kind in (torch.float64, None):
        with Trial() as trial:  # a function that refuses float64 is tried in its own type, then left alone
            args = tuple(
                a.detach().to(kind).requires_grad_(a.requires_grad)
                if kind is not None and isinstance(a, Tensor) and a.is_floating_point()
                else a
                for a in item.args
            )
            ratio = _compared(item.kind, args, generator)
        if not trial.failed:
            return ratio
    return None


def _compared(kind: Any, args: tuple[Any, ...], generator: torch.Generator) -> float | None:
    leaves = [a for a in args if isinstance(a, Tensor) and a.requires_grad]
    state = torch.get_rng_state()

    def run() -> list[Tensor]:
        torch.set_rng_state(state)
        out = kind.apply(*args)
        return [t for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, Tensor) and t.requires_grad]

    outputs = run()
    if not outputs or not leaves:
        return None
    weights = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o) for o in outputs]
    gradients = torch.autograd.grad(outputs, leaves, weights, allow_unused=True)
    step = 1e-5 if leaves[0].dtype == torch.float64 else 1e-2
    pairs: list[tuple[float, float]] = []
    for direction in _directions(leaves, generator):
        claimed = sum(float((g * d).double().sum()) for g, d in zip(gradients, direction, strict=True) if g is not None)
        values = []
        for sign in (1, -1):
            for leaf, d in zip(leaves, direction, strict=True):
                leaf.data.add_(d, alpha=sign * step)
            values.append(sum(float((w * o).double().sum()) for w, o in zip(weights, run(), strict=True)))
            for leaf, d in zip(leaves, direction, strict=True):
                leaf.data.sub_(d, alpha=sign * step)
        true = (values[0] - values[1]) / (2 * step)
        slack = _TOLERANCE if leaves[0].dtype == torch.float64 else 5e-2
        if abs(claimed - true) <= slack * max(abs(claimed), abs(true)) + 1e-9:
            return None
        pairs.append((claimed, true))
    squares = sum(t * t for _, t in pairs)
    if squares <= 1e-12 * sum(c * c for c, _ in pairs):
        return float("inf")
    return sum(c * t for c, t in pairs) / squares

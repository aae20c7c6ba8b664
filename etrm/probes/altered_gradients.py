"""Gradients that arrive but are not the loss's, because a hook changed them on their way.

The invariant knows nothing of what the hook does: a node receives the sum of what the nodes before it sent. Sums are
compared by random projections, which are linear, so no gradient is kept. Nothing here runs on a model without hooks.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from etrm.probes.autograd_walk import upstream
from etrm.probes.break_report import Finding, Severity
from etrm.probes.calls import Hook
from etrm.probes.interventions import Trial
from etrm.probes.places import Place, function_place, is_foreign

Node = Any
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}
_MODULE_HOOK = "BackwardHookFunction"
BUCKETS = 16  # one sum may cancel by chance (it did, once in 1,857 plants); sixteen together do not
Sketch = tuple[Tensor, float]
NOTHING: Sketch = (torch.zeros(BUCKETS, dtype=torch.float64), 0.0)


def _signs(count: int, device: torch.device) -> Tensor:
    """Fixed random signs for a tensor of so many elements."""
    generator = torch.Generator().manual_seed(count)
    return (2.0 * torch.randint(0, 2, (count,), generator=generator) - 1.0).double().to(device)


def _projected(gradient: Tensor) -> Sketch:
    """Sums of the gradient's elements over BUCKETS parts of it with random signs, and its norm."""
    flat = gradient.detach().double().reshape(-1)
    padded = torch.nn.functional.pad(flat * _signs(len(flat), flat.device), (0, -len(flat) % BUCKETS))
    return padded.view(BUCKETS, -1).sum(dim=1).cpu(), float(flat.norm())


@dataclass
class Altered:
    """A hook at `node` (a leaf tensor's is its own) changed what arrived by `ratio`, None where that is no number."""

    node: Node
    ratio: float


def _differs(expected: Sketch, found: Tensor | None) -> float | None:
    """Ratio of found to expected where they differ by more than rounding, else None."""
    sums, size = _projected(found) if found is not None else NOTHING
    allowed = _ROUNDING.get(found.dtype, 2e-2) if found is not None else 1e-9
    if float((sums - expected[0]).norm()) <= allowed * max(size, expected[1]):
        return None
    square = float(expected[0].square().sum())
    return float(sums @ expected[0]) / square if square else float("inf")


def altered_by_hooks(loss: Tensor, parameters: list[Tensor]) -> list[Altered]:
    """Every node at which a hook changed the gradient; one backward pass, the graph is kept."""
    order = upstream([loss.grad_fn])
    sums: dict[tuple[Node, int], Sketch] = {}
    found: list[Altered] = []
    handles = []

    def watch(node: Node) -> None:
        name = type(node).__name__

        def before(arriving: tuple[Tensor | None, ...]) -> None:
            for k, gradient in enumerate(arriving):
                expected = sums.get((node, k))
                if expected is not None and (ratio := _differs(expected, gradient)) is not None:
                    found.append(Altered(node, ratio))

        def after(leaving: tuple[Tensor | None, ...], _: tuple[Tensor | None, ...]) -> None:
            edges = node.next_functions
            for k, gradient in enumerate(leaving):
                if k >= len(edges) or edges[k][0] is None:
                    continue
                passed = sums.get((node, k))
                if name.startswith(_MODULE_HOOK) and passed is not None:
                    ratio = _differs(passed, gradient)  # this node is the identity but for its hooks
                    if ratio is not None:
                        found.append(Altered(node, ratio))
                if gradient is not None:
                    value, size = _projected(gradient)
                    old = sums.get(edges[k], NOTHING)
                    sums[edges[k]] = (old[0] + value, old[1] + size)

        handles.append(node.register_prehook(before))
        handles.append(node.register_hook(after))

    try:
        for node in order:
            if getattr(node, "variable", None) is None:
                watch(node)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    finally:
        for handle in handles:
            handle.remove()
    leaves = {id(node.variable): node for node in order if getattr(node, "variable", None) is not None}
    for parameter, gradient in zip(parameters, gradients, strict=True):
        node = leaves.get(id(parameter))
        expected = sums.get((node, 0)) if node is not None else None
        if node is not None and expected is not None and (ratio := _differs(expected, gradient)) is not None:
            found.append(Altered(node, ratio))
    return found


def hooked(module: nn.Module | None, parameters: Iterable[Tensor], hooks: list[Hook]) -> bool:
    """Whether anything could change a gradient on its way: hooks of tensors, parameters or modules."""
    children = list(module.modules()) if module is not None else []
    return (
        bool(hooks)
        or any(p._backward_hooks for p in parameters)
        or any(child._backward_hooks or child._backward_pre_hooks for child in children)
    )


def hook_place(node: Node, module: nn.Module | None, hooks: list[Hook]) -> Place | None:
    """The line of the hook at a node: of the tensor, of the leaf, else of the first module with a user's hook."""
    variable = getattr(node, "variable", None)
    for hook in hooks:
        if hook.node is node or (variable is not None and hook.node is variable):
            return hook.place
    for function in (getattr(variable, "_backward_hooks", None) or {}).values():
        return function_place(function)
    return module_hook_place(module)


def module_hook_place(module: nn.Module | None) -> Place | None:
    """The first user-written backward hook on any module."""
    for child in module.modules() if module is not None else ():
        for function in [*child._backward_hooks.values(), *child._backward_pre_hooks.values()]:
            code = getattr(function, "__code__", None)
            if code is None or not is_foreign(code):
                return function_place(function)
    return None


def hook_findings(
    loss: Tensor, parameters: dict[str, Tensor], lost: set[int], module: nn.Module | None, hooks: list[Hook]
) -> list[Finding]:
    """One finding a line for hooks that change a gradient without ending it (what ends is found where it dies)."""
    found: dict[Any, Finding] = {}
    for item in altered_by_hooks(loss, list(parameters.values())):
        variable = getattr(item.node, "variable", None)
        if item.ratio == 0.0 or (variable is not None and id(variable) in lost):
            continue
        place = hook_place(item.node, module, hooks)
        names = tuple(n for n, p in parameters.items() if p is variable)
        note = f"what goes on is {item.ratio:.4g} times what arrived, so it is not this loss's gradient"
        known = found.get(place)
        if known is not None:
            names = (*known.parameters, *names)
        # No parameter is without gradient, so they are named in the note only.
        suffix = f" (of {', '.join(names[:3])})" if names else ""
        found[place] = Finding("hook changes the gradient", "weakened", place, note=note + suffix)
    return list(found.values())


def accumulation_findings(parameters: dict[str, Tensor], gradients: list[Tensor | None]) -> list[Finding]:
    """Post-accumulate hooks tried on a stand-in: one that changes `.grad` is found; one that needs the real
    parameter (an optimiser step in the backward pass) fails on the stand-in and is left alone.
    """
    found = []
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        hooks = getattr(parameter, "_post_accumulate_grad_hooks", None) or {}
        for function in hooks.values():
            if gradient is None or not bool(gradient.any()):
                continue
            stand_in = nn.Parameter(parameter.detach().clone())
            stand_in.grad = gradient.detach().clone()
            with Trial() as trial:  # whatever a user's hook raises on a stand-in says nothing
                function(stand_in)
            now = stand_in.grad
            if trial.failed or now is None or torch.equal(now, gradient):
                continue
            dead = not bool(now.any())
            severity: Severity = "cut" if dead else "weakened"
            word = "zeroes" if dead else "changes"
            what = Finding(f"post-accumulate hook {word} the gradient", severity, function_place(function))
            found.append(replace(what, parameters=(name,) if dead else (), note=f"of '{name}'"))
    return found

"""Findings that need no intervention: each looks at what an observed pass left behind and states one invariant.

A hook does not change a gradient; a custom backward is the derivative of its forward; memory handed to numpy comes back
as it was; a backward call is not limited to some leaves; gradients are finite; a parameter's result reaches the loss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from etrm.probes.altered_gradients import accumulation_findings, hook_findings, hooked
from etrm.probes.autograd_walk import upstream
from etrm.probes.break_report import Finding, Severity
from etrm.probes.calls import BackwardCall, Log
from etrm.probes.custom_functions import ApplyRecorder, custom_nodes, function_findings
from etrm.probes.places import Place
from etrm.probes.registration import Misplaced, owner_place
from etrm.probes.subject import Rerun
from etrm.probes.taint import Observer


@dataclass(frozen=True, eq=False)
class Observed:
    """One observed pass: the model (None for a mapping of parameters), the watched parameters, the log, the loss."""

    module: nn.Module | None
    trainable: dict[str, Tensor]
    log: Log
    loss: Tensor


def altered_findings(what: Observed, gradients: Callable[[], list[Tensor | None]]) -> list[Finding]:
    """Hooks of tensors, parameters and modules that change a gradient; nothing is run where there are none."""
    if not what.loss.requires_grad:
        return []
    found = []
    if hooked(what.module, what.trainable.values(), what.log.hooks):
        lost = {
            id(p) for p, g in zip(what.trainable.values(), gradients(), strict=True) if g is None or not bool(g.any())
        }
        found += hook_findings(what.loss, what.trainable, lost, what.module, what.log.hooks)
    if any(getattr(p, "_post_accumulate_grad_hooks", None) for p in what.trainable.values()):
        found += accumulation_findings(what.trainable, gradients())
    return found


def custom_findings(
    what: Observed, rerun: Rerun, loss_fn: Callable[[], Tensor], known: set[Place | None]
) -> list[Finding]:
    """Custom autograd functions with another backward; the pass is repeated where the graph holds one."""
    if not what.loss.requires_grad or not custom_nodes(upstream([what.loss.grad_fn])):
        return []
    rerun.restore()
    with ApplyRecorder() as recorder:
        loss_fn()
    return function_findings(recorder, known)


def memory_findings(log: Log) -> list[Finding]:
    """Tensors whose memory changed after it was handed to numpy, without torch knowing of a write."""
    found = []
    for export in log.exports:
        unseen = export.tensor._version == export.version
        if unseen and not torch.equal(export.tensor.detach(), export.before):
            note = "its memory was written through numpy, which autograd does not see"
            shape = tuple(export.before.shape)
            found.append(Finding("in-place write through numpy", "weakened", export.place, shape=shape, note=note))
    return found


def limited_backward_findings(calls: list[BackwardCall], trainable: dict[str, Tensor]) -> list[Finding]:
    """Backward calls inside loss_fn that were limited to other tensors."""
    found = []
    for call in calls:
        missing = tuple(n for n, v in trainable.items() if call.inputs is not None and id(v) not in call.inputs)
        if missing:
            note = "backward was limited to other inputs"
            found.append(Finding("backward(inputs=...)", "cut", call.place, parameters=missing, note=note))
    return found


def _finite(gradients: tuple[Tensor | None, ...]) -> bool:
    return all(g is None or bool(torch.isfinite(g).all()) for g in gradients)


def non_finite_findings(loss: Tensor, trainable: dict[str, Tensor], gradients: list[Tensor | None]) -> list[Finding]:
    """The first operation of the backward pass that received finite gradients and sent others."""
    bad = tuple(n for n, g in zip(trainable, gradients, strict=True) if not _finite((g,)))
    if not bad:
        return []
    first: list[Any] = []
    handles = []

    def watch(node: Any) -> None:
        def after(leaving: tuple[Tensor | None, ...], arriving: tuple[Tensor | None, ...]) -> None:
            if not first and _finite(arriving) and not _finite(leaving):
                first.append(node)

        handles.append(node.register_hook(after))

    try:
        for node in upstream([loss.grad_fn]):
            if getattr(node, "variable", None) is None:
                watch(node)
        torch.autograd.grad(loss, list(trainable.values()), allow_unused=True, retain_graph=True)
    finally:
        for handle in handles:
            handle.remove()
    place = first[0].metadata.get("etrm") if first else None
    note = "the gradient is NaN or infinite from here on"
    return [Finding("gradient is not finite", "cut", place, parameters=bad, note=note)]


def unused_findings(
    observer: Observer,
    module: nn.Module | None,
    names: dict[int, str],
    trainable: dict[str, Tensor],
    unexplained: set[int],
    loss: Tensor,
) -> list[Finding]:
    """Parameters that are not in the loss's graph and that no break explains, at the last line that used them."""
    if not unexplained:
        return []
    last = observer.last_uses(unexplained, set(upstream([loss.grad_fn])))
    grouped: dict[Any, list[str]] = {}
    for key in unexplained:
        used = last.get(key) or observer.log.first_use.get(key)
        name = names[key]
        place = used or (owner_place(module, name) if module is not None else None)
        grouped.setdefault((used is None, place), []).append(name)
    found = []
    for (never, place), members in grouped.items():
        ordered = tuple(name for name in trainable if name in members)
        kind = "parameter never used" if never else "result never reaches the loss"
        note = "" if never else "this is the last line seen to compute with it"
        shape = tuple(trainable[ordered[0]].shape)
        module_path = ordered[0].rpartition(".")[0]
        found.append(Finding(kind, "cut", place, module_path, shape, parameters=ordered, note=note))
    return found


def misplaced_finding(item: Misplaced, severity: Severity = "cut") -> Finding:
    """A finding about registration; where nothing is cut its names go into the note."""
    if severity == "cut":
        return Finding(item.kind, severity, item.place, item.module, item.shape, parameters=item.names, note=item.note)
    note = f"{', '.join(item.names)}: {item.note}"
    return Finding(item.kind, severity, item.place, item.module, item.shape, note=note)

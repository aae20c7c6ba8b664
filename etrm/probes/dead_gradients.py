"""Name the lines where a gradient had a path and died on it.

Zero factors, masks, saturation, rounding, hooks that zero it, and custom backward functions that return nothing.
"""

from typing import Any

from torch import nn

from etrm.probes.altered_gradients import hook_place, module_hook_place
from etrm.probes.autograd_walk import BackwardTrace, DeadEdge, blame, dead_edges
from etrm.probes.break_report import Finding
from etrm.probes.calls import Hook
from etrm.probes.places import Place, returning_place

Node = Any


def dead_findings(
    trace: BackwardTrace,
    lost: set[int],
    names: dict[int, str],
    module: nn.Module | None,
    hooks: list[Hook],
    trained: set[int],
) -> list[Finding]:
    """One finding a line where gradient of the lost parameters (ids) died.

    Args:
        trace: a watched backward pass.
        lost: ids of parameters in the graph whose gradient is zero.
        names: parameter names by id.
        module: the model, searched for backward hooks.
        hooks: `register_hook` calls seen in the forward pass.
        trained: ids of parameters that do get gradient.
    """
    places = _places(trace)
    grouped: dict[Any, tuple[Finding, set[int]]] = {}
    for edge in blame(trace, dead_edges(trace, lost, trained)):
        kind, place, note = _explain(edge, places, names, module, hooks)
        severity = "transient" if edge.transient else "cut"
        key = (kind, place, severity)
        if key in grouped:
            grouped[key][1].update(edge.leaves)
        else:
            found = Finding(kind, "transient" if edge.transient else "cut", place, note=note)
            grouped[key] = (found, set(edge.leaves))
    result = []
    for found, leaves in grouped.values():
        parameters = tuple(name for key, name in names.items() if key in leaves)
        result.append(Finding(found.kind, found.severity, found.place, parameters=parameters, note=found.note))
    return result


def _places(trace: BackwardTrace) -> dict[Node, Place | None]:
    """A line for every node: its own, or that of the node that used its result."""
    found: dict[Node, Place | None] = {}
    stack: list[tuple[Node, Place | None]] = [(node, None) for node in trace.order[:1]]
    while stack:
        node, inherited = stack.pop()
        if node in found:
            continue
        own = getattr(node, "metadata", {}).get("etrm", inherited)
        found[node] = own
        stack.extend((child, own) for child, _ in node.next_functions if child is not None)
    return found


def _explain(
    edge: DeadEdge, places: dict[Node, Place | None], names: dict[int, str], module: nn.Module | None, hooks: list[Hook]
) -> tuple[str, Place | None, str]:
    """Kind, line and note of one dead edge."""
    word = edge.node.name().removesuffix("Backward0").removesuffix("Backward")
    if edge.hook:
        return "hook zeroes the gradient", hook_place(edge.child, module, hooks) or places.get(edge.node), ""
    custom = getattr(edge.node, "_forward_cls", None)
    if custom is not None:
        place = returning_place(custom.backward)
        if place.function.startswith("BackwardHookFunction"):
            return "module hook zeroes the gradient", module_hook_place(module) or places.get(edge.node), ""
        return f"{custom.__name__}.backward gives no gradient", place, ""
    if edge.transient:
        note = "the other factor is an all-zero weight that trains itself; look again after one update"
        return f"zero weight at {word}", places.get(edge.node), note
    note = "a gradient arrives here and only zero goes on (zero factor, mask, saturation, or a step function)"
    return f"gradient dies at {word}", places.get(edge.node), note

"""Walk the autograd graph: which leaves a value depends on, and at which node a gradient dies.

A gradient that is None never had a path; a gradient that is zero had a path and died on it: a multiplication by zero,
a mask, a saturated clamp, a rounding, a hook, a custom backward that returned None. `watch_backward` runs one
backward pass with hooks on every node and `dead_edges` names the edges where something non-zero came in and only zero
went on.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Node = Any  # torch.autograd.graph.Node; C++ nodes do not share a Python base in the stubs


def reaches(node: Node, seeds: Collection[int], known: dict[Node, bool]) -> bool:
    """Whether the graph behind `node` ends in a tensor whose id is in `seeds`; `known` is a cache, updated."""
    stack, seen = [node], set()
    while stack:
        current = stack.pop()
        if current is None or current in seen:
            continue
        variable = getattr(current, "variable", None)
        if known.get(current) or (variable is not None and id(variable) in seeds):
            known[node] = True
            return True
        if known.get(current) is None:
            seen.add(current)
            stack.extend(child for child, _ in current.next_functions)
    known.update(dict.fromkeys(seen, False))
    return False


def upstream(starts: Iterable[Node]) -> list[Node]:
    """Every node reachable from `starts`, themselves included, each once."""
    stack = [node for node in starts if node is not None]
    seen: dict[Node, None] = {}
    while stack:
        node = stack.pop()
        if node not in seen:
            seen[node] = None
            stack.extend(child for child, _ in node.next_functions if child is not None)
    return list(seen)


def nodes_of(tensors: Iterable[Tensor]) -> list[Node]:
    """The graph nodes that made the tensors; leaves have none."""
    return [t.grad_fn for t in tensors if t.grad_fn is not None]


def leaf_ids(tensors: Iterable[Tensor]) -> set[int]:
    """Ids of the leaves that the tensors depend on, the tensors themselves included where they are leaves."""
    found = {id(t) for t in tensors if t.grad_fn is None}
    for node in upstream(nodes_of(tensors)):
        variable = getattr(node, "variable", None)
        if variable is not None:
            found.add(id(variable))
    return found


class GradStash:
    """Keeps the `.grad` of leaves as it was, so that a backward call made under observation leaves no trace."""

    def __init__(self) -> None:
        self._saved: dict[int, tuple[Tensor, Tensor | None]] = {}

    def protect(self, loss: Tensor) -> None:
        """Remember `.grad` of every leaf behind `loss`, once."""
        for node in upstream(nodes_of([loss])):
            variable = getattr(node, "variable", None)
            if variable is not None and id(variable) not in self._saved:
                old = variable.grad
                self._saved[id(variable)] = (variable, None if old is None else old.detach().clone())

    def restore(self) -> None:
        """Put the remembered gradients back."""
        for leaf, gradient in self._saved.values():
            leaf.grad = gradient
        self._saved.clear()


@dataclass
class BackwardTrace:
    """What passed through each node: whether anything non-zero arrived and left, and at which leading positions."""

    order: list[Node]
    received: dict[Node, bool] = field(default_factory=dict)
    sent: dict[Node, list[bool]] = field(default_factory=dict)
    masks: dict[Node, Tensor] = field(default_factory=dict)
    gradients: list[Tensor | None] = field(default_factory=list)


def _alive(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.detach().any())


def watch_backward(loss: Tensor, inputs: list[Tensor], masks_for: Collection[Node] = ()) -> BackwardTrace:
    """One backward pass of `loss` towards `inputs` with a hook on every node; the graph is kept, nothing is
    accumulated.

    For the nodes in `masks_for` the trace also holds which leading (sample[, token]) positions received a gradient.
    """
    trace = BackwardTrace(upstream(nodes_of([loss])))
    wanted = set(masks_for)
    handles = []

    def watch(node: Node) -> None:
        def before(arriving: tuple[Tensor | None, ...]) -> None:
            trace.received[node] = any(_alive(g) for g in arriving)
            if node in wanted and arriving and arriving[0] is not None and arriving[0].ndim:
                flat = arriving[0].detach() != 0
                trace.masks[node] = flat.flatten(2).any(2) if flat.ndim > 2 else flat

        def after(leaving: tuple[Tensor | None, ...], _: tuple[Tensor | None, ...]) -> None:
            trace.sent[node] = [_alive(g) for g in leaving]

        handles.append(node.register_prehook(before))
        handles.append(node.register_hook(after))

    try:
        for node in trace.order:
            if getattr(node, "variable", None) is None:
                watch(node)
        trace.gradients = list(torch.autograd.grad(loss, inputs, allow_unused=True, retain_graph=True))
    finally:
        for handle in handles:
            handle.remove()
    return trace


@dataclass
class DeadEdge:
    """An edge of the graph where a gradient died: `node` received one and `child` got none by it."""

    node: Node
    child: Node
    leaves: set[int]
    hook: bool
    transient: bool = False


def _leaf_sets(order: list[Node], lost: set[int]) -> dict[Node, frozenset[int]]:
    """For each node, which of the lost leaves lie behind it."""
    found: dict[Node, frozenset[int]] = {}
    for root in order[:1]:
        stack: list[tuple[Node, bool]] = [(root, False)]
        while stack:
            node, done = stack.pop()
            if node in found and not done:
                continue
            children = [child for child, _ in node.next_functions if child is not None]
            if done:
                variable = getattr(node, "variable", None)
                own = frozenset({id(variable)} & lost) if variable is not None else frozenset()
                found[node] = own.union(*(found[child] for child in children)) if children else own
            else:
                stack.append((node, True))
                stack.extend((child, False) for child in children if child not in found)
    return found


def _is_zero_trainable(node: Node, trained: set[int]) -> bool:
    """Whether `node` leads, through reshapes only, to an all-zero leaf that itself receives gradient."""
    for _ in range(6):
        variable = getattr(node, "variable", None)
        if variable is not None:
            return id(variable) in trained and not bool(variable.detach().any())
        children = [child for child, _ in node.next_functions if child is not None]
        if len(children) != 1:
            return False
        node = children[0]
    return False


def dead_edges(trace: BackwardTrace, lost: set[int], trained: set[int]) -> list[DeadEdge]:
    """Where the gradients of the lost leaves (by id) died.

    An edge is transient when the node's other factor is an all-zero weight that itself trains: it opens after one
    update.
    """
    behind = _leaf_sets(trace.order, lost)
    found = []
    for node in trace.order:
        if not trace.received.get(node):
            continue
        edges = [(k, child) for k, (child, _) in enumerate(node.next_functions) if child is not None]
        for k, child in edges:
            leaves = set(behind.get(child, frozenset()))
            sent = trace.sent.get(node, [])
            if not leaves or k >= len(sent):
                continue
            is_leaf = getattr(child, "variable", None) is not None
            swallowed = sent[k] and (is_leaf or trace.received.get(child) is False)
            if not sent[k] or swallowed:
                zero = any(_is_zero_trainable(other, trained) for j, other in edges if j != k)
                found.append(DeadEdge(node, child, leaves, bool(swallowed), zero and not swallowed))
    return found


def _reached_without(root: Node, avoided: Node) -> set[int]:
    """Ids of the leaves that the loss still reaches when `avoided` is taken out of the graph."""
    stack, seen, leaves = [root], {avoided}, set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves.add(id(variable))
        stack.extend(child for child, _ in node.next_functions if child is not None)
    return leaves


def blame(trace: BackwardTrace, edges: list[DeadEdge]) -> list[DeadEdge]:
    """Keep for each lost leaf the edges that all its paths pass, where there are any; edges left without a leaf go."""
    if len(edges) < 2 or not trace.order:
        return edges
    sole: dict[int, set[int]] = {}
    for index, edge in enumerate(edges):
        others = _reached_without(trace.order[0], edge.child)
        for leaf in edge.leaves - others:
            sole.setdefault(leaf, set()).add(index)
    kept = []
    for index, edge in enumerate(edges):
        edge.leaves = {leaf for leaf in edge.leaves if leaf not in sole or index in sole[leaf]}
        if edge.leaves:
            kept.append(edge)
    return kept

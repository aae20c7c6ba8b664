"""Parameters that cannot train because of where they are kept: outside nn.Module, outside the optimiser, frozen, or
unused.

These leave no trace in one forward pass, so they are found by looking at the objects: attributes of every module are
searched for tensors and modules that `named_parameters()` does not know (python lists, dicts, plain objects), and the
optimisers' groups are compared with the model by identity, because a load with `assign=True`, a deepcopy or a wrapper
replaces Parameter objects.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from torch import Tensor, nn

from etrm.probes.autograd_walk import leaf_ids, upstream
from etrm.probes.places import Place, attribute_place, call_place, freezing_place

_DEPTH = 4


@dataclass(frozen=True)
class Misplaced:
    """One finding about registration: kind in words, tensors by name and id, and the line that put them there."""

    kind: str
    names: tuple[str, ...]
    place: Place | None
    module: str
    shape: tuple[int, ...]
    note: str
    ids: frozenset[int] = frozenset()


def _hidden(item: Any, path: str, depth: int, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Trainable tensors behind one python object, with the path to each."""
    if id(item) in seen or depth == 0:
        return
    seen.add(id(item))
    if isinstance(item, Tensor):
        if item.requires_grad and item.grad_fn is None:
            yield path, item
    elif isinstance(item, nn.Module):
        for name, value in item.named_parameters():
            if value.requires_grad:
                yield f"{path}.{name}", value
    elif isinstance(item, dict):
        for key, value in item.items():
            yield from _hidden(value, f"{path}[{key!r}]", depth - 1, seen)
    elif isinstance(item, list | tuple | set | frozenset):
        for index, value in enumerate(item):
            yield from _hidden(value, f"{path}[{index}]", depth - 1, seen)
    elif callable(item) and getattr(item, "__closure__", None):
        for name, cell in zip(item.__code__.co_freevars, item.__closure__, strict=False):
            yield from _hidden(cell.cell_contents, f"{path}.<closure {name}>", depth - 1, seen)
    elif hasattr(item, "__dict__") and not isinstance(item, type) and not callable(item):
        if type(item).__module__.partition(".")[0] in ("torch", "numpy", "builtins"):
            return
        for name, value in vars(item).items():
            yield from _hidden(value, f"{path}.{name}", depth - 1, seen)


def unregistered(model: nn.Module) -> list[Misplaced]:
    """Trainable tensors that hang on the model's attributes and are not among its parameters."""
    known = {id(value) for value in model.parameters()} | {id(module) for module in model.modules()}
    found = []
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in ("_parameters", "_buffers", "_modules") or "hooks" in attribute:
                continue
            hidden = [(n, t) for n, t in _hidden(value, attribute, _DEPTH, set(known)) if id(t) not in known]
            if hidden:
                names = tuple(f"{path}.{name}" if path else name for name, _ in hidden)
                note = "kept in a plain attribute: it is in no optimiser, no checkpoint and no .to(device)"
                place = attribute_place(module, attribute)
                ids = frozenset(id(tensor) for _, tensor in hidden)
                found.append(Misplaced("not registered", names, place, path, tuple(hidden[0][1].shape), note, ids))
    return found


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


def owner_place(model: nn.Module, name: str) -> Place | None:
    """The line that creates parameter `name`: its assignment, or that of the nearest module that user code assigns."""
    while name:
        owner, attribute = _owner(model, name)
        place = attribute_place(owner, attribute)
        if place is not None:
            return place
        name = name.rpartition(".")[0]
    return None


def _groups(model: nn.Module, names: list[str]) -> list[list[str]]:
    """Names grouped by the line that made them, so that one mistake is one finding."""
    grouped: dict[Any, list[str]] = {}
    for name in names:
        grouped.setdefault(owner_place(model, name) or name, []).append(name)
    return list(grouped.values())


def frozen_parameters(model: nn.Module, allowed: Iterable[str]) -> list[Misplaced]:
    """Parameters with requires_grad=False that are not among the `allowed` names or patterns."""
    patterns = tuple(allowed)
    names = [
        name
        for name, value in model.named_parameters()
        if not value.requires_grad and not any(fnmatch(name, p) or name.startswith(f"{p}.") for p in patterns)
    ]
    found = []
    for group in _groups(model, names):
        parts = group[0].split(".")
        owners = [model.get_submodule(".".join(parts[:k])) for k in range(len(parts) - 1, -1, -1)]
        named = [place for part in reversed(parts) if (place := freezing_place(list(owners), f".{part}")) is not None]
        exact = [p for p in named if any(f".{part}" in p.source for part in parts)]
        place = next(iter(exact or named), None) or owner_place(model, group[0])
        note = "requires_grad is False; if that is meant, pass its name in frozen=(...)"
        shape = tuple(model.get_parameter(group[0]).shape)
        found.append(Misplaced("requires_grad is False", tuple(group), place, ".".join(parts[:-1]), shape, note))
    return found


def in_optimisers(
    model: nn.Module, trainable: dict[str, Tensor], optimisers: list[Any], files: Iterable[str]
) -> list[Misplaced]:
    """Trainable parameters in no optimiser or in two; the line is the first in `files` that makes such an optimiser."""
    if not optimisers:
        return []
    held: dict[int, int] = {}
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            for value in group["params"]:
                held[id(value)] = held.get(id(value), 0) + 1
    missing = [name for name, value in trainable.items() if id(value) not in held]
    twice = [name for name, value in trainable.items() if held.get(id(value), 0) > 1]
    own = {id(value) for value in model.parameters()}
    strangers = sum(key not in own for key in held)
    if not missing and not twice:
        return []
    place = call_place(type(optimisers[0]).__name__, files)
    found = []
    if missing:
        note = "no optimiser holds them"
        if strangers:
            note += f"; {strangers} tensors held are not the model's (made before a load, a copy or a wrapper?)"
        shape = tuple(trainable[missing[0]].shape)
        found.append(Misplaced("not in any optimiser", tuple(missing), place, "", shape, note))
    if twice:
        shape = tuple(trainable[twice[0]].shape)
        found.append(Misplaced("in two optimiser groups", tuple(twice), place, "", shape, "stepped twice an update"))
    return found


@dataclass
class Stale:
    """A tensor with history that hung on a module before the pass began."""

    name: str
    tensor: Tensor
    place: Place | None
    module: str


def stale_tensors(module: nn.Module | None, parameters: Iterable[Tensor]) -> list[Stale]:
    """Attributes, plain or in a list or dict, that were computed from the parameters before this pass."""
    own = {id(p) for p in parameters}
    found = []
    for path, child in module.named_modules() if module is not None else ():
        for attribute, value in vars(child).items():
            if attribute in ("_parameters", "_modules") or "hooks" in attribute:
                continue
            held = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
            for item in held:
                if isinstance(item, Tensor) and item.grad_fn is not None and leaf_ids([item]) & own:
                    name = f"{path}.{attribute}".lstrip(".")
                    found.append(Stale(name, item, attribute_place(child, attribute), path))
    return found


def stale_findings(stale: list[Stale], loss: Tensor) -> list[Misplaced]:
    """Those of the `stale` tensors that this pass's loss was computed with."""
    used = set(upstream([loss.grad_fn])) if stale else set()
    note = "its value does not follow the weights any more, though autograd says so; compute it in every pass"
    return [
        Misplaced("computed before this pass", (s.name,), s.place, s.module, tuple(s.tensor.shape), note)
        for s in stale
        if s.tensor.grad_fn in used
    ]

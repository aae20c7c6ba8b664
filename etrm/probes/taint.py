"""Follow encoder values through one forward pass and note where they lose their history.

A value is *tainted* when it was computed from a watched parameter by any route, and *carrying* when autograd still
links it to one. A break is an operation with a carrying input whose output is tainted and no longer carrying.
Operations are seen through a `TorchFunctionMode`, that is at the level a person writes: `h.detach()`, `h.data`,
`F.linear(...)`, `buffer[:] = h`.

Notable: values that leave torch (`.item()`, `.numpy()`) cannot be followed; the exit itself is noted and whether the
loss depends on it is decided afterwards by intervention (etrm.probes.interventions). Tensors that return over shared
memory, as `torch.from_numpy` and `nn.Parameter(h)` do, are recognised by their storage. The observer keeps
tainted tensors alive until it is closed, except those that die within a block without gradient.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from etrm.probes import places
from etrm.probes.autograd_walk import GradStash, leaf_ids, reaches
from etrm.probes.calls import (
    COMPARISONS,
    FREE,
    NUMBERS,
    SINKS,
    BackwardCall,
    Break,
    Export,
    Hook,
    Log,
    Value,
    call_name,
    is_inplace,
    node_memo,
    storage_key,
    tensors_in,
    unwrapped,
)
from etrm.probes.exceptions import DeclaredLog
from etrm.probes.places import Place

_BACKWARD_ARGUMENTS = ("self", "gradient", "retain_graph", "create_graph", "inputs")


class Observer(TorchFunctionMode):
    """The mode itself. `seeds` are the watched parameters by id, `names` maps module ids to paths."""

    def __init__(
        self, seeds: dict[int, Tensor], names: dict[int, str], declared: DeclaredLog, stash: GradStash
    ) -> None:
        super().__init__()
        self.stash = stash
        self.log = Log()
        self._names = names
        self._declared = declared
        self._seeds = seeds
        empty: frozenset[int] = frozenset()
        self._values: dict[int, Value] = {key: Value(True, empty, False) for key in seeds}
        self._alive: dict[int, Tensor] = dict(seeds)
        self._watched: dict[int, weakref.ref[Tensor]] = {}
        self._storages: dict[int, Value] = {}
        for tensor in seeds.values():
            self._storages[storage_key(tensor)] = Value(True, empty, False)
        self._writes: dict[int, Place] = {}
        self._holders = {storage_key(tensor): tensor for tensor in seeds.values()}
        self._ordinal = 0
        self._disabled_at: Place | None = None
        self._by_torch = False
        self._inner: set[int] = set()
        self._reaches: dict[Any, bool] = {}

    def close(self) -> None:
        """Let go of every tensor."""
        self._watched.clear()
        self._values.clear()
        self._alive.clear()
        self._storages.clear()
        self._reaches.clear()
        self._holders.clear()

    def value_of(self, tensor: Tensor) -> Value | None:
        """What is known of `tensor`; tensors met for the first time are judged by their graph, then by their memory."""
        known = self._values.get(id(tensor))
        if known is not None and (known.carrying or known.had_history or tensor.grad_fn is None):
            return known
        if tensor.requires_grad and tensor.grad_fn is not None:
            breaks = (known.breaks if known is not None else frozenset()) - self._inner
            if reaches(tensor.grad_fn, self._seeds, self._reaches):
                return self._remember(tensor, True, breaks)
            return self._remember(tensor, False, breaks) if known is not None else None
        if (known is None and not tensor.requires_grad) or isinstance(tensor, torch.nn.Parameter):
            alias = self._storages.get(storage_key(tensor)) if self._storages else None
            if alias is not None and id(tensor) not in self._seeds:
                return self._alias(tensor, alias)
        return known

    def _alias(self, tensor: Tensor, alias: Value) -> Value:
        """A tensor that shares memory with a tainted one and was made out of torch's sight."""
        if not alias.carrying or self.log.spilled:
            return self._remember(tensor, False, alias.breaks | self.log.spilled)
        key = storage_key(tensor)
        ident = self._note("shared memory without history", [self._holders[key]], tensor, True, False)
        note = self.log.breaks[ident]
        note.alias = True
        makers = (
            ("Parameter",) if isinstance(tensor, torch.nn.Parameter) else ("from_numpy", "from_dlpack", "frombuffer")
        )
        if key in self._writes:
            note.place, note.kind = self._writes[key], "in-place write without history"
        else:
            made = getattr(self._holders[key].grad_fn, "metadata", {}).get("etrm")
            later = places.later_call(makers, made) if made is not None else None
            if later is None and made is not None and makers == ("Parameter",):
                later = places.call_in_pass("Parameter", places.files_near(made.file))
            note.place = places.earlier_call(makers) or later or note.place
        self._values[id(tensor)] = value = Value(False, alias.breaks | {ident}, tensor.grad_fn is not None)
        self._alive[id(tensor)] = tensor
        return value

    def _remember(self, tensor: Tensor, carrying: bool, breaks: frozenset[int], keep: bool = False) -> Value:
        value = Value(carrying, breaks, tensor.grad_fn is not None)
        ident = id(tensor)
        self._values[ident] = value
        if not carrying and not keep:
            # In a block without gradient values die as they would unobserved, and their ids are forgotten with them.
            if ident not in self._alive:
                self._watched[ident] = weakref.ref(tensor, lambda _: self._forget(ident))
            return value
        self._alive[ident] = tensor
        key = storage_key(tensor)
        if key and (carrying or not self._storages.get(key, value).carrying):
            self._storages[key] = value
            self._holders[key] = tensor
        return value

    def _forget(self, ident: int) -> None:
        self._watched.pop(ident, None)
        if ident not in self._alive:
            self._values.pop(ident, None)

    def _note(self, kind: str, sources: list[Tensor], out: Tensor | None, differentiable: bool, sink: bool) -> int:
        """Write one break down at the user's line."""
        ident = len(self.log.breaks)
        frame = places.user_frame(2)
        place = places.place_of(frame)
        apply = places.in_function_forward(2)
        if apply is not None:
            place = places.place_of(apply)
            self._inner.add(ident)
        elif kind.endswith("block"):
            place = self._block_place(kind) or place
        example = out if out is not None else sources[0]
        self.log.breaks.append(
            Break(
                ident, self._ordinal, kind, place, places.module_path(self._names, 2), tuple(example.shape),
                str(example.dtype).removeprefix("torch."), sources, differentiable, self._declared.active,
                by_torch=kind == "no_grad block" and self._by_torch, inner=apply is not None, sink=sink,
            )
        )  # fmt: skip
        return ident

    def _block_place(self, kind: str) -> Place | None:
        if kind.startswith("inference"):
            return places.with_place(("inference_mode",), 3) or places.decorated_place(3)
        return self._disabled_at

    def _kind(self, name: str, out: Tensor) -> tuple[str, bool]:
        """The kind of a break in words, and whether the lost value was a differentiable one."""
        if name in ("detach", "detach_"):
            return f".{name}()", True
        if name == "data.get":
            return ".data", True
        if name == "data.set":
            return "write to .data", True
        if name in ("tensor", "as_tensor", "asarray", "scalar_tensor", "new_tensor"):
            return f"torch.{name}()" if name != "new_tensor" else ".new_tensor()", True
        if name in ("requires_grad_", "requires_grad.set"):
            return "requires_grad turned off", True
        if not (out.is_floating_point() or out.is_complex()):
            if name in COMPARISONS or out.dtype == torch.bool:
                return "comparison", False
            if name in ("to", "long", "int", "short", "char", "byte", "type", "bool", "type_as"):
                return "integer cast", False
            return f"{name}() gives indices", False
        if torch.is_inference_mode_enabled():
            return "inference_mode block", True
        if not torch.is_grad_enabled():
            return "no_grad block", True
        if is_inplace(name):
            return "in-place write without history", True
        return f"{name}() without history", True

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = call_name(func)
        if name in FREE:
            return func(*args, **kwargs)
        if name == "_set_grad_enabled":
            if args[0]:
                self._disabled_at = None
            elif torch.is_grad_enabled():
                self._disabled_at, self._by_torch = places.block_entry()
            return func(*args, **kwargs)
        if name == "backward":
            return self._backward(func, args, kwargs)
        self._ordinal += 1
        self.log.untracked = self.log.untracked or torch._C._are_functorch_transforms_active()
        inputs = [t for item in (args, kwargs) if item for t in tensors_in(item)]
        if self.log.untracked:
            inputs = [unwrapped(t) for t in inputs]
        known = [(tensor, value) for tensor in inputs if (value := self.value_of(tensor)) is not None]
        if not known:
            return func(*args, **kwargs)
        for tensor, _ in known:
            if id(tensor) in self._seeds and id(tensor) not in self.log.first_use:
                self.log.first_use[id(tensor)] = places.place_of(places.user_frame())
        if name == "register_hook":
            target = known[0][0]
            self.log.hooks.append(Hook(target.grad_fn or target, places.place_of(places.user_frame())))
            return func(*args, **kwargs)
        nodes = [(t.grad_fn or t) if value.carrying else None for t, value in known]
        carriers = [t for (t, _), node in zip(known, nodes, strict=True) if node is not None]
        if name in ("detach_", "requires_grad_", "requires_grad.set", "data.set"):
            carriers = [t.view_as(t) if t.grad_fn is not None else t for t in carriers]  # the op may erase t's history
        out = func(*args, **kwargs)
        self._absorb(name, args, out, known, carriers)
        return out

    def _absorb(
        self, name: str, args: tuple[Any, ...], out: Any, known: list[tuple[Tensor, Value]], carriers: list[Tensor]
    ) -> None:
        """Pass taint from inputs to outputs and note a break where carrying stops."""
        breaks = frozenset().union(*(value.breaks for _, value in known))
        if name in SINKS:
            self.log.spilled |= breaks
            if carriers:
                self.log.spilled.add(self._note(f"{name}()", carriers, None, name in NUMBERS, True))
            if name in ("numpy", "__array__"):
                self._export(args[0])
            return
        outputs = list(tensors_in(out))
        if self.log.untracked:
            outputs = [unwrapped(t) for t in outputs]
        if not outputs and args and isinstance(args[0], Tensor) and (name == "__setitem__" or name.endswith(".set")):
            outputs = [args[0]]
        inplace = bool(args) and any(tensor is args[0] for tensor in outputs) and is_inplace(name)
        place: Place | None = None
        for tensor in outputs:
            carrying = (
                bool(carriers) and tensor.requires_grad and (tensor.grad_fn is not None or id(tensor) in self._seeds)
            )
            behind = inplace and carrying and id(tensor) not in self._seeds and not torch.is_grad_enabled()
            if behind or (carriers and not carrying):
                kind, differentiable = self._kind(name, tensor)
                kind = "in-place write without history" if behind else kind
                breaks = breaks | {self._note(kind, carriers, tensor, differentiable, False)}
            self._remember(tensor, carrying, breaks, keep=inplace or torch.is_grad_enabled())
            if inplace and carrying and known[0][0] is not tensor:
                self._writes[storage_key(tensor)] = places.place_of(places.user_frame())
            if inplace and not carrying and name not in ("detach_", "requires_grad_"):
                self._taint_memory(tensor, breaks)
            if carrying and tensor.grad_fn is not None and "etrm" not in (memo := node_memo(tensor.grad_fn)):
                place = place or places.place_of(places.user_frame())
                memo["etrm"] = place

    def _export(self, tensor: Tensor) -> None:
        """Remember what numpy was given, to see whether it is changed behind torch's back."""
        holder = self._holders.get(storage_key(tensor))
        if holder is not None and holder.grad_fn is not None:
            with torch._C.DisableTorchFunction():
                before = holder.detach().clone()
            self.log.exports.append(Export(holder, before, holder._version, places.place_of(places.user_frame())))

    def last_uses(self, leaves: set[int], reached: set[Any]) -> dict[int, Place]:
        """For each leaf (by id) the line of the last value computed from it that is not in the loss's graph."""
        found: dict[int, Place] = {}
        for tensor in reversed(list(self._alive.values())):
            node = tensor.grad_fn
            if node is None or node in reached or not leaves - set(found):
                continue
            place = node_memo(node).get("etrm")
            if place is not None:
                found.update(dict.fromkeys((leaf_ids([tensor]) & leaves) - set(found), place))
        return found

    def _taint_memory(self, written: Tensor, breaks: frozenset[int]) -> None:
        """A write past autograd's sight also changes every carrying tensor that lies in the same memory."""
        key = storage_key(written)
        behind = [
            tensor
            for tensor in (self._alive.values() if key else ())
            if self._values[id(tensor)].carrying and id(tensor) not in self._seeds and storage_key(tensor) == key
        ]
        if behind:
            breaks = breaks | {self._note("in-place write without history", behind, written, True, False)}
        for tensor in behind:
            value = self._values[id(tensor)]
            self._values[id(tensor)] = Value(True, value.breaks | breaks, value.had_history)

    def _backward(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A backward call inside loss_fn: keep the graph, and note what it was limited to."""
        given = {**dict(zip(_BACKWARD_ARGUMENTS, args, strict=False)), **kwargs, "retain_graph": True}
        loss, limited = given.pop("self"), given.get("inputs")
        ids = None if limited is None else {id(t) for t in tensors_in([limited])}
        self.log.backwards.append(BackwardCall(places.place_of(places.user_frame()), ids, loss))
        self.stash.protect(loss)
        return func(loss, **given)

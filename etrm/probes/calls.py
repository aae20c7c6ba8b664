"""Torch calls as people write them, and what an observed pass writes down about them.

Calls are known by a short name; the families below say which never hold a tensor's value, by which a value leaves
torch (as a number or as a decision), and which compare.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from etrm.probes.places import Place

_FREE_WORDS = """
size shape.get dim ndim.get ndimension numel nelement element_size itemsize.get nbytes.get stride storage_offset
dtype.get device.get layout.get requires_grad.get grad_fn.get grad.get grad.set is_leaf.get is_leaf
is_floating_point is_complex is_contiguous is_cuda.get is_cpu.get is_mps.get is_sparse.get is_quantized.get
is_nested.get is_meta.get is_signed is_same_size is_conj is_neg is_inference is_shared is_pinned get_device
names.get name.get _version.get _base.get _backward_hooks.get output_nr.get retain_grad retains_grad.get
untyped_storage storage data_ptr has_names __len__ __hash__ __dir__ __repr__ __str__ __format__ zeros_like ones_like
rand_like randn_like randint_like empty_like full_like new_zeros new_ones new_empty new_full is_tensor result_type
can_cast promote_types broadcast_shapes _is_view __torch_function__ register_post_accumulate_grad_hook
is_xla.get is_xpu.get is_mkldnn.get
"""
FREE = frozenset(_FREE_WORDS.split())  # calls whose result does not hold the value of a tensor
NUMBERS = frozenset(("item", "tolist", "numpy", "__array__", "__float__", "__complex__"))
DECISIONS = frozenset(("__int__", "__bool__", "__index__", "equal", "allclose", "is_nonzero"))
SINKS = NUMBERS | DECISIONS  # calls by which a value leaves torch
_COMPARISON_WORDS = """gt lt ge le eq ne isclose logical_and logical_or logical_not logical_xor isnan isinf isfinite"""
COMPARISONS = frozenset(_COMPARISON_WORDS.split())


@dataclass(frozen=True)
class Value:
    """What is known of one tainted tensor: does it carry, and which breaks does it depend on."""

    carrying: bool
    breaks: frozenset[int]
    had_history: bool


@dataclass
class Break:
    """One call at which a carrying value stopped carrying. `ordinal` numbers the calls of the pass."""

    ident: int
    ordinal: int
    kind: str
    place: Place
    module: str
    shape: tuple[int, ...]
    dtype: str
    sources: list[Tensor]
    differentiable: bool
    declared: str | None
    inner: bool = False
    sink: bool = False
    alias: bool = False
    by_torch: bool = False


@dataclass
class Hook:
    """A `Tensor.register_hook` call made during the pass."""

    node: Any
    place: Place


@dataclass
class BackwardCall:
    """A `.backward()` call made inside the pass; `inputs` are the ids it was limited to, None when it was not."""

    place: Place
    inputs: set[int] | None
    loss: Tensor


def call_name(func: Callable[..., Any]) -> str:
    """A short name: 'detach', 'data.get', 'data.set', 'linear'."""
    name = getattr(func, "__name__", "") or ""
    if name in ("__get__", "__set__"):
        return f"{getattr(getattr(func, '__self__', None), '__name__', '?')}.{name.strip('_')}"
    return name


def tensors_in(item: Any, depth: int = 3) -> Iterator[Tensor]:
    """Every tensor in nested lists, tuples, dicts and slices."""
    if isinstance(item, Tensor):
        yield item
    elif depth and isinstance(item, list | tuple):
        for inner in item:
            if isinstance(inner, Tensor):
                yield inner
            elif isinstance(inner, list | tuple | dict | slice):
                yield from tensors_in(inner, depth - 1)
    elif depth and isinstance(item, dict):
        for inner in item.values():
            yield from tensors_in(inner, depth - 1)
    elif isinstance(item, slice):
        yield from tensors_in((item.start, item.stop, item.step), 1)


def unwrapped(tensor: Tensor) -> Tensor:
    """The tensor behind `vmap`'s wrappers, where its history is; any other tensor itself."""
    functorch = torch._C._functorch
    while functorch.is_batchedtensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def node_memo(node: Any) -> dict[str, Any]:
    """The dictionary that lives and dies with a graph node; the observer keeps the node's place in it."""
    memo: dict[str, Any] = node.metadata
    return memo


def is_inplace(name: str) -> bool:
    """Whether a call of this name writes into its first argument."""
    return (
        name in ("__setitem__", "data.set")
        or (name.endswith("_") and not name.endswith("__"))
        or name.startswith("__i")
    )


def storage_key(tensor: Tensor) -> int:
    """The address of a tensor's memory, 0 where it has none."""
    if tensor.layout != torch.strided or type(tensor).__name__ == "FakeTensor" or tensor.is_meta:
        return 0
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


@dataclass
class Export:
    """A tensor whose memory was handed to numpy: the value then, and torch's count of writes."""

    tensor: Tensor
    before: Tensor
    version: int
    place: Place


@dataclass
class Log:
    """What one observed pass left behind."""

    breaks: list[Break] = field(default_factory=list)
    hooks: list[Hook] = field(default_factory=list)
    backwards: list[BackwardCall] = field(default_factory=list)
    first_use: dict[int, Place] = field(default_factory=dict)
    spilled: set[int] = field(default_factory=set)
    exports: list[Export] = field(default_factory=list)
    untracked: bool = False  # values went through a function transform, where they cannot be followed

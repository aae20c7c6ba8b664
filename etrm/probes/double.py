"""Run a float32, float16 or bfloat16 model in float64, in place and for one block only.

Finite differences need more digits than training has. Parameters and buffers are swapped for float64 copies under the
same Parameter objects, explicit casts to a smaller floating type become casts to float64, and inputs that loss_fn
holds in a smaller type are promoted where they are used. Afterwards every tensor is the original one again, bitwise.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from etrm.probes.calls import call_name, is_inplace

_SMALL = (torch.float32, torch.float16, torch.bfloat16)
_CASTS = frozenset({"float", "half", "bfloat16"})
_KEEP = frozenset({"view", "data.set", "grad.set", "detach", "data.get", "requires_grad_", "register_hook"})


def _promote(item: Any, depth: int = 3) -> Any:
    """The same structure with small floating tensors and dtypes replaced by float64 ones."""
    if isinstance(item, Tensor):
        return item.double() if item.dtype in _SMALL else item
    if isinstance(item, torch.dtype):
        return torch.float64 if item in _SMALL else item
    if depth and type(item) in (list, tuple):
        return type(item)(_promote(inner, depth - 1) for inner in item)
    if depth and type(item) is dict:
        return {key: _promote(value, depth - 1) for key, value in item.items()}
    return item


class _Promote(TorchFunctionMode):
    """Every torch call sees float64 where it would have seen a smaller floating type."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = call_name(func)
        if name == "backward":
            return func(*args[:2], **{**kwargs, "retain_graph": True})
        if name.endswith(".get") or name in _KEEP:
            return func(*args, **kwargs)
        if name in _CASTS:
            return args[0].double()
        if is_inplace(name) and args:
            return func(args[0], *_promote(args[1:]), **_promote(kwargs))
        return func(*_promote(args), **_promote(kwargs))


def _promote_inputs(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Forward pre-hook: modules that compare dtypes themselves see float64 too."""
    return _promote(args), _promote(kwargs)


@contextmanager
def in_double(module: nn.Module | None, tensors: list[Tensor]) -> Iterator[None]:
    """Inside the block `module` and `tensors` (leaves) are float64, and so is everything computed from them."""
    swapped: list[tuple[Tensor, Tensor, Tensor | None]] = []
    seen: set[int] = set()
    owned = [*module.parameters(), *module.buffers()] if module is not None else []
    default = torch.get_default_dtype()
    handles = []
    try:
        for tensor in [*owned, *tensors]:
            if id(tensor) not in seen:
                seen.add(id(tensor))
                swapped.append((tensor, tensor.data, tensor.grad))
                tensor.grad = None
                tensor.data = _promote(tensor.data)
        torch.set_default_dtype(torch.float64)
        for child in module.modules() if module is not None else ():
            handles.append(child.register_forward_pre_hook(_promote_inputs, with_kwargs=True))
        with _Promote():
            yield
    finally:
        for handle in handles:
            handle.remove()
        torch.set_default_dtype(default)
        for tensor, data, gradient in swapped:
            tensor.grad = None
            tensor.data = data
            tensor.grad = gradient

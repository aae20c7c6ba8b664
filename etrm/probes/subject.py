"""What a probe is pointed at: a module or named parameters, and a loss that can be run again without leaving a trace.

`Rerun` restores the random generators (torch on every initialised device, numpy, python), the module's buffers and
its attributes (a carry kept on `self`, or in a list or dict there) before each call and once more at the end, so that
observing a model changes nothing of its training. Compiled modules are run eagerly and DDP wrappers without gradient
synchronisation while they are watched.
"""

import copy
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from etrm.errors import ProbeError

Subject = nn.Module | Mapping[str, Tensor]


def unwrap(model: nn.Module) -> nn.Module:
    """The user's module inside torch.compile, DataParallel and DistributedDataParallel wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def named_parameters(subject: Subject) -> dict[str, Tensor]:
    """Every parameter by name. Raises ProbeError when there is none."""
    if isinstance(subject, nn.Module):
        module = unwrap(subject)
        found: dict[str, Tensor] = dict(module.named_parameters())
        what = type(module).__name__
    else:
        found, what = dict(subject), "the mapping of parameters"
    if not found:
        raise ProbeError(f"{what} has no parameters, so no gradient can reach it; pass the module that should train.")
    lazy = [name for name, value in found.items() if isinstance(value, nn.parameter.UninitializedParameter)]
    if lazy:
        raise ProbeError(f"parameter '{lazy[0]}' is uninitialised (a lazy module); run one forward pass first.")
    return found


def trainable_parameters(subject: Subject) -> dict[str, Tensor]:
    """The parameters that require gradient. Raises ProbeError when none does: the subject is frozen."""
    found = named_parameters(subject)
    trainable = {name: value for name, value in found.items() if value.requires_grad}
    if not trainable:
        what = type(unwrap(subject)).__name__ if isinstance(subject, nn.Module) else "the mapping"
        raise ProbeError(
            f"all {len(found)} parameters of {what} have requires_grad=False: it is frozen and cannot train."
        )
    return trainable


def scalar_loss(value: Any) -> Tensor:
    """The scalar loss that loss_fn returned. Raises ProbeError for anything else."""
    if not isinstance(value, Tensor):
        raise ProbeError(f"loss_fn returned {type(value).__name__}; it must return the scalar loss tensor.")
    if value.numel() != 1:
        raise ProbeError(
            f"loss_fn returned a tensor of shape {tuple(value.shape)}; reduce it to a scalar, e.g. with .mean()."
        )
    if value.is_meta:
        raise ProbeError(
            "loss_fn returned a tensor on the meta device, which holds no numbers; put the model on a real one."
        )
    if not value.is_floating_point():
        raise ProbeError(f"loss_fn returned a {value.dtype} tensor; a loss is floating point.")
    return value


@contextmanager
def watchable(subject: Subject) -> Iterator[None]:
    """Compiled code runs eagerly and DDP does not synchronise inside this block."""
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        model: Any = subject
        while isinstance(model, nn.Module):
            if isinstance(model, nn.parallel.DistributedDataParallel):
                stack.enter_context(model.no_sync())
            inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
            model = inner if isinstance(inner, nn.Module) else None
        yield


class Rerun:
    """Runs a callable again and again from the same random state and the same buffers; `close` restores both."""

    def __init__(self, subject: Subject) -> None:
        self._rng = torch.get_rng_state()
        cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
        self._cuda = torch.cuda.get_rng_state_all() if cuda else []
        self._python = random.getstate()
        self._numpy = np.random.get_state()
        modules = list(subject.modules()) if isinstance(subject, nn.Module) else []
        self._attributes = [(module, dict(module.__dict__), dict(module._buffers)) for module in modules]
        # A cache or a carry in a list or dict is state as well; its members are put back, not copied.
        own = ("_parameters", "_buffers", "_modules")
        held = [v for m in modules for k, v in vars(m).items() if k not in own and type(v) in (dict, list, set)]
        self._containers = [(container, copy.copy(container)) for container in held]
        buffers = [buffer for _, _, held in self._attributes for buffer in held.values() if buffer is not None]
        self._values = [(buffer, buffer.detach().clone(), buffer._version) for buffer in buffers]

    def restore(self) -> None:
        """Put random states, module attributes and changed buffers back."""
        torch.set_rng_state(self._rng)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        for module, attributes, buffers in self._attributes:
            for name in set(module.__dict__) - set(attributes):
                del module.__dict__[name]
            module.__dict__.update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)
        for container, members in self._containers:
            if isinstance(container, list):
                container[:] = members
            else:
                container.clear()
                container.update(members)
        for buffer, value, version in self._values:
            if buffer._version != version or not torch.equal(buffer.detach(), value):
                buffer.data.copy_(value)

    def run(self, function: Callable[[], Any]) -> Any:
        """Call `function` from the saved state."""
        self.restore()
        return function()

    def __enter__(self) -> "Rerun":
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

"""Gradients that are stopped on purpose, named where they are stopped.

TRM truncates by design: all but the last H cycle run without gradient, the carry is detached after every ACT step,
and the halting target is an argmax. A probe cannot tell these from a forgotten `.detach()`, so the model says it
here. Off (no probe listening) each function is the plain torch call plus one comparison with None.

    z = truncate(z, "carry")                              # z.detach()
    with no_gradient("h_cycles"):                         # torch.no_grad()
        z_h, z_l = cycle(z_h, z_l)
    z_h, z_l = truncate(z_h, "h_cycles"), truncate(z_l, "h_cycles")   # what leaves the block is named too
    y = straight_through(soft.round(), soft, "round")     # forward hard, backward soft

What leaves a `no_gradient` block must pass `truncate`: under `etrm.probes.gradient_audit` these values are recorded
once and replayed in every perturbed pass, so the finite difference measures exactly the function that autograd
differentiates. A value that leaves such a block without `truncate` is reported as cut, as it should be. This file
imports nothing of etrm.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor


class Listener(Protocol):
    """A probe that wants to know of declared exceptions (see etrm.probes.exceptions)."""

    def truncated(self, value: Tensor, name: str) -> Tensor:
        """Return what `truncate` shall return: a tensor of the same shape without history."""
        ...

    def enter_block(self, name: str) -> None:
        """A declared block without gradient begins."""
        ...

    def leave_block(self, name: str) -> None:
        """The declared block `name` ends."""
        ...


_listener: Listener | None = None


def truncate(value: Tensor, name: str) -> Tensor:
    """`value` (any shape, any dtype) without its history; `name` says which declared truncation this is."""
    if _listener is None:
        return value.detach()
    return _listener.truncated(value, name)


@contextmanager
def no_gradient(name: str) -> Iterator[None]:
    """`torch.no_grad()` under a name; pass what leaves the block through `truncate(value, name)`."""
    listener = _listener
    if listener is not None:
        listener.enter_block(name)
    try:
        with torch.no_grad():
            yield
    finally:
        if listener is not None:
            listener.leave_block(name)


def straight_through(hard: Tensor, soft: Tensor, name: str) -> Tensor:
    """The value of `hard` with the gradient of `soft` (same shape), to rounding: soft + constant(hard - soft)."""
    return soft + truncate(hard - soft, name)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Let one probe hear of every declared exception; the previous listener returns afterwards."""
    global _listener
    previous = _listener
    _listener = listener
    try:
        yield
    finally:
        _listener = previous

"""Exponential moving average of the trainable parameters, in fp32, next to the raw weights it never replaces."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from etrm.errors import CheckpointError


class EMA:
    """shadow <- decay * shadow + (1 - decay) * weight after each update; names as in `module.named_parameters()`."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow: dict[str, Tensor] = {}
        self.track(module)

    def track(self, module: nn.Module) -> None:
        """Take in parameters that have become trainable, at their present value."""
        for name, p in module.named_parameters():
            if p.requires_grad and name not in self.shadow:
                self.shadow[name] = p.detach().float().clone()

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Average the weights in after an update; call `track` before it for parameters that became trainable."""
        self.track(module)
        for name, p in module.named_parameters():
            if p.requires_grad:
                self.shadow[name].lerp_(p.detach().float(), 1 - self.decay)

    def initial_weight(self, updates: int) -> float:
        """Share of the initial weights left in the average after `updates`: decay ** updates."""
        return float(self.decay**updates)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Inside the block the module holds the averaged weights; the raw ones come back bitwise."""
        parameters = dict(module.named_parameters())
        raw = {n: parameters[n].detach().clone() for n in self.shadow}
        self._write(parameters, self.shadow)
        try:
            yield
        finally:
            self._write(parameters, raw)

    def load(self, shadow: Mapping[str, Tensor]) -> None:
        """Restore a saved average; CheckpointError if its names differ from this one's."""
        if set(shadow) != set(self.shadow):
            raise CheckpointError(f"EMA names differ: {sorted(set(shadow) ^ set(self.shadow))}")
        self.shadow = {n: t.to(self.shadow[n], copy=True) for n, t in shadow.items()}

    @staticmethod
    @torch.no_grad()
    def _write(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            parameters[name].copy_(value)

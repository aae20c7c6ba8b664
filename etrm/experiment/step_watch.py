"""Watches an optimiser over a run: how many steps it really takes, and that nothing else moves its weights in between.

A reload inside the loop, averaged weights swapped in and never out, a late initialisation: each leaves weights before a
step that are not those after the last one. A fingerprint of sums is enough to see it and costs next to nothing.
"""

import torch
from torch import Tensor


class StepWatch:
    """Counts steps of one optimiser and notes the steps before which its weights had changed. `close` ends it."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.weights = [p for group in optimizer.param_groups for p in group["params"]]
        self.steps = 0
        self.moved_before: list[int] = []
        self._last: Tensor | None = None
        self._hooks = [
            optimizer.register_step_pre_hook(lambda *_: self._look()),
            optimizer.register_step_post_hook(lambda *_: self._count()),
        ]

    def _fingerprint(self) -> Tensor:
        return torch.stack([p.detach().float().sum() for p in self.weights])

    def _look(self) -> None:
        if self._last is not None and not torch.equal(self._fingerprint(), self._last):
            self.moved_before.append(self.steps + 1)

    def _count(self) -> None:
        self.steps += 1
        self._last = self._fingerprint()

    def close(self) -> None:
        """Look once more and take the hooks away."""
        self._look()
        for hook in self._hooks:
            hook.remove()

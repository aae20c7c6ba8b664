"""Watches an optimiser over a run: every step beside a transcription of the config's own rule, and nothing in between.

A reload inside the loop, averaged weights swapped in and never out, a decay that begins late, moments lost, a rate laid
over another number of updates, gradients dropped before the step: each leaves weights other than those that the
gradient, the moments and the schedule give. The transcription is fp32 and costs a few milliseconds a step: of Muon's
matrices, whose step is dear, it takes a quarter at each step: every matrix once in TURNS steps, begun at a place drawn
anew each round, so that what goes wrong at every so many steps meets each of them too.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from etrm.config.schema import OptimConfig
from etrm.experiment.transcript import option_faults, push_of, rate_of

TOLERANCE = 0.03  # of a step's own length; fp32 repeats within 0.001
TURNS = 4  # steps in which each matrix under Muon is looked at once
TOLD = 5  # faults kept; the first ones say what happened


@dataclass(eq=False)
class _Moments:
    """Of one weight: its value before the step, the moments, and how many steps they hold."""

    before: Tensor
    mean: Tensor
    square: Tensor
    steps: int = 0


class StepWatch:
    """Counts and checks the steps of one optimiser, and notes those before which its weights had changed.

    `close` ends it. Inside `paused` (a rehearsal, which puts everything back) nothing is looked at.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, optim: OptimConfig, total: int) -> None:
        self.optimizer, self.optim, self.total = optimizer, optim, total
        self.weights = [p for group in optimizer.param_groups for p in group["params"]]
        self.steps = 0
        self.moved_before: list[int] = []
        self.wrong: list[str] = []
        self._moments = [_Moments(p.detach().clone(), torch.zeros_like(p), torch.zeros_like(p)) for p in self.weights]
        matrices = [i for i, p in enumerate(self.weights) if optim.name == "muon" and p.dim() == 2]
        self._turn_of = {i: n for n, i in enumerate(matrices)} if len(matrices) >= TURNS else {}
        self._paused = False
        self._hooks = [
            optimizer.register_step_pre_hook(lambda *_: self._look()),
            optimizer.register_step_post_hook(lambda *_: self._count()),
        ]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Steps inside are somebody's rehearsal."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def _look(self) -> None:
        if self._paused:
            return
        # Before the first step a resumed or edited system may hold whatever it holds; it is what the step starts from.
        if self.steps and any(not torch.equal(p, m.before) for p, m in zip(self.weights, self._moments, strict=True)):
            self.moved_before.append(self.steps + 1)
        for p, m in zip(self.weights, self._moments, strict=True):
            m.before.copy_(p.detach())

    @torch.no_grad()
    def _count(self) -> None:
        if self._paused:
            return
        if options := option_faults(self.optim, self.optimizer.param_groups):
            self._fault(options[0])
        elif not any(p.grad is not None and bool(p.grad.any()) for p in self.weights):
            self._fault("no weight has a gradient that is not zero")
        elif (off := self._gap()) > TOLERANCE:
            self._fault(f"it is off by {off:.2g} of its own length")
        for p, m in zip(self.weights, self._moments, strict=True):
            m.before.copy_(p)
        self.steps += 1

    def _fault(self, said: str) -> None:
        if len(self.wrong) < TOLD:
            self.wrong.append(f"step {self.steps + 1}: {said}")

    def _gap(self) -> float:
        """Distance between the weights and the transcribed ones, in lengths of the step."""
        rate = rate_of(self.optim, self.steps, self.total)
        phase = self.steps + random.Random(self.steps // TURNS).randrange(TURNS)
        wrong, moved, size = torch.zeros(()), torch.zeros(()), torch.zeros(())
        for i, (p, m) in enumerate(zip(self.weights, self._moments, strict=True)):
            if p.grad is not None:
                self._take_in(p.grad, m)
            if i in self._turn_of and (self._turn_of[i] + phase) % TURNS:
                continue
            after = m.before.clone() if p.grad is None else self._stepped(p.grad, m, rate)
            wrong += (p - after).square().sum()
            moved += (after - m.before).square().sum()
            size += after.square().sum()
        rounding = torch.finfo(torch.float32).eps * float(size) ** 0.5
        return max(0.0, float(wrong) ** 0.5 - rounding) / max(float(moved) ** 0.5, 1e-12)

    def _take_in(self, gradient: Tensor, m: _Moments) -> None:
        m.steps += 1
        m.mean.lerp_(gradient, 1 - self.optim.beta1)
        m.square.mul_(self.optim.beta2).addcmul_(gradient, gradient, value=1 - self.optim.beta2)

    def _stepped(self, gradient: Tensor, m: _Moments, rate: float) -> Tensor:
        push = push_of(self.optim, gradient, m.mean, m.square, m.steps)
        return m.before * (1 - rate * self.optim.weight_decay) - rate * push

    def close(self) -> None:
        """Look once more and take the hooks away."""
        self._look()
        for hook in self._hooks:
            hook.remove()

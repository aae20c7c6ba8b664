"""What the probes do with gradients that a model declares stopped on purpose (`etrm.declared`).

Two listeners. `DeclaredLog` writes down each declared exception with its file and line. `Tape` does the same and
keeps the
values: recorded in a reference pass and handed back in every later pass, so that a finite difference holds them
    fixed, which is what autograd does. A truncation is therefore tested, not excused: the rest of the gradient must
    still agree.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from etrm.declared import listening
from etrm.errors import ProbeError
from etrm.probes.places import Place, place_of, user_frame

__all__ = ["Declared", "DeclaredLog", "Tape", "listening"]


@dataclass
class Declared:
    """One declared exception at one line; `count` is how often it ran, `shape` the last shape seen there."""

    name: str
    place: Place
    shape: tuple[int, ...]
    count: int = 1

    def __str__(self) -> str:
        return f"declared '{self.name}' x{self.count}, shape {self.shape}\n  {self.place}"


class DeclaredLog:
    """Collects declared exceptions by name and line, and knows which declared block the code is in."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, Place], Declared] = {}
        self.blocks: list[str] = []
        self.truncating: str | None = None

    @property
    def active(self) -> str | None:
        """The name of the exception that is being executed, None outside any."""
        return self.truncating or (self.blocks[-1] if self.blocks else None)

    def note(self, name: str, shape: tuple[int, ...]) -> None:
        """Count one declared exception at the user's line."""
        place = place_of(user_frame())
        entry = self.seen.get((name, place))
        if entry is None:
            self.seen[(name, place)] = Declared(name, place, shape)
        else:
            entry.count += 1
            entry.shape = shape

    def truncated(self, value: Tensor, name: str) -> Tensor:
        """`value` without history, noted under `name`."""
        self.note(name, tuple(value.shape))
        self.truncating = name
        try:
            return value.detach()
        finally:
            self.truncating = None

    def enter_block(self, name: str) -> None:
        """A declared block without gradient begins."""
        self.note(name, ())
        self.blocks.append(name)

    def leave_block(self, name: str) -> None:
        """The innermost declared block ends."""
        self.blocks.pop()


class Tape(DeclaredLog):
    """Records every truncated value in one reference pass and replays them, in order, in the passes after it."""

    def __init__(self) -> None:
        super().__init__()
        self._values: list[tuple[str, Tensor]] = []
        self._replay_at: int | None = None

    def truncated(self, value: Tensor, name: str) -> Tensor:
        """The value itself while recording; the recorded constant while replaying. Raises ProbeError out of step."""
        constant = super().truncated(value, name)
        if self._replay_at is None:
            with torch._C.DisableTorchFunction():  # the tape's own copies are no calls of the model
                self._values.append((name, constant.clone()))
            return constant
        at = self._replay_at
        if at >= len(self._values):
            raise ProbeError(
                f"the pass met declared truncation '{name}' more often than the reference; make loss_fn repeat"
            )
        recorded_name, recorded = self._values[at]
        if recorded_name != name or recorded.shape != value.shape:
            raise ProbeError(
                f"the pass met declared truncation '{name}' {tuple(value.shape)} where the reference met "
                f"'{recorded_name}' {tuple(recorded.shape)}; loss_fn must take the same path each time"
            )
        self._replay_at = at + 1
        with torch._C.DisableTorchFunction():
            return recorded.clone()

    def note(self, name: str, shape: tuple[int, ...]) -> None:
        """Count while recording only."""
        if self._replay_at is None:
            super().note(name, shape)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Forget what was recorded and record again."""
        self._values.clear()
        self.seen.clear()
        self._replay_at = None
        with listening(self):
            yield

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Hold every declared truncation at its recorded value."""
        self._replay_at = 0
        with listening(self):
            yield
        if self._replay_at != len(self._values):
            met = f"{self._replay_at} of {len(self._values)} recorded truncations"
            raise ProbeError(f"a pass met {met}; loss_fn must take the same path each time")
        self._replay_at = None

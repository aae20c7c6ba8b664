"""Does the loss depend on a value that lost its history? Change the value, run the forward pass again, look.

The passes are repeatable (etrm.probes.subject.Rerun) and every torch call of a pass is numbered, so a break is found
again by its number. Declared truncations are held at their observed values, so what flows through them alone does not
count. This also follows values through `.item()` and numpy, where nothing else can.

`smooth` is the question for lost derivatives: floating results move by 1 %, 0.5 % and 0.25 % of their size, and the
loss must move each time, less each time (ten or a hundred times as far where fp32 shows no movement). A decision (a
threshold, an argmax, a stopping rule) does not, so a halting rule on a detached value is no finding. `depends` moves
values by a tenth and by ten times their size, exchanges indices and turns truth values.
"""

import math
from collections.abc import Callable, Collection
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from etrm.probes.autograd_walk import GradStash
from etrm.probes.calls import FREE, SINKS, call_name, tensors_in
from etrm.probes.exceptions import Tape
from etrm.probes.subject import Rerun

Effect = Literal["none", "changes", "fails"]
_MOST_ROWS = 64
_STEPS = (1e-2, 5e-3, 2.5e-3)
_FARTHER = (1.0, 10.0, 100.0)  # times _STEPS, in turn, while fp32 shows no movement in proportion
_COARSE = (0.1, 10.0)  # of `depends`, where indices and truth values turn as well


class _Alter(TorchFunctionMode):
    """Alters the results of the calls with the given ordinals; `row` and `column` limit it to one sample and token."""

    def __init__(
        self,
        ordinals: Collection[int],
        size: float,
        row: int | None,
        column: int | None,
        stash: GradStash,
        everything: bool = False,
        turn: bool = False,
    ) -> None:
        super().__init__()
        self._turn = turn
        self._ordinals = set(ordinals)
        self._size, self._row, self._column = size, row, column
        self._count = 0
        self._everything = everything
        self._stash = stash

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = call_name(func)
        if name in FREE or name == "_set_grad_enabled":
            return func(*args, **kwargs)
        if name == "backward":
            self._stash.protect(args[0])
            return func(*args, **kwargs)
        self._count += 1
        out = func(*args, **kwargs)
        if self._count not in self._ordinals:
            return out
        if name in SINKS:
            return self._python(out)
        given = {id(t) for t in tensors_in(args)}
        if out is None and args and isinstance(args[0], Tensor):
            self._in_place(args[0])
            return None
        return self._replace(out, given)

    def _python(self, value: Any) -> Any:
        """Another value of the same python or numpy type."""
        if isinstance(value, int) and not self._turn:
            return value
        if isinstance(value, bool):
            return not value
        if isinstance(value, int):
            return value + 1 if value == 0 else 0
        if isinstance(value, float):
            return value + self._size * (abs(value) or 1.0)
        if isinstance(value, list):
            return [self._python(item) for item in value]
        if hasattr(value, "dtype"):
            return self._tensor(torch.as_tensor(value).clone()).numpy()
        return value

    def _replace(self, out: Any, given: set[int]) -> Any:
        if isinstance(out, Tensor):
            if id(out) in given:
                self._in_place(out)
                return out
            return self._tensor(out)
        if isinstance(out, tuple) and hasattr(out, "_fields"):
            return type(out)(*(self._replace(item, given) for item in out))
        if isinstance(out, list | tuple):
            return type(out)(self._replace(item, given) for item in out)
        return out

    def _in_place(self, tensor: Tensor) -> None:
        with torch.no_grad():
            tensor.data.copy_(self._tensor(tensor.detach()))

    def _tensor(self, tensor: Tensor) -> Tensor:
        """An altered copy; what carries gradient itself is not a lost value and stays."""
        if tensor.requires_grad and not self._everything:
            return tensor
        altered = tensor.detach().clone()
        if altered.numel() == 0:
            return altered
        if altered.is_floating_point() or altered.is_complex():
            # Half precision would round the small steps away.
            size = self._size * (10 if altered.dtype in (torch.float16, torch.bfloat16) and not self._turn else 1)
            scale = float(altered.abs().double().square().mean()) ** 0.5 or 1.0
            noise = torch.rand(altered.shape, generator=torch.Generator().manual_seed(0)) + 0.5
            noise = noise * torch.where(noise > 0.9, 1.0, -1.0)  # of both signs, with a sum that is not zero
            changed = altered + (size * scale * noise).to(altered)
        elif not self._turn:
            return altered
        elif altered.dtype == torch.bool:
            changed = ~altered
        else:
            changed = torch.where(altered == 0, torch.ones_like(altered), torch.zeros_like(altered))
        if self._row is None:
            return changed
        if altered.ndim == 0 or self._row >= altered.shape[0]:
            return altered
        if self._column is None:
            altered[self._row] = changed[self._row]
        elif altered.ndim > 1 and self._column < altered.shape[1]:
            altered[self._row, self._column] = changed[self._row, self._column]
        return altered


class Trial:
    """Swallows whatever the user's code raises in a changed pass: any failure there is an answer, not an error."""

    failed = False

    def __enter__(self) -> "Trial":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self.failed = kind is not None and issubclass(kind, Exception)
        return self.failed


class Interventions:
    """Repeats the observed forward pass with some values changed and compares the losses bitwise."""

    def __init__(
        self, rerun: Rerun, loss_fn: Callable[[], Tensor], declared: Tape, stash: GradStash, base: float
    ) -> None:
        self._rerun, self._loss_fn, self._declared, self._stash = rerun, loss_fn, declared, stash
        self._base = base
        self._repeats: bool | None = None
        self.passes = 0

    @property
    def repeatable(self) -> bool:
        """Whether the unchanged pass gives the observed loss again."""
        if self._repeats is None:
            self._repeats = self._loss(()) == self._base
        return self._repeats

    def _loss(
        self,
        ordinals: Collection[int],
        size: float = 0.0,
        row: int | None = None,
        column: int | None = None,
        everything: bool = False,
        turn: bool = False,
    ) -> float | None:
        """The loss of one pass, None where it failed."""
        self.passes += 1
        self._rerun.restore()  # outside the mode, which would count its calls
        value: Tensor | None = None
        alter = _Alter(ordinals, size, row, column, self._stash, everything, turn)
        with Trial() as trial, self._declared.replaying(), alter:
            value = self._loss_fn()
        self._stash.restore()
        return None if trial.failed or value is None else float(value.detach().double())

    def smooth(self, ordinals: Collection[int], everything: bool = False) -> bool:
        """Whether the loss follows changes of these results in proportion, at the first scale where that shows."""
        for factor in _FARTHER:
            moves: list[float] = []
            for size in _STEPS:
                loss = self._loss(ordinals, factor * size, everything=everything)
                if loss is None:
                    return False
                moves.append(abs(loss - self._base))
                if not moves[-1]:
                    break  # fp32 may hide what is there: try farther
            else:
                if moves[-1] < moves[0] or not all(math.isfinite(move) for move in moves):
                    return True
        return False

    def moves(self, ordinals: Collection[int], everything: bool = False) -> bool:
        """Whether one change of all these results, as large as they are, changes the loss or makes the pass fail."""
        return self._loss(ordinals, _FARTHER[-1] * _STEPS[0], everything=everything) != self._base

    def depends(
        self, ordinals: Collection[int], row: int | None = None, column: int | None = None, everything: bool = False
    ) -> bool:
        """Whether the loss changes at all when these results do; `everything` alters carrying results too."""
        return self.effect(ordinals, row, column, everything) != "none"

    def effect(
        self, ordinals: Collection[int], row: int | None = None, column: int | None = None, everything: bool = False
    ) -> Effect:
        """What coarse changes of these results do: a guard makes the pass fail and never changes a loss."""
        losses = []
        for size in _COARSE:
            losses.append(self._loss(ordinals, size, row, column, everything, turn=True))
            if losses[-1] is not None and losses[-1] != self._base:
                return "changes"
        return "fails" if all(loss is None for loss in losses) else "none"

    def rows(self, ordinals: Collection[int], count: int) -> tuple[int, ...]:
        """The samples on whose part of the value the loss depends (of the first 64)."""
        return tuple(i for i in range(min(count, _MOST_ROWS)) if self.depends(ordinals, i))

    def columns(self, ordinals: Collection[int], row: int, count: int) -> tuple[int, ...]:
        """The tokens of one sample on which the loss depends (of the first 64)."""
        return tuple(t for t in range(min(count, _MOST_ROWS)) if self.depends(ordinals, row, t))

"""Progress of long phases: a bar on a terminal, a plain line about every 20 seconds elsewhere, both with the time left.

Notable: nothing is drawn from a thread. A phase redraws only inside `advance`, inside `suspend()`, so a runner that
captures output is held off for the instant of drawing and never for the training itself. The clock is a parameter, so
tests need none.
Knows no pytest: conftest.py passes `suspend`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from etrm.errors import ConfigError

PLAIN_SECONDS = 20.0
REDRAW_SECONDS = 0.2


class Phase:
    """One phase under way. Call it as `advance(n, loss=0.41)`; it may be called after its end without harm."""

    def __init__(self, owner: PhaseProgress, name: str, total: int) -> None:
        if total < 1:
            raise ConfigError(f"progress phase {name!r} has total {total}: expected at least one step")
        self.name, self.total, self.done = name, total, 0
        self.notes: dict[str, str] = {}
        self.task: TaskID | None = None  # its bar, where there is a terminal
        self._owner, self._start, self._drawn = owner, owner.clock(), owner.clock()
        self.open = True

    def __call__(self, n: int = 1, **notes: float | str) -> None:
        """Count `n` more steps; `notes` replace the last ones of the same name. The last step ends the phase."""
        if not self.open:
            return
        self.done += n
        self.notes |= {key: value if isinstance(value, str) else f"{value:.4g}" for key, value in notes.items()}
        if self.done >= self.total:
            self.close()
        elif self._owner.clock() - self._drawn >= self._owner.interval:
            self._drawn = self._owner.clock()
            self._owner.draw(self)

    def close(self) -> None:
        """End the phase, finished or not; the last line says which."""
        if self.open:
            self.open = False
            self._owner.end(self)

    def status(self) -> str:
        """`1 min 20 s, 6 min left, loss 0.41`; what is left is the mean pace so far times the steps to go."""
        elapsed = self._owner.clock() - self._start
        words = [span(elapsed)]
        if not self.open and self.done < self.total:
            words.append("stopped early")
        elif self.open and self.done:
            words.append(f"{span(elapsed / self.done * (self.total - self.done))} left")
        return ", ".join(words + [f"{key} {value}" for key, value in self.notes.items()])

    def line(self) -> str:
        """The plain line: name, steps done, share, status."""
        return f"[{self.name}] {self.done}/{self.total} ({self.done / self.total:.0%}), {self.status()}"


class PhaseProgress:
    """Phases by name and total: `with progress("train", 2400) as advance: advance(1, loss=loss)`."""

    def __init__(
        self,
        console: Console | None = None,
        suspend: Callable[[], AbstractContextManager[None]] = nullcontext,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self._console = console if console is not None else Console()
        self._suspend = suspend
        self._bars: Progress | None = None  # exists while a phase is open on a terminal
        self._phases: list[Phase] = []

    @property
    def interval(self) -> float:
        """Seconds between two drawings of one phase."""
        return REDRAW_SECONDS if self._bars is not None else PLAIN_SECONDS

    @contextmanager
    def __call__(self, phase: str, total: int) -> Iterator[Phase]:
        """A phase that ends with the block, also where the block raises. Raises ConfigError for `total` < 1."""
        advance = self.callback(phase, total)
        try:
            yield advance
        finally:
            advance.close()

    def callback(self, phase: str, total: int) -> Phase:
        """The same for a loop that takes a callback: ends with the last step, or with `close()` of the session."""
        opened = Phase(self, phase, total)
        with self._suspend():
            if self._console.is_terminal and not self._console.is_dumb_terminal and self._bars is None:
                self._console.line()  # leave the runner's row of dots alone
                self._bars = Progress(
                    TextColumn("{task.description}"),
                    BarColumn(bar_width=30),
                    TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[status]}"),
                    console=self._console,
                    auto_refresh=False,
                    redirect_stdout=False,
                    redirect_stderr=False,
                )
                self._bars.start()
            if self._bars is not None:
                opened.task = self._bars.add_task(escape(phase), total=total, status="")
                self._bars.refresh()
            else:
                if not self._phases:
                    self._console.line()
                self._print(f"[{phase}] {total} steps")
        self._phases.append(opened)
        return opened

    def say(self, text: str) -> None:
        """One line that reaches the person at once, above any bar."""
        with self._suspend():
            self._print(text)

    def close(self) -> None:
        """End every open phase."""
        for phase in list(self._phases):
            phase.close()

    def draw(self, phase: Phase) -> None:
        """Show where `phase` stands."""
        with self._suspend():
            if self._bars is not None and phase.task is not None:
                self._bars.update(phase.task, completed=phase.done, status=escape(phase.status()))
                self._bars.refresh()
            else:
                self._print(phase.line())

    def end(self, phase: Phase) -> None:
        """Show `phase` for the last time; the bars go when no phase is left."""
        self._phases.remove(phase)
        self.draw(phase)
        if self._bars is not None and not self._phases:
            with self._suspend():
                self._bars.stop()
            self._bars = None

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def span(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `1 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole < 600 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

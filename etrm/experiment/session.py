"""What one pytest session of the experiment was asked, and how it ended beyond pytest's own exit code.

Notable: a gate that could not be evaluated is neither passed nor failed, so it gets exit codes of its own, 10
(UNDECIDED: more tasks, updates or seeds would decide) and 11 (INVALID: the experiment itself is broken, its numbers
mean nothing). pytest's "interrupted", "internal error", "usage error" and "no tests" say that the session did not run
its course; they stay as they are.
Knows neither torch nor pytest: conftest.py is the glue.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from etrm.errors import ConfigError

EXIT_UNDECIDED = 10
EXIT_INVALID = 11
EXIT_CODES: Mapping[int, str] = MappingProxyType(
    {
        0: "every selected assertion holds",
        1: "at least one assertion failed",
        2: "interrupted",
        3: "internal error",
        4: "wrong command line",
        5: "no test was selected",
        EXIT_UNDECIDED: "UNDECIDED: a gate could not be evaluated for lack of evidence",
        EXIT_INVALID: "INVALID: a gate could not be evaluated because the experiment is not valid",
    }
)

_OVERRIDABLE = (0, 1)  # the codes that say "the session ran its course"
_EXPRESSION_TOKEN = re.compile(r"\(|\)|[^\s()]+")


@dataclass(frozen=True)
class RunOptions:
    """The command line of one session, resolved. `None` means "not asked", and the arm's config decides."""

    slow: bool
    fresh: bool
    encoder: str | None
    verdict_json: Path | None
    seeds: int | None
    run_name: str | None
    require_gpu: bool
    threads: int


@dataclass(frozen=True)
class GateRecord:
    """One gate that could not be evaluated: its state (`UNDECIDED` or `INVALID`), the test, and why."""

    state: str
    where: str
    reason: str


@dataclass
class SessionOutcome:
    """Collects what the tests of one session could not decide, and the panels to print at its end."""

    gates: list[GateRecord] = field(default_factory=list)
    panels: list[object] = field(default_factory=list)

    def record(self, state: str, where: str, reason: str) -> None:
        """Note a gate once. Raises ConfigError for an unknown state or an empty reason."""
        if state not in ("UNDECIDED", "INVALID"):
            raise ConfigError(f"gate state {state!r} at {where}: expected 'UNDECIDED' or 'INVALID'")
        if not reason.strip():
            raise ConfigError(
                f"the {state} gate at {where} has no reason: say what is missing and what would decide it"
            )
        found = GateRecord(state, where, reason)
        if found not in self.gates:
            self.gates.append(found)

    def show(self, panel: object) -> None:
        """Keep a string or a rich renderable for the end of the session, in the order shown."""
        self.panels.append(panel)

    def exit_code(self, pytest_code: int) -> int:
        """11 if any gate is INVALID, else 10 if any is UNDECIDED, else `pytest_code`; only 0 and 1 are replaced."""
        states = {gate.state for gate in self.gates}
        if pytest_code not in _OVERRIDABLE or not states:
            return pytest_code
        return EXIT_INVALID if "INVALID" in states else EXIT_UNDECIDED


def asks_for(expression: str, marker: str) -> bool:
    """Does a `-m` expression ask for `marker`: does it name it under an even number of `not`?

    `slow`, `arc and slow`, `not (fast or not slow)` ask for slow; `not slow` and `fast and not (arc or slow)` do not.
    """
    negated = [False]  # one entry for each open parenthesis
    pending = False  # an odd number of `not` directly before the next term
    for token in _EXPRESSION_TOKEN.findall(expression):
        if token == "not":
            pending = not pending
        elif token == "(":
            negated.append(negated[-1] != pending)
            pending = False
        elif token == ")":
            if len(negated) > 1:  # an unbalanced expression is pytest's to refuse
                negated.pop()
        elif token not in ("and", "or"):
            if token == marker and negated[-1] == pending:
                return True
            pending = False
    return False


def parse_threads(text: str | None, default: int = 2) -> int:
    """CPU threads of torch from $ETRM_THREADS; two, the number all budgets were measured with, where it is unset."""
    if text is None:
        return default
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"ETRM_THREADS={text!r}: expected a whole number of CPU threads, such as ETRM_THREADS=2")
    return int(text)

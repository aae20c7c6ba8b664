"""The entry of a planted bug, the bench it is planted on, and the two ways to plant: wrap a part, replace a function.

`everywhere` replaces a function in every module of the library that imported it, as an edit of its source would.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from etrm.config.schema import RunConfig
from etrm.errors import ConfigError
from etrm.experiment.arms import Arm, build_arm
from etrm.models.bundle import Bundle
from etrm.training.update import LossHead

Stage = Literal["before training", "first updates", "short run", "full run"]
Family = Literal["gradient", "decoder", "data", "training", "encoder", "evaluation", "config"]
REFUSED = "REFUSED"  # a typed error before anything ran: no verdict is given at all
FILES = ("gradient", "decoder", "data", "training", "encoder", "evaluation", "configuration", "late", "wiring")


@dataclass
class Bench:
    """A healthy system that a plant may change before it is run. `folder` is free for files."""

    config: RunConfig
    bundle: Any  # a Bundle; None lets the run load its own
    folder: Path
    edits: list[Callable[[LossHead], None]] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)  # raw `key=value`, composed before the run

    def edit(self, head: LossHead) -> None:
        """Apply every edit to the assembled model."""
        for change in self.edits:
            change(head)


Plant = Callable[[Bench], AbstractContextManager[None]]


@dataclass(frozen=True)
class Fault:
    """One bug. `catalogue` numbers the published case (None: a classic); `naive` is the scenario a reader of single
    numbers concludes; `verdicts` are the words that are right, `check` the check or question that must name it.
    """

    id: str
    family: Family
    catalogue: int | None
    happened: str
    naive: str
    verdicts: tuple[str, ...]
    check: str
    stage: Stage
    plant: Plant
    arm: str = "micro"


BANK: dict[str, Fault] = {}


def fault(
    id: str,
    family: Family,
    happened: str,
    *,
    verdict: str,
    check: str,
    stage: Stage = "before training",
    catalogue: int | None = None,
    naive: str = "A or C",
    arm: str = "micro",
) -> Callable[[Callable[[Bench], Iterator[None]]], Plant]:
    """Enter a generator that plants on a bench (and takes back after its yield). `verdict`: words joined by '|'."""

    def enter(plant: Callable[[Bench], Iterator[None]]) -> Plant:
        if id in BANK:
            raise ConfigError(f"two faults are named {id!r}; give the second another id")
        managed = contextmanager(plant)
        words = tuple(verdict.split("|"))
        BANK[id] = Fault(id, family, catalogue, happened, naive, words, check, stage, managed, arm)
        return managed

    return enter


def load_bank() -> dict[str, Fault]:
    """Every fault by id, in the order of the files."""
    for name in FILES:
        importlib.import_module(f"etrm.faults.{name}")
    return BANK


@contextmanager
def everywhere(original: Any, stand_in: Any) -> Iterator[None]:
    """Put `stand_in` in the place of a function or class in every loaded module of the library that holds it."""
    found = [
        (module, name)
        for label, module in list(sys.modules.items())
        if label.startswith("etrm") and not label.startswith("etrm.faults")
        for name, value in list(vars(module).items())
        if value is original
    ]
    for module, name in found:
        setattr(module, name, stand_in)
    try:
        yield
    finally:
        for module, name in found:
            setattr(module, name, original)


@contextmanager
def method(owner: Any, name: str, stand_in: Any) -> Iterator[None]:
    """Put `stand_in` in the place of a method of a class."""
    original = getattr(owner, name)
    setattr(owner, name, stand_in)
    try:
        yield
    finally:
        setattr(owner, name, original)


def on_arm(change: Callable[[Arm], Arm]) -> AbstractContextManager[None]:
    """Change the arm that a run builds."""

    def build(config: RunConfig, bundle: Bundle) -> Arm:
        return change(build_arm(config, bundle))

    return everywhere(build_arm, build)


def configured(bench: Bench, section: str, **values: Any) -> None:
    """Set fields of one section of the bench's config."""
    bench.config = replace(bench.config, **{section: replace(getattr(bench.config, section), **values)})

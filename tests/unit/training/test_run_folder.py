"""Whatever happens to a run's folder between its sessions, in any order: it goes on exactly, or says why it does not.

A hypothesis state machine over a real toy run: sessions that end early, a bit flipped in the newest checkpoint, the
newest one deleted, lines of a killed session behind the last checkpoint, a left-over temporary file.
"""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from etrm.errors import CheckpointError
from etrm.training.checkpoint import read_checkpoint, steps_in
from tests.fuzz_weights import equal
from tests.unit.training.conftest import Toy

pytestmark = pytest.mark.thorough
TOTAL, EVERY = 12, 3


class RunFolder(RuleBasedStateMachine):
    """The folder of one run, beside an uninterrupted run that nobody touched."""

    toy = Toy()
    straight: Any = None
    lines: bytes = b""

    def __init__(self) -> None:
        super().__init__()
        self.config = self.toy.config(budget={"checkpoint_every": EVERY})
        self.place = tempfile.TemporaryDirectory()
        self.folder = Path(self.place.name)
        if RunFolder.straight is None:
            with tempfile.TemporaryDirectory() as name:
                self.toy.fit(self.config, self.toy.state(self.config), Path(name))
                RunFolder.straight = read_checkpoint(Path(name) / "steps" / f"step_{TOTAL}")
                RunFolder.lines = (Path(name) / "metrics.jsonl").read_bytes()
        self.begun = self.done = False
        self.damaged: set[int] = set()

    def kept(self) -> list[int]:
        return steps_in(self.folder / "steps") if (self.folder / "steps").is_dir() else []

    @rule(stop=st.sampled_from((3, 6, 9, 12)))
    def session(self, stop: int) -> None:
        """One session of the run, ended after update `stop`."""
        before = self.kept()
        usable = [step for step in before if step not in self.damaged]
        state = self.toy.state(self.config)
        if before and not usable:
            with pytest.raises(CheckpointError, match="can be used"):
                self.toy.fit(self.config, state, self.folder, stop_after=stop, say=lambda _: None)
            return
        self.toy.fit(self.config, state, self.folder, stop_after=stop, say=lambda _: None)
        self.begun = True
        self.damaged &= set(self.kept()) - set(range(max(usable, default=0) + 1, stop + 1))
        self.done = state.step == TOTAL

    @precondition(lambda self: self.kept() and self.kept()[-1] not in self.damaged)
    @rule(share=st.sampled_from((0.2, 0.5, 0.8)))
    def flip_a_bit_in_the_newest(self, share: float) -> None:
        newest = self.kept()[-1]
        path = self.folder / "steps" / f"step_{newest}"
        data = bytearray(path.read_bytes())
        data[int(len(data) * share)] ^= 4
        path.write_bytes(bytes(data))
        self.damaged.add(newest)
        self.done = False

    @precondition(lambda self: len(self.kept()) > 1)
    @rule()
    def delete_the_newest(self) -> None:
        newest = self.kept()[-1]
        (self.folder / "steps" / f"step_{newest}").unlink()
        self.damaged.discard(newest)
        self.done = False

    @precondition(lambda self: self.begun)
    @rule()
    def lines_of_a_killed_session(self) -> None:
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write('{"step": 99, "train/lm_loss": 1.0}\n{"step": 10')
        self.done = False

    @precondition(lambda self: self.kept())
    @rule()
    def left_over_temporary_file(self) -> None:
        (self.folder / "steps" / ".step_9.abcdef.tmp").write_bytes(b"half")

    @invariant()
    def a_finished_run_is_the_uninterrupted_one(self) -> None:
        if self.done:
            assert equal(read_checkpoint(self.folder / "steps" / f"step_{TOTAL}"), self.straight)
            assert (self.folder / "metrics.jsonl").read_bytes() == self.lines

    def teardown(self) -> None:
        self.place.cleanup()


RunFolder.TestCase.settings = settings(max_examples=12, stateful_step_count=8, deadline=None, derandomize=True)
TestRunFolder = RunFolder.TestCase

"""Freed memory stays with the process: the same allocations fault far fewer pages once the thresholds are raised."""

import platform
import subprocess
import sys

import numpy as np
import pytest
import torch

from etrm.config.compose import load
from etrm.config.schema import PretrainConfig, RunConfig
from etrm.errors import EvaluationError
from etrm.experiment import asking
from etrm.experiment.questions import Questions
from etrm.models.bundle import load_bundle
from etrm.models.etrm import TableTRM
from etrm.training import loop
from etrm.training.memory import keep_freed_memory
from etrm.training.run import build_head
from etrm.training.update import LossHead

pytestmark = pytest.mark.fast

ALLOCATE = """
import resource, sys
from etrm.training.memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def update():
    blocks = [bytearray(b"x") * (3 << 20) for _ in range(40)]
for _ in range(3):
    update()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    update()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this C library has no mallopt")


@glibc
@pytest.mark.thorough
def test_blocks_that_were_freed_are_used_again_without_a_page_fault() -> None:
    faults = {
        word: int(
            subprocess.run([sys.executable, "-c", ALLOCATE, word], capture_output=True, text=True, check=True).stdout
        )
        for word in ("plain", "kept")
    }
    assert faults["kept"] * 20 < faults["plain"], faults


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("called"))
    assert keep_freed_memory() is False


def test_every_training_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(loop, "keep_freed_memory", lambda: asked.append("asked"))
    config, bundle = load(RunConfig, "cfg_micro"), load_bundle("micro")
    loop.encoder_state(config, build_head(config, bundle, torch.device("cpu")), 148)
    pretraining = load(PretrainConfig, "cfg_pretrain_micro")
    loop.pretrain_state(pretraining, LossHead(TableTRM(bundle.decoder.requires_grad_(True), 4), pretraining.loss), 4)
    assert asked == ["asked", "asked"]


def test_every_evaluation_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(asking, "keep_freed_memory", lambda: asked.append("asked"))
    nothing = Questions((), {("task", 0): np.zeros((1, 1), dtype=np.uint8)}, 5, lambda rows: pytest.fail("encoded"))
    with pytest.raises(EvaluationError):
        asking.evaluate(torch.nn.Identity(), nothing, 8, torch.device("cpu"), lambda n: None)
    assert asked == ["asked"]


@glibc
def test_it_may_be_called_again() -> None:
    assert keep_freed_memory() and keep_freed_memory()

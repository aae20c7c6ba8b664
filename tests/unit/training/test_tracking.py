"""Trackers write what they are given: Weights & Biases offline, TensorBoard to event files; each skips if not there.

The run's own tests (tests/unit/experiment/test_pretraining.py) hold that every line of the log reaches them.
"""

import importlib.util
import math
from pathlib import Path

import pytest

from etrm.errors import ConfigError
from etrm.training.tracking import Trackers, check_installed

pytestmark = pytest.mark.fast

LINES = [
    (50, {"train/lm_loss": 1.5, "train/exact_accuracy": math.nan}),
    (100, {"train/lm_loss": 1.25, "ARC/pass@1": 0.5}),
]


def needs(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install -e '.[{name}]'")


def written(names: str, folder: Path, resume_step: int = 0, lines=LINES) -> None:
    folder.mkdir(exist_ok=True)
    trackers = Trackers(names, "ETRM-FrozenDecoder-Test", "run", {"optim": {"lr": 3e-4}}, folder, resume_step)
    for step, metrics in lines:
        trackers(step, metrics)
    trackers.close()


def test_none_makes_nothing(tmp_path: Path) -> None:
    written("none", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"trackers names pandora, .*pip install -e '\.\[pandora\]', or set trackers"):
        check_installed("pandora")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the tracker's own dependencies
def test_tensorboard_has_the_same_names_and_numbers_and_a_resumed_run_replaces_what_it_repeats(tmp_path: Path) -> None:
    needs("tensorboard")
    written("tensorboard", tmp_path)
    written("tensorboard", tmp_path, 50, [(100, {"train/lm_loss": 1.0})])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"train/lm_loss", "ARC/pass@1"}
    assert [(e.step, e.value) for e in events.Scalars("train/lm_loss")] == [(50, 1.5), (100, 1.0)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_wandb_offline_writes_the_run_under_its_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    written("wandb", tmp_path)
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    content = file.read_bytes()
    for word in (b"ETRM-FrozenDecoder-Test", b"train/lm_loss", b"ARC/pass@1", b"1.25"):
        assert word in content
    assert b"train/exact_accuracy" not in content

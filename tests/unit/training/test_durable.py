"""What survives: flipped bits are refused, older checkpoints stand in, one process a folder, a full disk is told."""

import errno
import json
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etrm.errors import CheckpointError
from etrm.models.archive import archive_fault
from etrm.training.checkpoint import newest_whole, read_checkpoint, resume, steps_in
from etrm.training.durable import alone_in, append_line, write_whole
from tests.fuzz_weights import equal

pytestmark = pytest.mark.thorough
ROOT = Path(__file__).resolve().parents[3]
PLACE = "model.encoder.place"


def flip(path: Path, share: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * share)] ^= 4
    path.write_bytes(bytes(data))


@pytest.fixture
def two(toy: Any, tmp_path: Path) -> Path:
    """A run of 12 updates that has step_9 and step_12."""
    config = toy.config(budget={"checkpoint_every": 3})
    toy.fit(config, toy.state(config), tmp_path)
    return tmp_path


@pytest.mark.parametrize("share", [0.2, 0.4, 0.5, 0.6, 0.8])
def test_a_flipped_bit_in_a_weight_is_refused(two: Path, share: float) -> None:
    """torch itself would load it in silence."""
    path = two / "steps" / "step_12"
    flip(path, share)
    with pytest.raises(CheckpointError, match="step_12 is truncated or unsafe"):
        read_checkpoint(path)


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before_with_a_message(toy: Any, two: Path) -> None:
    config = toy.config(budget={"checkpoint_every": 3})
    whole = read_checkpoint(two / "steps" / "step_12")
    lines = (two / "metrics.jsonl").read_bytes()
    flip(two / "steps" / "step_12", 0.5)
    said: list[str] = []
    state = toy.state(config)
    toy.fit(config, state, two, say=said.append)
    assert len(said) == 1 and "step_9, not from the newest" in said[0] and "step_12 is truncated or unsafe" in said[0]
    assert equal(read_checkpoint(two / "steps" / "step_12"), whole)
    assert (two / "metrics.jsonl").read_bytes() == lines


def test_where_no_checkpoint_is_whole_nothing_is_begun_anew(toy: Any, two: Path) -> None:
    config = toy.config(budget={"checkpoint_every": 3})
    for step in (9, 12):
        (two / "steps" / f"step_{step}").write_bytes(b"cut")
    lines = (two / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* can be used: .*step_12.*step_9"):
        toy.fit(config, toy.state(config), two)
    assert (two / "metrics.jsonl").read_bytes() == lines


@pytest.mark.parametrize("damage", ["altered", "shortened"])
def test_metrics_lines_that_a_checkpoint_counts_on_must_be_there(toy: Any, two: Path, damage: str) -> None:
    log, config = two / "metrics.jsonl", toy.config(budget={"checkpoint_every": 3})
    lines = log.read_text().splitlines(keepends=True)
    kept = lines[:-1] if damage == "shortened" else [*lines[:-1], lines[-1].replace('"step": 12', '"step": 13')]
    log.write_text("".join(kept))
    said: list[str] = []
    toy.fit(config, toy.state(config), two, say=said.append)
    assert "step_9" in said[0] and log.read_text() == "".join(lines)


def test_without_its_metrics_file_no_checkpoint_is_used(toy: Any, two: Path) -> None:
    config = toy.config(budget={"checkpoint_every": 3})
    (two / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match="does not begin with what was logged when step_12"):
        toy.fit(config, toy.state(config), two)


def test_a_kill_between_the_new_checkpoint_and_the_removal_of_the_old_leaves_no_third(toy: Any, two: Path) -> None:
    steps = two / "steps"
    payload = read_checkpoint(steps / "step_9") | {"step": 6}
    torch.save(payload, steps / "step_6")
    assert newest_whole(steps, two / "metrics.jsonl", print) is not None
    assert sorted(steps_in(steps)) == [9, 12]


def test_the_global_generators_go_on_too(toy: Any, tmp_path: Path) -> None:
    """An encoder with dropout draws from torch's own generator; others may draw from Python's or numpy's."""
    config = toy.config()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    toy.fit(config, toy.state(config), tmp_path, stop_after=6)
    expected = (torch.rand(3).tolist(), random.random(), np.random.rand())
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    resume(tmp_path / "steps" / "step_6", config, toy.state(config), np.random.default_rng(0))
    assert (torch.rand(3).tolist(), random.random(), np.random.rand()) == expected


MISFITS: dict[str, Any] = {
    "another type of weight": lambda p: p["model"].update(
        {"model.encoder.place": p["model"]["model.encoder.place"].half()}
    ),
    "NaN in the EMA": lambda p: next(iter(p["ema"].values())).fill_(torch.nan),
    "moments of no parameter": lambda p: p["optimizers"]["encoder"]["state"].update({99: {}}),
    "a token that is none": lambda p: p["carry"]["episodes"]["inputs"].fill_(99),
    "steps past the end": lambda p: p["carry"].update(steps=p["carry"]["steps"] + 99),
    "no generator": lambda p: p.update(act_generator=torch.zeros(3, dtype=torch.uint8)),
    "no numpy generator": lambda p: p.update(data_generator={"bit_generator": "MT19937"}),
    "no carry": lambda p: p.update(carry=None),
    "a step past the plan": lambda p: p.update(step=6.0),
    "another learning rate's type": lambda p: p["optimizers"]["encoder"]["param_groups"][0].update(lr=torch.ones(2)),
}


@pytest.mark.parametrize("what", MISFITS)
def test_a_checkpoint_whose_parts_do_not_fit_is_refused_before_anything_is_taken(
    toy: Any, tmp_path: Path, what: str
) -> None:
    config = toy.config()
    toy.fit(config, toy.state(config), tmp_path, stop_after=6)
    path = tmp_path / "steps" / "step_6"
    payload = torch.load(path, weights_only=True)
    MISFITS[what](payload)
    torch.save(payload, path)
    state = toy.state(config)
    before = {n: t.clone() for n, t in state.model.state_dict().items()}
    with pytest.raises(CheckpointError, match="step_6"):
        resume(path, config, state, np.random.default_rng(0))
    assert all(torch.equal(t, before[n]) for n, t in state.model.state_dict().items()) and state.step == 0


def _lacks(moment: str, matrices: bool, every: bool) -> Any:
    """Takes a moment from one matrix (or from one parameter that is none), or from all of them."""

    def harm(kept: dict[int, dict[str, Any]], shapes: list[bool]) -> str:
        own = [i for i in kept if shapes[i] == matrices]
        for i in own if every else own[:1]:
            del kept[i][moment]
        return f"lacks .*{moment}"

    return harm


def _nothing_left(kept: dict[int, dict[str, Any]], shapes: list[bool]) -> str:
    kept.clear()
    return "no optimiser holds a moment"


def _one_too_many(kept: dict[int, dict[str, Any]], shapes: list[bool]) -> str:
    one = next(i for i in kept if shapes[i])
    kept[one]["square"] = torch.zeros_like(kept[one]["mean"])
    return "has .*square.* besides"


def _a_number_for_a_moment(kept: dict[int, dict[str, Any]], shapes: list[bool]) -> str:
    kept[0]["mean"] = 0
    return "'mean' of parameter 0"


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        *((name, None) for name in ("muon", "adamw", "adam_atan2")),
        *((name, _nothing_left) for name in ("muon", "adamw", "adam_atan2")),
        *(("muon", _lacks(*what, every)) for what in (("square", False), ("mean", True)) for every in (False, True)),
        ("muon", _lacks("step", True, True)),
        ("adamw", _lacks("exp_avg_sq", True, True)),
        ("adam_atan2", _lacks("square", True, True)),
        ("muon", _one_too_many),
        ("muon", _a_number_for_a_moment),
    ],
)
def test_moments_that_are_not_the_optimisers_are_named_and_that_of_a_matrix_under_muon_is_not_missed(
    toy: Any, tmp_path: Path, name: str, harm: Any
) -> None:
    """None: nothing is taken away, and nothing refused."""
    config = toy.config(optim={"name": name}, encoder={"name": "cell_reader"})  # it has matrices, vectors and more
    toy.fit(config, toy.state(config), tmp_path, stop_after=6)
    path = tmp_path / "steps" / "step_6"
    payload = torch.load(path, weights_only=True)
    if harm is not None:
        shapes = [p.dim() == 2 for p in toy.state(config).model.parameters() if p.requires_grad]
        told = harm(payload["optimizers"]["encoder"]["state"], shapes)
        torch.save(payload, path)
        with pytest.raises(CheckpointError, match=told):
            resume(path, config, toy.state(config), np.random.default_rng(0))
    else:
        resume(path, config, toy.state(config), np.random.default_rng(0))


@pytest.mark.parametrize("what", ["packed", "claims", "twice"])
def test_an_archive_that_torch_would_not_write_is_refused_unopened(tmp_path: Path, what: str) -> None:
    path = tmp_path / "step_1"
    kind = zipfile.ZIP_DEFLATED if what == "packed" else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("a/data.pkl", b"\0" * 10_000_000 if what == "packed" else b"x" * 100)
        if what == "twice":
            with pytest.warns(UserWarning, match="Duplicate name"):
                archive.writestr("a/data.pkl", b"y")
    if what == "claims":
        data = path.read_bytes()
        at = data.index(b"PK\x01\x02") + 24  # the size in the directory, after unpacking
        path.write_bytes(data[:at] + (2**31).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(CheckpointError, match={"packed": "compressed", "claims": "claim", "twice": "one name"}[what]):
        read_checkpoint(path)
    assert archive_fault(path) is not None


# ---- lock and disk ----------------------------------------------------------------------------------------------


HOLD = """
import sys
from pathlib import Path
from etrm.training.durable import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_may_not_write_the_folder_and_a_dead_one_does_not_keep_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(CheckpointError, match=f"run is being written by process {other.pid}"), alone_in(folder):
            pass
        other.kill()
    with alone_in(folder):
        pass


def test_what_a_killed_write_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    for name in (".step_4.123.partial", "step_4", "notes.partial"):
        (tmp_path / name).write_text("x")
    with alone_in(tmp_path):
        assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.partial", "step_4"]


def test_a_full_disk_is_one_sentence_and_the_old_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    write_whole(path, b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"summary.json was not written \(No space left on device\)"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_metrics_line_on_a_full_disk_is_told() -> None:
    with pytest.raises(CheckpointError, match="No space left"):
        append_line(Path("/dev/full"), json.dumps({"step": 1}))

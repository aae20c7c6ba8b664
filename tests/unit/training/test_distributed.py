"""Two ranks on one machine (gloo over loopback) against one: the same losses, norms and data, whatever one plants.

Each run is a process of `ranks_worker.py` a rank: the toy model, 20 updates, a clip far below the gradient's norm.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from etrm.errors import ConfigError
from etrm.training.checkpoint import read_checkpoint
from etrm.training.distributed import ALONE, Ranks, start, told_ranks

ROOT = Path(__file__).resolve().parents[3]
EXACT = 1e-6  # the issue's own bound; measured 2e-7 over 20 updates


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(folder: Path, ranks: int, *options: str) -> list[subprocess.CompletedProcess[str]]:
    """Run the worker once a rank; returns the finished processes in order of ranks."""
    folder.mkdir(exist_ok=True)
    shared = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "GLOO_SOCKET_IFNAME": "lo" if sys.platform.startswith("linux") else "lo0",
        "WORLD_SIZE": str(ranks),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "tests.unit.training.ranks_worker", str(folder), *options]
    running = [
        subprocess.Popen(
            command, cwd=ROOT, env=shared | {"RANK": str(r), "LOCAL_RANK": str(r)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for r in range(ranks)
    ]  # fmt: skip
    done = []
    for process in running:
        out, err = process.communicate()
        done.append(subprocess.CompletedProcess(command, process.returncode, out, err))
    return done


def finished(folder: Path, ranks: int, *options: str) -> Path:
    for process in launch(folder, ranks, *options):
        assert process.returncode == 0, process.stderr
    return folder


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def worst(one: Path, two: Path) -> dict[str, float]:
    """The largest relative difference of each metric over all lines."""
    gaps: dict[str, float] = {}
    for a, b in zip(lines(one), lines(two), strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            if value is None or b[name] is None:
                assert value is b[name], name
                continue
            gaps[name] = max(gaps.get(name, 0.0), abs(value - b[name]) / max(abs(value), 1e-6))
    return gaps


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("alone") / "run", 1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("pair") / "run", 2)


def report(folder: Path, rank: int) -> dict:
    return json.loads((folder / f"rank_{rank}.json").read_text())


@pytest.mark.slow
def test_two_ranks_have_the_loss_of_one(alone: Path, pair: Path) -> None:
    gaps = worst(alone, pair)
    assert len(lines(alone)) == 20
    assert gaps["train/lm_loss"] < EXACT
    assert gaps["train/halt_loss"] < EXACT
    # Norms from before clipping and after the sum; layers, means and deviations follow the weights' last bits.
    loose = {name: gap for name, gap in gaps.items() if gap > 2e-4 and name != "train/encoder_output_mean"}
    assert not loose
    assert max(line["grad/encoder_norm"] for line in lines(pair)) > 0.05  # the clip: so the norms are from before it


@pytest.mark.slow
def test_the_parts_of_two_ranks_are_the_batch_of_one_and_the_weights_stay_equal(alone: Path, pair: Path) -> None:
    whole, parts = report(alone, 0), [report(pair, r) for r in (0, 1)]
    for update in range(20):
        own = [p["seen"][6 * update : 6 * update + 6] for p in parts]
        assert own[0] + own[1] == whole["seen"][12 * update : 12 * update + 12]
    assert parts[0]["weights"] == parts[1]["weights"]
    assert {p["entered"] for p in parts} == {whole["entered"]}
    assert 20 * 12 > whole["entered"] > 12  # some slots kept their episode, some took a new one


@pytest.mark.slow
def test_the_checkpoint_of_two_ranks_is_that_of_one_and_either_goes_on_from_it(alone: Path, tmp_path: Path) -> None:
    cut = finished(tmp_path / "cut", 2, "stop=10")
    saved, other = (read_checkpoint(f / "steps" / "step_10") for f in (cut, alone))
    assert saved["carry"]["steps"].tolist() == other["carry"]["steps"].tolist()
    assert torch.equal(saved["carry"]["episodes"]["inputs"], other["carry"]["episodes"]["inputs"])
    assert torch.equal(saved["act_generator"], other["act_generator"])
    finished(cut, 1)  # two ranks, then one
    gaps = worst(alone, cut)
    assert gaps["train/lm_loss"] < EXACT
    back = finished(tmp_path / "back", 1, "stop=10")
    finished(back, 2)
    assert worst(alone, back)["train/lm_loss"] < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("options", [("objective=lm+table",), ("losses=yes",)])
def test_a_teacher_and_an_encoders_own_losses_are_shared_alike(tmp_path: Path, options: tuple[str, ...]) -> None:
    gaps = worst(finished(tmp_path / "one", 1, *options), finished(tmp_path / "two", 2, *options))
    assert gaps["train/lm_loss"] < EXACT
    assert gaps.get("train/table_loss", 0.0) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("plant", ["no_reduce", "mean", "same_data", "clip_first"])
def test_each_known_mistake_of_ranks_would_be_seen(alone: Path, tmp_path: Path, plant: str) -> None:
    done = launch(tmp_path / "planted", 2, f"plant={plant}")
    if plant == "no_reduce":  # the weights part, and the first checkpoint notices it
        assert all(p.returncode for p in done)
        assert "differs between ranks" in done[0].stderr
    else:
        gaps = worst(alone, tmp_path / "planted")
        assert max(gaps["train/lm_loss"], gaps["grad/encoder_norm"]) > 1e-3


@pytest.mark.slow
def test_ranks_that_start_from_other_weights_are_refused(tmp_path: Path) -> None:
    done = launch(tmp_path / "run", 2, "weights=other")
    assert all(p.returncode for p in done)
    assert "before update 1, model.encoder." in done[0].stderr
    assert not (tmp_path / "run" / "steps").exists()


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


@pytest.mark.slow
def test_ranks_go_on_from_the_same_older_checkpoint_where_the_newest_is_damaged(alone: Path, tmp_path: Path) -> None:
    cut = finished(tmp_path / "cut", 2, "stop=10", "every=5")
    spoil(cut / "steps" / "step_10")
    done = launch(cut, 2, "every=5")
    assert [p.returncode for p in done] == [0, 0], done[0].stderr + done[1].stderr
    assert "step_5, not from the newest" in done[0].stdout
    assert "newest" not in done[1].stdout  # rank 0 prints
    assert report(cut, 0)["weights"] == report(cut, 1)["weights"]
    assert worst(alone, cut)["train/lm_loss"] < EXACT


@pytest.mark.slow
def test_where_no_checkpoint_is_whole_or_the_disk_is_full_every_rank_says_so(tmp_path: Path) -> None:
    cut = finished(tmp_path / "cut", 2, "stop=10")
    spoil(cut / "steps" / "step_10")
    before = (cut / "metrics.jsonl").read_bytes()
    for process in launch(cut, 2):
        assert process.returncode
        assert "CheckpointError: no checkpoint of" in process.stderr
    assert (cut / "metrics.jsonl").read_bytes() == before
    for process in launch(tmp_path / "full", 2, "plant=full"):
        assert process.returncode
        assert "No space left on device" in process.stderr
    assert not (tmp_path / "full" / "steps").exists()


@pytest.mark.slow
def test_each_rank_goes_on_with_its_own_global_generators(tmp_path: Path) -> None:
    straight = finished(tmp_path / "straight", 2, "noise=yes")
    cut = finished(tmp_path / "cut", 2, "noise=yes", "stop=10")
    states = [s["torch"] for s in read_checkpoint(cut / "steps" / "step_10")["global_generators"]]
    assert len(states) == 2
    assert not torch.equal(*states)
    finished(cut, 2, "noise=yes")
    assert lines(cut) == lines(straight)
    assert [report(cut, r)["weights"] for r in (0, 1)] == [report(straight, r)["weights"] for r in (0, 1)]


@pytest.mark.slow
def test_the_rank_whose_slots_are_not_finite_leaves_the_file(tmp_path: Path) -> None:
    done = launch(tmp_path / "run", 2, "nan=1")
    assert all("NonFiniteError: the loss is not finite at update 0" in p.stderr for p in done)
    assert "first not finite: the output of model.decoder.lm_head" in done[1].stderr
    assert [p.name for p in (tmp_path / "run").glob("*.pt")] == ["nonfinite_update_0_rank_1.pt"]


@pytest.mark.fast
def test_one_rank_needs_no_process_group() -> None:
    assert start(torch.device("cpu"), {}) is ALONE
    value = torch.arange(3.0, requires_grad=True)
    assert torch.equal(ALONE.total(value), value.detach())
    assert ALONE.gather("a") == ["a"]
    assert ALONE.by_main(lambda: "a") == "a"
    assert ALONE.part(12) == slice(0, 12)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("environment", "told"), [({"WORLD_SIZE": "two"}, "'two'"), ({"WORLD_SIZE": "0"}, "'0'"), ({"RANK": "-1"}, "'-1'")]
)
def test_an_environment_that_no_launcher_writes_is_refused(environment: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        told_ranks(environment)


@pytest.mark.fast
def test_ranks_without_a_process_group_are_refused() -> None:
    with pytest.raises(ConfigError, match="without a process group"):
        Ranks(0, 2)
    with pytest.raises(ConfigError, match="rank 2 of 2"):
        Ranks(2, 2)
    with pytest.raises(ConfigError, match="2 ranks on mps"):
        start(torch.device("mps"), {"WORLD_SIZE": "2", "RANK": "0"})

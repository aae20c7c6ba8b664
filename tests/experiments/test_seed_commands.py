"""The seed's commands as a person types them, at reduced size: exit status, what is printed, what is left on disk.

The fast ones call each script's own main() with its command line; `slow` ones start processes, one of them at the full
size of the public checkpoint (hidden 512, 900 tokens, H 3, L 4) with synthetic weights.
"""

import dataclasses
import importlib.util
import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from etrm.data.arc import fits, load_arc, overlaps
from tests.official_samples import FULL, PREFIX, TINY, official_state, write_official

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "data.train_tasks=4",
    "encoder.hidden_size=32",
    "encoder.num_heads=2",
    "budget.epochs=6",
    "budget.batch_size=4",
    "budget.log_every=1",
    "budget.checkpoint_every=2",
    "optim.warmup_updates=1",
    "evaluation_tasks=2",
    "evaluation.augmentations=2",
    "system.device=cpu",
)
AT_FULL_SIZE = (
    "arch.hidden_size=512",
    "arch.puzzle_emb_len=16",
    "arch.H_cycles=3",
    "arch.L_cycles=4",
    "budget.updates=3",
    "budget.epochs=0",
    "budget.batch_size=2",
    "budget.evaluations=0",
    "budget.log_every=1",
    "budget.checkpoint_every=3",
    "optim.warmup_updates=0",
    "data.max_demos=3",
    "system.device=cpu",
)
COMMAND = ("pretrain_etrm.py", "--config-name", "cfg_test_frozen_decoder")
GIB = 1024**3


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`call(script, *arguments)` -> (exit status, stdout, stderr), in this process."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(script: str, *arguments: object) -> tuple[int, str, str]:
        spec = importlib.util.spec_from_file_location(f"script_{Path(script).stem}", ROOT / script)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        try:
            status = module.main()
        except SystemExit as stop:
            status = stop.code
        told = capsys.readouterr()
        return status, told.out, told.err

    return run


@pytest.fixture
def official(tmp_path: Path) -> Path:
    return write_official(tmp_path / "official_trm" / "arc_v1_public")


@pytest.mark.thorough
@pytest.mark.arc
def test_train_verify_and_inspect(call, official: Path, tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    status, out, err = call(*COMMAND, f"bundle={official}", *SMALL, "arch.L_cycles=2", "--checkpoints", root)
    assert (status, err) == (0, "")
    assert "6 epochs x 4 tasks / 4 = 6 updates" in out
    assert "H 2, L 2" in out
    assert "update 3: ARC/pass@1 (raw weights)" in out
    assert "update 6: ARC/pass@1 (ema weights)" in out
    assert "decoder: bitwise unchanged over 6 updates" in out
    folder = root / "ETRM-FrozenDecoder-Test" / "frozen_decoder"
    assert {p.name for p in folder.iterdir()} >= {"step_6", "all_config.yaml", "metrics.jsonl", "summary.json"}

    verify = ("scripts/verify_decoder_loading.py", "--trm-checkpoint", official, "--etrm-checkpoint")
    status, out, _ = call(*verify, folder / "step_6")
    assert status == 0
    assert "10 of 10 tensors are bitwise equal\nstructure: equal\nfunction: equal\nsame decoder" in out

    state = official_state(TINY, 400)
    state[f"{PREFIX}L_level.layers.0.mlp.down_proj.weight"] += 1e-6
    other = write_official(tmp_path / "drifted")
    torch.save(state, other)
    status, out, _ = call(*verify, other)
    assert status == 1
    assert "down_proj.weight" in next(line for line in out.splitlines() if " differs " in line)
    assert "NOT the same decoder" in out

    status, out, err = call(*verify, folder / "step_5")
    assert (status, out) == (2, "")
    assert err.startswith("cannot compare: CheckpointError: ")
    assert "step_4 (epoch 4), step_6 (epoch 6)" in err
    assert "huggingface" not in err

    status, out, _ = call("scripts/inspect_checkpoint.py", folder / "step_6", "--json")
    found = json.loads(out)
    assert (status, found["kind"], found["step"], found["structure"]["l_cycles"]) == (0, "etrm checkpoint", 6, 2)
    status, out, _ = call("scripts/inspect_checkpoint.py", official)
    assert status == 0
    assert "kind: official checkpoint" in out
    assert "table: [400, 32]" in out
    assert call("scripts/inspect_checkpoint.py", tmp_path / "nothing")[0] == 2


@pytest.mark.fast
def test_the_seeds_line_without_the_checkpoint_says_what_to_do(
    call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ROOT / "config"
    monkeypatch.setattr("etrm.config.compose.default_root", lambda: config)
    monkeypatch.chdir(tmp_path)
    status, out, err = call(*COMMAND)
    assert status == 1
    assert "20,000 epochs x 32 tasks / 256 = 2,500 updates" in out
    assert "hf download arcprize/trm_arc_prize_verification" in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.thorough
@pytest.mark.fast
@pytest.mark.arc
def test_score_a_trained_encoder_and_the_decoder_itself(call, official: Path, tmp_path: Path) -> None:
    """The full evaluation of both protocols, and the answer to what is asked wrongly."""
    root = tmp_path / "checkpoints"
    status, _, err = call(*COMMAND, f"bundle={official}", *SMALL, "budget.evaluations=0", "--checkpoints", root)
    assert (status, err) == (0, "")
    step = root / "ETRM-FrozenDecoder-Test" / "frozen_decoder" / "step_6"
    small = ("--tasks", 3, "--augmentations", 4, "--device", "cpu", "--batch-size", 8)
    script = "scripts/evaluate_arc.py"
    for weights in ("ema", "raw"):
        out = tmp_path / weights
        status, told, err = call(script, "--checkpoint", step, "--out", out, "--weights", weights, *small)
        assert (status, err) == (0, "")
        found = json.loads((out / "result.json").read_text())
        assert (found["evaluated_tasks"], found["protocol"], found["weights"]) == (3, "encoder", weights)
        assert "evaluated_tasks: 3" in told
        assert any("decoder_known" in note for note in found["notes"])
    assert (tmp_path / "ema" / "answers-0.jsonl").read_text() != (tmp_path / "raw" / "answers-0.jsonl").read_text()
    status, _, err = call(script, "--checkpoint", step, "--out", tmp_path / "raw", "--weights", "ema", *small)
    assert (status, len(err.splitlines())) == (1, 1)
    assert "holds another evaluation (weights differ" in err

    status, _, err = call(script, "--checkpoint", official, "--out", tmp_path / "rows", *small)
    assert (status, len(err.splitlines())) == (1, 1)
    assert "--identifiers" in err
    assert not (tmp_path / "rows").exists()
    names = tmp_path / "identifiers.json"
    fitting = [task.id for task in load_arc(1, "evaluation") if fits(task, 9)]
    names.write_text(json.dumps((["<blank>", *fitting] + [f"x{i}" for i in range(400)])[:400]))
    status, told, err = call(
        script, "--checkpoint", official, "--identifiers", names, "--out", tmp_path / "rows", *small
    )
    assert (status, err) == (0, "")
    found = json.loads((tmp_path / "rows" / "result.json").read_text())
    assert (found["evaluated_tasks"], found["protocol"], found["votes"]) == (3, "table rows", [1, 1])
    assert "TRM's protocol" in found["notes"][0]


@pytest.mark.slow
@pytest.mark.arc
def test_two_ranks_run_the_seeds_command_and_the_full_evaluation(official: Path, tmp_path: Path) -> None:
    """torchrun, two processes on the CPU: the losses of one, each question once, one writer."""
    folders = []
    for ranks in (1, 2):
        root = tmp_path / f"ranks{ranks}"
        done = launched(ranks, *COMMAND, f"bundle={official}", *SMALL, "--checkpoints", root)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("decoder: bitwise unchanged over 6 updates") == 1
        assert done.stdout.count("update 3: ARC/pass@1 (raw weights)") == 1
        folders.append(root / "ETRM-FrozenDecoder-Test" / "frozen_decoder")
    one, two = ([json.loads(x) for x in (f / "metrics.jsonl").read_text().splitlines()] for f in folders)
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for a, b in zip(one, two, strict=True):
        if "train/lm_loss" in a:
            # Measured 6e-7 here (AdamATan2 has no epsilon); test_distributed.py holds 1e-6 over 20 updates.
            assert b["train/lm_loss"] == pytest.approx(a["train/lm_loss"], rel=1e-5)
            assert b["grad/encoder_norm"] == pytest.approx(a["grad/encoder_norm"], rel=1e-3)
        else:
            assert {k: a[k] for k in a if "evaluated" in k} == {k: b[k] for k in b if "evaluated" in k}
    results = []
    for ranks in (1, 2):
        out = tmp_path / f"scored{ranks}"
        command = ("scripts/evaluate_arc.py", "--checkpoint", folders[0] / "step_6", "--out", out)
        done = launched(ranks, *command, "--tasks", 3, "--augmentations", 4, "--device", "cpu")
        assert done.returncode == 0, done.stderr
        assert len(list(out.glob("answers-*.jsonl"))) == ranks
        results.append(json.loads((out / "result.json").read_text()))
    assert results[0] == results[1]


@pytest.mark.thorough
@pytest.mark.arc
def test_an_encoder_is_not_asked_what_it_was_trained_on_under_another_name(call, tmp_path: Path) -> None:
    """377 of ARC-1's evaluation tasks are ARC-2's training tasks; the decoder it was trained with must be there too."""
    structure = dataclasses.replace(TINY, seq_len=900, h_cycles=1, l_cycles=1, halt_max_steps=1)
    official = write_official(tmp_path / "official_trm" / "arc_v1_public", structure)
    trained = ("data.benchmark=arc-agi-2", "budget.epochs=0", "budget.updates=1", "budget.evaluations=0")
    small = (*SMALL, *trained, "data.train_tasks=0", "budget.checkpoint_every=1", "optim.warmup_updates=0")
    status, _, err = call(*COMMAND, f"bundle={official}", *small, "--checkpoints", tmp_path / "c")
    assert (status, err) == (0, "")
    step = tmp_path / "c" / "ETRM-FrozenDecoder-Test" / "frozen_decoder" / "step_1"
    script, options = "scripts/evaluate_arc.py", ("--augmentations", 1, "--device", "cpu", "--out")
    status, out, err = call(script, "--checkpoint", step, *options, tmp_path / "asked")
    assert (status, err) == (0, "") and "tasks that repeat a training task" in out
    asked = load_arc(1, "evaluation")
    repeated = {test for _, test in overlaps([*load_arc(2, "training"), *load_arc(1, "training")], asked)}
    found = json.loads((tmp_path / "asked" / "result.json").read_text())
    assert found["evaluated_tasks"] == 400 - len(repeated) < 30

    config = official.with_name("all_config.yaml")
    config.write_text(config.read_text().replace("L_cycles: 1", "L_cycles: 5"))
    status, out, err = call(script, "--checkpoint", step, *options, tmp_path / "other")
    assert status == 1 and "was trained in front of another decoder" in err and "arch.L_cycles" in err
    assert len(err.splitlines()) == 1 and not (tmp_path / "other").exists()


@pytest.mark.thorough
@pytest.mark.arc
def test_places_that_cannot_be_written_end_in_one_sentence(call, official: Path, tmp_path: Path) -> None:
    there = tmp_path / "afile"
    there.write_text("mine")
    status, _, err = call(*COMMAND, f"bundle={official}", *SMALL, "--checkpoints", there)
    assert status == 1 and len(err.splitlines()) == 1 and "was not written" in err
    for wrong, told in (
        (("--checkpoints", there), "was not written"),
        (("--checkpoints", tmp_path / "c", "--out", there), "holds something else"),
        (
            ("--checkpoints", tmp_path / "c", "data.benchmark=arc-agi-3"),
            "data.benchmark is 'arc-agi-3'; there are micro",
        ),
        (("--checkpoints", tmp_path / "c", "table.width=64"), "table.width is 64, more than the context's 32"),
        (("--checkpoints", tmp_path / "c", "arch.num_heads=3"), "expected a multiple of num_heads 3"),
    ):
        command = ("pretrain_trm.py", "--config-name", "cfg_pretrain_trm_arc1", *TRM_PROTOCOL)
        status, _, err = call(*command, *wrong)
        assert status == 1 and len(err.splitlines()) == 1 and told in err, err
    for wrong, told in (
        (("encoder.num_heads=5",), "expected a multiple of num_heads 5"),
        (("freeze.decoder_updates=6",), "would never join"),
        (("freeze.decoder_updates=2", "freeze.joint_lr=0"), "freeze.joint_lr is 0"),
    ):
        status, _, err = call(*COMMAND, f"bundle={official}", *SMALL, *wrong, "--checkpoints", tmp_path / "c")
        assert status == 1 and len(err.splitlines()) == 1 and told in err, err
    names = ("--identifiers", tmp_path / "none.json", "--out", tmp_path / "out", "--device", "cpu")
    status, _, err = call("scripts/evaluate_arc.py", "--checkpoint", ROOT / "etrm" / "assets" / "arc-1", *names)
    assert status == 1 and len(err.splitlines()) == 1 and "leave --identifiers out" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["afile", "official_trm"] and there.read_text() == "mine"


TRM_PROTOCOL = (
    "data.train_tasks=2", "data.augmentations=4", "arch.hidden_size=16", "arch.num_heads=2", "arch.context_tokens=2",
    "arch.h_cycles=1", "arch.l_cycles=1", "arch.halt_max_steps=1", "table.width=16", "system.device=cpu",
    "optim.warmup_updates=0", "budget.updates=4", "budget.batch_size=4", "budget.log_every=2",
    "budget.checkpoint_every=4", "budget.evaluations=1",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.arc
def test_a_decoder_trained_by_trms_protocol_is_scored_with_its_own_rows(tmp_path: Path) -> None:
    """pretrain_trm.py, alone and on two ranks, then evaluate_arc.py on the bundle that it wrote."""
    losses = []
    for ranks in (1, 2):
        folders = "--out", tmp_path / f"bundle{ranks}", "--checkpoints", tmp_path / f"ranks{ranks}"
        done = launched(ranks, "pretrain_trm.py", "--config-name", "cfg_pretrain_trm_arc1", *TRM_PROTOCOL, *folders)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("exact with its own contexts (raw weights)") == 1
        log = tmp_path / f"ranks{ranks}" / "bundles" / "trm_arc-1" / "metrics.jsonl"
        losses.append([json.loads(line)["train/lm_loss"] for line in log.read_text().splitlines()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)  # bf16
    out = tmp_path / "scored"
    command = ("scripts/evaluate_arc.py", "--checkpoint", tmp_path / "bundle2", "--out", out, "--augmentations", 3)
    done = launched(1, *command, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert (
        "TRM's protocol: the demonstrations of these 2 evaluation tasks were in the decoder's training" in done.stdout
    )
    assert json.loads((out / "result.json").read_text())["protocol"] == "table rows"


@pytest.mark.slow
@pytest.mark.arc
def test_three_ranks_that_cannot_share_the_batch_say_so_and_write_nothing(official: Path, tmp_path: Path) -> None:
    done = launched(3, *COMMAND, f"bundle={official}", *SMALL, "--checkpoints", tmp_path / "c")
    assert done.returncode != 0
    assert "budget.batch_size 4 is not divisible by 3 ranks; set budget.batch_size=3" in done.stderr
    assert not (tmp_path / "c").exists()


def launched(ranks: int, *command: object) -> subprocess.CompletedProcess[str]:
    """Run a script of the repository under torchrun, over loopback."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-addr"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [*launcher, "127.0.0.1", "--master-port", str(port), *map(str, command)]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "GLOO_SOCKET_IFNAME": "lo" if sys.platform.startswith("linux") else "lo0",
    }
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def unsafe(path: Path) -> None:
    torch.save(official_state(TINY, 400) | {"extra": Bomb(path.with_name("ran"))}, path)


def no_canvas(path: Path) -> None:
    write_official(path.parent, dataclasses.replace(TINY, seq_len=1))


def gone(path: Path) -> None:
    path.unlink()


def other_architecture(path: Path) -> None:
    torch.save({"blocks.0.weight": torch.zeros(3)}, path)


def other_table(path: Path) -> None:
    torch.save(official_state(TINY, 400) | {f"{PREFIX}puzzle_emb.weights": torch.zeros(400, 48)}, path)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("damage", "overrides", "status", "told"),
    [
        (gone, [], 1, "does not exist. The public TRM checkpoint is published at"),
        (unsafe, [], 1, "could run code; it was refused and not run"),
        pytest.param(
            no_canvas, [], 1, "there are 0 arc-agi-1 training tasks on a 1x1 canvas", marks=pytest.mark.thorough
        ),
        (truncated, [], 1, "is truncated"),
        (other_architecture, [], 1, "is no TRM checkpoint"),
        (other_table, [], 1, "puzzle_emb_ndim is 32 there, 48 in the tensors"),
        (None, ["arch.H_cycles=3"], 1, "arch.H_cycles=3, but it is 2"),
        (None, ["optim.learning_rate=1e-4"], 1, "unknown key 'optim.learning_rate'"),
        (None, ["optim.lr=fast"], 1, "expected a finite float"),
        (None, ["data.train_tasks=105"], 1, "there are 104"),
        (None, ["evaluation_tasks=-1"], 1, "evaluation_tasks is -1"),
        (None, ["budget.epochs=0"], 1, "set one and the other to 0"),
        pytest.param(None, ["encoder.name=standrd"], 1, "no encoder 'standrd'", marks=pytest.mark.thorough),
        (None, ["bundle=mikro"], 1, "no decoder bundle 'mikro'"),
        (None, ["trackers=wandbs"], 1, "trackers"),
        (None, ["--config", "x"], 2, "usage: "),
    ],
)
def test_bad_input_ends_in_one_sentence(
    call, official: Path, tmp_path: Path, damage, overrides: list[str], status: int, told: str
) -> None:
    if damage is not None:
        damage(official)
    before = {path: path.read_bytes() for path in official.parent.iterdir()}
    found, _, err = call(*COMMAND, f"bundle={official}", *SMALL, *overrides, "--checkpoints", tmp_path / "c")
    assert (found, told in err) == (status, True), err
    assert status == 2 or len(err.splitlines()) == 1
    assert not (tmp_path / "c").exists()
    assert not official.with_name("ran").exists()
    assert {path: path.read_bytes() for path in official.parent.glob("*") if path in before} == before


@pytest.mark.fast
def test_a_batch_that_the_ranks_cannot_share_is_refused(
    call, official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    status, _, err = call(*COMMAND, f"bundle={official}", *SMALL, "--checkpoints", tmp_path / "c")
    assert status == 1
    assert "budget.batch_size 4 is not divisible by 3 ranks" in err


@pytest.mark.slow
@pytest.mark.arc
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads ru_maxrss in KiB, which is Linux's unit")
def test_full_architecture_three_updates_inside_8_gb(tmp_path: Path) -> None:
    bundle = write_official(tmp_path / "arc_v1_public", FULL, rows=20_000)
    command = [sys.executable, *COMMAND, f"bundle={bundle}", *AT_FULL_SIZE, "--checkpoints", str(tmp_path / "c")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert peak < 8 * GIB, f"{peak / GIB:.2f} GiB"
    print(f"peak {peak / GIB:.2f} GiB")  # shown by -s
    step = tmp_path / "c" / "ETRM-FrozenDecoder-Test" / "frozen_decoder" / "step_3"
    lines = [json.loads(line) for line in (step.parent / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["grad/encoder_norm"] > 0 and line["grad/decoder_norm"] == 0 for line in lines)
    script = [sys.executable, "scripts/verify_decoder_loading.py", "--trm-checkpoint", str(bundle)]
    same = subprocess.run(
        [*script, "--etrm-checkpoint", str(step)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert same.returncode == 0, same.stdout + same.stderr
    assert "14 of 14 tensors are bitwise equal" in same.stdout


MEASURE = """
import sys, threading, time
from pathlib import Path
from etrm.models.official import load_official
from etrm.data.arc import fits, load_arc, overlaps
from tests.official_samples import FULL, write_official

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

load_official(write_official(Path(sys.argv[2])))  # torch's own first use is not the file's
start, peak, stop = resident(), [0], []

def watch():
    while not stop:
        peak[0] = max(peak[0], resident())
        time.sleep(0.001)

thread = threading.Thread(target=watch)
thread.start()
bundle = load_official(sys.argv[1])
stop.append(True)
thread.join()
size = sum(t.numel() * t.element_size() for t in bundle.decoder.state_dict().values())
print((peak[0] - start) / size)
"""


@pytest.mark.slow
@pytest.mark.arc
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the resident size from /proc")
def test_the_loader_streams_the_file(tmp_path: Path) -> None:
    path = write_official(tmp_path / "arc_v1_public", FULL, rows=200_000)  # 410 MB of table
    command = [sys.executable, "-c", MEASURE, str(path), str(tmp_path / "tiny")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(f"peak is {float(done.stdout):.2f} times the decoder")  # shown by -s
    assert float(done.stdout) < 1.5, f"peak is {float(done.stdout):.2f} times the decoder"

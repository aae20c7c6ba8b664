"""Kill a run at random moments and go on: python scripts/kill_test.py [--kills N] [--seed S].

Each trial starts pretrain_etrm.py on the micro bundle in a process of its own, ends it with SIGKILL, gives the same
command again until it is done, and compares metrics.jsonl, summary.json and everything in the last checkpoint (weights,
EMA, optimisers, carry, generators) bit by bit with a run that nobody disturbed. Half the kills come at a random time,
half within milliseconds of a random one of the run's own file operations, so that writing itself is hit. Processes are
forked from one that has imported torch and computed nothing. Exit status: 0, or 1 where a resume was not exact.
"""

import argparse
import json
import os
import random
import runpy
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: a forked process has none of its parent's threads

import torch  # noqa: E402  (the repository need not be installed)

import etrm.experiment.pretraining  # noqa: E402, F401  (once, for every process that is forked)
from etrm.training.checkpoint import read_checkpoint, steps_in  # noqa: E402

PROJECT, RUN = "kills", "micro"
OVERRIDES = (
    f"project={PROJECT}",
    f"run={RUN}",
    "bundle=micro",
    "data.benchmark=micro-2",
    "data.train_tasks=0",
    "data.augmentations=1",
    "data.max_demos=3",
    "data.colour_augmentation=false",
    "encoder.name=correspondence",
    "encoder.hidden_size=32",
    "encoder.num_heads=2",
    "encoder.layers=1",
    "budget.updates=40",
    "budget.epochs=0",
    "budget.batch_size=8",
    "budget.log_every=2",
    "budget.checkpoint_every=4",
    "budget.evaluations=8",
    "optim.warmup_updates=4",
    "optim.ema_decay=0.9",
    "freeze.decoder_updates=22",
    "freeze.joint_lr=1e-3",
    "evaluation_tasks=2",
    "evaluation.seen_queries=1",
    "evaluation.unseen_queries=1",
    "evaluation.probe_queries=2",
    "system.device=cpu",
)
FILE_EVENTS = ("open", "os.rename", "os.remove", "os.truncate")


def start(root: Path, prepare: Callable[[], None]) -> int:
    """Fork a process that runs the command in `root` after `prepare`; returns its id."""
    child = os.fork()
    if child:
        return child
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(os.open(root / "stderr.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.argv = ["pretrain_etrm.py", "--config-name", "cfg_test_frozen_decoder", "--checkpoints", str(root), *OVERRIDES]
    os.chdir(ROOT)
    code = 1
    try:
        prepare()
        runpy.run_path(str(ROOT / "pretrain_etrm.py"), run_name="__main__")
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(child: int) -> int:
    """The exit status of a process, minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at_operation(root: Path, number: int, delay: float) -> Callable[[], None]:
    """Arms a process to end itself `delay` seconds after its own `number`-th file operation under `root`."""
    seen = 0

    def die() -> None:
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in FILE_EVENTS and str(root) in str(arguments[0]):
            seen += 1
            if seen == number:
                if delay:
                    threading.Thread(target=die).start()
                else:
                    os.kill(os.getpid(), signal.SIGKILL)

    return lambda: sys.addaudithook(hook)


def killed_once(root: Path, draw: random.Random, took: float, operations: int) -> str | None:
    """Run in `root` and kill; how, in words, or None where the run was quicker than the kill."""
    if draw.random() < 0.5:
        moment = draw.uniform(0, took)
        child = start(root, lambda: None)
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        return f"after {moment:.3f} s" if wait(child) == -signal.SIGKILL else None
    number, delay = draw.randint(1, operations), draw.choice((0.0, draw.uniform(0, 0.003)))
    child = start(root, kill_at_operation(root, number, delay))
    return f"{delay * 1000:.2f} ms after file operation {number}" if wait(child) == -signal.SIGKILL else None


def different(mine: Any, theirs: Any, at: str = "") -> list[str]:
    """The places where two checkpoints differ, bit by bit."""
    if isinstance(mine, torch.Tensor) and isinstance(theirs, torch.Tensor):
        equal = mine.shape == theirs.shape and mine.dtype == theirs.dtype
        bits = equal and torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (mine, theirs)))
        return [] if bits else [at]
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return [d for k in mine.keys() | theirs.keys() for d in different(mine.get(k), theirs.get(k), f"{at}/{k}")]
    if isinstance(mine, list | tuple) and isinstance(theirs, list | tuple) and len(mine) == len(theirs):
        return [d for i, pair in enumerate(zip(mine, theirs, strict=True)) for d in different(*pair, f"{at}/{i}")]
    return [] if type(mine) is type(theirs) and mine == theirs else [at]


def compare(root: Path, whole: Path) -> list[str]:
    """What of a resumed run is not as in the undisturbed one."""
    mine, theirs = root / PROJECT / RUN, whole / PROJECT / RUN
    found = []
    for name in ("metrics.jsonl", "summary.json", "all_config.yaml"):
        if not (mine / name).is_file() or (mine / name).read_bytes() != (theirs / name).read_bytes():
            found.append(name)
    if steps_in(mine) and sorted(steps_in(mine)) == sorted(steps_in(theirs)):
        for step in steps_in(mine):
            pair = [read_checkpoint(folder / f"step_{step}") for folder in (mine, theirs)]
            found += [f"step_{step}{place}" for place in different(*pair)]
    else:
        found.append("other checkpoints")
    return found + [p.name for p in mine.iterdir() if p.name.endswith(".partial")]


def main() -> int:
    """Measure the undisturbed run, then kill and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw, kills, exact, resumed = random.Random(arguments.seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as made:
        top = Path(made)
        whole, counter = top / "whole", top / "counter"
        whole.mkdir()
        begun = time.monotonic()
        if wait(start(whole, lambda: sys.addaudithook(counting(counter, whole)))) != 0:
            print((whole / "stderr.txt").read_text(), file=sys.stderr)
            return 1
        took, operations = time.monotonic() - begun, len(counter.read_bytes())
        print(f"undisturbed: {took:.2f} s, {operations} file operations", flush=True)
        while kills < arguments.kills:
            root = top / f"trial_{kills}"
            root.mkdir(exist_ok=True)
            how = killed_once(root, draw, took, operations)
            if how is None:
                shutil.rmtree(root)
                continue
            kills += 1
            reached = max(steps_in(root / PROJECT / RUN), default=0)
            resumed += reached > 0
            code = wait(start(root, lambda: None))
            wrong = compare(root, whole) if code == 0 else [f"exit {code}: {(root / 'stderr.txt').read_text().strip()}"]
            exact += not wrong
            if wrong or kills % 10 == 0:
                print(json.dumps({"kill": kills, "how": how, "reached": reached, "wrong": wrong[:5]}), flush=True)
            shutil.rmtree(root)
    print(f"{kills} kills, {resumed} of them after a first checkpoint: {exact} exact resumes")
    return int(exact != kills)


def counting(counter: Path, root: Path) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that adds one byte to `counter` for each file operation under `root`."""
    handle = os.open(counter, os.O_WRONLY | os.O_CREAT)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FILE_EVENTS and str(root) in str(arguments[0]):
            os.write(handle, b".")

    return hook


if __name__ == "__main__":
    sys.exit(main())

"""Updates a second of this tree beside those of an earlier commit: python scripts/compare_speed.py [COMMIT] [CONFIG]

Both trees train their own CONFIG (default cfg_calibration) with their own encoder, bundle and batch size, in turn,
`--rounds` times `--updates` updates in fresh processes; printed are updates and samples a second of each and the ratios
of medians. `--set KEY=VALUE` changes a key of this tree's config alone: `--set budget.batch_size=64` takes the first
version's batches. COMMIT (default f5a29a9, the first version) is checked out into a temporary git worktree, which is
removed again. With `--to-loss X` each trains once instead, on its own schedule, until the mean loss of WINDOW updates
is at most X (the first version needs 10 to 20 minutes). Exit status: 0; 1 where a training ends above X.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WINDOW = 50
SETUP = """
import sys, time, numpy as np, torch
torch.set_num_threads(int(sys.argv[3]))
from etrm.config.compose import build, compose
from etrm.config.schema import RunConfig
from etrm.experiment.arms import build_arm
from etrm.models.bundle import load_bundle
from etrm.models.encoders import build_encoder
from etrm.models.etrm import ETRM, Episodes
from etrm.training.loop import encoder_state
from etrm.training.update import LossHead, train_batch_encoder
config = build(RunConfig, compose(sys.argv[1], sys.argv[5:]))
bundle = load_bundle(config.bundle)
arm = build_arm(config, bundle)
torch.manual_seed(0)
spec = bundle.spec()
head = LossHead(ETRM(build_encoder(config.encoder, spec), bundle.decoder, spec), config.loss)
state = encoder_state(config, head, len(arm.source.task_ids))
head.train()
head.decoder.eval()
rng, size = np.random.default_rng(0), config.budget.batch_size
def update():
    batch = Episodes.of(arm.source.sample(size, rng), torch.device("cpu"))
    return train_batch_encoder(config, state, batch, size)["train/lm_loss"]
"""
TIMED = """
count = int(sys.argv[2])
for done in range(count + 5):
    if done == 5:
        start = time.perf_counter(), time.process_time()
    update()
print(count / (time.perf_counter() - start[0]), count / (time.process_time() - start[1]), size)
"""
TO_LOSS = """
limit, window, start, losses = float(sys.argv[2]), int(sys.argv[4]), time.perf_counter(), []
while len(losses) < state.total_steps and (len(losses) < window or sum(losses[-window:]) > limit * window):
    losses.append(update())
print(sum(losses[-window:]) / len(losses[-window:]), len(losses), time.perf_counter() - start)
"""


def told(tree: Path, what: str, number: float, given: argparse.Namespace) -> list[float]:
    """The numbers that `what` prints, run after SETUP in a fresh process that imports from `tree`."""
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(given.threads)}
    command = [sys.executable, "-c", SETUP + what, given.config, str(number), str(given.threads), str(WINDOW)]
    command += given.set if tree == ROOT else []
    text = subprocess.run(command, cwd=tree, env=environment, check=True, capture_output=True, text=True).stdout
    return [float(word) for word in text.split()]


def compare_rates(trees: tuple[Path, Path], given: argparse.Namespace) -> int:
    """Print updates and samples a second of both, measured in turn, and the ratios of medians."""
    rounds = [[told(tree, TIMED, given.updates, given) for tree in trees] for _ in range(given.rounds)]
    sizes = [int(rounds[0][tree][2]) for tree in (0, 1)]
    print(f"batches of {sizes[0]} here, of {sizes[1]} at {given.commit}")
    for kind, name in enumerate(("wall time", "processor time")):
        mine, theirs = (statistics.median(pair[tree][kind] for pair in rounds) for tree in (0, 1))
        for what, a, b in (("updates", mine, theirs), ("samples", mine * sizes[0], theirs * sizes[1])):
            print(f"{name}: {a:.4g} {what}/s here, {b:.4g} at {given.commit}, ratio {a / b:.2f}")
    return 0


def compare_times(trees: tuple[Path, Path], given: argparse.Namespace) -> int:
    """Print updates and seconds that both need to the loss, and the ratio of seconds; 1 where one ends above it."""
    found = []
    for tree, name in zip(trees, ("here", f"at {given.commit}"), strict=True):
        loss, updates, seconds = told(tree, TO_LOSS, given.to_loss, given)
        print(f"{name}: mean loss {loss:.3f} after {updates:.0f} updates, {seconds:.0f} s", flush=True)
        found.append((loss <= given.to_loss, seconds))
    if not all(reached for reached, _ in found):
        print(f"a loss of {given.to_loss} was not reached; give a higher --to-loss", file=sys.stderr)
        return 1
    print(f"to a loss of {given.to_loss}: {found[1][1] / found[0][1]:.1f} times as fast")
    return 0


def main() -> int:
    """The command of the file's top."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?", default="f5a29a9")
    parser.add_argument("config", nargs="?", default="cfg_calibration")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for this tree's config alone")
    parser.add_argument("--to-loss", type=float, metavar="X", help="time to this mean loss, not updates a second")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--detach", str(other), given.commit], cwd=ROOT, check=True)
        try:
            compare = compare_rates if given.to_loss is None else compare_times
            return compare((ROOT, other), given)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(other)], cwd=ROOT, check=True)


if __name__ == "__main__":
    sys.exit(main())

"""Updates a second of this tree beside those of an earlier commit: python scripts/compare_speed.py [COMMIT] [CONFIG]

Both trees train their own CONFIG (default cfg_calibration) with their own encoder and bundle, in turn, `--rounds` times
`--updates` updates in fresh processes; printed are updates a second of each and the ratio of medians. COMMIT (default
f5a29a9, the first version) is checked out into a temporary git worktree, which is removed again. Exit status: 0.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIMED = """
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
config = build(RunConfig, compose(sys.argv[1]))
bundle = load_bundle(config.bundle)
arm = build_arm(config, bundle)
torch.manual_seed(0)
spec = bundle.spec()
head = LossHead(ETRM(build_encoder(config.encoder, spec), bundle.decoder, spec), config.loss)
state = encoder_state(config, head, len(arm.source.task_ids))
head.train()
head.decoder.eval()
rng, size, count = np.random.default_rng(0), config.budget.batch_size, int(sys.argv[2])
for done in range(count + 5):
    if done == 5:
        start = time.perf_counter(), time.process_time()
    batch = Episodes.of(arm.source.sample(size, rng), torch.device("cpu"))
    train_batch_encoder(config, state, batch, size)
print(count / (time.perf_counter() - start[0]), count / (time.process_time() - start[1]))
"""


def rates(tree: Path, config: str, updates: int, threads: int) -> tuple[float, float]:
    """Updates a second of wall time and of processor time, in a fresh process that imports from `tree`."""
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", TIMED, config, str(updates), str(threads)]
    told = subprocess.run(command, cwd=tree, env=environment, check=True, capture_output=True, text=True).stdout
    wall, processor = map(float, told.split())
    return wall, processor


def main() -> int:
    """Measure both trees in turn and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?", default="f5a29a9")
    parser.add_argument("config", nargs="?", default="cfg_calibration")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--detach", str(other), given.commit], cwd=ROOT, check=True)
        try:
            pairs = [
                [rates(tree, given.config, given.updates, given.threads) for tree in (ROOT, other)]
                for _ in range(given.rounds)
            ]
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(other)], cwd=ROOT, check=True)
    for kind, name in enumerate(("wall time", "processor time")):
        mine, theirs = (statistics.median(pair[tree][kind] for pair in pairs) for tree in (0, 1))
        print(f"{name}: {mine:.2f} updates/s here, {theirs:.2f} at {given.commit}, ratio {mine / theirs:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

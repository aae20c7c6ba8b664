"""Does a long run hold memory and file handles? python scripts/soak.py [--updates N] [--every M].

Trains an encoder before the micro decoder for N updates in one process, with a metrics line, an evaluation and a
checkpoint every M, and reads resident memory and open files as it goes. The growth is the mean over the last fifth
against that over the second fifth (the first one is warm-up). Exit status: 0 where memory grew by less than 1 % and no
file stayed open, else 1. Linux only (/proc).
"""

import argparse
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402  (the repository need not be installed)

from etrm.experiment.pretraining import Pretraining, load_run  # noqa: E402

OVERRIDES = (
    "bundle=micro data.benchmark=micro-2 data.train_tasks=0 data.augmentations=1 data.max_demos=3 "
    "data.colour_augmentation=false encoder.name=correspondence encoder.hidden_size=32 encoder.num_heads=2 "
    "encoder.layers=1 budget.epochs=0 budget.batch_size=4 optim.warmup_updates=10 optim.ema_decay=0.9 "
    "evaluation_tasks=2 evaluation.seen_queries=1 evaluation.unseen_queries=1 evaluation.probe_queries=2 "
    "system.device=cpu run=soak"
)
LIMIT = 0.01


def resident() -> int:
    """Bytes of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    """Handles that this process has open now."""
    return len(os.listdir("/proc/self/fd"))


def main() -> int:
    """Train, read, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=500)
    parser.add_argument("--every", type=int, default=50)
    options = parser.parse_args()
    config, claims = load_run("cfg_test_frozen_decoder", OVERRIDES.split())
    budget = replace(
        config.budget,
        updates=options.updates,
        log_every=options.every,
        checkpoint_every=options.every,
        evaluations=max(1, options.updates // options.every),
    )
    memory, files = [], []
    with tempfile.TemporaryDirectory() as folder:
        run = Pretraining(replace(config, budget=budget), claims, Path(folder), lambda _: None)
        real = run.prepared.source.sample

        def watched(count: int, rng: np.random.Generator) -> object:
            memory.append(resident())
            files.append(open_files())
            return real(count, rng)

        run.prepared.source.sample = watched  # type: ignore[assignment, method-assign]
        run.run()
    fifth = len(memory) // 5
    early, late = np.mean(memory[fifth : 2 * fifth]), np.mean(memory[-fifth:])
    growth = float(late / early - 1)
    print(
        f"{options.updates} updates: memory {early / 2**20:.1f} to {late / 2**20:.1f} MiB ({growth:+.2%}, allowed "
        f"{LIMIT:.0%}), open files {files[fifth]} to {files[-1]}"
    )
    return int(growth >= LIMIT or files[-1] > files[fifth])


if __name__ == "__main__":
    sys.exit(main())

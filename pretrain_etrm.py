"""Train an encoder in front of a decoder: python pretrain_etrm.py --config-name cfg_test_frozen_decoder [key=value …].

On N GPUs (or processes): torchrun --nproc-per-node N pretrain_etrm.py --config-name …; they share the batch, rank 0
writes. Interrupted, the same command goes on where the last checkpoint was, with any number of ranks. `arch.KEY=value`
claims something about the decoder (as arch.L_cycles=4) and is refused where the decoder's own config says otherwise.
Exit status: 0 done, 1 a reason on stderr, 2 wrong usage, 130 interrupted.
"""

import argparse
import os
import sys
from pathlib import Path

from etrm.errors import EtrmError
from etrm.experiment.pretraining import Pretraining, load_run
from etrm.experiment.progress import PhaseProgress
from etrm.training.distributed import end_script


def main() -> int:
    """Parse the command line, train, evaluate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config-name", required=True, help="a file of config/, without .yaml")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), help="default: checkpoints")
    parser.add_argument("overrides", nargs="*", help="key=value")
    arguments = parser.parse_intermixed_args()
    progress = PhaseProgress()
    rank = os.environ.get("RANK", "0")
    try:
        config, claims = load_run(arguments.config_name, arguments.overrides)
        run = Pretraining(config, claims, arguments.checkpoints, progress.say, progress)
        summary = run.run()
    except EtrmError as error:
        progress.close()
        who = "" if rank == "0" else f"rank {rank}: "
        print(f"{who}{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        progress.close()
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    if run.ranks.main:
        print(f"decoder: {summary['decoder']['fate']}\nwrote {run.folder}")
    return end_script()


if __name__ == "__main__":
    sys.exit(main())

"""Train a decoder bundle: python pretrain_trm.py --config-name cfg_pretrain_cal1 [key=value …]

Interrupted, the same command goes on where the last checkpoint was. On N GPUs (or processes): torchrun
--nproc-per-node N pretrain_trm.py --config-name …; they share the batch, rank 0 writes. cfg_pretrain_trm_arc1 is TRM's
own protocol at its own scale. Exit status: 0 done, 1 a reason on stderr, 2 wrong usage, 130 interrupted.
"""

import argparse
import sys
import time
from pathlib import Path

from etrm.config.compose import load
from etrm.config.schema import PretrainConfig
from etrm.errors import EtrmError
from etrm.training.distributed import end_script
from etrm.training.pretrain import pretrain


def main() -> int:
    """Parse the command line, train, export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-name", required=True, help="a file of config/, without .yaml")
    parser.add_argument("--out", type=Path, help="bundle folder (default: bundles/<run>)")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    parser.add_argument("overrides", nargs="*", help="key=value")
    arguments = parser.parse_intermixed_args()
    start = time.monotonic()
    try:
        config = load(PretrainConfig, arguments.config_name, arguments.overrides)

        def report(step: int, loss: float) -> None:
            if step % 250 == 0:
                print(f"update {step}: loss {loss:.4f}, {(time.monotonic() - start) / 60:.1f} min", flush=True)

        out = arguments.out or Path("bundles") / config.run
        recipe = " ".join((arguments.config_name, *arguments.overrides))
        pretrain(config, recipe, out, arguments.checkpoints, report)
    except EtrmError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return end_script()


if __name__ == "__main__":
    sys.exit(main())

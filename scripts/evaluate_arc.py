"""Score a checkpoint on all of ARC-AGI: python scripts/evaluate_arc.py --checkpoint FILE --out FOLDER [option …]

FILE is a step_N of pretrain_etrm.py (its encoder is asked), or the public TRM checkpoint with --identifiers, or a
bundle folder (the decoder with its own table rows, TRM's protocol). Answers are kept in FOLDER as they come:
interrupted, the same command goes on; torchrun --nproc-per-node N shares the work. Exit status: 0 done, 1 a reason on
stderr, 2 wrong usage, 130 interrupted.
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from etrm.errors import EtrmError  # noqa: E402  (the repository need not be installed)
from etrm.experiment.arc_subject import Wanted, subject_of  # noqa: E402
from etrm.experiment.full_evaluation import (  # noqa: E402
    PASS_AT,
    answer_missing,
    count_votes,
    open_evaluation,
    result_of,
    write_result,
)
from etrm.experiment.progress import PhaseProgress  # noqa: E402
from etrm.training.distributed import end_script, start, told_ranks  # noqa: E402
from etrm.training.run import choose_device  # noqa: E402


def run(arguments: argparse.Namespace, progress: PhaseProgress) -> None:
    """Answer, vote, print."""
    device = choose_device(arguments.device, told_ranks(os.environ)[2])
    ranks = start(device)
    wanted = Wanted(arguments.benchmark, arguments.tasks, arguments.augmentations, arguments.weights, arguments.seed)
    subject = subject_of(arguments.checkpoint, arguments.identifiers, wanted, device)
    identity = subject.identity | ({"decide": arguments.decide} if arguments.decide else {})
    open_evaluation(arguments.out, identity, ranks)
    if ranks.main:
        for note in subject.notes:
            progress.say(note)
    answer_missing(
        subject.model,
        subject.questions,
        arguments.out,
        arguments.batch_size,
        device,
        ranks,
        progress if ranks.main else None,
        decide=arguments.decide,
    )
    if ranks.main:
        found = result_of(count_votes(subject.questions, arguments.out, arguments.decide), subject.duplicates)
        path = write_result(arguments.out, found | {"notes": list(subject.notes), **identity})
        for name, value in found.items():
            print(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")
        print(f"wrote {path}")


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of this evaluation")
    parser.add_argument("--identifiers", type=Path, help="identifiers.json of the public checkpoint's data set")
    parser.add_argument("--benchmark", default="arc-agi-1", help="arc-agi-1 (default) or arc-agi-2")
    parser.add_argument("--tasks", type=int, default=0, help="how many evaluation tasks; 0 (default): all")
    parser.add_argument("--augmentations", type=int, default=1000, help="votes a query, at most (default 1000)")
    parser.add_argument(
        "--decide",
        type=int,
        choices=(0, *PASS_AT[:4]),
        default=0,
        metavar="K",
        help="ask a query only until no vote to come can change pass@1 to pass@K (1, 2, 5 or 10; default 0: all votes)",
    )
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="of an encoder (default ema)")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument("--seed", type=int, default=0, help="draws tasks and augmentations (default 0)")
    arguments = parser.parse_args()
    if arguments.batch_size < 1:
        parser.error("--batch-size must be at least 1")
    progress = PhaseProgress()
    try:
        run(arguments, progress)
    except EtrmError as error:
        progress.close()
        rank = os.environ.get("RANK", "0")
        print(f"{'' if rank == '0' else f'rank {rank}: '}{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        progress.close()
        print("interrupted; the same command goes on where it was", file=sys.stderr)
        return 130
    return end_script()


if __name__ == "__main__":
    sys.exit(main())

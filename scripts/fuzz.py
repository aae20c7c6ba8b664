"""Feed damaged files to every reader: python scripts/fuzz.py [--count N] [--seed S] [--only TARGET].

Files are split evenly over the targets (tests/fuzz_targets.py). Counted are exceptions other than an EtrmError, errors
that do not name the file or have several lines, and files that were taken though a second opinion finds them wrong; of
each kind the first few are shown, and `--keep FOLDER` keeps their files. Exit status: 0 where nothing was found.
"""

import argparse
import random
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from etrm.errors import EtrmError  # noqa: E402  (the repository need not be installed)
from tests.fuzz_targets import TARGETS, Target  # noqa: E402

SHOWN = 3
KINDS = ("refused", "accepted", "uncaught", "unnamed", "wrong accept")


def outcome(target: Target, folder: Path, draw: random.Random) -> tuple[str, str]:
    """One damaged file: what became of it, and the details."""
    path = target.make(folder, draw)
    target.damage(path, draw)
    try:
        result = target.read(path)
    except EtrmError as error:
        said = str(error)
        named = any(p.name in said or p.stem in said for p in (path, *folder.rglob("*")))
        return ("refused" if named and "\n" not in said else "unnamed"), said
    except Exception:  # the very thing that is counted here
        return "uncaught", traceback.format_exc(limit=-3)
    reason = target.wrong(result, path)
    return ("accepted", "") if reason is None else ("wrong accept", reason)


def main() -> int:
    """Fuzz and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=TARGETS)
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="Detected pickle protocol")  # damage of ours, told by torch
    names = [arguments.only] if arguments.only else list(TARGETS)
    total: Counter[str] = Counter()
    for name in names:
        found: Counter[str] = Counter()
        shown: Counter[str] = Counter()
        for number in range(arguments.count // len(names)):
            with tempfile.TemporaryDirectory() as made:
                folder = Path(made)
                what, details = outcome(TARGETS[name], folder, random.Random(f"{arguments.seed}/{name}/{number}"))
                found[what] += 1
                if what not in ("refused", "accepted"):
                    shown[what] += 1
                    if shown[what] <= SHOWN:
                        print(f"{name} {number}: {what}: {details}", flush=True)
                        if arguments.keep:
                            shutil.copytree(folder, arguments.keep / f"{name}_{number}", dirs_exist_ok=True)
        print(f"{name:12}" + ", ".join(f"{found[kind]} {kind}" for kind in KINDS), flush=True)
        total += found
    bad = total["uncaught"] + total["unnamed"] + total["wrong accept"]
    print(f"{sum(total.values())} files: " + ", ".join(f"{total[kind]} {kind}" for kind in KINDS))
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())

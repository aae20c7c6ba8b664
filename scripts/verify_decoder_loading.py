"""Is the decoder in B the decoder in A? python scripts/verify_decoder_loading.py --trm-checkpoint A --etrm-checkpoint B

Each may be an official checkpoint file, a step_N of ours or a bundle folder. Every decoder tensor is compared bitwise,
then the structure, then the logits on the same inputs and contexts. Exit status: 0 same, 1 differs, 2 cannot compare.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from etrm.errors import EtrmError  # noqa: E402  (the repository need not be installed)
from etrm.experiment.decoder_files import Comparison, compare, open_decoder  # noqa: E402


def print_comparison(found: Comparison) -> None:
    """The table, one line a tensor, and what was found about structure and function."""
    width = max(len(row.name) for row in found.rows)
    for row in found.rows:
        print(f"{row.name:<{width}}  {row.shape!s:<14} {row.state:<13} {row.detail}".rstrip())
    for what, rows in (("tensors", found.own), ("averaged tensors (EMA)", found.averaged)):
        if rows:
            print(f"{sum(row.state == 'equal' for row in rows)} of {len(rows)} {what} are bitwise equal")
    for what, differences in (("structure", found.structure), ("function", found.function)):
        words = "not compared" if differences is None else "; ".join(differences) if differences else "equal"
        print(f"{what}: {words}")
    if found.note:
        print(found.note)


def main() -> int:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trm-checkpoint", type=Path, required=True, metavar="A")
    parser.add_argument("--etrm-checkpoint", type=Path, required=True, metavar="B")
    arguments = parser.parse_args()
    try:
        a, b = open_decoder(arguments.trm_checkpoint), open_decoder(arguments.etrm_checkpoint)
        found = compare(a, b)
    except EtrmError as error:
        print(f"cannot compare: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(f"A: {a.kind} {a.path}\nB: {b.kind} {b.path}")
    print_comparison(found)
    print("same decoder" if found.same else "NOT the same decoder")
    return 0 if found.same else 1


if __name__ == "__main__":
    sys.exit(main())

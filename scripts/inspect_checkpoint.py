"""What is this file? python scripts/inspect_checkpoint.py FILE [--json]; the same as `etrm inspect FILE`.

FILE is a bundle folder, an official checkpoint or a step_N of ours. Prints its kind, decoder, structure, table, encoder
and step. Exit status: 0, or 2 where it cannot be read (says why).
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from etrm.cli.inspect import described  # noqa: E402, F401  (the repository need not be installed)
from etrm.cli.inspect import main as inspect  # noqa: E402
from etrm.errors import EtrmError  # noqa: E402


def main() -> int:
    """Read and print."""
    try:
        return inspect(sys.argv[1:], prog="inspect_checkpoint.py")
    except EtrmError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

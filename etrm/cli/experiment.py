"""`etrm experiment`: the pytest lane of the experiment in a process of its own; every option is pytest's.

Notable: `--slow` is added unless `--short` is given; the exit code is pytest's, 10 (UNDECIDED) and 11 (INVALID)
included. The lane lies in the repository, so the command looks for a checkout at and above the working directory.
"""

import subprocess
import sys
from pathlib import Path

from etrm.errors import ConfigError

HELP = """usage: etrm experiment [--short] [PYTEST OPTION ...]

Run `pytest -m frozen_decoder --slow` in the checkout at or above the working directory.

  --short               the short lane: gradients, frozen decoder, falling loss; no pass@1, no verdict
  --encoder PATH:NAME   judge your own encoder
  --fresh               ignore finished runs and train again
  --run-name NAME       write to runs/NAME
  --verdict-json PATH   also write the verdict there

examples:
  etrm experiment
  etrm experiment --encoder my_encoder.py:make --run-name mine
  etrm experiment --short -q
  etrm experiment --junitxml=junit.xml

exit codes: 0 every gate holds, 1 a gate failed, 10 UNDECIDED, 11 INVALID, 2 to 5 pytest's own (docs/exit-codes.md)"""


def checkout(start: Path) -> Path:
    """The nearest folder at or above `start` that holds the experiment's tests. Raises ConfigError where none does."""
    for folder in (start, *start.parents):
        if (folder / "tests" / "experiments").is_dir() and (folder / "conftest.py").is_file():
            return folder
    raise ConfigError(
        f"no checkout of etrm at or above {start}: the experiment's tests are no part of the installed package; "
        "clone the repository and run `etrm experiment` or `make experiment` in it"
    )


def command(arguments: list[str]) -> list[str]:
    """The pytest command line for these options."""
    lane = [] if "--short" in arguments else ["--slow"]
    rest = [a for a in arguments if a != "--short"]
    return [sys.executable, "-m", "pytest", "-m", "frozen_decoder", *lane, *rest]


def main(arguments: list[str], prog: str = "etrm experiment") -> int:
    """Run the lane; returns pytest's exit code."""
    if "-h" in arguments or "--help" in arguments:
        print(HELP)
        return 0
    return subprocess.run(command(arguments), cwd=checkout(Path.cwd()), check=False).returncode

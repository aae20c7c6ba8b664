"""`etrm COMMAND ...`: finds the sub-command, and turns etrm's own errors into one sentence and exit code 2.

Notable: a sub-command's module is imported only when it is called, so `etrm --help` needs no torch. To add one, write a
module with `main(arguments, prog) -> int` and name it in COMMANDS.
"""

import importlib
import os
import sys

import etrm
from etrm.errors import EtrmError

COMMANDS = {
    "experiment": ("etrm.cli.experiment", "can this encoder drive this frozen decoder? (the pytest lane)"),
    "report": ("etrm.experiment.report.command", "write a run's report.html, or compare runs"),
    "inspect": ("etrm.cli.inspect", "what is this checkpoint, bundle or file?"),
    "rerun": ("etrm.experiment.rerun", "check a run's manifest, and repeat the run byte by byte"),
    "bundle": ("etrm.cli.bundle", "make a bundle of an official checkpoint, once"),
    "bundles": ("etrm.cli.bundles", "list the embedded decoders"),
    "tasks": ("etrm.cli.tasks", "show an ARC task as colours"),
}
EXAMPLES = """examples:
  etrm experiment                       # the full experiment, ending in a verdict
  etrm report runs/experiment           # its page: runs/experiment/report.html
  etrm report compare runs/a runs/b     # two runs side by side
  etrm inspect checkpoint/step_1000     # what is in this file?
  etrm rerun RUN/manifest.json          # the same numbers again?
  etrm bundle CHECKPOINT bundles/official
  etrm bundles --json                   # the embedded decoders, for a script
  etrm tasks show 007bbfb7              # an ARC task

`etrm COMMAND --help` says more. exit codes: docs/exit-codes.md; 2 where a command cannot do what was asked."""


def usage() -> str:
    """The help text."""
    lines = [f"  {name:<12}{says}" for name, (_, says) in COMMANDS.items()]
    return "\n".join(["usage: etrm COMMAND ...", "", "commands:", *lines, "", EXAMPLES])


def main(arguments: list[str] | None = None) -> int:
    """Run one sub-command; returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        code = _run(given)
        sys.stdout.flush()
    except EtrmError as error:
        print(f"etrm {given[0]}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `etrm tasks list | head`: the reader has gone, and nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


def _run(given: list[str]) -> int:
    if given[:1] in (["--version"], ["-V"]):
        print(f"etrm {etrm.__version__}")
        return 0
    if not given or given[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if given else 2
    if given[0] not in COMMANDS:
        print(f"etrm: no command {given[0]!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    code: int = importlib.import_module(COMMANDS[given[0]][0]).main(given[1:], prog=f"etrm {given[0]}")
    return code


if __name__ == "__main__":
    sys.exit(main())

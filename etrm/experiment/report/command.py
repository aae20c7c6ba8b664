"""Command line of the report: `RUN` writes its report.html, `compare RUN RUN ...` a page with runs side by side."""

import argparse
import json
import sys
from pathlib import Path

from etrm.errors import EtrmError
from etrm.experiment.report.compare import write_comparison
from etrm.experiment.report.page import write_report
from etrm.experiment.report.run_folder import open_runs

EXAMPLES = """examples:
  etrm report runs/experiment                      # writes runs/experiment/report.html
  etrm report runs/cache/0f3a… --out report.html   # one finished run
  etrm report runs/experiment --json               # what was found, for a script
  etrm report compare runs/first runs/second       # writes compare.html

A run that is incomplete, of another version or still being written gives a report that says so.
exit codes: 0 written, 2 there is no run"""


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The parser; `etrm report` and `python -m etrm.experiment.report` share it."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Write a run's report.html, or set several runs side by side: report compare RUN RUN ...",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder (`compare` first: several)")
    parser.add_argument("--out", type=Path, help="where to write (default: report.html in the run's folder)")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    return parser


def main(arguments: list[str] | None = None, prog: str = "python -m etrm.experiment.report") -> int:
    """Write the page and print where it lies; 2 with one sentence where there is no run."""
    parser = build_parser(prog)
    options = parser.parse_args(arguments)
    comparing = options.runs[0] == "compare"
    paths = [Path(name) for name in options.runs[comparing:]]
    if not comparing and len(paths) != 1:
        parser.error(f"{len(paths)} runs without `compare`: give one, or `compare RUN RUN ...`")
    try:
        if comparing:
            written = write_comparison(paths, options.out or Path("compare.html"))
        else:
            written = write_report(paths[0], options.out)
        runs = [(path, run) for path in paths for run in open_runs(path)]
    except EtrmError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    if options.json:
        found = [
            {
                "path": str(path),
                "arm": run.arm,
                "state": run.state,
                "scenario": run.verdict.scenario if run.verdict else None,
                "problems": run.problems,
            }
            for path, run in runs
        ]
        print(json.dumps({"report": str(written), "runs": found}, indent=1))
        return 0
    for path, run in runs:
        scenario = run.verdict.scenario if run.verdict else f"no verdict, {run.state}"
        print(f"{path}: {run.arm}: {scenario}" + (f" ({len(run.problems)} problems)" if run.problems else ""))
    print(f"written: {written}")
    return 0

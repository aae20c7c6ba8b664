"""How fast, in ratios: python scripts/speed.py [--only EXPRESSION] [--json FILE]; prints docs/performance.md's tables.

Runs `pytest -m benchmark` (or reads the FILE that an earlier run left) and prints one row a benchmark: samples a second
of ours and of the baseline that was timed in turn with it, their ratio, the share of this machine's measured bf16 peak,
and the peak of resident memory. Exit status: pytest's own, so not 0 where a ratio is below its bar.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("benchmark", "median s", "samples/s", "baseline samples/s", "ratio", "bf16 peak", "peak MB", "baseline MB")


def row(one: Mapping[str, Any]) -> tuple[str, ...]:
    """A benchmark's cells; empty where it did not measure that."""
    info = one["extra_info"]

    def shown(key: str, form: str, scale: float = 1.0) -> str:
        value = info.get(key)
        return "" if value is None else format(value * scale, form)

    return (
        f"`{one['name']}`",
        f"{one['stats']['median']:.3g}",
        shown("samples_per_second", ".3g"),
        shown("baseline_samples_per_second", ".3g"),
        shown("speedup", ".2f"),
        shown("share_of_bf16_peak", ".0%"),
        shown("peak_bytes", ".0f", 1e-6),
        shown("baseline_peak_bytes", ".0f", 1e-6),
    )


def tables(found: Mapping[str, Any]) -> str:
    """All rows as a Markdown table, the machine below it."""
    lines = [f"| {' | '.join(COLUMNS)} |", "| --- " + "| ---: " * (len(COLUMNS) - 1) + "|"]
    lines += [f"| {' | '.join(row(one))} |" for one in found["benchmarks"] if one["name"] != "test_matrix_peak"]
    cold = [one["extra_info"]["seconds_over_torch"] for one in found["benchmarks"] if one["name"] == "test_import_time"]
    lines += ["", *(f"`import etrm`: {seconds:.2f} s over torch's own." for seconds in cold)]
    peaks = [one["extra_info"] for one in found["benchmarks"] if "matrix_peak_bf16" in one["extra_info"]]
    if peaks:
        best = {name: max(p[f"matrix_peak_{name}"] for p in peaks) / 1e9 for name in ("bf16", "fp32")}
        lines += ["", f"Matrix peak: {best['bf16']:.0f} GFLOP/s in bf16, {best['fp32']:.0f} in fp32; "
                  f"{max(p.get('threads', 0) for p in peaks)} threads."]  # fmt: skip
    return "\n".join(lines)


def main() -> int:
    """Run or read, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="EXPRESSION", help="pytest's -k, such as official_scale")
    parser.add_argument("--json", type=Path, help="kept there, and read instead of running where it is there")
    given = parser.parse_args()
    code = 0
    with tempfile.TemporaryDirectory() as folder:
        path = given.json or Path(folder) / "benchmark.json"
        if not path.is_file():
            chosen = ["-k", given.only] if given.only else []
            command = [sys.executable, "-m", "pytest", "-m", "benchmark", "-q", f"--benchmark-json={path}", *chosen]
            code = subprocess.run(command, cwd=ROOT, check=False, stdout=sys.stderr).returncode
        if not path.is_file() or not path.stat().st_size:
            print(f"{path} holds no benchmark; run pytest -m benchmark --benchmark-json={path}", file=sys.stderr)
            return code or 2
        print(tables(json.loads(path.read_text())))
    return code


if __name__ == "__main__":
    sys.exit(main())

"""Print the tables kind x model x located of the gradient-break bank: `python scripts/graph_break_table.py [--why]
[--encoders a,b]`.

The first table is of toy models, the second of the ETRM with each registered encoder.
`ok` the first finding is the planted file and line, `seen` found but at another line, `MISSED` not found. Ends with
the totals, the healthy models' false reports over 50 seeds, and the exit status 1 when the bank's gates do not hold.
"""

import argparse
import importlib.util
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def _load(name: str) -> Any:
    path = ROOT / "tests" / "experiments" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} cannot be imported; run this from a checkout of the repository")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def print_table(cells: dict[tuple[str, str], Any], why: bool) -> None:
    """Kind by model; `ok`, `seen` or `MISSED`."""
    kinds, models = (list(dict.fromkeys(key[k] for key in cells)) for k in (0, 1))
    width, column = max(map(len, kinds)), max(map(len, models))
    print(f"{'kind':<{width}}  " + "  ".join(f"{model:>{column}}" for model in models))
    for kind in kinds:
        row = [cells[kind, model] for model in models]
        words = ["ok" if cell.located else "seen" if cell.detected else "MISSED" for cell in row]
        print(f"{kind:<{width}}  " + "  ".join(f"{word:>{column}}" for word in words))
        for cell in row if why else ():
            if not cell.located:
                print(f"  -- {cell.model}:\n{cell.first}")
    print(f"{len(kinds)} kinds x {len(models)} models = {len(cells)} cells\n")


def main() -> int:
    """Run the bank and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--why", action="store_true", help="print the first finding of every cell that is not ok")
    parser.add_argument("--seeds", type=int, default=50, help="seeds of the healthy models (default 50)")
    parser.add_argument("--encoders", default="", help="of the second table, comma between; default: all registered")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # a plant may be one that torch itself warns about
    toys, etrm = _load("graph_break_bank"), _load("etrm_break_bank")
    _load("etrm_plants_fresh")
    plants = _load("etrm_plants").ETRM_PLANTS
    chosen = tuple(filter(None, options.encoders.split(","))) or etrm.encoders()
    if unknown := sorted(set(chosen) - set(etrm.encoders())):
        parser.error(f"--encoders: no {', '.join(unknown)}; there are {', '.join(etrm.encoders())}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = {(cell.kind, cell.model): cell for cell in toys.run_bank(folder)}
        second = {}
        for number, (kind, plant) in enumerate(plants.items(), 1):
            print(f"kind {number} of {len(plants)}: {kind}", file=sys.stderr, flush=True)
            for encoder in chosen:
                cell = etrm.run_etrm_cell(kind, plant, encoder, folder)
                second[kind, cell.model] = cell
        false = {m: sum(not r.ok for r in toys.healthy_reports(m, folder, options.seeds)) for m in toys.MODELS}
        for encoder in chosen:
            found = etrm.healthy_diagnoses(encoder, folder, options.seeds)
            false[f"etrm {encoder}"] = sum(map(etrm.false_report, found))
    print_table(first, options.why)
    print_table(second, options.why)
    cells = [*first.values(), *second.values()]
    detected, located = sum(cell.detected for cell in cells), sum(cell.located for cell in cells)
    for word, count in (("detected", detected), ("located to file and line", located)):
        print(f"{word} {count}/{len(cells)} = {count / len(cells):.1%}")
    print(f"false reports on healthy models over {options.seeds} seeds: {false}")
    return 0 if detected == len(cells) and located >= 0.95 * len(cells) and not any(false.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Print the table kind x model x located of the gradient-break bank: `python scripts/graph_break_table.py [--why]`.

`ok` the first finding is the planted file and line, `seen` found but at another line, `MISSED` not found. Ends with
the totals, the healthy models' false reports over 50 seeds, and the exit status 1 when the bank's gates do not hold.
"""

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def _bank():
    path = ROOT / "tests" / "experiments" / "graph_break_bank.py"
    spec = importlib.util.spec_from_file_location("graph_break_bank", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["graph_break_bank"] = module
    spec.loader.exec_module(module)
    return module


def main() -> int:
    """Run the bank and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--why", action="store_true", help="print the first finding of every cell that is not ok")
    parser.add_argument("--seeds", type=int, default=50, help="seeds of the healthy models (default 50)")
    options = parser.parse_args()
    bank = _bank()
    with tempfile.TemporaryDirectory() as folder:
        cells = {(cell.kind, cell.model): cell for cell in bank.run_bank(Path(folder))}
        false = {model: bank.healthy_reports(model, Path(folder), options.seeds) for model in bank.MODELS}
    width = max(map(len, bank.PLANTS))
    print(f"{'kind':<{width}}  " + "  ".join(f"{model:>11}" for model in bank.MODELS))
    for kind in bank.PLANTS:
        row = [cells[kind, model] for model in bank.MODELS]
        words = ["ok" if cell.located else "seen" if cell.detected else "MISSED" for cell in row]
        print(f"{kind:<{width}}  " + "  ".join(f"{word:>11}" for word in words))
        for cell in row if options.why else ():
            if not cell.located:
                print(f"  -- {cell.model}:\n{cell.first}")
    detected = sum(cell.detected for cell in cells.values())
    located = sum(cell.located for cell in cells.values())
    reported = {model: sum(not report.ok for report in reports) for model, reports in false.items()}
    print(f"\n{len(bank.PLANTS)} kinds x {len(bank.MODELS)} models = {len(cells)} cells")
    for word, count in (("detected", detected), ("located to file and line", located)):
        print(f"{word} {count}/{len(cells)} = {count / len(cells):.1%}")
    print(f"false reports on healthy models over {options.seeds} seeds: {reported}")
    return 0 if detected == len(cells) and located >= 0.95 * len(cells) and not any(reported.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

"""`etrm tasks show ID`: an ARC task as coloured cells in the terminal, digits included, so that no colour is needed."""

import argparse
import json
from collections.abc import Iterator

import numpy as np
from rich.columns import Columns
from rich.console import Console, Group
from rich.text import Text

from etrm.data.arc import Split, Task, Version, load_arc
from etrm.errors import DataError

EXAMPLES = """examples:
  etrm tasks show 007bbfb7
  etrm tasks show 007bbfb7 --json
  etrm tasks list | head

exit codes: 0, or 2 where there is no such task"""
# ARC's own colours, 0 to 9
COLOURS = ("#000000", "#0074d9", "#ff4136", "#2ecc40", "#ffdc00", "#aaaaaa", "#f012be", "#ff851b", "#7fdbff", "#870c25")
SPLITS: tuple[tuple[Version, Split], ...] = (
    (1, "training"), (1, "evaluation"), (2, "training"), (2, "evaluation"),
)  # fmt: skip


def everything() -> Iterator[Task]:
    """Every task of ARC-AGI-1, then of 2."""
    for version, split in SPLITS:
        yield from load_arc(version, split)


def find(ident: str) -> Task:
    """The task of that id. Raises DataError with the ids that begin alike where there is none."""
    near = []
    for task in everything():
        if task.id == ident:
            return task
        if task.id.startswith(ident[:2]) and task.id not in near:
            near.append(task.id)
    hint = f"; ids that begin alike: {', '.join(near[:5])}" if near else ""
    raise DataError(f"no ARC task {ident!r}{hint}; list them all with: etrm tasks list")


def coloured(grid: np.ndarray) -> Text:
    """A grid (h, w), two columns a cell."""
    text = Text()
    for row in grid.tolist():
        for cell in row:
            text.append(f"{cell} ", style=f"{'#ffffff' if cell in (0, 1, 9) else '#000000'} on {COLOURS[cell]}")
        text.append("\n")
    return text


def shown(task: Task) -> Group:
    """All pairs of a task, one below the other."""
    parts: list[object] = [Text(f"{task.id} ({task.source})", style="bold")]
    for what, pairs in (("demonstration", task.demos), ("query", task.queries)):
        for i, pair in enumerate(pairs, start=1):
            h, w = pair.input.shape
            oh, ow = pair.output.shape
            parts.append(Text(f"\n{what} {i}: {h}x{w} -> {oh}x{ow}"))
            parts.append(Columns([coloured(pair.input), Text("->"), coloured(pair.output)], padding=(0, 2)))
    return Group(*parts)  # type: ignore[arg-type]


def main(arguments: list[str], prog: str = "etrm tasks") -> int:
    """Show one task or list all ids. Raises DataError where there is no such task."""
    parser = argparse.ArgumentParser(prog, None, "Show an ARC task as colours, or list all ids.", EXAMPLES)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="what", required=True)
    one = commands.add_parser("show", help="one task, as colours")
    one.add_argument("id", metavar="ID", help="such as 007bbfb7")
    every = commands.add_parser("list", help="every id with its split")
    for sub in (one, every):
        sub.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(arguments)
    if options.what == "list":
        rows = [
            {"id": t.id, "source": t.source, "demos": len(t.demos), "queries": len(t.queries)} for t in everything()
        ]
        print(json.dumps(rows) if options.json else "\n".join(f"{r['id']}  {r['source']}" for r in rows))
        return 0
    task = find(options.id)
    if options.json:
        pairs = {
            key: [{"input": p.input.tolist(), "output": p.output.tolist()} for p in found]
            for key, found in (("train", task.demos), ("test", task.queries))
        }
        print(json.dumps({"id": task.id, "source": task.source, **pairs}))
        return 0
    Console().print(shown(task))
    return 0

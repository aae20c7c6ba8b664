"""The leaderboard as a Markdown page and an SVG plot; torch-free.

A bar is a cell's share of validation queries answered exactly (the median over seeds where there are several); lines
are the ceilings and nulls on the same axis. The plot is plain SVG, so that it needs no drawing library.
"""

import html
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, LEFT, BAR, GAP, TOP = 960, 250, 16, 8, 30
LINE_COLOURS = ("#2a7f3f", "#1f5fa8", "#7a4fb0", "#a8321f", "#8a6d00", "#555555")


@dataclass(frozen=True)
class Row:
    """One cell: counts are (k, n) of queries answered exactly; `failed` says why a training ended early ('' if not)."""

    encoder: str
    objective: str
    seed: int
    parameters: int
    updates: int
    seconds: float
    validation: tuple[int, int]
    validation_loss: float
    mismatched: tuple[int, int]
    seen: tuple[int, int]
    failed: str = ""

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "Row":
        """From JSON, where tuples are lists."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)

    @property
    def label(self) -> str:
        """Encoder and objective."""
        return f"{self.encoder}, {self.objective}"

    @property
    def rate(self) -> float:
        """Share of validation queries answered exactly."""
        return self.validation[0] / max(1, self.validation[1])

    def order(self) -> tuple[float, float]:
        """Sorts the best first: rate, then validation loss."""
        return -self.rate, self.validation_loss


@dataclass(frozen=True)
class Line:
    """A ceiling or null: k of n."""

    name: str
    k: int
    n: int

    @property
    def rate(self) -> float:
        """k / n."""
        return self.k / max(1, self.n)


def page(
    benchmark: str, command: str, day: str, screened: Sequence[Row], final: Sequence[Row], lines: Sequence[Line]
) -> str:
    """The page: how it was made, the screening table, the table over seeds if there is one, ceilings and nulls."""
    out = [
        f"# Leaderboard on {benchmark}",
        "",
        f"{day}, made by `{command}`.",
        "Validation tasks only; the locked test was not read. Seconds are wall time on a shared machine,",
        'so compare updates first. "Mismatched" is the same encoder with the demonstrations of another task.',
        "Counts are of queries answered exactly, k of n.",
        "",
        "![validation score of every cell, with ceilings and nulls](leaderboard.svg)",
        "",
        "| encoder | objective | parameters | updates | seconds | validation | loss | mismatched | seen |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_line_of(row) for row in screened),
    ]
    if final:
        out += [
            "",
            "## The finalists over seeds",
            "",
            "| encoder | objective | updates | seeds | validation, each | median | seen, each |",
        ]
        out += ["| --- " * 7 + "|"]
        for label, rows in _by_label(final).items():
            each, seen = (", ".join(_count(getattr(r, name)) for r in rows) for name in ("validation", "seen"))
            median = statistics.median(r.rate for r in rows)
            told = f"{rows[0].encoder} | {rows[0].objective} | {rows[0].updates} | {len(rows)} | {each} | {median:.0%}"
            out.append(f"| {told} | {seen} |")
            assert label == rows[0].label
    out += ["", "## Ceilings and nulls", "", "| line | exact |", "| --- | --- |"]
    out += [f"| {line.name} | {line.k} of {line.n} ({line.rate:.0%}) |" for line in lines]
    failed = [f"- {row.label}, seed {row.seed}: {row.failed}" for row in (*screened, *final) if row.failed]
    return "\n".join([*out, *(["", "## Ended early", "", *failed] if failed else [])]) + "\n"


def plot(screened: Sequence[Row], final: Sequence[Row], lines: Sequence[Line]) -> str:
    """The plot as SVG text: one bar a row in the order given, one dashed line a ceiling or null."""
    again = _by_label(final)
    body, span = TOP + len(screened) * (BAR + GAP), WIDTH - LEFT - 200
    height = body + 30 + 18 * len(lines)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="16">validation queries answered exactly</text>',
    ]
    for i, row in enumerate(screened):
        y, rate, note = TOP + i * (BAR + GAP), row.rate, f"{row.updates:,} updates"
        if rows := again.get(row.label):
            rate, note = statistics.median(r.rate for r in rows), f"{rows[0].updates:,} updates, {len(rows)} seeds"
        parts += [
            f'<text x="{LEFT - 8}" y="{y + 12}" text-anchor="end">{html.escape(row.label)}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{max(1.0, span * rate):.1f}" height="{BAR}" fill="#4c78a8"/>',
            f'<text x="{LEFT + span * rate + 6:.1f}" y="{y + 12}">{rate:.0%} ({note})</text>',
        ]
    for i, line in enumerate(lines):
        x, y = LEFT + span * line.rate, body + 24 + 18 * i
        colour, dashes = LINE_COLOURS[i % len(LINE_COLOURS)], 'stroke-dasharray="5 3"'
        parts += [
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" y2="{body}" stroke="{colour}" {dashes}/>',
            f'<line x1="{LEFT - 24}" x2="{LEFT - 4}" y1="{y - 4}" y2="{y - 4}" stroke="{colour}" {dashes}/>',
            f'<text x="{LEFT}" y="{y}" fill="{colour}">{html.escape(line.name)}: {line.k} of {line.n}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _by_label(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.label, []).append(row)
    return found


def _count(pair: tuple[int, int]) -> str:
    return f"{pair[0]} of {pair[1]}"


def _line_of(row: Row) -> str:
    return (
        f"| {row.encoder} | {row.objective} | {row.parameters:,} | {row.updates} | {row.seconds:.0f} | "
        f"{_count(row.validation)} ({row.rate:.0%}) | {row.validation_loss:.2f} | {_count(row.mismatched)} | "
        f"{_count(row.seen)} |"
    )

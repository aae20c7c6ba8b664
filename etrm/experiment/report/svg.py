"""Small inline SVG drawings: line chart, intervals, heatmap, scatter. Text in, text out; no library.

Notable: colours are CSS classes (`s1`..`s8`, Okabe and Ito's palette in assets/style.css), so one drawing serves light
and dark; series differ by dash or mark as well, never by colour alone. Every drawing has a <title> and a <desc>.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]
DASHES = ("", "7 4", "2 3", "9 3 2 3", "4 2", "1 4", "12 4", "6 2 1 2")


@dataclass(frozen=True)
class Line:
    """One series. `colour` 1..8; a level (a control measured once) is drawn across the whole width."""

    name: str
    points: tuple[Point, ...]
    colour: int
    level: bool = False


@dataclass(frozen=True)
class Interval:
    """One row of an interval chart: a value with its bounds; `marks` are (name, value, colour) beside it."""

    name: str
    note: str
    value: float
    low: float
    high: float
    marks: tuple[tuple[str, float, int], ...]


def drawing(ident: str, title: str, describes: str, size: tuple[float, float], body: Sequence[str]) -> str:
    """An <svg> with title and description for screen readers; `ident` must be unique on the page."""
    width, height = size
    return (
        f'<svg role="img" aria-labelledby="{ident}-t {ident}-d" viewBox="0 0 {width:g} {height:g}" '
        f'class="drawing"><title id="{ident}-t">{escape(title)}</title><desc id="{ident}-d">{escape(describes)}</desc>'
        + "".join(body)
        + "</svg>"
    )


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> str:
    """A text element; `kind` is its CSS class."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(content)}</text>'


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values within [low, high], at most about `most` of them."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / most
    unit = 10 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def thinned(points: Sequence[Point], most: int = 400) -> list[Point]:
    """At most about `most` points: of each run of neighbours the lowest and the highest, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(2 * len(points) / most)
    kept: list[Point] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        ends = {part.index(min(part, key=lambda p: p[1])), part.index(max(part, key=lambda p: p[1]))}
        kept += [part[i] for i in sorted(ends)]
    return kept


def line_chart(ident: str, title: str, describes: str, lines: Sequence[Line], x_label: str, y_label: str) -> str:
    """Lines over a common x; the names stand at their right ends. The y axis is logarithmic where all is positive."""
    width, height, left, right, top, bottom = 760.0, 330.0, 56.0, 190.0, 28.0, 42.0
    xs = [x for line in lines for x, _ in line.points if not line.level] or [0.0, 1.0]
    ys = [y for line in lines for _, y in line.points]
    log = min(ys) > 0 and max(ys) / min(ys) > 8
    scale = math.log10 if log else float
    low, high = scale(min(ys)), scale(max(ys))
    pad = 0.06 * (high - low) or 0.5
    low, high = low - pad, high + pad
    x0, x1 = min(0.0, *xs), max(*xs, 1.0)

    def at(x: float, y: float) -> Point:
        return (
            left + (x - x0) / (x1 - x0) * (width - left - right),
            top + (high - scale(y)) / (high - low) * (height - top - bottom),
        )

    body = [text(left - 44, 14, y_label, "axis")]
    marks = _log_ticks(low, high) if log else ticks(low, high, 5)
    for value in marks:
        y = at(x0, value)[1]
        body.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" class="rule"/>')
        body.append(text(left - 8, y + 4, f"{value:g}", "tick", "end"))
    for value in ticks(x0, x1):
        x = at(value, min(ys))[0]
        body.append(text(x, height - bottom + 18, f"{value:,.0f}".replace(",", " "), "tick", "middle"))
    body.append(text((left + width - right) / 2, height - 6, x_label, "axis", "middle"))
    ends = []
    for line in lines:
        shown = [(x0, line.points[0][1]), (x1, line.points[0][1])] if line.level else thinned(line.points)
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*p) for p in shown))
        dash = f' stroke-dasharray="{DASHES[line.colour - 1]}"' if DASHES[line.colour - 1] else ""
        body.append(f'<polyline points="{path}" class="line s{line.colour}"{dash}/>')
        if not line.level and len(shown) <= 12:
            body += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="dot s{line.colour}"/>'
                for x, y in (at(*p) for p in shown)
            ]
        ends.append((at(*shown[-1])[1], f"{line.name} {line.points[-1][1]:.3g}", line.colour))
    x = width - right
    for y, label_y, name, colour in _apart(ends, 17.0, top, height - bottom):
        body.append(
            f'<path d="M{x + 2:.1f} {y:.1f} L{x + 12:.1f} {label_y:.1f} H{x + 20:.1f}" class="lead s{colour}"/>'
        )
        body.append(text(x + 24, label_y + 4, name, "label"))
    return drawing(ident, title, describes, (width, height), body)


def _log_ticks(low: float, high: float) -> list[float]:
    found = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
    inside = [v for v in found if low <= math.log10(v) <= high]
    return [v for v in inside if f"{v:e}"[0] == "1"] if len(inside) > 8 else inside


def _apart(
    ends: list[tuple[float, str, int]], gap: float, top: float, bottom: float
) -> list[tuple[float, float, str, int]]:
    """Labels in order of height, pushed apart until no two overlap, kept above `bottom`."""
    placed: list[tuple[float, float, str, int]] = []
    last = top - gap
    for y, name, colour in sorted(ends):
        last = max(y, last + gap)
        placed.append((y, last, name, colour))
    excess = max(0.0, last - bottom)
    return [(y, max(top, label - excess), name, colour) for y, label, name, colour in placed]


def interval_chart(
    ident: str, title: str, describes: str, rows: Sequence[Interval], threshold: float, threshold_name: str
) -> str:
    """Rates in [0, 1] with intervals, one below the other, and the marks of their nulls; a line at `threshold`."""
    width, left, right, row_height, top = 760.0, 210.0, 24.0, 60.0, 34.0
    height = top + row_height * len(rows) + 40

    def at(x: float) -> float:
        return left + x * (width - left - right)

    body = []
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        body.append(f'<line x1="{at(value)}" x2="{at(value)}" y1="{top}" y2="{height - 34}" class="rule"/>')
        body.append(text(at(value), height - 16, f"{100 * value:.0f} %", "tick", "middle"))
    body.append(
        f'<line x1="{at(threshold)}" x2="{at(threshold)}" y1="{top - 8}" y2="{height - 34}" class="threshold"/>'
    )
    body.append(text(at(threshold) + 5, top - 12, threshold_name, "tick"))
    for i, row in enumerate(rows):
        y = top + row_height * (i + 0.5)
        body.append(text(0, y - 4, row.name, "label strong"))
        body.append(text(0, y + 14, row.note, "tick"))
        body.append(
            f'<rect x="{at(row.low):.1f}" y="{y - 9:.1f}" width="{max(1.5, at(row.high) - at(row.low)):.1f}" '
            f'height="18" rx="4" class="band"/>'
        )
        body += [
            f'<path d="M{at(v):.1f} {y + 13:.1f} l5 9 h-10 z" class="mark s{c}"><title>{escape(n)} {100 * v:.1f} %'
            "</title></path>"
            for n, v, c in row.marks
        ]
        body.append(f'<circle cx="{at(row.value):.1f}" cy="{y:.1f}" r="7" class="value"/>')
    return drawing(ident, title, describes, (width, height), body)


def heatmap(
    ident: str,
    title: str,
    describes: str,
    names: Sequence[str],
    columns: Sequence[float],
    cells: Sequence[Sequence[float | None]],
    levels: tuple[float, float],
) -> str:
    """Cells [row][column] as ten steps of colour between `levels`; None is drawn red with a dashed border."""
    left, top, cell_height, width = 250.0, 8.0, 15.0, 760.0
    cell_width = (width - left - 6) / max(1, len(columns))
    low, high = levels
    height = top + cell_height * len(names) + 64
    body = []
    for r, (name, row) in enumerate(zip(names, cells, strict=True)):
        y = top + r * cell_height
        body.append(text(left - 8, y + 11, name if len(name) <= 38 else "…" + name[-37:], "tick", "end"))
        start = 0
        steps = [_step(value, low, high) for value in row]
        for c in range(1, len(steps) + 1):  # neighbours of one colour are one rectangle
            if c == len(steps) or steps[c] != steps[start]:
                x, w = left + start * cell_width, (c - start) * cell_width
                body.append(
                    f'<rect x="{x:.1f}" y="{y:.1f}" width="{w + 0.3:.1f}" height="{cell_height - 1}" '
                    f'class="{steps[start]}"/>'
                )
                start = c
    foot = top + cell_height * len(names)
    for i in sorted({round(f * (len(columns) - 1)) for f in (0, 0.25, 0.5, 0.75, 1)}):
        x = left + (i + 0.5) * cell_width
        anchor = "end" if i == len(columns) - 1 and i else "middle"
        body.append(text(x, foot + 16, f"{columns[i]:,.0f}".replace(",", " "), "tick", anchor))
    body.append(text(left - 8, foot + 16, "update", "axis", "end"))
    body.append(text(left - 8, foot + 48, "norm", "axis", "end"))
    for i in range(10):
        body.append(f'<rect x="{left + 26 * i}" y="{foot + 36}" width="26" height="14" class="h{i}"/>')
    body.append(text(left, foot + 62, f"{low:.1g}", "tick"))
    body.append(text(left + 260, foot + 62, f"{high:.1g}", "tick", "end"))
    body.append(f'<rect x="{left + 290}" y="{foot + 36}" width="26" height="14" class="none"/>')
    body.append(text(left + 322, foot + 48, "no gradient", "tick"))
    return drawing(ident, title, describes, (width, height), body)


def _step(value: float | None, low: float, high: float) -> str:
    """CSS class of a cell: h0..h9 on a logarithmic scale, `none` where there is no gradient."""
    if value is None or value <= 0:
        return "none"
    if high <= low:
        return "h5"
    share = (math.log10(value) - math.log10(low)) / (math.log10(high) - math.log10(low))
    return f"h{min(9, max(0, int(share * 10)))}"


def scatter(ident: str, title: str, describes: str, points: Sequence[tuple[float, float, int]], frame: float) -> str:
    """Points (x, y, colour 1..8) in a square of half-width `frame` about 0; the mark's shape follows the colour."""
    size = 340.0

    def at(v: float) -> float:
        return size / 2 + v / frame * (size / 2 - 14)

    body = [f'<rect x="1" y="1" width="{size - 2}" height="{size - 2}" rx="6" class="frame"/>']
    body.append(f'<path d="M{size / 2} 8 V{size - 8} M8 {size / 2} H{size - 8}" class="rule"/>')
    body += [f'<path d="{mark(at(x), at(-y), colour)}" class="mark s{colour}"/>' for x, y, colour in points]
    return drawing(ident, title, describes, (size, size), body)


def mark(x: float, y: float, shape: int) -> str:
    """Path of one of eight shapes about (x, y)."""
    forms = (
        "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z", "m-4 -4h8v8h-8z", "m0 -5l5 9h-10z", "m0 5l5 -9h-10z",
        "m0 -5.5l5.5 5.5l-5.5 5.5l-5.5 -5.5z", "m-5 -1.5h3.5v-3.5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5z",
        "m-5 -5l5 3l5 -3l-3 5l3 5l-5 -3l-5 3l3 -5z", "m-5 -2.5h10v5h-10z",
    )  # fmt: skip
    return f"M{x:.1f} {y:.1f}{forms[(shape - 1) % len(forms)]}"

"""The drawings of a report, each with the same numbers as a table: losses, gradients, what was solved, contexts.

Notable: a figure that a run cannot give is None, and the page says so; nothing is drawn from invented numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from etrm.experiment.evidence import RUNGS, USEFUL, Evidence, Score
from etrm.experiment.reading import percent, rate
from etrm.experiment.report import svg
from etrm.experiment.report.run_folder import Row, RunFolder, series
from etrm.experiment.wording import DEPTH, NULL_NAMES

HEAT_COLUMNS = 72
HEAT_ROWS = 60
LAYER = "grad/layer/"


@dataclass(frozen=True)
class Figure:
    """Drawings, a caption that says how to read them, and the table behind them (first row: the headings)."""

    name: str
    drawings: tuple[str, ...]
    caption: str
    table: tuple[tuple[str, ...], ...]
    legend: tuple[tuple[str, int], ...] = ()  # (name, colour) where the drawing itself has no names
    titles: tuple[str, ...] = ()  # one over each drawing, where there are several


def loss_figure(run: RunFolder, ident: str) -> Figure | None:
    """Losses over updates; the controls, which were measured once, as level lines."""
    curve = [row for row in run.record.get("curve", []) if isinstance(row, dict)]
    loss = run.evidence.loss if run.evidence else None
    probe = series(curve, "probe/lm_loss")
    if loss is not None and loss.probe_start is not None and math.isfinite(loss.probe_start):
        probe = [(0.0, loss.probe_start), *probe]
    lines = [
        svg.Line("training", tuple(series(run.metrics, "train/lm_loss")), 8),
        svg.Line("probe set", tuple(probe), 1),
        svg.Line("validation", tuple(series(curve, "validation/lm_loss")), 2),
    ]
    controls = (("best constant", loss.constant_context_loss if loss else None, 3),
                ("mismatched", loss.mismatched_loss if loss else None, 4))  # fmt: skip
    lines += [svg.Line(n, ((0.0, v),), c, True) for n, v, c in controls if v is not None and math.isfinite(v)]
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    rows = [("loss in nats", "first", "lowest", "last")]
    for line in lines:
        ys = [y for _, y in line.points]
        first = "" if line.level else f"{ys[0]:.3g}"
        rows.append((line.name, first, "" if line.level else f"{min(ys):.3g}", f"{ys[-1]:.3g}"))
    says = "; ".join(f"{line.name} ends at {line.points[-1][1]:.3g}" for line in lines)
    drawn = svg.line_chart(f"{ident}-loss", "Loss over updates", says, lines, "updates", "nats a token")
    caption = (
        "The probe set holds fixed episodes of training tasks, the validation set other tasks. The encoder reads its "
        "demonstrations only where the probe set ends below both level lines: the best constant context, and "
        "demonstrations of another task. The training loss is the mean over all ACT steps, the others are of the last."
    )
    return Figure("loss", (drawn,), caption, tuple(rows))


def gradient_figure(run: RunFolder, ident: str) -> Figure | None:
    """Norm of each parameter's gradient before clipping, over updates; of the first updates where training has none."""
    rows, source = _layers(run)
    if not rows:
        return None
    names = list(dict.fromkeys(name for _, norms in rows for name in norms))
    columns, cells = _binned(rows, names)
    left_out = len(names) - HEAT_ROWS
    seen = [v for row in cells for v in row if v is not None and v > 0]
    levels = (min(seen), max(seen)) if seen else (1.0, 1.0)
    table = [("parameter", "first", "median", "last", "updates without one")]
    for name in names:
        own = [norms.get(name) for _, norms in rows]
        found = sorted(v for v in own if v is not None)
        middle = f"{found[len(found) // 2]:.2g}" if found else "none"
        ends = ["none" if v is None else f"{v:.2g}" for v in (own[0], own[-1])]
        table.append((name, ends[0], middle, ends[1], str(sum(v is None or v == 0 for v in own))))
    silent = sum(any(v is None or v <= 0 for v in row) for row in cells)
    says = f"{len(names)} parameters, {silent} of them without a gradient at some update; norms {levels[0]:.1g} to "
    drawn = svg.heatmap(f"{ident}-heat", "Gradient norm of each parameter over updates", f"{says}{levels[1]:.1g}",
                        names[:HEAT_ROWS], columns, cells[:HEAT_ROWS], levels)  # fmt: skip
    caption = (
        f"{source} A row is a parameter of the encoder, from input to output; the norm is taken before clipping. A "
        "healthy encoder has a colour everywhere. A red cell "
        "with a dashed border got no gradient there: what it stands for cannot learn."
    )
    if left_out > 0:
        caption += f" {left_out} more parameters stand in the table only."
    return Figure("gradients", (drawn,), caption, tuple(table))


def _layers(run: RunFolder) -> tuple[list[tuple[float, dict[str, float]]], str]:
    """(update, norm by parameter) and where it comes from: the training, else the gradient watch before it."""
    logged = [(float(r["step"]), _norms(r, LAYER)) for r in run.metrics if any(k.startswith(LAYER) for k in r)]
    if logged:
        return logged, "Mean over the updates between two log lines." if len(logged) > 1 else ""
    watch = run.record.get("watch")
    norms = watch.get("norms", []) if isinstance(watch, dict) else []
    watched = [(float(i + 1), _norms(row, "")) for i, row in enumerate(norms) if isinstance(row, dict)]
    return [row for row in watched if row[1]], "From the gradient watch over the first updates, before training."


def _norms(row: Row, prefix: str) -> dict[str, float]:
    found = {k.removeprefix(prefix).removeprefix("model.encoder."): v for k, v in row.items() if k.startswith(prefix)}
    return {k: float(v) for k, v in found.items() if type(v) in (int, float) and math.isfinite(v)}


def _binned(
    rows: list[tuple[float, dict[str, float]]], names: Sequence[str]
) -> tuple[list[float], list[list[float | None]]]:
    """Columns of neighbouring updates: geometric mean, or None where the parameter had no gradient in any of them."""
    size = math.ceil(len(rows) / HEAT_COLUMNS)
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    cells: list[list[float | None]] = []
    for name in names:
        line: list[float | None] = []
        for part in parts:
            found = [norms.get(name, 0.0) for _, norms in part]
            dead = any(v <= 0 for v in found)
            line.append(None if dead else math.exp(sum(map(math.log, found)) / len(found)))
        cells.append(line)
    return [part[-1][0] for part in parts], cells


def solved_figure(evidence: Evidence, ident: str) -> Figure | None:
    """pass@1 of each rung with its nulls, and below it the ceilings: the decoder's own contexts and the oracles."""
    rows: list[svg.Interval] = []
    table: list[tuple[str, ...]] = [("what", "exact", "rate", "95 % interval", "tasks", "nulls (exact)")]
    for name in RUNGS[evidence.arm]:
        rung = evidence.rung(name)
        if rung is None:
            table.append((f"{name}: {DEPTH[name]}", "not evaluated", "", "", "", ""))
            continue
        marks = tuple((NULL_NAMES.get(n, n), rate(m), 2) for n, m in rung.nulls.items() if m.n)
        note = "the decoder knows these tasks" if rung.decoder_known and name != "seen_task" else DEPTH[name]
        rows.append(_interval(name.replace("_", " "), note, rung.score, marks))
        nulls = ", ".join(f"{NULL_NAMES.get(n, n)}: {m.k} of {m.n}" for n, m in rung.nulls.items())
        table.append((f"{name}: {DEPTH[name]}", *_cells(rung.score), nulls))
        if (found := rung.searched) is not None:
            cost = f"{found.updates} updates, {found.seconds_per_query:.2g} s a query"
            rows.append(_interval(f"{name.replace('_', ' ')}, searched", cost, found.score, ()))
            table.append((f"{name} after test-time search: {cost}", *_cells(found.score), "decides nothing"))
    ceilings = (
        ("decoder's own contexts", "what the decoder can do", evidence.positive_control),
        (
            "oracle, many pairs",
            "a context fitted to 32 pairs",
            evidence.oracle_many.score if evidence.oracle_many else None,
        ),
        (
            "oracle, demonstrations",
            "a context fitted to them",
            evidence.oracle_demos.score if evidence.oracle_demos else None,
        ),
    )
    for name, note, score in ceilings:
        if score is not None and score.n:
            rows.append(_interval(name, note, score, ()))
            table.append((name, *_cells(score), ""))
        else:
            table.append((name, "not run", "", "", "", ""))
    if not rows:
        return None
    says = "; ".join(f"{row.name} {percent(row.value)} ({percent(row.low)} to {percent(row.high)})" for row in rows)
    drawn = svg.interval_chart(f"{ident}-solved", "Exactly solved queries", says, rows, USEFUL, "useful: 2 %")
    caption = (
        "The dot is the rate, the bar its 95 % interval over tasks, the triangles below it are the nulls: the same "
        "queries with the information removed. An encoder that reads its demonstrations stands clear of every triangle."
    )
    return Figure("solved", (drawn,), caption, tuple(table))


def _interval(name: str, note: str, score: Score, marks: tuple[tuple[str, float, int], ...]) -> svg.Interval:
    return svg.Interval(name, note, rate(score), *score.ci95, marks)


def _cells(score: Score) -> tuple[str, ...]:
    low, high = (percent(v) for v in score.ci95)
    return f"{score.k} of {score.n}", percent(rate(score)), f"{low} to {high}", str(score.tasks)


def context_figure(run: RunFolder, ident: str) -> Figure | None:
    """Encoder contexts and the decoder's own rows of the same tasks, on the same two axes."""
    points = run.contexts.get("points", [])
    if not points:
        return None
    tasks = list(dict.fromkeys(str(p["task"]) for p in points))
    colours = {task: 1 + i % 8 for i, task in enumerate(tasks)}
    sets = {
        of: [(float(p["x"]), float(p["y"]), colours[str(p["task"])]) for p in points if p.get("of") == of]
        for of in ("encoder", "table")
    }
    frames = {of: max([abs(v) for x, y, _ in own for v in (x, y)] + [1e-9]) for of, own in sets.items()}
    largest = max(frame for of, frame in frames.items() if sets[of])
    drawings, titles = [], []
    for of, title in (("encoder", "this encoder"), ("table", "the decoder's own table")):
        zoom = largest / frames[of]
        shown = f", magnified {zoom:.3g} times" if zoom > 3 and sets[of] else ""
        says = f"{len(sets[of])} contexts of {len(tasks)} tasks{shown}; the same two axes in both maps"
        drawings.append(
            svg.scatter(f"{ident}-map-{of}", f"Contexts of {title}", says, sets[of], frames[of] if shown else largest)
        )
        titles.append(title + shown)
    table = [("task", "encoder: contexts", "encoder: centre", "encoder: spread", "decoder's own")]
    for task in tasks:
        own = [p for p in points if str(p["task"]) == task]
        encoder, rows = (
            [(float(p["x"]), float(p["y"])) for p in own if p.get("of") == of] for of in ("encoder", "table")
        )
        centre = _centre(encoder)
        spread = math.sqrt(sum((x - centre[0]) ** 2 + (y - centre[1]) ** 2 for x, y in encoder) / max(1, len(encoder)))
        spot = [f"({x:.2f}, {y:.2f})" for x, y in (centre, _centre(rows))]
        table.append((task, str(len(encoder)), spot[0], f"{spread:.2f}", spot[1] if rows else "none"))
    shares = [share for share in run.contexts.get("explained", []) if type(share) in (int, float)]
    caption = (
        "Each mark is one context, its colour and shape the task, each map about its own middle. Healthy: marks of a "
        "task lie together, tasks apart, and the encoder's places resemble the decoder's own. Collapsed: all marks in "
        "one spot, or a map that must be magnified many times. "
    )
    offset = run.contexts.get("offset")
    if type(offset) in (int, float):
        caption += f"The middles of the two maps lie {offset:.2g} spreads of the decoder's table apart. "
    if shares:
        caption += f"The two axes show {percent(sum(shares))} of the variance, so distances are only a hint."
    return Figure("contexts", tuple(drawings), caption, tuple(table), tuple(colours.items()), tuple(titles))


def _centre(points: list[tuple[float, float]]) -> tuple[float, float]:
    count = max(1, len(points))
    return sum(x for x, _ in points) / count, sum(y for _, y in points) / count

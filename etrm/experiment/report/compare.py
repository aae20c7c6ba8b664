"""Runs side by side: verdict and key figures as columns, what their configs differ in, their losses on one chart."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from etrm.errors import EvaluationError
from etrm.experiment.panel import figures
from etrm.experiment.report import svg
from etrm.experiment.report.figures import Figure
from etrm.experiment.report.page import fill, flat_config
from etrm.experiment.report.run_folder import RunFolder, open_runs, series
from etrm.experiment.wording import COLOUR, MEANING

MOST_RUNS = 8


@dataclass(frozen=True)
class Row:
    """One line of the comparison; `differs`: not all cells are equal."""

    name: str
    cells: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Whether the runs have different values here."""
        return len(set(self.cells)) > 1


def write_comparison(paths: Sequence[Path], out: Path, now: float | None = None) -> Path:
    """Write a page that sets the runs of `paths` side by side. Raises EvaluationError for fewer than two runs, or more
    than MOST_RUNS, which no screen shows.
    """
    clock = time.time() if now is None else now
    named: list[tuple[str, RunFolder]] = []
    for path in paths:
        runs = open_runs(path, clock)
        named += [(path.resolve().name + (f" / {run.arm}" if len(runs) > 1 else ""), run) for run in runs]
    if not 2 <= len(named) <= MOST_RUNS:
        raise EvaluationError(f"{len(named)} runs to compare: give 2 to {MOST_RUNS}, such as runs/first runs/second")
    html = fill(
        "compare.html.j2",
        names=[_unique(name, i, [n for n, _ in named]) for i, (name, _) in enumerate(named)],
        verdicts=[_verdict(run) for _, run in named],
        rows=verdict_rows([run for _, run in named]),
        config=[row for row in config_rows([run for _, run in named]) if row.differs],
        loss=_loss(named),
        problems=[(name, problem) for name, run in named for problem in run.problems],
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(html, encoding="utf-8")
    return out


def _unique(name: str, index: int, names: list[str]) -> str:
    return f"{name} ({index + 1})" if names.count(name) > 1 else name


def _verdict(run: RunFolder) -> tuple[str, str, str]:
    """Scenario, meaning, tone."""
    if run.verdict is None:
        return "none", f"no verdict: the run is {run.state}", "white"
    return run.verdict.scenario, MEANING[run.verdict.scenario], COLOUR[run.verdict.scenario]


def verdict_rows(runs: Sequence[RunFolder]) -> list[Row]:
    """Arm, encoder, why, and the panel's figures with what they are compared with."""
    columns: list[dict[str, str]] = []
    for run in runs:
        column = {"arm": run.arm}
        if run.verdict is not None:
            evidence = run.verdict.evidence
            column |= {
                "encoder": evidence.encoder,
                "seeds": str(evidence.seeds),
                "confidence": run.verdict.confidence,
                "why": run.verdict.reasons[0],
            }
            for what, measured, compared in figures(run.verdict):
                column[what] = measured + (f" | {compared}" if compared else "")
            if evidence.budget is not None:
                column["updates"] = f"{evidence.budget.executed_updates} of {evidence.budget.planned_updates}"
        columns.append(column)
    names = list(dict.fromkeys(name for column in columns for name in column))
    return [Row(name, tuple(column.get(name, "") for column in columns)) for name in names]


def config_rows(runs: Sequence[RunFolder]) -> list[Row]:
    """Every key of the configs and of the provenance, by name."""
    columns = []
    for run in runs:
        provenance = run.evidence.provenance if run.evidence else {}
        plain = {key: str(value) for key, value in provenance.items() if key != "config"}
        columns.append(plain | flat_config(provenance.get("config")))
    names = sorted({name for column in columns for name in column})
    return [Row(name, tuple(column.get(name, "") for column in columns)) for name in names]


def _loss(named: Sequence[tuple[str, RunFolder]]) -> Figure | None:
    """Probe and, where there is none, training losses of all runs."""
    lines = []
    for i, (name, run) in enumerate(named):
        curve = [row for row in run.record.get("curve", []) if isinstance(row, dict)]
        points = series(curve, "validation/lm_loss") or series(run.metrics, "train/lm_loss")
        if points:
            lines.append(svg.Line(name, tuple(points), i + 1))
    if not lines:
        return None
    says = "; ".join(f"{line.name} ends at {line.points[-1][1]:.3g}" for line in lines)
    drawn = svg.line_chart("compare-loss", "Loss of each run over updates", says, lines, "updates", "nats a token")
    table = (("run", "first", "last"), *((n.name, f"{n.points[0][1]:.3g}", f"{n.points[-1][1]:.3g}") for n in lines))
    return Figure("loss", (drawn,), "Validation loss; of a run without evaluations its training loss.", table)

"""The report's page: a run's verdict, figures, grids and provenance put into the template of `assets/`.

Notable: one file without a network: style, script and data are written into it, and its Content-Security-Policy forbids
everything else. Beyond MOST_BYTES queries are left out from the end, and the page says how many.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import etrm
from etrm.errors import EvaluationError
from etrm.experiment.attribution import HYPOTHESES
from etrm.experiment.checks import CHECK_RULES
from etrm.experiment.panel import why
from etrm.experiment.report import svg
from etrm.experiment.report.figures import context_figure, gradient_figure, loss_figure, solved_figure
from etrm.experiment.report.run_folder import Row, RunFolder, open_runs
from etrm.experiment.report.tiles import tiles
from etrm.experiment.seed_reading import seed_reading
from etrm.experiment.wording import COLOUR, HEADLINE, MEANING, SIGN, questions

ASSETS = Path(__file__).resolve().parent / "assets"
MOST_BYTES = 5_000_000
QUERY_BYTES = 3_500_000
DIVERSITY = {
    "context/between_task_share": "between-task over total variance of the contexts (0: no difference between tasks)",
    "context/effective_rank": "effective rank of the contexts (1: they differ in one direction only)",
    "train/encoder_token_std": "token deviation at the end of training (grows with any scaling)",
    "train/encoder_token_std/first": "token deviation at the start",
}


def write_report(path: Path, out: Path | None = None, now: float | None = None) -> Path:
    """Write the report of the run (or the session's folder) at `path`; returns where it lies.

    `out` defaults to `path`/report.html, or beside a finished run of the cache, whose folder must not change. `now` is
    the time by which a run at work is known; None takes the clock. Raises EvaluationError where there is no run.
    """
    runs = open_runs(path, time.time() if now is None else now)
    if out is None:
        kept = (path / "DONE.json").exists()
        out = path.with_name(f"{path.name}.report.html") if kept else path / "report.html"
    html = render(runs, path.resolve().name)
    if len(html.encode()) > MOST_BYTES:
        raise EvaluationError(f"the report of {path} has {len(html.encode())} bytes, expected at most {MOST_BYTES}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(html, encoding="utf-8")
    return out


def render(runs: Sequence[RunFolder], name: str) -> str:
    """The page as text."""
    queries, left_out = packed_queries(runs)
    return fill(
        "report.html.j2",
        name=name,
        arms=[_arm(run) for run in runs],
        queries=embedded(queries),
        query_count=len(queries),
        left_out=left_out,
        rungs=list(dict.fromkeys(f"{query['a']} · {query['r']}" for query in queries)),
        several=len(runs) > 1,
        sign=SIGN,
    )


def fill(template: str, **values: Any) -> str:
    """A template of `assets/` with style and script; an undefined name is an error."""
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    parts = {name: Markup((ASSETS / file).read_text()) for name, file in (("css", "style.css"), ("js", "script.js"))}
    environment.globals["mark"] = lambda colour: svg.mark(0.0, 0.0, colour)
    return environment.get_template(template).render(version=etrm.__version__, **parts, **values)


def embedded(value: Any) -> Markup:
    """JSON that may stand inside a <script> element: no `<` ends it early."""
    return Markup(json.dumps(value, separators=(",", ":")).replace("<", "\\u003c"))


def packed_queries(runs: Sequence[RunFolder]) -> tuple[list[dict[str, Any]], int]:
    """Queries with grids as text, a digit a cell and `/` between rows, up to QUERY_BYTES; and how many are left out."""
    packed: list[dict[str, Any]] = []
    size = 0
    everything = [(run.arm, query) for run in runs for query in run.queries]
    for arm, query in everything:
        one = {
            "a": arm,
            "r": query["rung"],
            "t": query["task"],
            "d": [[_packed(a), _packed(b)] for a, b in query["demos"]],
            "i": _packed(query["input"]),
            "y": _packed(query["target"]),
            "p": _packed(query["prediction"]),
            "ok": query["exact"],
        }
        size += len(json.dumps(one))
        if size > QUERY_BYTES:
            break
        packed.append(one)
    return packed, len(everything) - len(packed)


def _packed(grid: list[list[int]]) -> str:
    return "/".join("".join(map(str, row)) for row in grid)


def _arm(run: RunFolder) -> dict[str, Any]:
    """Everything the template shows of one run."""
    ident = f"arm-{run.arm}"
    shown: dict[str, Any] = {
        "id": ident,
        "arm": run.arm,
        "run": run,
        "state": run.state,
        "loss": loss_figure(run, ident),
        "gradients": gradient_figure(run, ident),
        "contexts": context_figure(run, ident),
        "solved": None,
        "verdict": None,
    }
    if run.evidence is None or run.verdict is None:
        return shown
    verdict, evidence = run.verdict, run.evidence
    return shown | {
        "verdict": verdict,
        "headline": HEADLINE[verdict.scenario],
        "meaning": MEANING[verdict.scenario],
        "why": why(verdict),
        "tone": COLOUR[verdict.scenario],
        "questions": questions(verdict),
        "tiles": tiles(verdict),
        "solved": solved_figure(evidence, ident),
        "hypotheses": [(name, HYPOTHESES[name], h) for name, h in verdict.hypotheses.items()],
        "checks": [(c, CHECK_RULES[c.name].says if c.name in CHECK_RULES else c.name) for c in verdict.checks],
        "diversity": [
            (text, f"{value:.3g}")
            for key, text in DIVERSITY.items()
            if (value := evidence.metrics.get(key)) is not None
        ],
        "budget": budget_rows(run),
        "provenance": provenance_rows(run),
        "seed": seed_reading(evidence.metrics),
        "demo": bool(evidence.provenance.get("demo")),
    }


def budget_rows(run: RunFolder) -> list[tuple[str, str]]:
    """Updates, episodes, schedule and minutes by phase."""
    rows: list[tuple[str, str]] = []
    budget = run.evidence.budget if run.evidence else None
    if budget is not None:
        rows += [
            ("updates", f"{budget.executed_updates} of {budget.planned_updates} planned"),
            ("distinct episodes", f"{budget.distinct_episodes}, at least {budget.planned_episodes} expected"),
            ("warm-up", f"{budget.warmup_share:.0%} of the updates"),
            ("base learning rate", "reached" if budget.lr_reached_base else "never reached"),
        ]
        rows += [("ended early", budget.early_stop)] if budget.early_stop else []
    minutes = run.record.get("minutes")
    for phase, value in minutes.items() if isinstance(minutes, dict) else ():
        rows.append((str(phase), f"{value:.1f} min" if type(value) in (int, float) else str(value)))
    return rows


def provenance_rows(run: RunFolder) -> list[tuple[str, str]]:
    """Encoder, decoder, config, certificate and, of a cached run, what its key was made of."""
    assert run.evidence is not None
    evidence = run.evidence
    rows = [
        ("encoder", evidence.encoder + (" (yours)" if evidence.user_encoder else "")),
        ("objective", evidence.objective),
        ("seeds", str(evidence.seeds)),
    ]
    rows += [(key, str(value)) for key, value in evidence.provenance.items() if key != "config"]
    certificate = evidence.certificate
    said = "none" if certificate is None else f"{certificate.date}, commit {certificate.commit}: {certificate.says}"
    rows.append(("certificate", said))
    parts = run.done.get("parts")
    if isinstance(parts, dict):
        rows += [(f"key: {name}", str(value)) for name, value in parts.items() if name not in ("config", "encoder")]
    rows += [(f"config {key}", value) for key, value in flat_config(evidence.provenance.get("config")).items()]
    return rows


def flat_config(text: Any) -> dict[str, str]:
    """The config of a run's provenance as dotted keys; {} where there is none or it is of another form."""
    try:
        config = json.loads(text) if isinstance(text, str) else {}
    except ValueError:
        return {"(as written)": str(text)}
    return _flat(config, "") if isinstance(config, dict) else {"(as written)": str(text)}


def _flat(config: Row, prefix: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in config.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": str(value)}
    return found

"""A run folder as a report needs it: everything that can be read, and a sentence for everything that cannot.

Notable: a report of half a run is worth more than an error, so nothing here raises for the content of a folder; each
missing, torn or foreign file becomes a `problem` that the page shows at its top. Only a folder that is not there, or
holds nothing of a run, is an error. Files: evidence.json, run.json, metrics.jsonl, queries.json, contexts.json.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from etrm.errors import EvaluationError
from etrm.experiment.evidence import RUNGS, Evidence
from etrm.experiment.verdict import Verdict, judge
from etrm.experiment.verdict_schema import SCHEMA

State = Literal["finished", "incomplete", "being written"]
RECORD_FILES = ("evidence.json", "run.json", "metrics.jsonl", "queries.json", "contexts.json")
SHOWCASE_SCHEMA = 1
LIVE_SECONDS = 300.0  # metrics younger than this belong to a run that is still at work
Row = dict[str, Any]


@dataclass
class RunFolder:
    """One arm's run. `evidence` is None where it could not be read; then `verdict` is None too."""

    path: Path
    arm: str
    evidence: Evidence | None = None
    verdict: Verdict | None = None
    record: Row = field(default_factory=dict)  # run.json
    metrics: list[Row] = field(default_factory=list)  # metrics.jsonl
    queries: list[Row] = field(default_factory=list)
    contexts: Row = field(default_factory=dict)
    done: Row = field(default_factory=dict)  # DONE.json of a cached run
    problems: list[str] = field(default_factory=list)
    state: State = "finished"


def open_runs(path: Path, now: float | None = None) -> list[RunFolder]:
    """The run at `path`, or the runs of a session's folder (`<arm>/` below it, else its verdict.json).

    now: seconds since the epoch, by which "being written" is told from "incomplete"; None leaves it at "incomplete".
    Raises EvaluationError where the folder does not exist or holds nothing of a run.
    """
    if not path.is_dir():
        raise EvaluationError(f"{path} is no folder; give a run's folder, such as runs/experiment (make experiment)")
    if any((path / name).exists() for name in RECORD_FILES):
        return [_open_run(path, None, now)]
    arms = [arm for arm in RUNGS if (path / arm).is_dir()]
    runs = [_open_run(path / arm, arm, now) for arm in arms]
    if (path / "verdict.json").exists():
        _compare_with_verdict(path / "verdict.json", runs)
    if not runs:
        raise EvaluationError(
            f"{path} holds nothing of a run: expected one of {', '.join(RECORD_FILES)} or verdict.json; "
            "make one with: make experiment"
        )
    return runs


def series(rows: list[Row], key: str) -> list[tuple[float, float]]:
    """(step, value) of every row that has both as finite numbers."""
    return [(float(r["step"]), float(r[key])) for r in rows if _finite(r.get("step")) and _finite(r.get(key))]


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _open_run(path: Path, arm: str | None, now: float | None) -> RunFolder:
    run = RunFolder(path, arm or "")
    raw = _read_object(run, "evidence.json", needed=True)
    if raw:
        _judge(run, raw, "evidence.json")
    run.record = _read_object(run, "run.json", needed=True)
    _read_metrics(run)
    _read_queries(run)
    _read_contexts(run)
    if (path / "DONE.json").exists():
        run.done = _read_object(run, "DONE.json", needed=False)
    run.arm = arm or (run.evidence.arm if run.evidence else "run")
    if run.evidence is None:
        run.state = "being written" if _is_live(path, now) else "incomplete"
    return run


def _is_live(path: Path, now: float | None) -> bool:
    files = [f for f in path.iterdir() if f.is_file()]
    return now is not None and any(now - f.stat().st_mtime < LIVE_SECONDS for f in files)


def _judge(run: RunFolder, raw: Mapping[str, Any], where: str) -> None:
    try:
        run.evidence = Evidence.from_json(raw)
    except EvaluationError as error:
        run.problems.append(f"{where} is of another version of etrm, so there is no verdict: {error}")
        return
    run.verdict = judge(run.evidence)


def _read_object(run: RunFolder, name: str, needed: bool) -> Row:
    """A JSON object; {} and a problem where it is missing (if needed), torn, or something else."""
    path = run.path / name
    if not path.exists():
        if needed:
            run.problems.append(f"{name} is missing: the run has not ended, or it was stopped")
        return {}
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        run.problems.append(f"{name} cannot be read ({type(error).__name__}: {error})")
        return {}
    if not isinstance(value, dict):
        run.problems.append(f"{name} holds a {type(value).__name__}, expected an object")
        return {}
    return value


def _read_metrics(run: RunFolder) -> None:
    path = run.path / "metrics.jsonl"
    if not path.exists():
        stopped = run.evidence is not None and (run.evidence.budget is None or run.evidence.budget.early_stop)
        if not stopped:  # a run refused or ended before its first update has none, and its verdict says why
            run.problems.append("metrics.jsonl is missing: no curve of the training can be drawn")
        return
    bad = 0
    for line in path.read_bytes().decode(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            bad += 1
            continue
        if isinstance(row, dict) and _finite(row.get("step")):
            run.metrics.append(row)
        else:
            bad += 1
    if bad:
        run.problems.append(f"metrics.jsonl: {bad} line{'s' if bad > 1 else ''} could not be read and left out")


def _read_queries(run: RunFolder) -> None:
    document = _read_showcase(run, "queries.json", "queries")
    found = document.get("queries", [])
    run.queries = [query for query in found if _is_query(query)]
    if len(run.queries) != len(found):
        run.problems.append(f"queries.json: {len(found) - len(run.queries)} of {len(found)} are malformed and left out")


def _read_contexts(run: RunFolder) -> None:
    document = _read_showcase(run, "contexts.json", "points")
    found = document.get("points", [])
    points = [p for p in found if isinstance(p, dict) and _finite(p.get("x")) and _finite(p.get("y")) and "task" in p]
    if len(points) != len(found):
        run.problems.append(f"contexts.json: {len(found) - len(points)} of {len(found)} points are left out")
    run.contexts = {**document, "points": points} if points else {}


def _read_showcase(run: RunFolder, name: str, key: str) -> Row:
    document = _read_object(run, name, needed=False)
    if document and (document.get("schema") != SHOWCASE_SCHEMA or not isinstance(document.get(key), list)):
        run.problems.append(f"{name} has schema {document.get('schema')!r}, expected {SHOWCASE_SCHEMA}: not shown")
        return {}
    return document


def _is_query(query: Any) -> bool:
    if not isinstance(query, dict) or not all(isinstance(query.get(key), str) for key in ("rung", "task")):
        return False
    demos = query.get("demos")
    if not isinstance(demos, list) or not all(isinstance(d, list) and len(d) == 2 for d in demos):
        return False
    grids = [*(grid for pair in demos for grid in pair), *(query.get(key) for key in ("input", "target", "prediction"))]
    return isinstance(query.get("exact"), bool) and all(_is_grid(grid) for grid in grids)


def _is_grid(grid: Any) -> bool:
    return isinstance(grid, list) and all(
        isinstance(row, list) and len(row) == len(grid[0]) and all(type(cell) is int and 0 <= cell <= 9 for cell in row)
        for row in grid
    )


def _compare_with_verdict(path: Path, runs: list[RunFolder]) -> None:
    """Add the arms that only verdict.json knows, and say where it was judged otherwise than now."""
    holder = RunFolder(path.parent, "")
    document = _read_object(holder, path.name, needed=False)
    arms = document.get("arms")
    if document and (document.get("schema") != SCHEMA or not isinstance(arms, dict)):
        holder.problems.append(f"verdict.json has schema {document.get('schema')!r}, expected {SCHEMA}: not used")
        arms = None
    for arm, body in (arms or {}).items():
        own = next((run for run in runs if run.arm == arm), None)
        if own is None:
            own = RunFolder(path.parent, arm, problems=[f"no folder {arm}/: verdict and figures without any curve"])
            _judge(own, body.get("evidence", {}) if isinstance(body, dict) else {}, "verdict.json")
            runs.append(own)
        said = body.get("scenario") if isinstance(body, dict) else None
        if own.verdict is not None and said != own.verdict.scenario:
            own.problems.append(
                f"verdict.json says {said}, this version of etrm judges the same evidence {own.verdict.scenario}"
            )
    if holder.problems and not runs:
        runs.append(holder)
    elif holder.problems:
        runs[0].problems += holder.problems

"""Text files for the fuzzers: samples, damage, and second opinions on what a reader took.

Legend: h, w grid height and width.
"""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from etrm.config.compose import build, compose, to_dict
from etrm.config.json_values import read_json
from etrm.config.schema import RunConfig
from etrm.data.arc import Task
from etrm.errors import EvaluationError
from etrm.experiment.evidence import RUNGS, Evidence
from etrm.experiment.external import verdict_from
from etrm.experiment.external_files import read_metrics
from etrm.experiment.verdict import judge, validate_json
from tests.fuzz_damage import damage_json

ROOT = Path(__file__).resolve().parent.parent


def arc_sample(folder: Path, draw: random.Random) -> Path:
    def grid() -> list[list[int]]:
        h, w = draw.randint(1, 30), draw.randint(1, 30)
        return [[draw.randrange(10) for _ in range(w)] for _ in range(h)]

    pairs = {k: [{"input": grid(), "output": grid()} for _ in range(draw.randint(1, 3))] for k in ("train", "test")}
    path = folder / "task.json"
    path.write_text(json.dumps(pairs))
    return path


def damage_arc(path: Path, draw: random.Random) -> None:
    """What the issue names, and damage of JSON."""
    task = json.loads(path.read_text())
    grid = draw.choice(task[draw.choice(("train", "test"))])[draw.choice(("input", "output"))]
    match draw.randrange(9):
        case 0:
            draw.choice(grid).append(0)  # ragged, unless it is one row
        case 1:
            grid[:] = 31 * [31 * [0]]
        case 2:
            draw.choice(grid)[0] = draw.choice((10, -1, 1.0, True, None, float("nan"), "1", [1]))
        case 3:
            grid[:] = draw.choice(([], [[]]))
        case 4:
            task[draw.choice(("train", "test"))] = draw.choice(([], None, {}, [{}]))
        case 5:
            del draw.choice(task["train"])[draw.choice(("input", "output"))]
        case _:
            return damage_json(path, draw)
    path.write_text(json.dumps(task))
    return None


def arc_wrong(task: Task, path: Path) -> str | None:
    raw = json.loads(path.read_text(encoding="utf-8-sig"))
    for key, pairs in (("train", task.demos), ("test", task.queries)):
        if len(raw[key]) != len(pairs) or not pairs:
            return f"{key} has another number of pairs"
        for given, pair in zip(raw[key], pairs, strict=True):
            for side in ("input", "output"):
                rows = given[side]
                right = 1 <= len(rows) <= 30 and 1 <= len(rows[0]) <= 30 and len({len(r) for r in rows}) == 1
                right = right and all(type(c) is int and 0 <= c <= 9 for r in rows for c in r)
                if not right or getattr(pair, side).tolist() != rows:
                    return f"{key} {side} is no grid, or another one"
    return plain_json_wrong(path)


def plain_json_wrong(path: Path) -> str | None:
    """Twice the same key, or NaN, in a JSON file that was taken."""
    found: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(items)) != len(items):
            found.append("a key stands there twice")
        return dict(items)

    json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=pairs, parse_constant=found.append)
    return found[0] if found else None


def config_sample(folder: Path, draw: random.Random) -> Path:
    values = to_dict(build(RunConfig, compose("cfg_micro", root=ROOT / "config")))
    path = folder / "cfg.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def config_wrong(config: RunConfig, path: Path) -> str | None:
    text = path.read_text()
    kinds = {type(token).__name__ for token in yaml.scan(text)}
    if kinds & {"AnchorToken", "AliasToken", "TagToken"}:
        return "it has a tag, an anchor or an alias"
    for section in fields(RunConfig):
        value = getattr(config, section.name)
        numbers = to_dict(value).values() if not isinstance(value, str) else ()
        if any(isinstance(n, float) and not np.isfinite(n) for n in numbers):
            return f"{section.name} holds a number that is not finite"
    names = [
        line.split(":")[0] for line in text.splitlines() if line and not line.startswith((" ", "#", "-", "'", '"'))
    ]
    top = [n for n in names if n in to_dict(config)]
    return "a key stands there twice" if len(set(top)) != len(top) else None


def metrics_sample(folder: Path, draw: random.Random) -> Path:
    rows = [{"step": s, "train/lm_loss": draw.random(), "grad/encoder_norm": draw.random()} for s in range(3)]
    kind = draw.choice(("jsonl", "csv", "json"))
    path = folder / f"metrics.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "csv":
        path.write_text("\n".join([",".join(rows[0]), *(",".join(map(str, r.values())) for r in rows)]) + "\n")
    else:
        shutil.copy(ROOT / "etrm/assets/public_run_2026_01_21.json", path)
    return path


def read_and_judge(path: Path) -> Any:
    metrics, info = read_metrics(path)
    return verdict_from(str(path), metrics, info)


def metrics_wrong(reading: Any, path: Path) -> str | None:
    if reading.verdict.scenario == "A":
        return "a file of numbers alone was given an A"
    json.dumps(reading.to_json())
    return (
        plain_json_wrong(path)
        if path.suffix == ".json" and "NaN" not in path.read_text() and "Infinity" not in path.read_text()
        else None
    )


def info_sample(folder: Path, draw: random.Random) -> Path:
    path = folder / "info.json"
    path.write_text(
        json.dumps(json.loads((ROOT / "etrm/assets/public_run_2026_01_21.json").read_text())["checkpoint_info"])
    )
    return path


def json_sample(name: str, document: Any) -> Callable[[Path, random.Random], Path]:
    def make(folder: Path, draw: random.Random) -> Path:
        (folder / name).write_text(json.dumps(document))
        return folder / name

    return make


def read_verdict(path: Path) -> Any:
    document = _document(path)
    validate_json(document)
    return document


def verdict_wrong(document: Any, path: Path) -> str | None:
    for arm in document["arms"].values():
        for rung in arm["rungs"].values():
            low, high = rung["ci95"]
            if not (0 <= rung["k"] <= rung["n"] and 0 <= low <= high <= 1):
                return "a rung has no counts or no interval"
    return None if document["schema"] == 1 else "another schema"


def _document(path: Path) -> Any:
    return read_json(path, EvaluationError, "give a verdict.json")


def read_evidence(path: Path) -> Evidence:
    return Evidence.from_json(_document(path))


def evidence_wrong(evidence: Evidence, path: Path) -> str | None:
    judge(evidence)
    return (
        None
        if Evidence.from_json(json.loads(evidence.dumps())) == evidence or "nan" in evidence.dumps()
        else "it does not survive JSON"
    )


FINDINGS = {"micro": {"scenario": "C", "date": "2026-11-24", "commit": "x", "rungs": {"unseen_task": [0.0, 0.1]}}}


def findings_sample(folder: Path, draw: random.Random) -> Path:
    body = {**FINDINGS["micro"], "rungs": {name: [0.0, 0.1] for name in RUNGS["micro"]}}
    path = folder / "expected_findings.yaml"
    path.write_text(yaml.safe_dump({"micro": body}))
    return path

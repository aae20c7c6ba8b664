"""Metrics files of other people: JSONL, CSV and W&B exports, read into one value a metric under the seed's names.

Notable: of each metric the last value counts (NaN too) and the first one stands under `<name>/first`; W&B's CSV
columns `<run> - <metric>` lose their run, its `__MIN` and `__MAX` columns are dropped, and a file with several runs
is refused until one is named. A `.json` file may also hold `{"metrics": {...}, "checkpoint_info": {...}}`, the form
of the shipped example.
"""

import csv
import difflib
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from etrm.config.json_values import parse_json, read_json, read_text
from etrm.errors import EvaluationError
from etrm.experiment.evidence import RUNGS

Metrics = dict[str, float | None]
# every key that checkpoint info may have: its type and, where the judge needs it, what it is
INFO: dict[str, tuple[type, str]] = {
    "arm": (str, ""),
    "encoder": (str, ""),
    "objective": (str, ""),
    "seeds": (int, ""),
    "decoder_tensors_matched": (int, ""),
    "decoder_tensors_total": (int, ""),
    "grad_norm_after_clip": (bool, ""),
    "grad_clip": (float, ""),
    "train_tasks": (int, ""),
    "golden_logits_reproduced": (bool, "the decoder's logits on its own contexts equal reference logits"),
    "structure_trained": (dict, "structure the decoder was trained with (H_cycles, L_cycles, layers, context tokens)"),
    "structure_run": (dict, "the structure that it was run with"),
    "decoder_bitwise_unchanged": (bool, "a hash of the decoder before and after"),
    "decoder_in_optimiser": (bool, "the parameter names of every optimiser"),
    "decoder_training_tasks_known": (bool, "the ids of the decoder's training tasks"),
    "decoder_known": (bool, "whether the decoder was trained on the evaluated tasks' demonstrations"),
    "train_test_disjoint": (bool, "canonical hashes of training and test tasks"),
    "context_finite_and_shaped": (bool, "whether every context was finite and of shape (B, T, D)"),
    "own_context_exact": (float, "the decoder's exact rate with its own contexts (positive control)"),
    "planned_updates": (int, "the planned number of updates"),
    "executed_updates": (int, "the executed number of optimiser steps"),
    "planned_episodes": (int, "the planned number of distinct episodes"),
    "distinct_episodes": (int, "the number of distinct (task, augmentation, query) that entered the model"),
    "warmup_updates": (int, "the updates of warm-up"),
    "eval_tasks": (int, "the number of tasks evaluated"),
    "eval_tasks_solved": (int, "the number of tasks solved"),
    "eval_queries_total": (int, "the number of queries that should have been evaluated"),
    "eval_queries": (int, "the number of queries evaluated"),
    "constant_context_loss": (float, "the loss of one learned constant context"),
    "mismatched_loss": (float, "the loss with another task's demonstrations"),
    "mismatched_solved": (int, "tasks solved with another task's demonstrations"),
    "oracle_solved": (int, "tasks solved by a context optimised through the frozen decoder"),
}
REMEDY = "give the metrics file that the run wrote, or the JSON object of its facts"
# names under which other code logs the same thing
SAME = {"lm_loss": "train/lm_loss", "grad_encoder_norm": "grad/encoder_norm", "pass@1": "ARC/pass@1"}


def read_metrics(path: Path, run: str | None = None) -> tuple[Metrics, dict[str, Any]]:
    """Metrics by name, and the checkpoint info if the file carries one. `run` picks a run of a W&B export.

    Raises EvaluationError: the file is missing, empty, of another kind, malformed at a line, or holds several runs.
    """
    text = _text(path)
    if path.suffix == ".jsonl":
        return _series(_json_lines(text, path), path), {}
    if path.suffix == ".csv":
        return _series(_csv_rows(text, path, run), path), {}
    if path.suffix != ".json":
        raise EvaluationError(
            f"{path}: metrics come as .jsonl, .csv or .json, not as {path.suffix or 'a file without suffix'}"
        )
    document = _json(text, path, "the file")
    if isinstance(document, list):
        return _series(document, path), {}
    if not isinstance(document, dict):
        raise EvaluationError(f"{path}: expected an object or a list of rows, got {type(document).__name__}")
    if isinstance(document.get("metrics"), dict):
        info = document.get("checkpoint_info", {})
        if not isinstance(info, dict):
            raise EvaluationError(f"{path}: checkpoint_info must be an object, got {type(info).__name__}")
        check_info(info, str(path))
        return _series([document["metrics"]], path), info
    return _series([document.get("summary", document)], path), {}


def read_checkpoint_info(path: Path) -> dict[str, Any]:
    """A JSON object of facts about decoder, budget and evaluation. Raises EvaluationError if it is anything else."""
    document = read_json(path, EvaluationError, REMEDY)
    if not isinstance(document, dict):
        raise EvaluationError(f"{path}: checkpoint info must be a JSON object, got {type(document).__name__}")
    check_info(document, str(path))
    return document


def check_info(info: Mapping[str, Any], where: str = "checkpoint info") -> None:
    """Raises EvaluationError for an unknown key (naming the nearest), a wrong type or an impossible number; None is
    "not known".
    """
    for key, value in info.items():
        if key not in INFO:
            near = difflib.get_close_matches(key, INFO, 1)
            hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(INFO)}"
            raise EvaluationError(f"{where}: unknown key {key!r}; {hint}")
        kind = INFO[key][0]
        if value is not None and type(value) is not kind and not (kind is float and type(value) is int):
            raise EvaluationError(
                f"{where}: {key} must be of type {kind.__name__}, got {value!r:.60}; correct it there"
            )
        if isinstance(value, int | float) and not 0 <= value < 2**53:
            raise EvaluationError(f"{where}: {key} is {value!r:.60}, expected a finite number from 0; correct it there")
    if info.get("arm") is not None and info["arm"] not in RUNGS:
        raise EvaluationError(
            f"{where}: arm {info['arm']!r:.60} is not known, expected one of {', '.join(RUNGS)}; correct it there"
        )


def _text(path: Path) -> str:
    if not path.is_file():
        raise EvaluationError(f"{path}: there is no such file; give the metrics file that the run wrote")
    text = read_text(path, EvaluationError, REMEDY)
    if not text.strip():
        raise EvaluationError(f"{path}: is empty; the run logged nothing")
    return text


def _json(text: str, path: Path, where: str) -> Any:
    return parse_json(
        text, f"{path}: {where}", EvaluationError, REMEDY, finite=False
    )  # a NaN was measured: it is judged


def _json_lines(text: str, path: Path) -> list[Any]:
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    return [_json(line, path, f"line {number}") for number, line in lines]


def _csv_rows(text: str, path: Path, run: str | None) -> list[dict[str, str]]:
    """Rows with the run's name taken off each column."""
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        rows = list(reader)
    except csv.Error as problem:
        raise EvaluationError(f"{path}: line {reader.line_num} is no CSV ({problem}); {REMEDY}") from problem
    names = list(reader.fieldnames or [])
    if twice := sorted({c for c in names if names.count(c) > 1}):
        raise EvaluationError(f"{path}: column(s) {twice!r:.100} stand there twice; keep one of each")
    if wrong := [n for n, row in enumerate(rows, 2) if None in row or None in row.values()]:
        raise EvaluationError(f"{path}: row {wrong[0]} has another number of cells than the header; {REMEDY}")
    columns = [c for c in names if not c.endswith(("__MIN", "__MAX"))]
    runs = sorted({c.rsplit(" - ", 1)[0] for c in columns if " - " in c})
    if run is not None and run not in runs:
        raise EvaluationError(
            f"{path}: there is no run {run!r}; it holds {', '.join(runs) or 'one run without a name'}"
        )
    if run is None and len(runs) > 1:
        raise EvaluationError(f"{path}: holds {len(runs)} runs ({', '.join(runs)}); name one with --run")
    chosen = run or (runs[0] if runs else "")
    own = [c for c in columns if " - " not in c or c.rsplit(" - ", 1)[0] == chosen]
    return [{c.rsplit(" - ", 1)[-1]: row[c] for c in own if row.get(c)} for row in rows]


def _series(rows: Iterable[Any], path: Path) -> Metrics:
    """Last value of each metric, and its first as `<name>/first` where it was logged more than once."""
    seen: dict[str, list[float]] = {}
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise EvaluationError(f"{path}: row {number} is {type(row).__name__}, expected an object of metrics")
        for name, value in _flat(row, "", f"{path}: row {number}"):
            seen.setdefault(SAME.get(name, name), []).append(value)
    metrics: Metrics = {name: values[-1] for name, values in seen.items()}
    return metrics | {f"{name}/first": values[0] for name, values in seen.items() if len(values) > 1}


def _flat(row: Mapping[str, Any], prefix: str, where: str) -> Iterable[tuple[str, float]]:
    """Numbers of a row, nested objects joined with '/'; texts that are no number are left out."""
    for key, value in row.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}/", where)
        elif isinstance(value, bool) or value is None:
            continue
        elif isinstance(value, int | float):
            try:
                yield name, float(value)
            except OverflowError as problem:
                raise EvaluationError(f"{where}: {name} is no number of ours ({problem}); {REMEDY}") from problem
        elif isinstance(value, str):
            try:
                yield name, float(value)
            except ValueError:
                continue

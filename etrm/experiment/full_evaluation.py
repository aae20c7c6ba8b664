"""A long evaluation on disk: answers are appended as they come, so that it can be stopped, resumed and shared by ranks.

A folder holds `evaluation.json` (what is evaluated; another one is refused), `answers-R.jsonl` of each rank R and, at
the end, `result.json`. Notable: whatever ranks wrote before, the ranks of now share what is missing, so each question
is answered exactly once at any number of ranks and restarts; the votes are counted from the files alone. With `decide`
k a query is asked no further once no vote to come can change its k most voted grids: pass@1 to pass@k stay the same.

Legend: h, w a predicted grid's height and width.
"""

import json
import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from etrm.data.grids import crop
from etrm.errors import EvaluationError
from etrm.evaluation.statistics import rung_result
from etrm.evaluation.voting import ALL_RULE, FRACTION_RULE, Vote, VoteResult
from etrm.experiment.asking import answers
from etrm.experiment.open_questions import Drawn, OpenQuestions
from etrm.experiment.progress import PhaseProgress
from etrm.experiment.questions import Questions
from etrm.training.distributed import ALONE, Ranks

PASS_AT = (1, 2, 5, 10, 100, 1000)


def open_evaluation(folder: Path, identity: Mapping[str, Any], ranks: Ranks = ALONE) -> None:
    """Make the folder of an evaluation, or check that it is this one's. EvaluationError if it is another's."""
    if ranks.main:
        path = folder / "evaluation.json"
        if path.is_file():
            try:
                found = json.loads(path.read_text())
            except (OSError, UnicodeDecodeError, ValueError) as error:
                raise EvaluationError(f"{path} cannot be read ({error}); choose another --out") from error
            keys = dict.fromkeys((*identity, *found)) if isinstance(found, dict) else identity
            if changed := [k for k in keys if not isinstance(found, dict) or found.get(k) != identity.get(k)]:
                raise EvaluationError(
                    f"{folder} holds another evaluation ({', '.join(changed)} differ); choose another --out"
                )
        elif folder.is_dir() and any(folder.iterdir()):
            raise EvaluationError(f"{folder} is not empty and holds no evaluation; choose another --out")
        else:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise EvaluationError(f"{folder} cannot be made ({error.strerror}); choose another --out") from error
            _write(path, identity)
    ranks.wait()


def read_answers(folder: Path, count: int) -> dict[int, Drawn]:
    """Every answer on disk by its question's number, 0 to count - 1. A line that a kill cut short is left out.

    EvaluationError names the file and line of anything else that is no answer, and a question that was answered twice.
    """
    found: dict[int, Drawn] = {}
    for path in sorted(folder.glob("answers-*.jsonl")):
        lines = path.read_text().split("\n")
        for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is a torn line, or nothing
            row, drawn = _parsed(line, f"{path}, line {number}", count)
            if row in found:
                raise EvaluationError(
                    f"{path}, line {number}: question {row} is answered twice; delete one of the files"
                )
            found[row] = drawn
    return found


def _parsed(line: str, where: str, count: int) -> tuple[int, Drawn]:
    try:
        row, h, w, cells, halt = json.loads(line)
        if type(row) is not int or not 0 <= row < count or type(halt) is not float or not cells.isascii():
            raise ValueError(f"expected a question below {count}, and a number")
        grid = np.frombuffer(cells.encode(), dtype=np.uint8).reshape(h, w) - ord("0")
    except (ValueError, TypeError, AttributeError) as error:
        raise EvaluationError(f"{where} is no answer ({error}); delete the line, it will be asked again") from error
    return row, (grid, halt)


def answer_missing(
    model: Any,
    questions: Questions,
    folder: Path,
    size: int,
    device: torch.device,
    ranks: Ranks = ALONE,
    progress: PhaseProgress | None = None,
    stop_after: int | None = None,
    decide: int = 0,
) -> int:
    """Answer what the folder lacks, this rank's share of it, in batches of `size`; returns how many are missing still.

    `stop_after` ends this rank after that many answers, as an interruption would. The time left that `progress` shows
    is of rank 0's share.
    """
    count = len(questions.rows)
    todo = OpenQuestions(questions, read_answers(folder, count), decide)
    ranks.wait()  # nobody writes before everybody has read
    todo.share(ranks.rank, ranks.size)
    budget = len(todo) if stop_after is None else min(stop_after, len(todo))
    path = folder / f"answers-{ranks.rank}.jsonl"
    _drop_torn_line(path)
    shown = nullcontext() if progress is None or not budget else progress("answers", budget)
    with path.open("a") as file, shown as advance:
        while wave := todo.wave(min(size, budget)):
            budget -= len(wave)
            for part, tokens, halts in answers(model, questions, wave, size, device):
                for row, predicted, halt in zip(part.tolist(), tokens, halts, strict=True):
                    grid = crop(predicted, questions.side)
                    todo.answered(row, grid)
                    cells = "".join(map(str, grid.ravel().tolist()))
                    file.write(json.dumps([row, *grid.shape, cells, float(halt)]) + "\n")
            file.flush()
            if advance is not None:
                advance(len(wave))
        if advance is not None:
            advance(budget)  # what was decided meanwhile
    ranks.wait()
    return len(OpenQuestions(questions, read_answers(folder, count), decide))


def _drop_torn_line(path: Path) -> None:
    if path.is_file() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def count_votes(questions: Questions, folder: Path, decide: int = 0) -> VoteResult:
    """Vote over the answers on disk: pass@k for every k, or up to `decide`. EvaluationError if a question lacks one."""
    there = read_answers(folder, len(questions.rows))
    if lacking := len(OpenQuestions(questions, there, decide)):
        raise EvaluationError(f"{folder} lacks {lacking} of {len(questions.rows)} answers; run the command again")
    vote = Vote(questions.truths)
    for row, (grid, halt) in there.items():
        task, query, augmentation = questions.rows[row]
        vote.add_grid(task, query, augmentation, grid, halt)
    return vote.result([k for k in PASS_AT if not decide or k <= decide])


def result_of(result: VoteResult, left_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """The scores as plain numbers, and the same without the tasks `left_out` where any of them was asked."""
    found: dict[str, Any] = {f"ARC/pass@{k}": result.pass_at(k, FRACTION_RULE) for k in result.by_k}
    found["ARC/pass@1/all_tests"] = result.pass_at(1, ALL_RULE)
    per_task = result.by_k[1].per_task
    rung = rung_result("pass@1", per_task)
    found |= {
        "evaluated_tasks": len(per_task),
        "evaluated_queries": rung.n,
        "solved_queries": rung.k,
        "solved_queries_ci95": list(rung.ci95),
        "votes": list(result.votes),
    }
    kept = {task: pair for task, pair in per_task.items() if task not in left_out}
    if kept and len(kept) < len(per_task):
        found["ARC/pass@1/without_duplicates"] = sum(solved / asked for solved, asked in kept.values()) / len(kept)
    return found


def write_result(folder: Path, found: Mapping[str, Any]) -> Path:
    """Write `result.json`, in one step; returns its path."""
    path = folder / "result.json"
    _write(path, found)
    return path


def _write(path: Path, content: Mapping[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)

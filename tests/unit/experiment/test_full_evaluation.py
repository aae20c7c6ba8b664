"""Long evaluations: stopped, torn, shared and resumed, each question is answered once and the score is the same.

Models are stand-ins that answer by rule; the commands themselves are in tests/experiments/test_seed_commands.py.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from etrm.data.arc import fits, load_arc
from etrm.data.arc_split import shows_its_answer
from etrm.data.augment import Augmentation
from etrm.data.grids import PAD
from etrm.errors import CheckpointError, ConfigError, DataError, EvaluationError
from etrm.experiment import asking
from etrm.experiment.arc_subject import Wanted, decoder_subject, subject_of
from etrm.experiment.full_evaluation import (
    answer_missing,
    count_votes,
    open_evaluation,
    read_answers,
    result_of,
)
from etrm.models.official import load_official
from etrm.models.official_file import open_official
from etrm.models.official_table import OfficialTable, read_identifiers
from etrm.models.trm import table_context
from tests.official_samples import TINY, write_official

pytestmark = pytest.mark.fast

CPU = torch.device("cpu")
SMALL = Wanted("arc-agi-1", 3, 4, "raw", 0)
COLOURS = (0, 2, 1, 3, 4, 5, 6, 7, 8, 9)


def names_for(rows: int) -> list[str]:
    """Row 0 blank, then four rows for each of the first evaluation tasks that fit 9x9."""
    fitting = [task for task in load_arc(1, "evaluation") if fits(task, 9)]
    found = ["<blank>"]
    for task in fitting:
        found += [task.id, *(Augmentation(t, COLOURS).name(task.id) for t in (1, 4, 6))]
    return (found + [f"filler{i}" for i in range(rows)])[:rows]


@pytest.fixture
def official(tmp_path: Path) -> tuple[Path, Path]:
    path = write_official(tmp_path / "arc_v1_public", rows=200)
    names = tmp_path / "identifiers.json"
    names.write_text(json.dumps(names_for(200)))
    return path, names


@pytest.fixture
def questions(official: tuple[Path, Path]) -> Any:
    return decoder_subject(*official, SMALL, CPU).questions


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Answers each third question wrongly, and counts what it is asked."""
    seen: list[int] = []

    class Echo(torch.nn.Module):
        decoder = None
        wrong = 3

        def context(self, episodes):
            self.labels = torch.where(episodes.labels < 0, PAD, episodes.labels)
            self.labels[episodes.row % self.wrong == 0] = PAD
            self.halts = episodes.row / 100
            seen.extend(episodes.row.tolist())
            return SimpleNamespace(context=None)

    echo = Echo()
    monkeypatch.setattr(asking, "decode", lambda *_: (echo.labels, echo.halts))
    echo.seen = seen
    return echo


def ask(model: Any, questions: Any, folder: Path, size: int = 5, **options: Any) -> int:
    open_evaluation(folder, {"checkpoint": "x"})
    return answer_missing(model, questions, folder, size, CPU, **options)


def test_stopped_and_gone_on_it_asks_each_question_once_and_scores_the_same(model, questions, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert ask(model, questions, whole) == 0
    count = len(questions.rows)
    assert len(model.seen) == count
    model.seen.clear()
    cut = tmp_path / "cut"
    assert ask(model, questions, cut, stop_after=7) == count - 7
    with pytest.raises(EvaluationError, match=f"lacks {count - 7} of {count} answers"):
        count_votes(questions, cut)
    path = cut / "answers-0.jsonl"
    path.write_text(path.read_text() + '[3, 2, 2, "00')  # a kill in the middle of a line
    assert ask(model, questions, cut) == 0
    assert len(model.seen) == count
    assert path.read_text().endswith("\n")
    scores = [result_of(count_votes(questions, folder)) for folder in (whole, cut)]
    assert scores[0] == scores[1]
    assert 0 < scores[0]["solved_queries"] <= scores[0]["evaluated_queries"]
    assert ask(model, questions, cut) == 0  # nothing is left to do
    assert len(model.seen) == count


def test_any_number_of_ranks_shares_what_is_missing(model, questions, tmp_path: Path) -> None:
    count = len(questions.rows)
    rank: Callable[[int, int], Any] = lambda r, n: SimpleNamespace(rank=r, size=n, main=r == 0, wait=lambda: None)  # noqa: E731
    folder = tmp_path / "run"
    open_evaluation(folder, {"checkpoint": "x"})
    missing = list(range(count))
    for r in range(3):  # the ranks read the folder at the same moment
        answer_share(model, questions, folder, rank(r, 3), missing)
    answers = read_answers(folder, count)
    assert sorted(answers) == missing
    assert len(model.seen) == count
    assert {p.name for p in folder.glob("answers-*")} == {f"answers-{r}.jsonl" for r in range(3)}
    alone = tmp_path / "alone"
    ask(model, questions, alone)
    assert result_of(count_votes(questions, folder)) == result_of(count_votes(questions, alone))


def test_a_decided_query_is_asked_no_further_and_scores_the_same(model, questions, tmp_path: Path) -> None:
    whole, short = tmp_path / "whole", tmp_path / "short"
    model.wrong = 8  # so that three of four votes agree early in some queries
    ask(model, questions, whole)
    model.seen.clear()
    assert ask(model, questions, short, 1, decide=1, stop_after=3) > 0
    assert ask(model, questions, short, 1, decide=1) == 0
    assert len(model.seen) < len(questions.rows)
    with pytest.raises(EvaluationError, match="lacks"):
        count_votes(questions, short)  # not all votes are there
    early, late = count_votes(questions, short, 1), count_votes(questions, whole)
    assert early.by_k.keys() == {1} and early.by_k[1] == late.by_k[1]
    assert result_of(early)["ARC/pass@1"] == result_of(late)["ARC/pass@1"] and "ARC/pass@2" not in result_of(early)


def answer_share(model: Any, questions: Any, folder: Path, ranks: Any, missing: list[int]) -> None:
    """One rank of several, as if none of the others had written yet."""
    hidden = {p: p.rename(p.with_suffix(".hidden")) for p in folder.glob("answers-*.jsonl")}
    answer_missing(model, questions, folder, 4, CPU, ranks)
    for path, other in hidden.items():
        other.rename(path)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('[0, 2, 2, "0000"]', "is no answer"),
        ('[0, 2, 3, "0000", 0.5]', "is no answer"),
        ('[999999, 1, 1, "0", 0.5]', "expected a question below"),
        ('[0, 1, 1, "0", 1]', "expected a question below"),
        ("{}", "is no answer"),
        ("nonsense", "is no answer"),
    ],
)
def test_a_line_that_is_no_answer_is_named(questions, tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "answers-0.jsonl").write_text(f'[1, 1, 1, "0", 0.5]\n{line}\n')
    with pytest.raises(EvaluationError, match=r"answers-0\.jsonl, line 2") as caught:
        read_answers(tmp_path, len(questions.rows))
    assert told in str(caught.value)


def test_a_question_answered_twice_is_refused(tmp_path: Path) -> None:
    for rank in (0, 1):
        (tmp_path / f"answers-{rank}.jsonl").write_text('[1, 1, 1, "0", 0.5]\n')
    with pytest.raises(EvaluationError, match="question 1 is answered twice"):
        read_answers(tmp_path, 4)


def test_a_folder_of_another_evaluation_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    open_evaluation(folder, {"checkpoint": "x", "tasks": 3})
    open_evaluation(folder, {"checkpoint": "x", "tasks": 3})
    before = (folder / "evaluation.json").read_bytes()
    with pytest.raises(EvaluationError, match=r"another evaluation \(tasks differ"):
        open_evaluation(folder, {"checkpoint": "x", "tasks": 4})
    assert (folder / "evaluation.json").read_bytes() == before
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(EvaluationError, match="is not empty and holds no evaluation"):
        open_evaluation(tmp_path, {"checkpoint": "x"})


def test_each_question_gets_the_row_of_its_own_augmentation(official: tuple[Path, Path]) -> None:
    path, identifiers = official
    subject = decoder_subject(path, identifiers, SMALL, CPU)
    questions, listed = subject.questions, json.loads(identifiers.read_text())
    whole = load_official(path, {f"r{i}": i for i in range(200)}).table
    batch = questions.encode(np.arange(len(questions.rows)))
    for (task, _, augmentation), row in zip(questions.rows, batch.row.tolist(), strict=True):
        assert listed[row] == augmentation.name(task)
    episodes = SimpleNamespace(row=torch.from_numpy(batch.row), inputs=torch.zeros(1))
    context = subject.model.context(episodes).context
    assert torch.equal(context, table_context(whole[batch.row], open_official(path).structure))
    assert questions.rows[0][2].name(questions.rows[0][0]) == questions.rows[0][0]  # the identity comes first
    assert len(questions.task_ids) == 3
    assert "decoder_known" in subject.notes[0]


def test_repeated_tasks_are_named_and_scored_apart(tmp_path: Path, model) -> None:
    """The cross-split duplicates of ARC-AGI-1: 070dd51e repeats 40853293, 50a16a69 repeats caa06a1f."""
    path = write_official(tmp_path / "arc_v1_public", replace(TINY, seq_len=900), rows=4)
    names = tmp_path / "identifiers.json"
    names.write_text(json.dumps(["<blank>", "070dd51e", "50a16a69", "00576224"]))
    subject = decoder_subject(path, names, Wanted("arc-agi-1", 0, 10, "raw", 0), CPU)
    assert set(subject.duplicates) == {"070dd51e", "50a16a69"}
    assert any("070dd51e repeats the training task 40853293" in note for note in subject.notes)
    assert any("50a16a69 repeats the training task caa06a1f" in note for note in subject.notes)
    assert any("left out: 397 evaluation tasks" in note for note in subject.notes)
    ask(model, subject.questions, tmp_path / "run")
    found = result_of(count_votes(subject.questions, tmp_path / "run"), subject.duplicates)
    assert found["evaluated_tasks"] == 3
    assert found["ARC/pass@1"] == pytest.approx(2 / 3)  # row 3 is answered wrongly, and it is no duplicate
    assert found["ARC/pass@1/without_duplicates"] == 0.0


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "does not exist"),
        ("[", "cannot be read"),
        ('{"a": 1}', "is no list of names"),
        ('["<blank>", 3]', "is no list of names"),
        ('["<blank>", "a"]', "names 2 rows, but the checkpoint's table has 3"),
        ('["<blank>", "a", "a"]', "names a twice, rows 1 and 2"),
    ],
)
def test_identifiers_that_do_not_fit_are_refused(tmp_path: Path, content: str | None, told: str) -> None:
    path = tmp_path / "identifiers.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError) as caught:
        read_identifiers(path, 3)
    assert told in str(caught.value)
    assert "build_arc_dataset" in str(caught.value)


def test_a_bundle_that_learned_demonstrations_alone_has_its_held_out_queries_scored_in_full() -> None:
    """Scored apart are only the tasks one of whose demonstrations is the query, turned or recoloured."""
    folder = Path(__file__).resolve().parents[3] / "etrm" / "assets" / "arc-1"
    subject = subject_of(folder, None, Wanted("arc-agi-1", 0, 1, "raw", 0), CPU)
    shown = {t.id for t in load_arc(1, "evaluation") if t.id in subject.questions.task_ids and shows_its_answer(t)}
    assert set(subject.duplicates) == shown == {"00576224", "66e6c45b", "ca8de6ea"}
    assert any("scored apart, its answers were learned: 3 tasks" in n or "00576224" in n for n in subject.notes)
    assert len(subject.questions.task_ids) == 21


def test_what_cannot_be_evaluated_is_one_sentence(official: tuple[Path, Path], tmp_path: Path) -> None:
    path, identifiers = official
    with pytest.raises(ConfigError, match="give it with --identifiers"):
        subject_of(path, None, SMALL, CPU)
    with pytest.raises(DataError, match=r"--tasks is 400, but there are \d+ arc-agi-1 evaluation tasks with rows"):
        subject_of(path, identifiers, Wanted("arc-agi-1", 400, 1, "raw", 0), CPU)
    other = tmp_path / "others.json"
    other.write_text(json.dumps(["<blank>", *(f"x{i}" for i in range(199))]))
    with pytest.raises(DataError, match="no evaluation task of arc-agi-1 has a row"):
        subject_of(path, other, SMALL, CPU)
    with pytest.raises(CheckpointError, match="does not exist"):
        subject_of(path.with_name("step_1"), identifiers, SMALL, CPU)
    for wrong in ({"benchmark": "arc-3"}, {"augmentations": 0}, {"tasks": -1}):
        with pytest.raises(ConfigError, match=f"--{next(iter(wrong))} is"):
            Wanted(**({"benchmark": "arc-agi-1", "tasks": 0, "augmentations": 1, "weights": "raw", "seed": 0} | wrong))
    table = OfficialTable(load_official(path).decoder, open_official(path))
    with pytest.raises(CheckpointError, match="a row outside its table of 200"):
        table.context(SimpleNamespace(row=torch.tensor([200]), inputs=torch.zeros(1)))  # type: ignore[arg-type]

"""Somebody else's run: files in every form, missing pieces by name, and the shipped public run."""

import json
from pathlib import Path

import pytest

from etrm.errors import EvaluationError
from etrm.experiment.external import main, public_run, verdict_from
from etrm.experiment.external_files import INFO, read_checkpoint_info, read_metrics

pytestmark = pytest.mark.fast
WANDB = """"Step","x - 1 - train/lm_loss","x - 1 - train/lm_loss__MIN","x - 1 - grad/encoder_norm"
"0","2.5","1","0.4"
"9","0.7","1",""
"""
ROWS = [{"step": 0, "train/lm_loss": 2.5, "grad": {"encoder_norm": 0.4}}, {"step": 9, "train/lm_loss": 0.7}]


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_public_run_is_invalid_for_the_right_reasons() -> None:
    reading = public_run()
    assert reading.verdict.scenario == "INVALID"
    reasons, notes = " | ".join(reading.verdict.reasons), " | ".join(reading.notes)
    for text in ("L_cycles is 6, the decoder was trained with 4", "0 of 4 tasks", "0.0% to 60.2%", "warm-up took 40%"):
        assert text in reasons
    for text in ("2.73%", "after clipping", "decoder_known", "constant_context_loss, mismatched_loss"):
        assert text in notes
    assert any(item.startswith("oracle_solved") for item in reading.missing)


def test_public_run_with_its_cycles_right_would_still_be_undecided() -> None:
    """L_cycles is what makes it invalid; without that fault the rest is merely too little."""
    reading = public_run()
    fixed = verdict_from(
        "fixed", reading.verdict.evidence.metrics, {"eval_tasks": 4, "eval_tasks_solved": 0, "decoder_known": True}
    )
    assert fixed.verdict.scenario == "UNDECIDED"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.jsonl", "\n".join(map(json.dumps, ROWS)) + "\n\n"),
        ("run.json", json.dumps(ROWS)),
        ("run.csv", "step,train/lm_loss,grad/encoder_norm\n0,2.5,0.4\n9,0.7,\n"),
        ("wandb.csv", WANDB),
    ],
)  # fmt: skip
def test_every_form_of_metrics_file(name: str, text: str, tmp_path: Path) -> None:
    metrics, info = read_metrics(written(tmp_path, name, text))
    assert (metrics["train/lm_loss"], metrics["train/lm_loss/first"], metrics["grad/encoder_norm"]) == (0.7, 2.5, 0.4)
    assert info == {} and not any("MIN" in key for key in metrics)


def test_wandb_summary_and_own_document(tmp_path: Path) -> None:
    summary = written(tmp_path, "s.json", '{"summary": {"train/lm_loss": 0.5, "_wandb": {"runtime": 3}}}')
    assert read_metrics(summary)[0] == {"train/lm_loss": 0.5, "_wandb/runtime": 3.0}
    document = written(tmp_path, "d.json", '{"metrics": {"lm_loss": 0.5}, "checkpoint_info": {"eval_tasks": 4}}')
    assert read_metrics(document) == ({"train/lm_loss": 0.5}, {"eval_tasks": 4})


def test_a_diverged_last_row_is_not_hidden(tmp_path: Path) -> None:
    metrics, _ = read_metrics(written(tmp_path, "r.jsonl", '{"train/lm_loss": 1.0}\n{"train/lm_loss": NaN}\n'))
    verdict = verdict_from("r", metrics, {}).verdict
    assert verdict.scenario == "INVALID" and "not finite: train/lm_loss" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gone.jsonl", None, "no such file"),
        ("empty.jsonl", " \n", "is empty"),
        ("run.xls", "x", "not as .xls"),
        ("bad.jsonl", '{"a": 1}\n{"a": \n', "line 2 cannot be read, it is not valid JSON"),
        ("rows.jsonl", "[1]\n", "row 1 is list"),
        ("text.json", '"hello"', "got str"),
        ("info.json", '{"metrics": {}, "checkpoint_info": 3}', "checkpoint_info must be an object"),
        ("two.csv", "a - loss,b - loss\n1,2\n", r"holds 2 runs \(a, b\); name one with --run"),
    ],
)
def test_bad_files_are_named(name: str, text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / name if text is None else written(tmp_path, name, text)
    with pytest.raises(EvaluationError, match=message):
        read_metrics(path)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(b"\x80\x02pickle\xff")
    with pytest.raises(EvaluationError, match="not UTF-8"):
        read_metrics(path)


def test_one_of_several_runs(tmp_path: Path) -> None:
    path = written(tmp_path, "two.csv", "Step,a - loss,b - loss\n0,1,2\n")
    assert read_metrics(path, "b")[0] == {"Step": 0.0, "loss": 2.0}
    with pytest.raises(EvaluationError, match="no run 'c'; it holds a, b"):
        read_metrics(path, "c")


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"eval_task": 4}, "did you mean eval_tasks"),
        ({"planned_updates": "2500"}, "planned_updates must be of type int"),
        ({"decoder_known": 1}, "decoder_known must be of type bool"),
        ({"eval_tasks": 4, "eval_tasks_solved": 5}, "5 of eval_tasks = 4"),
        ({"arm": "moon"}, "arm 'moon'"),
    ],
)
def test_bad_info_is_named(info: dict[str, object], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        verdict_from("x", {}, info)


def test_info_file_must_be_an_object(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="must be a JSON object"):
        read_checkpoint_info(written(tmp_path, "i.json", "[]"))


def test_nothing_known_is_undecided_and_everything_is_missing() -> None:
    reading = verdict_from("nothing", {}, {})
    assert reading.verdict.scenario == "UNDECIDED"
    assert len(reading.missing) == sum(1 for _, says in INFO.values() if says)


def test_a_norm_never_shows_an_intact_gradient_but_zero_shows_a_blocked_one() -> None:
    states = [verdict_from("x", {"grad/encoder_norm": n}, {}).verdict.gradient for n in (1.0, 0.5, 1e-9, 0.0)]
    assert states == [None, None, None, "blocked"]


@pytest.mark.parametrize(
    ("info", "name", "ok"),
    [
        ({"eval_queries_total": 400, "eval_queries": 399}, "queries_evaluated", False),
        ({"planned_updates": 9, "executed_updates": 9}, "budget", None),
        ({"planned_updates": 9, "executed_updates": 8}, "budget", False),
        ({"planned_updates": 9, "executed_updates": 9, "planned_episodes": 9, "distinct_episodes": 3}, "budget", False),
        ({"planned_updates": 9, "executed_updates": 9, "planned_episodes": 9, "distinct_episodes": 9}, "budget", True),
        ({"decoder_in_optimiser": True}, "decoder_not_optimised", False),
        ({"decoder_tensors_matched": 13, "decoder_tensors_total": 14}, "bundle_whole", False),
        ({"own_context_exact": 0.2}, "decoder_competent", False),
        ({"eval_tasks": 400, "eval_tasks_solved": 0}, "enough_tasks", True),
        ({"eval_tasks": 32, "eval_tasks_solved": 0}, "enough_tasks", False),
        ({"eval_tasks": 32, "eval_tasks_solved": 4}, "enough_tasks", True),
    ],
)
def test_facts_become_checks(info: dict[str, object], name: str, ok: bool | None) -> None:
    found = {c.name: c for c in verdict_from("x", {}, info).verdict.checks}
    assert found[name].ok is ok


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--example"]) == 11
    assert "L_cycles is 6" in capsys.readouterr().out
    metrics = written(tmp_path, "m.jsonl", '{"train/lm_loss": 1.0}\n')
    info = written(tmp_path, "i.json", '{"encoder": "standard"}')
    assert main(["--metrics", str(metrics), "--checkpoint-info", str(info), "--json"]) == 10
    assert json.loads(capsys.readouterr().out)["scenario"] == "UNDECIDED"
    assert main(["--metrics", str(tmp_path / "gone.csv")]) == 2
    assert "no such file" in capsys.readouterr().err

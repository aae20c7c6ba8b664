"""The `etrm` command: what each sub-command prints, its JSON, its exit codes, and errors as one sentence."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from etrm.cli import experiment
from etrm.cli.main import COMMANDS, main

pytestmark = pytest.mark.fast
ROOT = Path(__file__).resolve().parents[3]


def test_help_names_every_command_and_an_example_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out and f"  etrm {name}" in out for name in COMMANDS)
    assert main([]) == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main([name, "--help"])
    except SystemExit as end:  # argparse ends the process itself
        code = end.code  # type: ignore[assignment]
    out = capsys.readouterr().out
    assert code == 0 and f"usage: etrm {name}" in out and "examples:" in out and "exit codes:" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing"], "no command 'nothing'; there are experiment, report"),
        pytest.param(["tasks", "show", "00zzz"], "ids that begin alike: 00", marks=pytest.mark.thorough),  # all tasks
        (["report", "/nowhere"], "/nowhere is no folder"),
        (["inspect", "/nowhere"], "/nowhere"),
    ],
)
def test_errors_are_a_sentence_and_exit_code_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert says in err and "Traceback" not in err and out == ""


def test_json_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundles", "--json"]) == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)] == [
        "arc-1",
        "arc-3",
        "arc-4",
        "arc-5",
        "cal-1",
        "cal-2",
        "micro",
    ]
    assert main(["tasks", "show", "007bbfb7", "--json"]) == 0
    task = json.loads(capsys.readouterr().out)
    assert task["train"][0]["input"] == [[0, 7, 7], [7, 7, 7], [0, 7, 7]] and len(task["test"]) == 1
    assert main(["inspect", str(ROOT / "etrm" / "assets" / "micro"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "bundle"


def test_a_task_is_shown_with_digits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "show", "007bbfb7"]) == 0
    out = capsys.readouterr().out
    assert "demonstration 1: 3x3 -> 9x9" in out and "query 1:" in out and "0 7 7" in out


def test_experiment_passes_options_and_exit_code_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert experiment.command(["--fresh", "-q"])[2:] == ["pytest", "-m", "frozen_decoder", "--slow", "--fresh", "-q"]
    assert "--slow" not in experiment.command(["--short"]) and "--short" not in experiment.command(["--short"])
    (tmp_path / "tests" / "experiments").mkdir(parents=True)
    (tmp_path / "conftest.py").write_text("")
    seen: list[Path] = []

    def run(line: list[str], cwd: Path, check: bool) -> subprocess.CompletedProcess[str]:
        seen.append(cwd)
        return subprocess.CompletedProcess(line, 10)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.chdir(tmp_path / "tests")
    assert main(["experiment"]) == 10 and seen == [tmp_path]


def test_experiment_outside_a_checkout_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["experiment"]) == 2
    assert "clone the repository" in capsys.readouterr().err


@pytest.mark.thorough
def test_a_reader_that_has_gone_is_no_error() -> None:
    line = (
        f"'{sys.executable}' -m etrm.cli.main tasks list --json | head -c 10; code=${{PIPESTATUS[0]}}; echo; echo $code"
    )
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[1] == "141" and done.stderr == ""

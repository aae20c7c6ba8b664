"""The report of whole, half, torn and foreign run folders: what it says, how large it is, that it asks no network."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from etrm.errors import EvaluationError
from etrm.experiment.demo_evidence import demo_evidence
from etrm.experiment.report import open_runs, publish, write_comparison, write_report
from etrm.experiment.report.command import main
from etrm.experiment.report.page import MOST_BYTES
from etrm.experiment.verdict import judge
from etrm.experiment.wording import HEADLINE, MEANING

pytestmark = pytest.mark.fast
Writer = Callable[..., Path]


def text_of(html: str) -> str:
    """The page's words without tags, style and script."""
    bare = re.sub(r"<(style|script)[^>]*>.*?</\1>", " ", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", bare).split())


@pytest.mark.parametrize("scenario", ["A", "B", "C", "UNDECIDED", "INVALID"])
def test_page_tells_verdict_evidence_and_next_step(write_run: Writer, tmp_path: Path, scenario: str) -> None:
    html = write_report(write_run(tmp_path / "run", scenario)).read_text()
    text = text_of(html)
    verdict = judge(demo_evidence(scenario))
    assert MEANING[scenario] in text and HEADLINE[scenario] in text and "invented (demo)" in text
    assert text.count("this decided") == 1 and f"<title>{scenario} (calibration)" in html
    assert all(f"{h} " in text for h in verdict.hypotheses) and text.count("The same as a table") >= 3
    assert "not complete" not in text and "certificate 2026-02-01" in text


def test_page_shows_every_figure_with_its_numbers(write_run: Writer, tmp_path: Path) -> None:
    html = write_report(write_run(tmp_path / "run")).read_text()
    text = text_of(html)
    for words in ("307 of 512", "52 % to 67 %", "demonstrations of another task: 6 of 512", "blocks.5.out.weight",
                  "mismatched 1.84", "28 of 32 tasks", "6000 of 6000 planned", "magnified 11 times"):  # fmt: skip
        assert words in text, words
    assert html.count("<svg role") == 5 and html.count("<title id=") == html.count("<desc id=") == 5
    shown = json.loads(re.search(r'id="queries">(.*?)</script>', html)[1])  # type: ignore[index]
    kept = json.loads((tmp_path / "run" / "queries.json").read_text())["queries"]
    assert [[list(map(int, row)) for row in q["p"].split("/")] for q in shown] == [q["prediction"] for q in kept]


def test_page_asks_no_network(write_run: Writer, tmp_path: Path) -> None:
    html = write_report(write_run(tmp_path / "run")).read_text()
    assert "default-src 'none'" in html
    assert set(re.findall(r"https?://[^\s\"')]+", html)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(link(?! rel=\"icon\" href=\"data:)|iframe|img)\b|src=|@import|url\(", html)


@pytest.mark.thorough
def test_a_long_run_of_the_largest_grids_stays_small(write_run: Writer, tmp_path: Path) -> None:
    path = write_report(write_run(tmp_path / "run", updates=2500, shown=200, side=30))
    assert path.stat().st_size < MOST_BYTES
    assert "more were left out" not in path.read_text()


def test_names_of_tasks_cannot_become_markup(write_run: Writer, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "queries.json").write_text((run / "queries.json").read_text().replace("task-1", "</script><b>x"))
    (run / "contexts.json").write_text((run / "contexts.json").read_text().replace("task-1", "<i>y"))
    html = write_report(run).read_text()
    assert "<b>x" not in html and "<i>y" not in html and "&lt;i&gt;y" in html


def test_an_empty_or_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="nothing of a run"):
        write_report(tmp_path)
    with pytest.raises(EvaluationError, match="no folder"):
        write_report(tmp_path / "gone")
    assert main([str(tmp_path)]) == 2


@pytest.mark.parametrize("gone", ["evidence.json", "run.json", "metrics.jsonl", "queries.json", "contexts.json"])
def test_every_missing_file_is_told(write_run: Writer, tmp_path: Path, gone: str) -> None:
    run = write_run(tmp_path / "run")
    (run / gone).unlink()
    text = text_of(write_report(run).read_text())
    assert f"{gone} is missing" in text or f"No {gone}" in text
    assert ("No verdict" in text) == (gone == "evidence.json")


def test_a_run_at_work_is_told_from_one_that_stopped(write_run: Writer, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "evidence.json").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 61, "train/lm_l')
    for name in run.iterdir():
        os.utime(name, (1000.0, 1000.0))
    at_work, stopped = (text_of(write_report(run, tmp_path / "r.html", now=t).read_text()) for t in (1010.0, 9000.0))
    assert "the run is being written" in at_work and "the run is incomplete" in stopped
    assert "1 line could not be read" in at_work and "blocks.5.out.weight" in at_work


def test_files_of_another_version_are_told_and_the_rest_is_shown(write_run: Writer, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    evidence = json.loads((run / "evidence.json").read_text())
    (run / "evidence.json").write_text(json.dumps({**evidence, "from_the_future": 1}))
    (run / "queries.json").write_text(json.dumps({"schema": 2, "queries": []}))
    (run / "contexts.json").write_text('{"schema": 1, "points": [{"x": 1}, 7]}')
    (run / "run.json").write_text("[1, 2]")
    text = text_of(write_report(run).read_text())
    for words in ("of another version of etrm", "from_the_future", "queries.json has schema 2", "2 of 2 points",
                  "run.json holds a list", "blocks.5.out.weight"):  # fmt: skip
        assert words in text, words


@pytest.mark.parametrize("wrong", [{"exact": 1}, {"input": [[1, 2], [3]]}, {"target": [[11]]}, {"demos": [[[[1]]]]}])
def test_malformed_queries_are_left_out_and_counted(
    write_run: Writer, tmp_path: Path, wrong: dict[str, object]
) -> None:
    run = write_run(tmp_path / "run")
    document = json.loads((run / "queries.json").read_text())
    document["queries"][0] |= wrong
    (run / "queries.json").write_text(json.dumps(document))
    assert "1 of 8 are malformed" in text_of(write_report(run).read_text())


def test_a_session_keeps_what_its_report_needs(write_run: Writer, tmp_path: Path) -> None:
    folders = {"calibration": write_run(tmp_path / "a"), "arc": write_run(tmp_path / "b", "C", "arc")}
    verdicts = {"calibration": judge(demo_evidence("A")), "arc": judge(demo_evidence("C", "arc"))}
    out = tmp_path / "session"
    text = text_of(publish(out, verdicts, folders).read_text())
    assert "It learns" in text and "It trains, but does not transfer" in text
    assert [run.arm for run in open_runs(out)] == ["calibration", "arc"]
    (out / "verdict.json").write_text((out / "verdict.json").read_text().replace('"scenario": "A"', '"scenario": "B"'))
    assert "verdict.json says B, this version of etrm judges the same evidence A" in text_of(
        write_report(out).read_text()
    )


def test_verdict_json_alone_gives_a_report_without_curves(write_run: Writer, tmp_path: Path) -> None:
    out = tmp_path / "session"
    publish(out, {"calibration": judge(demo_evidence("A"))}, {})
    text = text_of(write_report(out).read_text())
    assert "It learns" in text and "without any curve" in text


def test_a_finished_run_of_the_cache_is_not_touched(write_run: Writer, tmp_path: Path) -> None:
    run = write_run(tmp_path / "abc")
    (run / "DONE.json").write_text('{"parts": {"sources": "12ab"}}')
    before = sorted(run.iterdir())
    assert write_report(run) == tmp_path / "abc.report.html" and sorted(run.iterdir()) == before
    assert "key: sources 12ab" in text_of((tmp_path / "abc.report.html").read_text())


def test_compare_sets_runs_side_by_side(write_run: Writer, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, scenario) for name, scenario in (("first", "A"), ("second", "C"))]
    (runs[1] / "run.json").unlink()
    html = write_comparison(runs, tmp_path / "compare.html").read_text()
    text = text_of(html)
    for words in (MEANING["A"], MEANING["C"], "307 of 512", "3 of 512", "second : run.json is missing"):
        assert words in text, words
    with pytest.raises(EvaluationError, match="give 2 to 8"):
        write_comparison(runs[:1], tmp_path / "compare.html")


def test_command_prints_where_the_page_lies(
    write_run: Writer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = str(write_run(tmp_path / "run"))
    assert main([run]) == 0 and "calibration: A" in capsys.readouterr().out
    assert main([run, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["scenario"] == "A"
    assert main(["compare", run, run]) == 0 and (tmp_path / "compare.html").exists()

"""What a newcomer must find in the panel: scenario, one sentence, counts with nulls and intervals, what to run next."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from etrm.experiment.demo_evidence import demo_evidence, healthy
from etrm.experiment.evidence import Evidence, Score, SearchEvidence
from etrm.experiment.panel import main, plain, render_panel, why
from etrm.experiment.report.figures import solved_figure
from etrm.experiment.verdict import Verdict, judge, to_json
from etrm.experiment.wording import MEANING

pytestmark = pytest.mark.fast
SCENARIOS = ("A", "B", "C", "UNDECIDED", "INVALID")


def as_text(verdicts: dict[str, Verdict], width: int = 120) -> str:
    """The panel with its line breaks and border taken out."""
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(render_panel(verdicts, "runs/demo/verdict.json", width))
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, output.splitlines())) <= width
    return " ".join(output.replace("│", " ").split())


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_panel_says_scenario_meaning_files_and_next(scenario: str) -> None:
    verdict = judge(demo_evidence(scenario))
    text = as_text({"calibration": verdict}, 160)
    assert f"{scenario}: {MEANING[scenario]}" in text and "runs/demo/verdict.json" in text
    assert "why:" in text and verdict.next_steps[0].command.split()[0] in text
    lines = plain({"calibration": verdict}, "runs/demo/")
    assert f"calibration: {scenario}: {MEANING[scenario]}" in lines and "files: runs/demo/" in lines
    assert f"next: {verdict.next_steps[0].command}" in lines and "\x1b" not in lines


def test_figures_carry_counts_intervals_and_nulls() -> None:
    text = plain({"calibration": judge(healthy())})
    assert "307 of 512 (60 % [52 %, 67 %]), 40 tasks: above" in text
    assert "nulls, of 512: mismatched 6, constant_context 5, permuted_outputs 4" in text
    assert "1.31 to 0.21 | constant context 1.02, mismatched 1.84" in text
    assert "decoder's own contexts: 504 of 512" in text and "demonstrations only: 12 of 32 tasks" in text


def test_nulls_of_different_sizes_keep_their_own_n() -> None:
    good = healthy()
    nulls = {**good.rungs[0].nulls, "mismatched": replace(good.rungs[0].nulls["mismatched"], n=100)}
    text = plain({"calibration": judge(replace(good, rungs=(replace(good.rungs[0], nulls=nulls), good.rungs[1])))})
    assert "nulls: mismatched 6 of 100, constant_context 5 of 512" in text


def test_decoder_known_is_told_beside_the_figure() -> None:
    good = healthy("arc")
    known = replace(good, rungs=(*good.rungs[:-1], replace(good.rungs[-1], decoder_known=True)))
    text = plain({"arc": judge(known)})
    assert "decoder_known: the decoder was trained on these tasks" in text and "arc: UNDECIDED" in text


def test_a_searched_rung_has_a_row_with_its_cost_and_changes_no_verdict() -> None:
    good = healthy()
    found = SearchEvidence(Score(471, 512, 40, (0.88, 0.95)), 30, 0.41, 0.2, 0.05)
    searched = replace(good, rungs=(good.rungs[0], replace(good.rungs[1], searched=found)))
    row = "after search, unseen_composition: decides nothing"
    cost = "30 updates and 0.41 s a query; loss on the demonstrations 0.2 to 0.05"
    text = plain({"calibration": judge(searched)})
    assert row in text and "471 of 512 (92 % [88 %, 95 %])" in text and cost in text
    assert row not in plain({"calibration": judge(good)})
    assert "471 of 512" in as_text({"calibration": judge(searched)}, 160)
    figure = solved_figure(searched, "x")
    assert figure is not None and "471 of 512" in str(figure)
    one, two = judge(good), judge(searched)
    assert (one.scenario, one.reasons, one.confidence) == (two.scenario, two.reasons, two.confidence)
    told = to_json({"calibration": two})["arms"]["calibration"]["rungs"]["unseen_composition"]["searched"]
    assert (told["score"]["k"], told["updates"], told["loss_after"]) == (471, 30, 0.05)
    assert Evidence.from_json(searched.to_json()) == searched


def test_an_invalid_run_shows_its_counts_without_reading_them() -> None:
    text = plain({"calibration": judge(demo_evidence("INVALID"))})
    assert "307 of 512" in text and "tasks: above" not in text and "L_cycles is 4" in text


def test_many_failed_checks_are_counted() -> None:
    failing = replace(healthy(), validity=tuple(replace(c, ok=False) for c in healthy().validity))
    assert len(why(judge(failing))) == 4 and "more in verdict.json" in why(judge(failing))[-1]


def test_both_arms_fit_a_narrow_terminal() -> None:
    text = as_text({"calibration": judge(healthy()), "arc": judge(demo_evidence("C", "arc"))}, 80)
    assert "calibration" in text and "arc" in text


def test_names_in_brackets_are_no_markup() -> None:
    odd = replace(healthy(), gradient=replace(healthy().gradient, detail="layers[0] [bold]all[/bold]"))
    assert "[bold]all[/bold]" in as_text({"calibration": judge(odd)}, 160)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_demo_command(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--demo", scenario, "--plain"]) == 0
    assert f"calibration: {scenario}" in capsys.readouterr().out


def test_the_five_questions_stop_at_the_one_that_decided() -> None:
    assert "✓ valid? ✓ gradient? ✓ learns? ✓ fits? ✓ transfers?" in as_text({"calibration": judge(healthy())})
    assert "✓ valid? ✗ gradient? · learns?" in as_text({"calibration": judge(demo_evidence("B"))})
    assert "✓ gradient? ? learns? · fits?" in as_text({"calibration": judge(demo_evidence("UNDECIDED"))})


def test_panel_names_the_nearest_null_beside_the_required_ones() -> None:
    good = healthy()
    nulls = {**good.rungs[1].nulls, "copy_input": replace(good.rungs[1].nulls["copy_input"], k=200)}
    near = replace(good, rungs=(good.rungs[0], replace(good.rungs[1], nulls=nulls)))
    text = as_text({"calibration": judge(near)}, 200)
    assert "of 512: demonstrations of another task 6" in text and "copying the input 200 (7 nulls)" in text

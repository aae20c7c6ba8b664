"""The leaderboard's page, plot, kept cells and refusals; its trainings are in tests/experiments/test_leaderboard.py."""

import json
import xml.etree.ElementTree as ET
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from etrm.config.compose import load
from etrm.config.schema import RunConfig
from etrm.errors import ConfigError
from etrm.experiment.leaderboard import BEST, Cell, cell_config, finalists, kept, leaderboard, main
from etrm.experiment.leaderboard_page import Line, Row, page, plot

pytestmark = pytest.mark.fast

ROW = Row("aligned", "lm", 0, 1000, 300, 12.4, (30, 96), 0.8, (1, 96), (60, 140))
ROWS = [replace(ROW, encoder="standard", validation=(0, 96), failed="the loss is not finite at update 7"), ROW]
SEEDS = [replace(ROW, seed=s, validation=(v, 96)) for s, v in enumerate((30, 40, 90))]
LINES = [Line("oracle, demonstrations", 35, 96), Line("null: constant context", 0, 96)]


def test_the_best_is_first_and_ties_go_to_the_lower_loss() -> None:
    worse = replace(ROW, validation_loss=0.9)
    assert sorted([ROWS[0], worse, ROW], key=Row.order) == [ROW, worse, ROWS[0]]


def test_the_default_is_among_the_finalists_wherever_it_ranks() -> None:
    config = load(RunConfig, "cfg_micro")
    others = [replace(ROW, encoder=f"encoder {n}") for n in range(BEST + 2)]
    own = replace(ROW, encoder=config.encoder.name)
    taught = replace(own, objective="lm+table")
    assert finalists([own, *others], config) == [own, *others[: BEST - 1]]
    assert finalists([*others, taught, own], config) == [*others[:BEST], own]
    assert finalists(others, config) == others[:BEST]


def test_rows_survive_json() -> None:
    assert Row.of(json.loads(json.dumps(asdict(ROW)))) == ROW


def test_the_page_holds_counts_command_medians_lines_and_what_failed() -> None:
    text = page("cal-1", "python -m x", "2026-11-24", ROWS, SEEDS, LINES)
    for part in (
        "`python -m x`",
        "| aligned | lm | 1,000 | 300 | 12 | 30 of 96 (31%) | 0.80 | 1 of 96 | 60 of 140 |",
        "| aligned | lm | 300 | 3 | 30 of 96, 40 of 96, 90 of 96 | 42% | ",
        "| oracle, demonstrations | 35 of 96 (36%) |",
        "- standard, lm, seed 0: the loss is not finite at update 7",
    ):
        assert part in text
    assert "over seeds" not in page("cal-1", "x", "2026-11-24", ROWS, [], LINES)


def test_the_plot_is_svg_with_a_bar_a_row_and_a_line_a_ceiling() -> None:
    root = ET.fromstring(plot(ROWS, SEEDS, LINES))
    tag = "{http://www.w3.org/2000/svg}"
    bars = [r for r in root.findall(f"{tag}rect") if r.get("fill") == "#4c78a8"]
    assert len(bars) == len(ROWS)
    assert float(bars[1].get("width", "0")) == pytest.approx((960 - 250 - 200) * 40 / 96, abs=0.1), (
        "median of the seeds"
    )
    assert len(root.findall(f"{tag}line")) == 2 * len(LINES)


def test_a_finished_cell_is_kept_until_its_key_changes(tmp_path: Path) -> None:
    made = []

    def make() -> list[int]:
        made.append(len(made))
        return made[-1:]

    path = tmp_path / "deep" / "cell.json"
    assert [kept(path, key, make) for key in ("a", "a", "b")] == [[0], [0], [1]]
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"cell\.json is no JSON .* delete it"):
        kept(path, "b", make)


def test_every_cell_has_the_same_updates_and_its_published_depth() -> None:
    config = load(RunConfig, "cfg_micro")
    own = cell_config(config, Cell("lpn_standard", "lm+table", 2), 300)
    assert (own.budget.updates, own.optim.warmup_updates, own.system.seed) == (300, 30, 2)
    assert (own.encoder.layers, own.encoder.set_layers, own.encoder.hidden_size) == (8, 1, config.encoder.hidden_size)
    assert own.loss.objective == "lm+table" and own.loss.table_share > 0
    assert cell_config(config, Cell("cell_reader", "lm", 0), 300).encoder == config.encoder
    assert cell_config(config, Cell("aligned", "lm", 0), 300).loss.table_share == 0


def test_unknown_encoders_and_objectives_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load(RunConfig, "cfg_micro")
    with pytest.raises(ConfigError, match=r"--encoders names alinged; there are aligned, "):
        leaderboard(config, 1, ["alinged"], ["lm"], 1, tmp_path, print)
    arguments = ["--config-name", "cfg_micro", "--runs", str(tmp_path), "--out", str(tmp_path)]
    assert main([*arguments, "--encoders", "alinged"]) == 1 and "alinged" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--objectives", "ml"])
    assert not list(tmp_path.iterdir())

"""The table over seeds: planted systems get their verdict, finished rows are kept, a cut line is not."""

from pathlib import Path

import pytest

from etrm.config.compose import load
from etrm.config.schema import RunConfig
from etrm.experiment.seed_table import Row, markdown, read_rows, seed_table

pytestmark = pytest.mark.thorough


def test_planted_systems_are_run_once_and_a_cut_row_again(tmp_path: Path) -> None:
    config = load(RunConfig, "cfg_micro")
    said: list[str] = []
    wanted = {"detached": 1, "more_cycles": 1}
    rows = seed_table(config, wanted, tmp_path, False, said.append)
    assert [(r.scenario, r.trained) for r in rows] == [("B", 0), ("INVALID", 0)] and len(said) == 2
    assert seed_table(config, wanted, tmp_path, False, said.append) == rows and len(said) == 2
    path = tmp_path / "rows.jsonl"
    path.write_text(path.read_text()[:-5])
    again = seed_table(config, wanted, tmp_path, False, said.append)
    assert [r.scenario for r in again] == ["B", "INVALID"] and len(said) == 3
    other = load(RunConfig, "cfg_micro", ["optim.lr=1e-3"])
    seed_table(other, {"more_cycles": 1}, tmp_path, False, said.append)
    assert len(said) == 4, "a row of another config was taken for this one's"


def test_the_table_counts_verdicts_and_gives_median_and_range() -> None:
    rows = [
        Row("healthy", i, word, 500, {"unseen_composition": (k, 10)}, 20.0, "x")
        for i, (word, k) in enumerate([("A", 9), ("UNDECIDED", 1), ("A", 7)])
    ]
    text = markdown(rows)
    assert "| healthy | A | 2 of 3 | UNDECIDED | unseen_composition 70.0% (10.0% to 90.0%) | 500 | 20 |" in text


def test_no_file_is_no_row(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "rows.jsonl") == []

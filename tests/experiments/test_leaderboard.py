"""The leaderboard command on the toy arm: equal updates, a page and a plot, and a second call that trains nothing."""

import json

import pytest

from etrm.experiment.leaderboard import main

pytestmark = [pytest.mark.sweep, pytest.mark.slow]

UPDATES = 40
CHOSEN = ["correspondence", "hybrid_variational", "trm_style"]


def test_the_command_ranks_every_cell_once_and_resumes(tmp_path, capsys):
    arguments = ["--config-name", "cfg_micro", "--updates", str(UPDATES), "--encoders", ",".join(CHOSEN)]
    arguments += [
        "--objectives",
        "lm,lm+table",
        "--seeds",
        "2",
        "--runs",
        str(tmp_path / "runs"),
        "--out",
        str(tmp_path),
    ]
    small = ["evaluation.oracle_updates=5", "evaluation.constant_updates=5", "budget.log_every=20"]
    arguments += ["--final-updates", str(2 * UPDATES)]
    assert main([*arguments, *small]) == 0, capsys.readouterr().err
    cells = sorted((tmp_path / "runs").rglob("*-[01].json"))
    values = [json.loads(c.read_text())["value"] for c in cells]
    assert len([v for v in values if v["updates"] == UPDATES]) == 2 * len(CHOSEN)
    longer = [v["seed"] for v in values if v["updates"] == 2 * UPDATES]
    assert sorted(longer) == [0] * 4 + [1] * 4, "the best four over seeds, longer"
    page = (tmp_path / "leaderboard.md").read_text()
    assert all(f"| {name} | {objective} |" in page for name in CHOSEN for objective in ("lm", "lm+table"))
    assert "positive control" in page and "oracle, demonstrations" in page and "null: constant context" in page
    assert (tmp_path / "leaderboard.svg").read_text().startswith("<svg")
    times = {c: c.stat().st_mtime_ns for c in cells}
    assert main([*arguments, *small]) == 0
    assert times == {c: c.stat().st_mtime_ns for c in cells}, "a finished cell was trained again"

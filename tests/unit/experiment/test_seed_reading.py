"""The plan's literal readings, its gaps included."""

import math

import pytest

from etrm.experiment.seed_reading import SILENT, seed_reading, seed_scenario

pytestmark = pytest.mark.fast
A = {"grad/encoder_norm": 0.6, "train/lm_loss": 0.7, "train/lm_loss/first": 2.5, "ARC/pass@1": 0.07}


@pytest.mark.parametrize(
    ("changes", "scenario"),
    [
        ({}, "A"),
        ({"ARC/pass@1": 0.0}, "C"),
        ({"ARC/pass@1": 0.03}, SILENT),
        ({"grad/encoder_norm": 0.0005, "train/lm_loss": 2.5}, "B"),
        ({"grad/encoder_norm": 0.0005}, SILENT),  # no gradient, yet the loss falls
        ({"grad/encoder_norm": 0.1}, SILENT),
        ({"grad/encoder_norm": 40.0}, SILENT),
        ({"grad/encoder_norm": math.nan}, SILENT),
        ({"train/lm_loss/first": None}, SILENT),
        ({"ARC/pass@1": None}, SILENT),
    ],
)
def test_scenario(changes: dict[str, float | None], scenario: str) -> None:
    assert seed_scenario({**A, **changes}) == scenario


def test_rows_stand_beside_ours() -> None:
    rows = {row.metric: row for row in seed_reading({**A, "train/encoder_token_std": 0.2})}
    assert list(rows) == ["grad/encoder_norm", "train/lm_loss", "train/encoder_token_std", "ARC/pass@1", "scenario"]
    assert rows["grad/encoder_norm"].seed_says == "A or C: healthy (0.3 to 1)"
    assert "clipping" in rows["grad/encoder_norm"].we_say
    assert rows["train/lm_loss"].seed_says == "A or C: it falls from 2.5 to 0.7"
    assert rows["ARC/pass@1"].seed_says == "A: 7 % (5 to 10 %); useful (at least 2 %)"
    assert "nobody's chance" in rows["ARC/pass@1"].we_say


def test_absent_metrics_read_not_measured() -> None:
    assert {row.seed_says for row in seed_reading({})} == {"not measured", "not measured at both ends", SILENT}


@pytest.mark.parametrize(
    ("std", "says"),
    [(0.01, "collapsed (below 0.05)"), (0.1, SILENT), (0.2, "A or C: the contexts differ (0.05 -> 0.15)")],
)
def test_token_std(std: float, says: str) -> None:
    rows = seed_reading({"train/encoder_token_std": std, "train/encoder_token_std/first": 0.05})
    assert rows[2].seed_says == says

"""The plants of the certificate get their verdicts on `micro`: B, C and INVALID, in seconds, in the short lane."""

from pathlib import Path

import pytest

from etrm.config.compose import load
from etrm.config.schema import RunConfig
from etrm.experiment.certificate import planted
from etrm.models.bundle import load_bundle

pytestmark = pytest.mark.frozen_decoder


def test_the_plants_give_their_verdicts_on_micro(tmp_path: Path) -> None:
    trials = planted(load(RunConfig, "cfg_micro"), load_bundle("micro"), tmp_path)
    assert [t.found for t in trials] == ["B", "C", "INVALID"], trials

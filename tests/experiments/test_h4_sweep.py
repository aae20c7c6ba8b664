"""H4: learning rate and warm-up over the toy arm, in a lane of its own (`-m sweep`). Every point must be a valid run;
which one is best is recorded, not asserted.
"""

import pytest

from etrm.config.compose import load
from etrm.config.schema import RunConfig
from etrm.experiment.frozen_decoder import FrozenDecoderRun
from etrm.experiment.verdict import judge

pytestmark = pytest.mark.sweep


@pytest.mark.parametrize("warmup", [15, 30, 60])  # of 300 updates: 5, 10 and 20 %, the most a valid schedule may take
@pytest.mark.parametrize("rate", ["5e-4", "1e-3", "2e-3", "4e-3"])
def test_learning_rate_and_warm_up(rate, warmup, tmp_path, record_property):
    changes = ["budget.updates=300", f"optim.lr={rate}", f"optim.warmup_updates={warmup}"]
    verdict = judge(FrozenDecoderRun(load(RunConfig, "cfg_micro", changes), "full", tmp_path).run())
    for rung in verdict.evidence.rungs:
        record_property(rung.name, f"{rung.score.k} of {rung.score.n}")
    record_property("scenario", verdict.scenario)
    assert verdict.gradient == "intact", verdict.evidence.gradient
    assert verdict.scenario != "INVALID", verdict.reasons

"""H7: is the encoder too weak? Only an A clears it, only the oracles may blame it; sizes are swept by `-m sweep`."""

import pytest

from etrm.config.compose import load
from etrm.config.schema import RunConfig
from etrm.experiment.frozen_decoder import FrozenDecoderRun
from etrm.experiment.verdict import judge
from etrm.models.encoders import REGISTRY, aligned, correspondence, standard  # noqa: F401  (they register themselves)

UPDATES = ["budget.updates=300", "optim.warmup_updates=30"]
SIZES = [(width, layers) for width in (48, 96, 192) for layers in (1, 2)]
POINTS = {f"width {w}, {n} layers": [f"encoder.hidden_size={w}", f"encoder.layers={n}"] for w, n in SIZES}
POINTS |= {f"kind {name}": [f"encoder.name={name}"] for name in sorted(REGISTRY)}


@pytest.mark.frozen_decoder
@pytest.mark.slow
def test_only_an_a_clears_the_encoder_and_only_oracles_may_blame_it(arm_run, verdicts):
    verdict = verdicts[arm_run.arm]
    capacity = verdict.hypotheses["H7"]
    told = " ".join(capacity.evidence)
    assert (capacity.status == "refuted") == (verdict.scenario == "A"), (verdict.scenario, capacity)
    assert "oracle (many labelled pairs)" in told and "oracle (demonstrations only)" in told, told


@pytest.mark.sweep
@pytest.mark.parametrize("point", POINTS)
def test_width_depth_and_kind(point, tmp_path, record_property):
    config = load(RunConfig, "cfg_micro", [*UPDATES, *POINTS[point]])
    verdict = judge(FrozenDecoderRun(config, "full", tmp_path).run())
    for rung in verdict.evidence.rungs:
        record_property(rung.name, f"{rung.score.k} of {rung.score.n}")
    record_property("scenario", verdict.scenario)
    assert verdict.gradient == "intact", verdict.evidence.gradient
    assert verdict.scenario != "INVALID", verdict.reasons

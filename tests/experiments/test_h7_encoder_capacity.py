"""H7: is it the encoder's capacity? A sweep over kind, width and depth on the toy arm, and what the verdict says of it.

"Too weak" may be concluded only where an oracle has shown that the frozen decoder can be steered, and an encoder is
cleared only by an A; the last test holds the full experiment's verdict to that.
"""

from dataclasses import replace

import pytest

from etrm.config.compose import load
from etrm.config.schema import RunConfig
from etrm.experiment.arms import build_arm
from etrm.experiment.leaderboard import Cell, cell_config, train_cell
from etrm.models.bundle import load_bundle

UPDATES = 300
SHAPES = {"narrow": (32, 1), "default": (96, 1), "wide": (160, 1), "deep": (96, 3)}
KINDS = ("cell_reader", "correspondence", "relations", "aligned", "standard", "lpn")
SLACK = 0.25  # nats a token of validation loss that the default may lie above the best kind


@pytest.fixture(scope="module")
def toy():
    config = load(RunConfig, "cfg_micro")
    bundle = load_bundle(config.bundle)
    return config, bundle, build_arm(config, bundle)


@pytest.mark.sweep
@pytest.mark.slow
def test_width_and_depth_are_not_what_holds_the_default_back(toy, tmp_path):
    config, bundle, arm = toy
    rows = {}
    for name, (width, depth) in SHAPES.items():
        own = cell_config(config, Cell("cell_reader", "lm", 0), UPDATES)
        own = replace(own, encoder=replace(own.encoder, hidden_size=width, layers=depth))
        rows[name] = train_cell(own, bundle, arm, tmp_path)
    said = {n: (r.parameters, r.validation, round(r.validation_loss, 2)) for n, r in rows.items()}
    print(said)
    assert len({r.parameters for r in rows.values()}) == len(SHAPES), f"a size was ignored: {said}"
    best = min(r.validation_loss for r in rows.values())
    assert rows["default"].validation_loss <= best + 0.5, f"another size is far ahead of the default: {said}"


@pytest.mark.sweep
@pytest.mark.slow
def test_no_kind_is_far_ahead_of_the_default_and_the_references_lie_behind(toy, tmp_path):
    config, bundle, arm = toy
    rows = [train_cell(cell_config(config, Cell(k, "lm", 0), UPDATES), bundle, arm, tmp_path) for k in KINDS]
    said = {r.encoder: (r.parameters, r.validation, round(r.validation_loss, 2)) for r in rows}
    print(said)
    loss = {r.encoder: r.validation_loss for r in rows}
    own = loss.pop(config.encoder.name)
    assert own <= min(loss.values()) + SLACK, said
    assert all(own < loss[kind] for kind in ("aligned", "standard", "lpn")), said


@pytest.mark.frozen_decoder
@pytest.mark.slow
def test_capacity_is_refuted_only_by_an_a_and_names_the_oracles(arm_run, verdicts):
    verdict = verdicts[arm_run.arm]
    h7 = verdict.hypotheses["H7"]
    assert (h7.status == "refuted") <= (verdict.scenario == "A"), f"H7 {h7.status} under scenario {verdict.scenario}"
    assert any("oracle" in text for text in h7.evidence), h7.evidence

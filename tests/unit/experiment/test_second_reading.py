"""The second reading agrees with the first on a healthy system; the audits built on it tell what was changed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from etrm.experiment.arms import Arm
from etrm.experiment.evidence import LossEvidence
from etrm.experiment.outcome import own_answers
from etrm.experiment.outcome_audit import outcome_check, spread_faults
from etrm.experiment.preflight.paths import path_checks
from etrm.experiment.scores import rung_evidence
from etrm.experiment.second_reading import direct_contexts, read
from etrm.faults.bank import Bench
from etrm.faults.matrix import bench_of
from etrm.models.encoders import build_encoder
from etrm.models.etrm import ETRM

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, Arm, ETRM, ETRM]:
    from etrm.experiment.arms import build_arm

    bench = bench_of("micro", tmp_path_factory.mktemp("bench"))
    torch.manual_seed(0)
    spec = bench.bundle.spec()
    one, two = (ETRM(build_encoder(bench.config.encoder, spec), bench.bundle.decoder, spec) for _ in range(2))
    return bench, build_arm(bench.config, bench.bundle), one, two


def loss(value: float) -> LossEvidence:
    return LossEvidence(2.0, value, 0.01, value, None, None, None, None, False, None)


def test_both_readings_agree(system: tuple[Bench, Arm, ETRM, ETRM]) -> None:
    bench, arm, model, _ = system
    told = own_answers(bench.config, model, arm.probe)
    mine = read(model.decoder, 2, arm.probe.batch, direct_contexts(model, arm.probe.batch, 64), "softmax", 64)
    assert np.array_equal(told.exact, mine.exact) and np.allclose(told.loss, mine.loss, rtol=1e-4)


def test_the_outcome_is_held_against_the_second_reading(system: tuple[Bench, Arm, ETRM, ETRM], tmp_path: Path) -> None:
    bench, arm, model, untrained = system
    arm = replace(arm, rungs=arm.rungs[:1])
    constant = model.spec.context_mean
    rung = rung_evidence(arm.rungs[0], model, untrained, constant, bench.config, bench.bundle.side)
    end = float(own_answers(bench.config, model, arm.probe).loss.mean())

    def faults(found: object, probe: float = end) -> str:
        checked = outcome_check(bench.config, arm, model, 2, loss(probe), (found,))  # type: ignore[arg-type]
        return "" if checked.ok else checked.detail

    assert faults(rung) == ""
    assert "probe loss" in faults(rung, 0.5 * end)
    assert "read again" in faults(replace(rung, score=replace(rung.score, k=rung.score.k + 20)))
    copied = replace(rung.nulls["copy_input"], k=rung.nulls["copy_input"].k + 1)
    assert "copying the input" in faults(replace(rung, nulls={**rung.nulls, "copy_input": copied}))
    turned = replace(rung.nulls["best_dihedral"], lift_ci95=(0.2, 0.4))
    assert "outside of its own interval" in faults(replace(rung, nulls={**rung.nulls, "best_dihedral": turned}))


def test_paths_agree_on_a_healthy_system_and_shared_weights_are_told(system: tuple[Bench, Arm, ETRM, ETRM]) -> None:
    bench, arm, model, untrained = system
    found = path_checks(bench.config, arm, bench.bundle, model, untrained)
    assert [(c.name, c.ok) for c in found] == [("paths_agree", True), ("encoder_as_asked", True)], found
    shared = path_checks(bench.config, arm, bench.bundle, model, model)
    assert shared[1].ok is False and "those that are trained" in shared[1].detail


@pytest.mark.parametrize(("points", "fine"), [([125, 250, 375, 500], True), ([497, 498, 499, 500], False)])
def test_evaluations_must_be_spread_over_the_run(points: list[int], fine: bool) -> None:
    assert (spread_faults(points, 500, 4) == []) is fine

"""The healthy system over seeds: no check may cry wolf. `pytest -m seeds --seeds N` (default 3)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from etrm.experiment.arms import build_arm
from etrm.experiment.frozen_decoder import FrozenDecoderRun
from etrm.experiment.preflight import preflight
from etrm.experiment.preflight.update import update_checks
from etrm.experiment.validity import decoder_checks
from etrm.experiment.verdict import judge
from etrm.faults.matrix import bench_of
from etrm.models.encoders import build_encoder
from etrm.models.etrm import ETRM
from etrm.training.loop import encoder_state
from etrm.training.update import LossHead

pytestmark = pytest.mark.seeds

DEFAULT = 3


def test_no_fast_check_fails_on_a_healthy_system(tmp_path: Path, run_options: Any) -> None:
    failed = []
    seeds = run_options.seeds or DEFAULT
    for seed in range(seeds):
        bench = bench_of("micro", tmp_path)
        config = replace(bench.config, system=replace(bench.config.system, seed=seed))
        torch.manual_seed(seed)
        bundle = bench.bundle
        model = ETRM(build_encoder(config.encoder, bundle.spec()), bundle.decoder, bundle.spec())
        untrained = ETRM(build_encoder(config.encoder, bundle.spec()), bundle.decoder, bundle.spec())
        head = LossHead(model, config.loss)
        arm = build_arm(config, bundle)
        checks = [*decoder_checks(head.decoder, bundle), *arm.checks, *preflight(config, arm, bundle, model, untrained)]
        checks += update_checks(config, arm, encoder_state(config, head, len(arm.source.task_ids)))
        failed += [f"seed {seed}: {c.name}: {c.detail}" for c in checks if c.ok is not True]
    assert not failed, f"{len(failed)} false alarms over {seeds} seeds: {failed[:3]}"


@pytest.mark.slow
def test_no_short_run_of_a_healthy_system_is_refused(tmp_path: Path, run_options: Any) -> None:
    wrong = []
    seeds = min(run_options.seeds or DEFAULT, 20)
    for seed in range(seeds):
        bench = bench_of("micro", tmp_path)
        budget = replace(bench.config.budget, updates=100, evaluations=2, log_every=25)
        config = replace(bench.config, budget=budget, system=replace(bench.config.system, seed=seed))
        config = replace(config, optim=replace(config.optim, warmup_updates=10))
        evidence = FrozenDecoderRun(config, "short", tmp_path / str(seed), bundle=bench.bundle).run()
        failed = [c.name for c in evidence.validity if c.ok is False]
        if failed or evidence.gradient.state != "intact" or judge(evidence).scenario in ("B", "C", "INVALID"):
            wrong.append(f"seed {seed}: {failed}, gradient {evidence.gradient.state} at {evidence.gradient.place}")
    assert not wrong, f"{len(wrong)} of {seeds} healthy runs were refused: {wrong[:3]}"

"""Fixtures of the experiment's lanes: one finished run an arm, shared by every assertion on it (and by later
sessions).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from etrm.config.compose import load, to_dict
from etrm.config.schema import RunConfig
from etrm.experiment.evidence import Evidence
from etrm.experiment.frozen_decoder import FrozenDecoderRun
from etrm.experiment.run_cache import key_parts
from etrm.models.bundle import load_bundle


class ArmRun:
    """A finished run: its evidence, its run.json and its config."""

    def __init__(self, arm: str, config: RunConfig, folder: Path) -> None:
        self.arm, self.config, self.folder = arm, config, folder
        self.evidence = Evidence.from_json(json.loads((folder / "evidence.json").read_text()))
        self.record: dict[str, Any] = json.loads((folder / "run.json").read_text())

    def check(self, name: str) -> Any:
        """The validity check of that name; fails where the run has none."""
        found = [c for c in self.evidence.validity if c.name == name]
        assert found, f"{self.arm}: check {name} was not made; made were {[c.name for c in self.evidence.validity]}"
        return found[0]


@pytest.fixture(scope="session")
def run_arm(run_options: Any, run_cache: Any, progress: Any, torch_threads: int) -> Callable[[str], ArmRun]:
    """Run (or reuse) an arm in this session's length: full with --slow, else short."""

    def run(arm: str) -> ArmRun:
        length = "full" if run_options.slow else "short"
        name = f"cfg_{arm}" if length == "full" or arm == "micro" else f"cfg_{arm}_short"
        overrides = [f"encoder.name={run_options.encoder}"] if run_options.encoder else []
        config = load(RunConfig, name, overrides)
        bundle = load_bundle(config.bundle)
        parts = key_parts(
            {"length": length, **to_dict(config)},
            bundle=bundle.sha256,
            encoder=config.encoder.name,
            threads=torch_threads,
            seed=config.system.seed,
            device="cpu",
        )

        def produce(folder: Path) -> None:
            bars: dict[str, Any] = {}

            def report(phase: str, done: int, total: int, loss: float) -> None:
                if phase not in bars:
                    bars[phase] = progress.callback(f"{arm}: {phase}", total)
                bars[phase](1, loss=round(loss, 3))

            FrozenDecoderRun(config, length, folder, report, bundle=bundle).run()

        cached = run_cache.get_or_run(parts, produce, fresh=run_options.fresh)
        progress.say(cached.describe())
        return ArmRun(arm, config, cached.path)

    return run


@pytest.fixture(scope="session")
def calibration(run_arm: Callable[[str], ArmRun]) -> ArmRun:
    """The calibration arm; the root conftest.py knows it by name and, in a full run, shows and writes its verdict."""
    return run_arm("calibration")

"""Fixtures of the experiment's lanes: one finished run an arm, shared by every assertion on it (and by later sessions).

A full session also earns the instrument's certificate and judges both arms under it; the root conftest.py then writes
verdict.json and the report and shows the panel.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from etrm.config.compose import load, to_dict
from etrm.config.schema import RunConfig
from etrm.errors import EvaluationError
from etrm.experiment.certificate import certify, planted, read_trials, write_trials
from etrm.experiment.evidence import Certificate, Evidence
from etrm.experiment.frozen_decoder import FrozenDecoderRun
from etrm.experiment.run_cache import key_parts
from etrm.experiment.verdict import Verdict, judge
from etrm.models.bundle import load_bundle

ARMS = {
    "calibration": pytest.param("calibration", marks=pytest.mark.calibration),
    "arc": pytest.param("arc", marks=pytest.mark.arc),
}


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
def cached(run_options: Any, run_cache: Any, progress: Any, torch_threads: int) -> Callable[..., Path]:
    """`cached(label, length, config, produce)`: the folder of a finished run of this key, produced or reused."""

    def get(label: str, length: str, config: RunConfig, produce: Callable[[Path], None]) -> Path:
        parts = key_parts(
            {"length": length, "label": label, **to_dict(config)},
            bundle=load_bundle(config.bundle).sha256,
            encoder=config.encoder.name,
            threads=torch_threads,
            seed=config.system.seed,
            device="cpu",
        )
        found = run_cache.get_or_run(parts, produce, fresh=run_options.fresh)
        progress.say(f"{label}: {found.describe()}")
        folder: Path = found.path
        return folder

    return get


@pytest.fixture(scope="session")
def run_arm(run_options: Any, cached: Callable[..., Path], progress: Any) -> Callable[..., ArmRun]:
    """Run (or reuse) an arm in this session's length: full with --slow, else short. `own`: not the user's encoder."""
    finished: dict[tuple[str, bool], ArmRun] = {}

    def run(arm: str, own: bool = False) -> ArmRun:
        user = run_options.encoder if run_options.encoder and not own else None
        key = (arm, user is None)
        if key in finished:
            return finished[key]
        length = "full" if run_options.slow else "short"
        name = f"cfg_{arm}" if length == "full" else f"cfg_{arm}_short"
        config = load(RunConfig, name, [f"encoder.name={user}"] if user else [])

        def produce(folder: Path) -> None:
            bars: dict[str, Any] = {}

            def report(phase: str, done: int, total: int, loss: float) -> None:
                if phase not in bars:
                    bars[phase] = progress.callback(f"{arm}: {phase}", total)
                bars[phase](1, loss=round(loss, 3))

            FrozenDecoderRun(config, length, folder, report).run()

        finished[key] = ArmRun(arm, config, cached(f"{arm} arm, {length}", length, config, produce))
        return finished[key]

    return run


@pytest.fixture(scope="session")
def certificate(run_arm: Callable[..., ArmRun], cached: Callable[..., Path], progress: Any) -> Certificate | str:
    """The instrument's certificate, or why it has none. Planted faults run once a key, like every run."""
    healthy = run_arm("calibration", own=True)

    def produce(folder: Path) -> None:
        progress.say("certificate: planting three faults on the calibration arm")
        write_trials(folder, planted(healthy.config, load_bundle(healthy.config.bundle), folder))

    trials = read_trials(cached("certificate", "certificate", healthy.config, produce))
    try:
        return certify(healthy.evidence, trials)
    except EvaluationError as error:
        return str(error)


@pytest.fixture(scope="session")
def judged_arm(
    run_arm: Callable[..., ArmRun], run_options: Any, session_runs: Any, request: pytest.FixtureRequest
) -> Callable[[str], ArmRun]:
    """`judged_arm(arm)`: its run, noted for the session's report; in a full session its evidence carries the
    certificate.
    """

    def judged(arm: str) -> ArmRun:
        run = run_arm(arm)
        if run_options.slow:
            held = request.getfixturevalue("certificate")
            run.evidence = replace(run.evidence, certificate=held if isinstance(held, Certificate) else None)
        session_runs.note(arm, run)
        return run

    return judged


@pytest.fixture(scope="session", params=list(ARMS.values()))
def arm_run(request: pytest.FixtureRequest, judged_arm: Callable[[str], ArmRun]) -> ArmRun:
    """Each arm's finished run in turn."""
    return judged_arm(request.param)


@pytest.fixture(scope="session")
def verdicts(judged_arm: Callable[[str], ArmRun]) -> dict[str, Verdict]:
    """Both arms judged, under the certificate in a full session."""
    return {arm: judge(judged_arm(arm).evidence) for arm in ARMS}

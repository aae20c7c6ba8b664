"""Every situation that the judge can end in has steps, and the published plan's steps are among them."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from etrm.config.compose import load
from etrm.config.schema import RunConfig
from etrm.experiment.checks import CHECK_RULES
from etrm.experiment.next_steps import NEXT_STEPS
from etrm.experiment.questions import PretrainingConfig

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parents[3]
COMMANDS = sorted(
    {s.command for steps in NEXT_STEPS.values() for s in steps} | {rule.remedy for rule in CHECK_RULES.values()}
)


def of_kind(prefix: str) -> list[str]:
    return [c for c in COMMANDS if c.startswith(prefix)]


@pytest.mark.parametrize("command", of_kind("python pretrain_etrm.py"))
def test_a_training_command_composes(command: str) -> None:
    words = shlex.split(command)
    config = load(PretrainingConfig, words[words.index("--config-name") + 1], words[4:], ROOT / "config")
    assert isinstance(config, RunConfig)


@pytest.mark.slow
@pytest.mark.parametrize("command", of_kind("pytest "))
def test_a_pytest_command_selects_tests(command: str) -> None:
    words = [sys.executable, "-m", *shlex.split(command), "--collect-only", "-q", "-p", "no:cacheprovider"]
    words = [w for w in words if w not in ("--encoder", "my_encoder.py:make")]  # the person's own file
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout[-500:]}{done.stderr[-500:]}"


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(("python -m ", "python scripts/"))])
def test_a_command_takes_its_options(command: str) -> None:
    """`--help` after the options: argparse has then accepted each of them by name."""
    words = [sys.executable, *shlex.split(command)[1:], "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "usage" in done.stdout, f"{command}: {done.stderr[-500:]}"
    options = [w for w in words if w.startswith("--")]
    assert all(o in done.stdout for o in options), f"{command}: {options} in {done.stdout}"


def test_every_step_has_a_command_and_a_reason() -> None:
    for situation, steps in NEXT_STEPS.items():
        assert steps, situation
        assert all(s.command.startswith(("python ", "pytest ", "make ")) and s.why for s in steps), situation
    assert all(rule.remedy.startswith(("python ", "pytest ", "make ")) for rule in CHECK_RULES.values())


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        ("A", ["unfreeze", "interfere", "schedule"]),
        ("B", ["gradient of every encoder layer", "breaks the path", "context to loss", "H2"]),
        ("C", ["varies between tasks", "stronger encoder", "range with the decoder's own table", "width, depth"]),
    ],
)
def test_the_plans_next_steps(scenario: str, words: list[str]) -> None:
    text = " ".join(step.why for step in NEXT_STEPS[scenario])
    assert all(word in text for word in words)

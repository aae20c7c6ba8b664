"""Every situation that the judge can end in has steps, and the published plan's steps are among them."""

import pytest

from etrm.experiment.checks import CHECK_RULES
from etrm.experiment.next_steps import NEXT_STEPS

pytestmark = pytest.mark.fast


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

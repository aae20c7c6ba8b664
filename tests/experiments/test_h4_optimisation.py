"""H4: the planned budget is executed and the loss on a fixed probe set falls, paired by task."""

import pytest

pytestmark = pytest.mark.frozen_decoder

ALPHA = 0.01


def test_the_executed_budget_is_the_planned_one(arm_run):
    found = arm_run.check("budget")
    assert found.ok is True, f"{found.detail}; {found.remedy}"


def test_the_probe_loss_decreases(arm_run):
    probe = arm_run.record["probe"]
    said = f"probe loss {probe['start']:.3f} to {probe['end']:.3f} nats a token, p {probe['p_decrease']:.2g} over tasks"
    assert probe["end"] < probe["start"], said
    assert probe["p_decrease"] < ALPHA, said

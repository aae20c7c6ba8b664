"""H2: the LM loss alone reaches every encoder parameter, sample and context token through the frozen decoder."""

import pytest

from etrm.experiment.watch import FIRST, THEN

pytestmark = pytest.mark.frozen_decoder


def test_every_parameter_gets_a_finite_gradient(arm_run):
    watch = arm_run.record["watch"]
    assert watch["finite"], f"a gradient norm is not finite within {watch['updates']} updates: {watch['norms'][-1]}"


def test_every_parameter_gets_a_gradient_within_the_first_updates(arm_run):
    late = arm_run.record["watch"]["late"]
    assert not late, f"{len(late)} parameters had no gradient within the first {FIRST} updates: {late}"


def test_every_parameter_keeps_its_gradient(arm_run):
    missing = arm_run.record["watch"]["missing"]
    assert not missing, (
        f"{len(missing)} (update, parameter) without gradient in the {THEN} updates after: {missing[:5]}"
    )


def test_every_sample_and_token_has_a_path(arm_run):
    watch = arm_run.record["watch"]
    assert not any(watch["lost_samples"]), f"samples without gradient, by update: {watch['lost_samples']}"
    assert not any(watch["lost_tokens"]), f"(sample, token) without gradient, by update: {watch['lost_tokens']}"


def test_the_encoder_is_read_at_every_update(arm_run):
    watch = arm_run.record["watch"]
    assert watch["encoder_calls"] == watch["updates"], (
        f"{watch['encoder_calls']} encoder calls in {watch['updates']} updates"
    )


def test_the_gradient_is_intact(arm_run):
    gradient = arm_run.evidence.gradient
    assert gradient.state == "intact", f"gradient {gradient.state} at {gradient.place}: {gradient.detail}"

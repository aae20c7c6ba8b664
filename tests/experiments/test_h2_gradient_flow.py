"""H2: the LM loss alone reaches every encoder parameter, sample and context token through the frozen decoder."""

import pytest

from etrm.experiment.watch import FIRST, THEN

pytestmark = [pytest.mark.frozen_decoder, pytest.mark.calibration]


def test_every_parameter_gets_a_finite_gradient(calibration):
    watch = calibration.record["watch"]
    assert watch["finite"], f"a gradient norm is not finite within {watch['updates']} updates: {watch['norms'][-1]}"


def test_every_parameter_gets_a_gradient_within_the_first_updates(calibration):
    late = calibration.record["watch"]["late"]
    assert not late, f"{len(late)} parameters had no gradient within the first {FIRST} updates: {late}"


def test_every_parameter_keeps_its_gradient(calibration):
    missing = calibration.record["watch"]["missing"]
    assert not missing, (
        f"{len(missing)} (update, parameter) without gradient in the {THEN} updates after: {missing[:5]}"
    )


def test_every_sample_and_token_has_a_path(calibration):
    watch = calibration.record["watch"]
    assert not any(watch["lost_samples"]), f"samples without gradient, by update: {watch['lost_samples']}"
    assert not any(watch["lost_tokens"]), f"(sample, token) without gradient, by update: {watch['lost_tokens']}"


def test_the_encoder_is_read_at_every_update(calibration):
    watch = calibration.record["watch"]
    assert watch["encoder_calls"] == watch["updates"], (
        f"{watch['encoder_calls']} encoder calls in {watch['updates']} updates"
    )


def test_the_gradient_is_intact(calibration):
    gradient = calibration.evidence.gradient
    assert gradient.state == "intact", f"gradient {gradient.state} at {gradient.place}: {gradient.detail}"

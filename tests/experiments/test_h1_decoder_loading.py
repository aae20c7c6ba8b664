"""H1: the decoder is the pretrained one, whole, and stays bitwise what it was."""

import pytest

pytestmark = pytest.mark.frozen_decoder


@pytest.mark.parametrize("name", ["bundle_whole", "golden_logits", "structure", "decoder_competent"])
def test_the_decoder_is_the_pretrained_one(arm_run, name):
    found = arm_run.check(name)
    assert found.ok is True, f"{name}: {found.detail}; {found.remedy}"


def test_the_decoder_is_bitwise_unchanged(arm_run):
    found = arm_run.check("decoder_unchanged")
    assert found.ok is True, f"{found.detail}; {found.remedy}"


def test_no_optimiser_holds_a_decoder_tensor(arm_run):
    found = arm_run.check("decoder_not_optimised")
    assert found.ok is True, f"{found.detail}; {found.remedy}"

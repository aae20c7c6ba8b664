"""The gradient watch names the line, tells a scaled gradient from a true one, and leaves nothing behind.

On the micro bundle with the smallest encoder; `edit` plants a fault in the loss head, as a user's mistake would.
"""

import numpy as np
import pytest
import torch

from etrm.config.compose import load
from etrm.config.schema import RunConfig
from etrm.errors import EncoderContractError
from etrm.experiment.arms import build_arm
from etrm.experiment.watch import FIRST, THEN, gradient_watch
from etrm.models.bundle import load_bundle
from etrm.models.encoders import Encoded, build_encoder
from etrm.models.etrm import ETRM
from etrm.training.update import LossHead

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def parts():
    config = load(RunConfig, "cfg_micro", ["encoder.hidden_size=16", "encoder.name=correspondence"])
    bundle = load_bundle("micro")
    return config, bundle, build_arm(config, bundle)


def watch(parts, edit=lambda head: None):
    config, bundle, arm = parts
    torch.manual_seed(0)
    head = LossHead(ETRM(build_encoder(config.encoder, bundle.spec()), bundle.decoder, bundle.spec()), config.loss)
    edit(head)
    return head, gradient_watch(config, head, arm.source, torch.device("cpu"))


def changed(change):
    def edit(head):
        whole = head.model.context
        head.model.context = lambda episodes: Encoded(change(whole(episodes).context), {})

    return edit


def line_of(function):
    return f"{__file__.rsplit('/', 1)[-1]}:{function.__code__.co_firstlineno}"


def hooked(factor):
    def change(context):
        if context.requires_grad:
            context.register_hook(lambda g: g * factor)
        return context

    return change


def test_a_healthy_encoder_is_true_to_finite_differences_and_left_as_it_was(parts):
    state = torch.get_rng_state()
    head, found = watch(parts)
    assert (found.state.state, found.relation, found.place) == ("intact", "true", ""), found.diagnosis
    assert found.encoder_calls == found.updates == FIRST + THEN
    torch.manual_seed(0)
    fresh = build_encoder(parts[0].encoder, parts[1].spec()).state_dict()
    assert all(torch.equal(fresh[n], v) for n, v in head.model.encoder.state_dict().items())
    assert all(p.grad is None for p in head.model.encoder.parameters())
    assert state.shape == torch.get_rng_state().shape


def test_a_cut_names_its_file_and_line(parts):
    cut = lambda c: c.detach()  # noqa: E731
    _, found = watch(parts, changed(cut))
    assert (found.state.state, found.relation) == ("blocked", "cut"), found.diagnosis
    assert line_of(cut) in found.place and "c.detach()" in found.place, found.place


def test_a_starved_sample_and_token_name_their_line(parts):
    rows = lambda c: torch.cat((c[:1], c[1:].detach()))  # noqa: E731
    tokens = lambda c: torch.cat((c[:, :1], torch.zeros_like(c[:, 1:])), dim=1)  # noqa: E731
    for change in (rows, tokens):
        _, found = watch(parts, changed(change))
        assert found.state.state == "partial", found.diagnosis
        assert line_of(change) in found.place, found.place


@pytest.mark.parametrize(
    ("factor", "state", "relation"), [(100.0, "partial", "scaled"), (1e-12, "vanishing", "scaled")]
)
def test_a_scaled_gradient_is_told_apart_with_its_hook(parts, factor, state, relation):
    _, found = watch(parts, changed(hooked(factor)))
    assert (found.state.state, found.relation) == (state, relation), found.diagnosis
    assert "register_hook" in found.place, found.place


def test_a_frozen_encoder_is_blocked_not_a_crash(parts):
    _, found = watch(parts, lambda head: head.model.encoder.requires_grad_(False))
    assert found.state.state == "blocked"
    assert "frozen" in found.diagnosis.detail
    assert found.late() == [n for n, _ in found.norms[0].items()]


def test_an_encoder_without_parameters_is_refused_in_one_sentence(parts):
    class Nothing(torch.nn.Module):
        def forward(self, demo_inputs, demo_labels, demo_mask):
            return torch.zeros(len(demo_mask), 2, 32)

    with pytest.raises(EncoderContractError, match="nothing to train"):
        watch(parts, lambda head: setattr(head.model, "encoder", Nothing()))


def test_an_encoder_that_does_not_repeat_says_that_it_was_not_measured(parts):
    rng = np.random.default_rng(0)
    _, found = watch(parts, changed(lambda c: c + float(rng.normal()) * 0.1))
    assert found.relation == "unmeasured"
    assert "could not be taken" in found.diagnosis.detail

"""The rehearsed updates agree with their transcription under every optimiser, fresh and warm, and see a wrong step."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from etrm.config.compose import load
from etrm.config.schema import RunConfig
from etrm.experiment.arms import Arm, build_arm
from etrm.experiment.preflight.update import rehearsed
from etrm.models.bundle import load_bundle
from etrm.models.encoders import build_encoder
from etrm.models.etrm import ETRM, Episodes
from etrm.training.loop import encoder_state
from etrm.training.update import LossHead, TrainState, train_batch_encoder

pytestmark = pytest.mark.thorough

SLOTS = 8


@pytest.fixture(params=["muon", "adamw", "adam_atan2"])
def training(request: pytest.FixtureRequest) -> Iterator[tuple[RunConfig, Arm, TrainState]]:
    """The micro arm with a small encoder and batch under one optimiser, after two updates."""
    config = load(RunConfig, "cfg_micro", [f"optim.name={request.param}", f"budget.batch_size={SLOTS}"])
    config = replace(config, encoder=replace(config.encoder, hidden_size=32))
    bundle = load_bundle(config.bundle)
    arm = build_arm(config, bundle)
    torch.manual_seed(0)
    model = ETRM(build_encoder(config.encoder, bundle.spec()), bundle.decoder, bundle.spec())
    state = encoder_state(config, LossHead(model, config.loss), len(arm.source.task_ids))
    state.model.train()
    state.model.decoder.eval()
    assert rehearsed(config, arm, state, 2) == []
    rng = np.random.default_rng(0)
    for _ in range(2):
        batch = Episodes.of(arm.source.sample(SLOTS, rng), torch.device("cpu"))
        train_batch_encoder(config, state, batch, SLOTS)
    yield config, arm, state


def test_a_warm_optimiser_is_followed_from_its_own_moments(training: tuple[RunConfig, Arm, TrainState]) -> None:
    config, arm, state = training
    assert rehearsed(config, arm, state, 2) == []
    optimizer, _ = state.optimizers["encoder"]
    for values in optimizer.state.values():
        for value in values.values():
            if isinstance(value, torch.Tensor) and value.dim() > 0:
                value.mul_(1.5)
    assert rehearsed(config, arm, state, 2) == [], "moments are the optimiser's own, whatever they are"


@pytest.mark.parametrize("matrices", [True, False], ids=["a matrix", "a vector"])
def test_one_tensor_that_stands_still_is_seen(training: tuple[RunConfig, Arm, TrainState], matrices: bool) -> None:
    config, arm, state = training
    optimizer, _ = state.optimizers["encoder"]
    held = [p for group in optimizer.param_groups for p in group["params"]]
    one = max((p for p in held if (p.dim() == 2) == matrices), key=torch.Tensor.numel)
    before: list[torch.Tensor] = []
    hooks = [
        optimizer.register_step_pre_hook(lambda *_: before.append(one.detach().clone())),
        optimizer.register_step_post_hook(lambda *_: one.data.copy_(before[-1])),
    ]
    assert rehearsed(config, arm, state, 2), f"a tensor of {tuple(one.shape)} stood still unseen"
    for hook in hooks:
        hook.remove()

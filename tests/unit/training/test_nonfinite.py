"""An update that meets a NaN leaves a file, names the layer, and the file repeats the failure."""

from pathlib import Path

import pytest
import torch

from etrm.config.compose import load
from etrm.config.schema import RunConfig
from etrm.errors import CheckpointError, EncoderContractError, NonFiniteError
from etrm.models.bundle import load_bundle
from etrm.models.etrm import Episodes
from etrm.training.loop import encoder_state
from etrm.training.nonfinite import dumping, main, replay
from etrm.training.run import build_head
from etrm.training.update import TrainState, train_batch_encoder

pytestmark = pytest.mark.fast
CPU = torch.device("cpu")
SIZE = ["encoder.hidden_size=32", "encoder.num_heads=2", "encoder.layers=1", "budget.batch_size=4"]


@pytest.fixture
def micro() -> tuple[RunConfig, TrainState, Episodes]:
    import numpy as np

    from etrm.experiment.arms import build_arm

    config = load(RunConfig, "cfg_micro", SIZE)
    bundle = load_bundle("micro")
    state = encoder_state(config, build_head(config, bundle, CPU), 148)
    return config, state, Episodes.of(build_arm(config, bundle).source.sample(4, np.random.default_rng(0)), CPU)


def spoil(state: TrainState, part: str) -> None:
    """One weight that turns what flows through it infinite, or a gradient that does."""
    parameter = next(p for n, p in state.model.named_parameters() if part in n)
    with torch.no_grad():
        parameter.fill_(3e38)


def fail(config: RunConfig, state: TrainState, batch: Episodes, folder: Path) -> str:
    with (
        pytest.raises((NonFiniteError, EncoderContractError)) as caught,
        dumping(config, state, batch, folder),
    ):
        train_batch_encoder(config, state, batch, config.budget.batch_size)
    return str(caught.value)


@pytest.mark.parametrize("part", ["model.encoder.", "model.decoder.lm_head"])
def test_the_dump_names_a_layer_and_repeats_the_failure(micro, tmp_path: Path, part: str, capsys) -> None:
    config, state, batch = micro
    train_batch_encoder(config, state, batch, 4)  # so that a carry and used generators are in the file
    spoil(state, part)
    before = {n: t.clone() for n, t in state.model.state_dict().items()}
    said = fail(config, state, batch, tmp_path)
    assert "first not finite: the output of model." in said and "python -m etrm.training.nonfinite" in said
    assert all(torch.equal(t, before[n]) for n, t in state.model.state_dict().items()) and state.step == 1
    path = tmp_path / "nonfinite_update_1.pt"
    then, now = replay(path)
    assert now == then and said.startswith(then)
    assert main([str(path)]) == 0
    assert "then:" in capsys.readouterr().out


def test_a_gradient_alone_is_named_by_its_parameter(micro, tmp_path: Path) -> None:
    config, state, batch = micro
    name, parameter = next((n, p) for n, p in state.model.named_parameters() if p.requires_grad)
    parameter.register_hook(lambda grad: grad * float("inf"))
    assert f"the gradient of {name}" in fail(config, state, batch, tmp_path)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_replay_computes_in_the_precision_of_the_run(micro, tmp_path: Path, precision: str, monkeypatch) -> None:
    config, state, batch = micro
    spoil(state, "model.encoder.")
    fail(config, state, batch, tmp_path)
    payload = torch.load(tmp_path / "nonfinite_update_0.pt", weights_only=True)
    payload["config"]["precision"] = precision
    torch.save(payload, tmp_path / "told.pt")
    used: list[bool] = []
    monkeypatch.setattr(
        "etrm.training.nonfinite.train_batch_encoder", lambda c, s, *_: used.append(s.model.model.autocast)
    )
    replay(tmp_path / "told.pt")
    assert used == [precision == "bfloat16"]


def test_a_breach_of_the_contract_without_a_nan_leaves_no_file(micro, tmp_path: Path) -> None:
    config, state, batch = micro
    with pytest.raises(EncoderContractError, match="shape"), dumping(config, state, batch, tmp_path):
        raise EncoderContractError("the context has another shape")
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_was_mended_lets_the_update_through(micro, tmp_path: Path) -> None:
    """The replay judges the file, so it must be able to say that the failure is gone."""
    config, state, batch = micro
    path = tmp_path / "nonfinite_update_0.pt"
    spoil(state, "model.encoder.")
    fail(config, state, batch, tmp_path)
    payload = torch.load(path, weights_only=True)
    payload["model"] = build_head(config, load_bundle("micro"), CPU).state_dict()
    torch.save(payload, path)
    assert replay(path)[1] is None and main([str(path)]) == 1


@pytest.mark.parametrize("payload", [{"format": 1}, {"step": 1, "config": {}}])
def test_another_file_is_refused(tmp_path: Path, payload: object) -> None:
    torch.save(payload, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="no dump of an update"):
        replay(tmp_path / "x.pt")
    assert main([str(tmp_path / "x.pt")]) == 2

"""The loop and its checkpoints: exact resume, staged freezing, budgets, metrics, and files that must be refused."""

import errno
import json
import math
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from etrm.config.schema import BudgetConfig, RunConfig
from etrm.errors import CheckpointError, ConfigError, NonFiniteError
from etrm.training.checkpoint import (
    FORMAT,
    PARTS,
    checkpoint_folder,
    read_checkpoint,
    refuse_incomplete,
    resume,
    save_checkpoint,
    steps_in,
)
from etrm.training.loop import MetricsLog, averaged, evaluation_points, planned_updates
from etrm.training.update import TrainState, train_batch_encoder

pytestmark = pytest.mark.fast


def weights(state: TrainState) -> dict[str, Tensor]:
    """Everything that a resume must restore bitwise, by name."""
    flat = dict(state.model.state_dict())
    flat |= {f"ema/{n}": t for n, t in (state.ema.shadow if state.ema else {}).items()}
    for part, (optimizer, _) in state.optimizers.items():
        for index, values in optimizer.state_dict()["state"].items():
            flat |= {f"{part}/{index}/{n}": torch.as_tensor(v) for n, v in values.items()}
    return flat


def equal(mine: TrainState, theirs: TrainState) -> bool:
    a, b = weights(mine), weights(theirs)
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


# ---- resume -----------------------------------------------------------------------------------------------------

VARIANTS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adam_atan2": {"optim": {"name": "adam_atan2"}},
    "muon": {"optim": {"name": "muon"}},
    "no EMA": {"optim": {"ema_decay": 0.0}},
    "joined before the stop": {"freeze": {"decoder_updates": 4}},
    "joined at the stop": {"freeze": {"decoder_updates": 6}},
    "joined after the stop": {"freeze": {"decoder_updates": 8}},
    "joined from the start": {"freeze": {"decoder_updates": 0}},
}


@pytest.mark.thorough
@pytest.mark.parametrize("variant", VARIANTS)
def test_twelve_updates_equal_six_and_a_resume_bitwise(toy: Any, tmp_path: Path, variant: str) -> None:
    config = toy.config(**VARIANTS[variant])
    straight = toy.state(config, halt_bias=0.0)
    record = toy.fit(config, straight, tmp_path / "straight")
    toy.fit(config, toy.state(config, halt_bias=0.0), tmp_path / "resumed", stop_after=6)
    resumed = toy.state(config, halt_bias=0.0)
    torch.manual_seed(12345)  # a resume may not depend on the global generator
    again = toy.fit(config, resumed, tmp_path / "resumed")
    assert equal(straight, resumed) and straight.step == resumed.step == 12
    assert again == record and record.executed_updates == record.planned_updates == 12
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("straight", "resumed")]
    assert metrics[0] == metrics[1] and metrics[0].count(b"\n") == 4


@pytest.mark.thorough
def test_a_run_killed_between_checkpoints_repeats_what_it_lost_and_its_log_lines_once(toy: Any, tmp_path: Path) -> None:
    config = toy.config(budget={"checkpoint_every": 6})
    straight = toy.state(config)
    toy.fit(config, straight, tmp_path / "straight")

    class Killed(Exception):
        """Stands for a power cut."""

    def kill(step: int, loss: float) -> None:
        if step == 10:
            raise Killed

    with pytest.raises(Killed):
        toy.fit(config, toy.state(config), tmp_path / "killed", report=kill)
    log = tmp_path / "killed" / "metrics.jsonl"
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [3, 6, 9]
    log.write_text(log.read_text() + '{"step": 12, "train/lm')  # a line that the power cut left unfinished
    resumed = toy.state(config)
    toy.fit(config, resumed, tmp_path / "killed")
    assert equal(straight, resumed)
    assert log.read_bytes() == (tmp_path / "straight" / "metrics.jsonl").read_bytes()


def test_the_carry_is_part_of_the_checkpoint(toy: Any, tmp_path: Path) -> None:
    config = toy.config()
    state = toy.state(config, halt_bias=0.0)
    toy.fit(config, state, tmp_path, stop_after=6)
    other, rng = toy.state(config, halt_bias=0.0), np.random.default_rng(99)
    resume(tmp_path / "steps" / "step_6", config, other, rng)
    assert state.carry is not None and other.carry is not None
    assert not state.carry.halted.all(), "the toy must stop in the middle of an episode"
    mine, theirs = state.carry, other.carry
    pairs = [*zip(mine.latents, theirs.latents, strict=True), (mine.steps, theirs.steps), (mine.halted, theirs.halted)]
    pairs += [(getattr(mine.episodes, n), getattr(theirs.episodes, n)) for n in mine.episodes.__dataclass_fields__]
    assert all(torch.equal(a, b) for a, b in pairs)
    assert (other.step, other.episodes_entered) == (6, state.episodes_entered)


def test_a_checkpoint_of_another_config_is_refused_by_the_name_of_the_section(toy: Any, tmp_path: Path) -> None:
    config = toy.config()
    toy.fit(config, toy.state(config), tmp_path, stop_after=6)
    changed = toy.config(optim={"lr": 1e-4})
    with pytest.raises(CheckpointError, match=r"another config \(optim\)"):
        toy.fit(changed, toy.state(changed), tmp_path)


def test_a_checkpoint_over_another_decoder_or_encoder_is_refused_and_changes_nothing(toy: Any, tmp_path: Path) -> None:
    """The config names the bundle and the encoder's file, not what stands in them."""
    config = toy.config()
    toy.fit(config, toy.state(config), tmp_path, stop_after=6)
    path = tmp_path / "steps" / "step_6"
    remade, wider = toy.state(config, decoder_seed=2), toy.state(toy.config(encoder={"hidden_size": 32}))
    for state, message in ((remade, "frozen model.decoder"), (wider, r"model.encoder.*expected")):
        before = {n: t.clone() for n, t in weights(state).items()}
        with pytest.raises(CheckpointError, match=message):
            resume(path, config, state, np.random.default_rng(0))
        assert all(torch.equal(t, before[n]) for n, t in weights(state).items()) and state.step == 0


@pytest.mark.thorough
def test_an_optimiser_after_a_resume_still_holds_the_models_own_parameters(toy: Any, tmp_path: Path) -> None:
    """Fault 47."""
    config = toy.config(freeze={"decoder_updates": 4})
    toy.fit(config, toy.state(config), tmp_path, stop_after=6)
    state = toy.state(config)
    toy.fit(config, state, tmp_path)
    held = [id(p) for o, _ in state.optimizers.values() for group in o.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in state.model.parameters())


# ---- staged freeze ----------------------------------------------------------------------------------------------


def test_a_staged_freeze_trains_the_encoder_alone_and_then_both(toy: Any, tmp_path: Path) -> None:
    """Faults 4 and 20: nothing trained in the freeze, or the decoder trained in it."""
    config = toy.config(freeze={"decoder_updates": 6}, optim={"weight_decay": 0.0}, budget={"checkpoint_every": 0})
    state = toy.state(config)
    before = {n: p.detach().clone() for n, p in state.model.named_parameters()}
    changed: dict[int, set[str]] = {}

    def look(step: int) -> None:
        changed[step] = {n for n, p in state.model.named_parameters() if not torch.equal(p, before[n])}

    toy.fit(config, state, tmp_path, at={6: look, 12: look})
    encoder = {n for n in before if ".encoder." in n}
    assert changed[6] == encoder
    assert changed[12] == set(before)
    assert set(state.optimizers) == {"encoder", "decoder"} and state.model.decoder.training
    assert state.ema is not None and set(state.ema.shadow) == set(before)


def test_without_a_join_the_decoder_stays_frozen_for_good(toy: Any, tmp_path: Path) -> None:
    config = toy.config(freeze={"decoder_updates": -1})
    state = toy.state(config)
    before = {n: t.clone() for n, t in state.model.decoder.state_dict().items()}
    toy.fit(config, state, tmp_path)
    assert all(torch.equal(t, before[n]) for n, t in state.model.decoder.state_dict().items())
    assert set(state.optimizers) == {"encoder"}


@pytest.mark.thorough
def test_the_joined_decoder_moves_at_its_own_rate(toy: Any, tmp_path: Path) -> None:
    config = toy.config(freeze={"decoder_updates": 0, "joint_lr": 0.0}, optim={"weight_decay": 0.0})
    state = toy.state(config)
    before = {n: p.detach().clone() for n, p in state.model.decoder.named_parameters()}
    toy.fit(config, state, tmp_path)
    assert all(torch.equal(p, before[n]) for n, p in state.model.decoder.named_parameters())


# ---- files ------------------------------------------------------------------------------------------------------


class RunsCode:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("container", ["torch", "pickle"])
def test_an_unsafe_pickle_is_refused_and_not_run(tmp_path: Path, container: str) -> None:
    path, target = tmp_path / "step_1", tmp_path / "was_run"
    if container == "torch":
        torch.save({"format": 1, "model": RunsCode(target)}, path)
    else:
        path.write_bytes(pickle.dumps(RunsCode(target)))
    with pytest.raises(CheckpointError, match="step_1 is truncated or unsafe"):
        read_checkpoint(path)
    assert not target.exists()


@pytest.fixture
def checkpoint(toy: Any, tmp_path: Path) -> Path:
    config = toy.config()
    toy.fit(config, toy.state(config), tmp_path, stop_after=6)
    return tmp_path / "steps" / "step_6"


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(checkpoint: Path, share: float) -> None:
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match="step_6"):
        read_checkpoint(checkpoint)


@pytest.mark.parametrize("seed", range(8))
def test_rubbish_is_refused_by_a_typed_error(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "step_1"
    path.write_bytes(np.random.default_rng(seed).bytes(64 * seed + 1))
    with pytest.raises(CheckpointError, match="step_1"):
        read_checkpoint(path)


@pytest.mark.parametrize("payload", [[1, 2], {"format": 1}, {"format": 99}, torch.zeros(2)], ids=str)
def test_a_torch_file_that_is_no_checkpoint_is_refused(toy: Any, tmp_path: Path, payload: object) -> None:
    torch.save(payload, tmp_path / "step_1")
    config = toy.config()
    with pytest.raises(CheckpointError, match="step_1"):
        resume(tmp_path / "step_1", config, toy.state(config), np.random.default_rng(0))


@pytest.mark.thorough
def test_a_missing_name_lists_those_that_exist_with_their_epochs(toy: Any, tmp_path: Path) -> None:
    config = toy.config(budget={"checkpoint_every": 3})
    toy.fit(config, toy.state(config), tmp_path)
    steps = tmp_path / "steps"
    with pytest.raises(
        CheckpointError, match=r"step_6 does not exist; .* has step_9 \(epoch 4.5\), step_12 \(epoch 6\)"
    ):
        read_checkpoint(steps / "step_6")
    (steps / "step_9").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"step_9 \(cannot be read\), step_12 \(epoch 6\)"):
        read_checkpoint(steps / "step_6")
    with pytest.raises(CheckpointError, match="has no checkpoints"):
        read_checkpoint(tmp_path / "absent" / "step_1")


def test_steps_count_updates_and_only_the_last_two_are_kept(toy: Any, tmp_path: Path) -> None:
    config = toy.config(budget={"checkpoint_every": 3})
    toy.fit(config, toy.state(config), tmp_path)
    assert sorted(steps_in(tmp_path / "steps")) == [9, 12]
    assert read_checkpoint(tmp_path / "steps" / "step_9")["step"] == 9
    assert [p.name for p in (tmp_path / "steps").iterdir() if "partial" in p.name] == []


def test_a_save_that_fails_leaves_the_old_file_whole(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy.config()
    state = toy.state(config)
    rng = np.random.default_rng(0)
    path = save_checkpoint(tmp_path, config, state, rng, 12)
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"step_0 was not written \(No space left on device\).*make room"):
        save_checkpoint(tmp_path, config, state, rng, 12)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["step_0"]  # and no partial file takes up the last room


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../a", "/etc", ".hidden", "a\n", "a b", "a\\b", "~"])
def test_project_and_run_names_cannot_leave_the_checkpoint_folder(tmp_path: Path, name: str) -> None:
    for project, run in ((name, "run"), ("project", name)):
        with pytest.raises(CheckpointError, match="folder name"):
            checkpoint_folder(tmp_path, project, run)


def test_plain_names_become_a_folder(tmp_path: Path) -> None:
    assert checkpoint_folder(tmp_path, "ETRM-Test", "run_1.5") == tmp_path / "ETRM-Test" / "run_1.5"


# ---- budget and metrics -----------------------------------------------------------------------------------------

BUDGET = BudgetConfig(updates=0, epochs=0, batch_size=256, evaluations=1, log_every=1, checkpoint_every=0)


def test_a_budget_is_given_in_updates_or_in_epochs() -> None:
    """Fault 29: 20,000 epochs of 32 tasks in batches of 256 are 2,500 updates, all of them."""
    assert planned_updates(replace(BUDGET, epochs=20_000), 32) == 2500
    assert planned_updates(replace(BUDGET, updates=7), 32) == 7


@pytest.mark.parametrize(("updates", "epochs"), [(0, 0), (5, 5), (0, 1)])
def test_a_budget_that_says_nothing_or_two_things_is_refused(updates: int, epochs: int) -> None:
    with pytest.raises(ConfigError, match=r"budget.updates|less than one update"):
        planned_updates(replace(BUDGET, updates=updates, epochs=epochs), 32)


def test_a_budget_in_epochs_is_executed_as_planned(toy: Any, tmp_path: Path) -> None:
    config = toy.config(budget={"updates": 0, "epochs": 6})
    state = toy.state(config)
    record = toy.fit(config, state, tmp_path)
    assert (record.planned_updates, record.executed_updates, state.step, record.epochs) == (12, 12, 12, 6.0)
    assert record.batch_size == 6 and record.warmup_share == pytest.approx(2 / 12) and record.reached_base_rate
    assert record.episodes == state.episodes_entered <= 12 * 6


@pytest.mark.thorough
def test_the_loop_stops_at_the_plan_and_calls_back_after_the_right_updates(toy: Any, tmp_path: Path) -> None:
    config = toy.config()
    state = toy.state(config)
    calls: list[tuple[int, int]] = []
    points = evaluation_points(12, 4)
    toy.fit(config, state, tmp_path, at=dict.fromkeys(points, lambda step: calls.append((step, state.step))))
    assert calls == [(3, 3), (6, 6), (9, 9), (12, 12)]


@pytest.mark.parametrize(("updates", "count"), [(12, 1), (12, 5), (3, 7), (1, 1), (1000, 9)])
def test_evaluation_points_are_rising_end_at_the_last_update_and_never_come_before_the_first(
    updates: int, count: int
) -> None:
    points = evaluation_points(updates, count)
    assert list(points) == sorted(set(points)) and points[0] >= 1 and points[-1] == updates
    assert len(points) == min(updates, count)


def test_logging_and_checkpoints_that_do_not_fit_together_are_refused(toy: Any, tmp_path: Path) -> None:
    """Otherwise a resumed run averages a line over fewer updates than a straight one."""
    config = toy.config(budget={"checkpoint_every": 4})
    with pytest.raises(ConfigError, match=r"checkpoint_every 4 must be a multiple of budget.log_every 3"):
        toy.fit(config, toy.state(config), tmp_path)
    config = toy.config()
    with pytest.raises(ConfigError, match="stop_after 4 must be a multiple"):
        toy.fit(config, toy.state(config), tmp_path, stop_after=4)


def by_hand(toy: Any, config: RunConfig, state: TrainState) -> list[dict[str, float]]:
    rng = np.random.default_rng(config.system.seed)
    rows = []
    for _ in range(12):
        batch = type(toy.batch()).of(toy.source.sample(6, rng), torch.device("cpu"))
        rows.append(train_batch_encoder(config, state, batch, 6))
    return rows


@pytest.mark.thorough
def test_a_metrics_line_is_the_average_since_the_last_one_not_the_last_minibatch(toy: Any, tmp_path: Path) -> None:
    """Fault 24."""
    config = toy.config()
    state = toy.state(config, halt_bias=0.0)
    toy.fit(config, state, tmp_path)
    rows = by_hand(toy, config, toy.state(config, halt_bias=0.0))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    for i, line in enumerate(lines):
        part = rows[3 * i : 3 * i + 3]
        assert line["train/lm_loss"] == pytest.approx(sum(r["train/lm_loss"] for r in part) / 3)
        assert line["grad/encoder_norm"] == pytest.approx(sum(r["grad/encoder_norm"] for r in part) / 3)
    names = {"train/lm_loss", "train/encoder_token_std", "train/encoder_output_mean", "train/encoder_output_std"}
    assert names | {"grad/encoder_norm"} <= set(lines[0])


def test_nothing_to_measure_is_null_in_the_file_and_left_out_of_averages(tmp_path: Path) -> None:
    assert averaged([{"a": 1.0}, {"a": math.nan, "b": 2.0}, {"a": 3.0}]) == {"a": 2.0, "b": 2.0}
    assert math.isnan(averaged([{"a": math.nan}])["a"])
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    log.write(1, {"a": math.nan, "b": 2.0})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "a": None, "b": 2.0}


def test_a_new_run_does_not_append_to_an_old_log(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path, 0).write(5, {"a": 1.0})
    MetricsLog(path, 0).write(1, {"a": 2.0})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1]


def test_a_run_that_fails_leaves_no_file_open_and_no_checkpoint_of_the_failure(toy: Any, tmp_path: Path) -> None:
    """An open file would be a warning, and warnings are errors here."""
    config = toy.config(budget={"checkpoint_every": 3})
    state = toy.state(config)

    def break_it(step: int) -> None:
        with torch.no_grad():
            state.model.decoder.lm_head.weight.fill_(torch.nan)

    with pytest.raises(NonFiniteError, match="update 3"):
        toy.fit(config, state, tmp_path, at={3: break_it})
    assert steps_in(tmp_path / "steps") == [3]


def test_a_step_that_is_no_number_is_refused_in_one_line(tmp_path: Path) -> None:
    payload = dict.fromkeys(PARTS, None) | {"format": FORMAT, "step": torch.ones(3, 3)}
    with pytest.raises(CheckpointError) as refused:
        refuse_incomplete(tmp_path / "step_4", payload, None)
    assert "\n" not in str(refused.value) and "holds step tensor([[1." in str(refused.value)

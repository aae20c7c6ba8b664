"""One update: what moves and what must not, what is logged, and what stops it before any weight has moved."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from etrm.config.schema import RunConfig
from etrm.errors import BudgetError, NonFiniteError
from etrm.models.encoders import Encoded
from etrm.models.etrm import Episodes, StepOutput
from etrm.training.distributed import Ranks
from etrm.training.losses import StepLoss
from etrm.training.update import LossHead, TrainState, check_finite, step_metrics, table_loss, train_batch_encoder

pytestmark = pytest.mark.fast

BATCH = 6


def update(config: RunConfig, state: TrainState, batch: Episodes, global_batch: float = BATCH) -> dict[str, float]:
    return train_batch_encoder(config, state, batch, global_batch)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in module.state_dict().items()}


def moved(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {n for n, t in module.state_dict().items() if not torch.equal(t, before[n])}


def test_only_the_encoder_moves_and_every_tensor_of_the_decoder_stays_bitwise(toy: Any) -> None:
    config = toy.config(budget={"updates": 10})
    state = toy.state(config)
    before = snapshot(state.model)
    for seed in range(10):
        update(config, state, toy.batch(seed))
    changed = moved(state.model, before)
    assert changed == {n for n, _ in state.model.named_parameters() if ".encoder." in n}
    assert {n for n in before if ".decoder." in n} and not any(
        p.requires_grad for p in state.model.decoder.parameters()
    )


def test_no_parameter_of_the_decoder_is_in_any_optimiser(toy: Any) -> None:
    state = toy.state(toy.config())
    held = [id(p) for o, _ in state.optimizers.values() for group in o.param_groups for p in group["params"]]
    encoder = {id(p) for n, p in state.model.named_parameters() if ".encoder." in n}
    assert set(held) == encoder and len(held) == len(encoder)


def test_the_seeds_gradient_printing_snippet_finds_every_encoder_parameter(toy: Any) -> None:
    config = toy.config()
    train_state = toy.state(config)
    update(config, train_state, toy.batch())
    printed = {
        name: param.grad.norm().item()
        for name, param in train_state.model.named_parameters()
        if ".encoder." in name and param.grad is not None
    }
    assert set(printed) == {n for n, p in train_state.model.named_parameters() if p.requires_grad}
    assert all(v > 0 for v in printed.values())


def test_every_sample_reaches_the_encoder_on_more_updates_than_there_are_act_steps(toy: Any) -> None:
    """Faults 2 and 3, at the level of updates: halting bias -5, carry never reset by hand."""
    config = toy.config(budget={"updates": 10}, act={"exploration": 0.0}, optim={"clip_norm": 0.0})
    state = toy.state(config)
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        output.register_hook(lambda grad: seen.append(grad.abs().sum(dim=-1)))  # (B, T)

    handle = state.model.model.encoder.register_forward_hook(keep)
    for seed in range(state.model.decoder.structure.halt_max_steps + 2):
        update(config, state, toy.batch(seed))
    handle.remove()
    assert len(seen) == 5 and all(g.shape == (BATCH, 2) and (g > 0).all() for g in seen)


def test_norms_are_logged_before_clipping_and_follow_the_loss(toy: Any) -> None:
    """Fault 10: after clipping a norm can only read 1."""
    rows = []
    for scale in (1, 1000):
        config = toy.config(optim={"clip_norm": 0.01})
        state = toy.state(config)
        rows.append(update(config, state, toy.batch(), BATCH / scale))
        clipped = torch.stack([p.grad.norm() for p in state.model.parameters() if p.grad is not None]).norm()
        assert clipped.item() == pytest.approx(0.01, rel=1e-3)
    for name in ("grad/encoder_norm", "grad/total_norm", "train/lm_loss"):
        assert rows[1][name] == pytest.approx(1000 * rows[0][name], rel=1e-4)
    assert rows[0]["grad/encoder_norm"] == rows[0]["grad/total_norm"] > 0.01 and rows[0]["grad/decoder_norm"] == 0


def test_per_layer_norms_come_at_log_updates_and_are_from_before_clipping(toy: Any) -> None:
    config = toy.config(optim={"clip_norm": 0.01}, budget={"log_every": 2})
    state = toy.state(config)
    assert not any(n.startswith("grad/layer/") for n in update(config, state, toy.batch(0)))
    row = update(config, state, toy.batch(1))
    layers = {n.removeprefix("grad/layer/"): v for n, v in row.items() if n.startswith("grad/layer/")}
    assert set(layers) == {n for n, p in state.model.named_parameters() if p.requires_grad}
    assert math.sqrt(sum(v**2 for v in layers.values())) == pytest.approx(row["grad/total_norm"], rel=1e-5)


def test_a_gradient_below_the_limit_is_not_scaled_and_zero_means_no_clipping(toy: Any) -> None:
    grads = []
    for clip in (1e9, 0.0):
        config = toy.config(optim={"clip_norm": clip})
        state = toy.state(config)
        update(config, state, toy.batch())
        grads.append([p.grad.clone() for p in state.model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_the_loss_is_a_sum_over_samples_divided_by_the_global_batch(toy: Any) -> None:
    config = toy.config(act={"exploration": 0.0})
    whole = update(config, toy.state(config), toy.batch(0))
    half = update(config, toy.state(config), toy.batch(0), 2 * BATCH)
    assert whole["train/lm_loss"] == pytest.approx(2 * half["train/lm_loss"])
    assert whole["grad/encoder_norm"] == pytest.approx(2 * half["grad/encoder_norm"], rel=1e-5)


def test_the_halting_loss_counts_with_its_weight(toy: Any) -> None:
    norms = []
    for weight in (0.0, 0.5, 5.0):
        config = toy.config(loss={"halt_weight": weight})
        norms.append(update(config, toy.state(config, halt_bias=0.0), toy.batch())["grad/encoder_norm"])
    assert len(set(norms)) == 3


def test_past_the_plan_an_update_is_refused_and_nothing_moves(toy: Any) -> None:
    """Fault 9: an update that silently does nothing lets the reported budget grow."""
    config = toy.config(budget={"updates": 10}, optim={"warmup_updates": 0})
    state = toy.state(config)
    for seed in range(10):
        update(config, state, toy.batch(seed))
    before = snapshot(state.model)
    with pytest.raises(BudgetError, match="update 11 of 10"):
        update(config, state, toy.batch())
    assert not moved(state.model, before) and state.step == 10


class Explodes(nn.Module):
    """An encoder whose answer is fine and whose extra loss or gradient is not."""

    def __init__(self, inner: nn.Module, kind: str) -> None:
        super().__init__()
        self.inner, self.kind = inner, kind

    def forward(self, *demos: Tensor) -> Encoded:
        context = self.inner(*demos)
        size = context.square().mean()
        if self.kind == "loss":
            return Encoded(context, {"extra": size * torch.inf})
        # Finite value, infinite slope: sqrt at exactly zero.
        return Encoded(context, {"extra": (size - size.detach()).clamp(min=0).sqrt()})


@pytest.mark.parametrize(("kind", "named"), [("loss", "the loss"), ("gradient", "the gradient norm")])
def test_a_non_finite_loss_or_gradient_stops_before_any_weight_moves(toy: Any, kind: str, named: str) -> None:
    config = toy.config()
    state = toy.state(config)
    update(config, state, toy.batch(0))
    before = snapshot(state.model)
    assert state.ema is not None
    shadow = {n: t.clone() for n, t in state.ema.shadow.items()}
    model = state.model.model
    model.encoder = Explodes(model.encoder, kind)
    with pytest.raises(NonFiniteError, match=rf"{named} is not finite at update 1; no weight.*system.seed=0"):
        update(config, state, toy.batch(1))
    model.encoder = model.encoder.inner
    assert not moved(state.model, before) and state.step == 1
    assert all(torch.equal(t, shadow[n]) for n, t in state.ema.shadow.items())


def test_the_first_value_that_is_not_finite_is_named() -> None:
    with pytest.raises(NonFiniteError, match=r"second is not finite at update 7.*hint"):
        check_finite({"first": torch.ones(2), "second": torch.tensor([1.0, torch.nan])}, 7, "hint")


class WithLoss(nn.Module):
    """Adds beta times a per-sample mean to the encoder's answer."""

    def __init__(self, inner: nn.Module, beta: float) -> None:
        super().__init__()
        self.inner, self.beta = inner, beta

    def forward(self, *demos: Tensor) -> Encoded:
        context = self.inner(*demos)
        return Encoded(context, {"kl": self.beta * context.square().mean()})


def test_an_encoders_own_loss_is_added_once_and_independently_of_the_batch(toy: Any) -> None:
    """Fault 35: computed and never added, or divided by the batch a second time."""
    config = toy.config(optim={"clip_norm": 0.0}, act={"exploration": 0.0})
    one = toy.batch(0, size=BATCH)
    two = Episodes(*(torch.cat((getattr(one, n), getattr(one, n))) for n in Episodes.__dataclass_fields__))
    slopes = []
    for batch, size in ((one, BATCH), (two, 2 * BATCH)):
        grads = []
        for beta in (0.0, 3.0):
            state = toy.state(config)
            model = state.model.model
            model.encoder = WithLoss(model.encoder, beta)
            update(config, state, batch, size)
            grads.append(torch.cat([p.grad.flatten() for p in state.model.parameters() if p.grad is not None]))
        slopes.append(grads[1] - grads[0])
    assert slopes[0].norm() > 0
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-3, atol=1e-6)


@contextmanager
def teaching(state: TrainState, value: float) -> Iterator[None]:
    state.teacher = torch.full((12, 32), value) + torch.randn(12, 32, generator=torch.Generator().manual_seed(0))
    yield
    state.teacher = None


def test_the_table_teaches_for_its_share_of_the_updates_only(toy: Any) -> None:
    config = toy.config(loss={"table_share": 0.5, "objective": "lm+table"}, budget={"updates": 10})
    state = toy.state(config)
    with teaching(state, 0.0):
        rows = [update(config, state, toy.batch(seed)) for seed in range(10)]
    assert ["train/table_loss" in row for row in rows] == [True] * 5 + [False] * 5
    assert all("train/lm_loss" in row for row in rows)


def test_the_table_loss_is_in_units_of_the_tables_variance_and_skips_tasks_without_a_row(toy: Any) -> None:
    decoder = toy.state(toy.config()).model.decoder
    table = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    context = torch.zeros(3, 2, 16)
    rows = torch.tensor([0, 2, -1])
    expected = (table[[0, 2]].square().mean(dim=1) / table.var()).mean()
    for scale in (1.0, 10.0):
        value = table_loss(Encoded(context * scale, {}), rows, table * scale, decoder)
        assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    nobody = table_loss(Encoded(context, {}), torch.full((3,), -1), table, decoder)
    assert nobody.item() == 0.0


def test_entered_episodes_are_counted_not_batches(toy: Any) -> None:
    """Fault 30: with a pessimistic halting head a slot is refilled only every halt_max_steps updates."""
    config = toy.config(budget={"updates": 10}, act={"exploration": 0.0})
    state = toy.state(config)
    counts = []
    for seed in range(7):
        update(config, state, toy.batch(seed))
        counts.append(state.episodes_entered)
    assert counts == [6, 6, 6, 12, 12, 12, 18]


def test_exact_rate_counts_halting_samples_only_and_is_never_zero_for_want_of_any() -> None:
    """Fault 25: samples in the middle of their ACT steps are not results."""
    zeros = torch.zeros(4)
    losses = StepLoss(zeros, zeros, torch.tensor([True, False, True, True]), zeros)
    context = Encoded(torch.zeros(4, 2, 3), {})
    for halted, expected in (([True, True, False, False], 0.5), ([False] * 4, math.nan)):
        out = StepOutput(zeros, zeros, context, None, torch.tensor(halted))  # type: ignore[arg-type]
        found = step_metrics(losses, out, 4, Ranks())
        assert found["train/exact_accuracy"] == pytest.approx(expected, nan_ok=True)
        assert found["train/halted"] == sum(halted) / 4


def test_context_metrics_describe_the_context_across_samples(toy: Any) -> None:
    config = toy.config()
    state = toy.state(config)
    with torch.no_grad():
        context = state.model.context(toy.batch(0)).context
    row = update(config, state, toy.batch(0))
    assert row["train/encoder_output_mean"] == pytest.approx(context.mean().item(), abs=1e-6)
    assert row["train/encoder_output_std"] == pytest.approx(context.std(correction=0).item(), rel=1e-5)
    assert row["train/encoder_token_std"] == pytest.approx(context.std(dim=0, correction=0).mean().item(), rel=1e-4)


def test_an_encoder_with_a_part_called_decoder_is_counted_as_encoder(toy: Any) -> None:
    config = toy.config()
    state = toy.state(config)
    inner = state.model.model.encoder
    state.model.model.encoder = nn.ModuleDict({"decoder": inner})
    wrapped = state.model.model.encoder
    wrapped.forward = inner.forward
    row = update(config, state, toy.batch())
    assert row["grad/decoder_norm"] == 0 and row["grad/encoder_norm"] == row["grad/total_norm"] > 0


@pytest.mark.thorough
@pytest.mark.parametrize(
    "change",
    [
        {"loss": {"cross_entropy": "softmax"}},
        {"loss": {"halt_weight": 3.0}},
        {"optim": {"lr": 2e-2}},
        {"optim": {"beta1": 0.5}},
        {"optim": {"beta2": 0.5}},
        {"optim": {"name": "adam_atan2"}},
        {"optim": {"name": "muon"}},
        {"optim": {"weight_decay": 0.5}},
        {"optim": {"warmup_updates": 0}},
        {"optim": {"cooldown_share": 1.0}},
        {"optim": {"cooldown_share": 1.0, "min_ratio": 0.9}},
        {"optim": {"clip_norm": 1e-3}},
        {"optim": {"ema_decay": 0.5}},
        {"budget": {"updates": 24}},
        {"act": {"exploration": 0.0}},
        {"encoder": {"hidden_size": 32}},
        {"encoder": {"name": "standard"}},
        {"system": {"seed": 1}},
        {"freeze": {"decoder_updates": 5}},
        {"freeze": {"decoder_updates": 5, "joint_lr": 1e-1}},
    ],
    ids=lambda change: ",".join(f"{s}.{f}" for s, fields in change.items() for f in fields),
)
def test_every_field_that_training_reads_changes_the_trained_weights(
    toy: Any, change: dict[str, Any], tmp_path: Any
) -> None:
    """Fault 12: a field accepted and ignored. Twelve updates with a halting head at its threshold, averaged weights."""
    reached = []
    for number, fields in enumerate(({}, change)):
        base: dict[str, Any] = {}
        if "min_ratio" in change.get("optim", {}):
            base = {"optim": {"cooldown_share": 1.0}}
        if "joint_lr" in change.get("freeze", {}):
            base = {"freeze": {"decoder_updates": 5}}
        merged = {s: {**base.get(s, {}), **fields.get(s, {})} for s in {*base, *fields}}
        config = toy.config(**merged)
        state = toy.state(config, halt_bias=0.0)
        toy.fit(config, state, tmp_path / str(number))
        assert isinstance(state.model, LossHead) and state.ema is not None
        encoder = torch.cat([t.flatten() for t in state.ema.shadow.values()])
        reached.append(encoder)
    assert reached[0].shape != reached[1].shape or not torch.allclose(*reached, atol=1e-7)

"""Optimisers, averaging and schedule against references written out by hand.

Legend: R table rows, W row width.
"""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from etrm.config.schema import OptimConfig
from etrm.errors import CheckpointError, ConfigError
from etrm.training.ema import EMA
from etrm.training.optimizers import AdamATan2, Muon, SignSGD, make_optimizer, orthogonalised
from etrm.training.schedule import check_schedule, learning_rate_factor

pytestmark = pytest.mark.fast

OPTIM = OptimConfig("adamw", 1e-2, 0.9, 0.95, 0.1, 0, 0.0, 0.1, 1.0, 0.0)
GRADS = [[0.5, -2.0, 1e-6], [-0.1, 0.0, 3.0], [4.0, 1.0, -1e-9], [0.0, -0.3, 0.2]]


def atan2_by_hand(start: list[float], grads: list[list[float]], lr: float, decay: float) -> list[float]:
    """AdamATan2 in Python floats, one scalar at a time."""
    weights = list(start)
    for i, value in enumerate(start):
        mean = square = 0.0
        for step, row in enumerate(grads, start=1):
            mean = 0.9 * mean + 0.1 * row[i]
            square = 0.95 * square + 0.05 * row[i] ** 2
            value *= 1 - lr * decay
            value -= lr * math.atan2(mean / (1 - 0.9**step), math.sqrt(square / (1 - 0.95**step)))
        weights[i] = value
    return weights


def run(optimizer: torch.optim.Optimizer, p: Tensor, grads: list[list[float]], scale: float = 1.0) -> list[float]:
    for row in grads:
        p.grad = torch.tensor(row, dtype=p.dtype) * scale
        optimizer.step()
    return p.detach().tolist()


def test_adam_atan2_equals_the_reference_step_by_step() -> None:
    start = [1.0, -0.5, 0.25]
    for steps in range(1, len(GRADS) + 1):
        p = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        mine = run(AdamATan2([p], 1e-2, (0.9, 0.95), 0.1), p, GRADS[:steps])
        assert mine == pytest.approx(atan2_by_hand(start, GRADS[:steps], 1e-2, 0.1), rel=1e-12)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_adam_atan2_does_not_care_about_the_scale_of_the_loss(scale: float) -> None:
    results = []
    for factor in (1.0, scale):
        p = torch.tensor([1.0, -0.5, 0.25], dtype=torch.float64, requires_grad=True)
        results.append(run(AdamATan2([p], 1e-2, (0.9, 0.95), 0.0), p, GRADS, factor))
    assert results[0] == pytest.approx(results[1], rel=1e-9)


def test_the_first_step_goes_against_the_gradients_sign_by_lr_times_pi_over_four() -> None:
    p = torch.tensor([1.0, 1.0, 1.0], requires_grad=True)
    moved = run(AdamATan2([p], 1e-2, (0.9, 0.95), 0.0), p, [[5.0, -5.0, 0.0]])
    assert moved == pytest.approx([1 - 1e-2 * math.pi / 4, 1 + 1e-2 * math.pi / 4, 1.0])


@pytest.mark.parametrize("name", ["adam_atan2", "adamw", "muon"])
def test_a_parameter_without_gradient_is_not_moved_even_with_decay(name: str) -> None:
    """Fault 34: movement must not be possible without a gradient."""
    still, moving = (nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = make_optimizer(replace(OPTIM, name=name), [still, moving], 1e-2)
    for _ in range(3):
        moving.grad = torch.ones(3)
        optimizer.step()
    assert torch.equal(still, torch.ones(3)) and not torch.equal(moving, torch.ones(3))


@pytest.mark.parametrize("name", ["adam_atan2", "adamw", "muon"])
def test_an_optimiser_holds_exactly_the_trainable_parameters_by_identity(name: str) -> None:
    """Faults 4 and 47: a frozen or a stale parameter in a group."""
    frozen, free = nn.Parameter(torch.ones(1), requires_grad=False), nn.Parameter(torch.ones(1))
    optimizer = make_optimizer(replace(OPTIM, name=name), [frozen, free], 1e-2)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == 1 and held[0] is free
    with pytest.raises(ConfigError, match="no trainable parameter"):
        make_optimizer(OPTIM, [frozen], 1e-2)


@pytest.mark.parametrize(
    ("field", "value"), [("name", "adam_atan2"), ("lr", 1e-3), ("beta1", 0.5), ("beta2", 0.5), ("weight_decay", 0.9)]
)
def test_every_field_of_the_optimiser_changes_the_result(field: str, value: float | str) -> None:
    results = []
    for config in (OPTIM, replace(OPTIM, **{field: value})):
        p = nn.Parameter(torch.tensor([1.0, -0.5, 0.25]))
        results.append(run(make_optimizer(config, [p], config.lr), p, GRADS))
    assert results[0] != pytest.approx(results[1], rel=1e-5)


@pytest.mark.parametrize("rule", [AdamATan2, Muon])
def test_the_own_optimisers_refuse_a_closure(rule: type[AdamATan2] | type[Muon]) -> None:
    with pytest.raises(ConfigError, match="closure"):
        rule([nn.Parameter(torch.ones(1))], 1e-2, (0.9, 0.95), 0.0).step(lambda: 0.0)


# ---- Muon -------------------------------------------------------------------------------------------------------


def by_singular_values(matrix: Tensor) -> Tensor:
    """Newton-Schulz as what it does to the singular values, one by one: (R, C) float64."""
    left, values, right = torch.linalg.svd(matrix / matrix.norm(), full_matrices=False)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ torch.diag(values) @ right


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (1, 5), (5, 1)])
def test_orthogonalising_changes_the_singular_values_alone_and_brings_them_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e-4
    found = orthogonalised(matrix)
    torch.testing.assert_close(found, by_singular_values(matrix), rtol=1e-9, atol=1e-12)
    assert all(0.65 < s < 1.25 for s in torch.linalg.svdvals(found).tolist())


def test_a_matrix_of_zeros_stays_one() -> None:
    assert torch.equal(orthogonalised(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_muon_moves_a_matrix_along_its_orthogonalised_momentum_step_by_step() -> None:
    generator = torch.Generator().manual_seed(1)
    weight, mean = torch.randn(3, 8, generator=generator, dtype=torch.float64), torch.zeros(3, 8, dtype=torch.float64)
    p = nn.Parameter(weight.clone())
    optimizer = Muon([p], 1e-2, (0.9, 0.95), 0.1)
    for _ in range(4):
        gradient = torch.randn(3, 8, generator=generator, dtype=torch.float64)
        p.grad = gradient.clone()
        optimizer.step()
        mean = 0.9 * mean + 0.1 * gradient
        push = 0.2 * math.sqrt(8) * by_singular_values(0.1 * gradient + 0.9 * mean)
        weight = weight * (1 - 1e-2 * 0.1) - 1e-2 * push
        torch.testing.assert_close(p.detach(), weight, rtol=1e-9, atol=1e-12)
    assert set(optimizer.state[p]) == {"step", "mean"}, "a matrix has no second moment"


def test_the_step_of_a_matrix_has_the_size_of_an_adam_step() -> None:
    p = nn.Parameter(torch.zeros(64, 256))
    p.grad = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    Muon([p], 1e-2, (0.9, 0.95), 0.0).step()
    assert 0.15 < float(p.detach().square().mean().sqrt()) / 1e-2 < 0.25


@pytest.mark.parametrize("shape", [(7,), (2, 3, 4)])
def test_what_is_no_matrix_moves_under_muon_as_under_adamw(shape: tuple[int, ...]) -> None:
    ends = []
    for name in ("muon", "adamw"):
        p = nn.Parameter(torch.linspace(-1, 1, math.prod(shape)).view(shape))
        optimizer = make_optimizer(replace(OPTIM, name=name), [p], 1e-2)
        for step in range(5):
            p.grad = torch.cos(step + p.detach() * 3)
            optimizer.step()
        ends.append(p.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-6, atol=1e-7)


def test_the_name_muon_gives_muon_and_its_betas_and_decay_count() -> None:
    results = []
    options = replace(OPTIM, name="muon")
    for config in (options, OPTIM, replace(options, beta1=0.5), replace(options, weight_decay=0.9)):
        p = nn.Parameter(torch.eye(2, 3))
        optimizer = make_optimizer(config, [p], config.lr)
        for row in GRADS:
            p.grad = torch.tensor([row, row[::-1]])
            optimizer.step()
        results.append(p.detach())
    assert all(not torch.allclose(a, b, rtol=1e-4) for i, a in enumerate(results) for b in results[:i])


def test_muon_maximises_where_its_group_says_so() -> None:
    p = nn.Parameter(torch.zeros(2, 2))
    optimizer = Muon([p], 1e-2, (0.9, 0.95), 0.0)
    optimizer.param_groups[0]["maximize"] = True
    p.grad = torch.eye(2)
    optimizer.step()
    assert bool((p.detach().diagonal() > 0).all())


def test_sign_sgd_moves_the_touched_rows_only_by_the_sign_after_decay() -> None:
    table = nn.Parameter(torch.tensor([[1.0, -1.0], [2.0, 2.0], [3.0, 3.0]]))
    table.grad = torch.tensor([[1e-12, -7.0], [0.0, 0.0], [0.0, 5.0]])
    SignSGD([table], lr=0.1, weight_decay=0.5).step()
    expected = [[1 * 0.95 - 0.1, -1 * 0.95 + 0.1], [2.0, 2.0], [3 * 0.95, 3 * 0.95 - 0.1]]
    torch.testing.assert_close(table.detach(), torch.tensor(expected))


def test_sign_sgd_without_a_gradient_moves_nothing() -> None:
    table = nn.Parameter(torch.ones(2, 2))
    SignSGD([table], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(table, torch.ones(2, 2))


# ---- EMA --------------------------------------------------------------------------------------------------------


class Pair(nn.Module):
    """One trainable and one frozen tensor, and a buffer."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.free = nn.Parameter(torch.tensor([1.0, 2.0], dtype=dtype))
        self.frozen = nn.Parameter(torch.tensor([5.0]), requires_grad=False)
        self.register_buffer("seen", torch.tensor([7.0]))

    def put(self, value: float) -> None:
        with torch.no_grad():
            self.free.fill_(value)


def test_the_average_after_three_updates_is_the_closed_form() -> None:
    net, decay = Pair(), 0.9
    ema = EMA(net, decay)
    values = (3.0, -1.0, 10.0)
    for value in values:
        net.put(value)
        ema.update(net)
    recent = sum((1 - decay) * decay ** (2 - i) * v for i, v in enumerate(values))
    expected = [decay**3 * start + recent for start in (1.0, 2.0)]
    assert ema.shadow["free"].tolist() == pytest.approx(expected, rel=1e-6)
    assert ema.initial_weight(3) == pytest.approx(decay**3)


def test_the_applied_average_leaves_the_raw_weights_bitwise_as_they_were_even_after_an_error() -> None:
    net = Pair()
    ema = EMA(net, 0.9)
    net.put(1 / 3)
    ema.update(net)
    raw, average = net.free.detach().clone(), ema.shadow["free"].clone()
    with pytest.raises(RuntimeError, match="inside"), ema.applied(net):
        assert torch.equal(net.free, average) and not torch.equal(net.free, raw)
        assert net.frozen.item() == 5.0
        raise RuntimeError("inside")
    assert torch.equal(net.free, raw) and torch.equal(ema.shadow["free"], average)


def test_the_average_is_fp32_whatever_the_weights_are_and_reaches_a_constant_target() -> None:
    """Fault 32: in bf16 an average of 0.02 never gets to 0.05."""
    net = Pair(torch.bfloat16)
    ema = EMA(net, 0.99)
    net.put(0.05)
    for _ in range(1500):
        ema.update(net)
    assert ema.shadow["free"].dtype == torch.float32
    assert ema.shadow["free"].tolist() == pytest.approx(net.free.float().tolist(), rel=1e-4)


def test_frozen_parameters_are_not_averaged_and_join_at_their_present_value() -> None:
    net = Pair()
    ema = EMA(net, 0.5)
    assert set(ema.shadow) == {"free"}
    net.frozen.requires_grad_(True)
    ema.track(net)
    with torch.no_grad():
        net.frozen.fill_(9.0)
    ema.update(net)
    assert ema.shadow["frozen"].item() == pytest.approx(0.5 * 5.0 + 0.5 * 9.0)
    ema.track(net)
    assert ema.shadow["frozen"].item() == pytest.approx(7.0), "tracking twice must not restart the average"


def test_a_saved_average_with_other_names_is_refused_and_a_loaded_one_is_a_copy() -> None:
    net = Pair()
    ema = EMA(net, 0.5)
    with pytest.raises(CheckpointError, match="other"):
        ema.load({"free": torch.zeros(2), "other": torch.zeros(1)})
    saved = {"free": torch.zeros(2)}
    ema.load(saved)
    ema.update(net)
    assert not saved["free"].any() and ema.shadow["free"].any()


# ---- schedule ---------------------------------------------------------------------------------------------------


def factors(updates: int, **changes: float) -> list[float]:
    optim = replace(OPTIM, **changes)
    return [learning_rate_factor(u, updates, optim) for u in range(updates)]


def test_warm_up_is_linear_and_ends_at_the_base_rate() -> None:
    shape = factors(20, warmup_updates=4)
    assert shape[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0]) and shape[5:] == [1.0] * 15


def test_without_warm_up_or_cool_down_the_rate_is_constant() -> None:
    assert factors(10) == [1.0] * 10


def test_the_cool_down_is_a_cosine_over_the_last_share_and_ends_near_its_minimum() -> None:
    shape = factors(100, cooldown_share=0.5, min_ratio=0.2)
    assert shape[:51] == [1.0] * 51
    assert shape[75] == pytest.approx(0.2 + 0.8 * 0.5)
    assert all(a > b for a, b in pairwise(shape[50:]))
    assert 0.2 < shape[-1] < 0.202


def test_a_share_of_one_is_warm_up_and_cosine_over_the_whole_run() -> None:
    shape = factors(100, cooldown_share=1.0, min_ratio=0.0, warmup_updates=10)
    expected = [min(1, (u + 1) / 10) * 0.5 * (1 + math.cos(math.pi * u / 100)) for u in range(100)]
    assert shape == pytest.approx(expected) and all(0 < f <= 1 for f in shape)


def test_a_warm_up_of_more_than_a_fifth_of_the_run_is_refused_with_what_fits() -> None:
    """Fault 29: a run that never reaches its rate is no evidence."""
    check_schedule(100, replace(OPTIM, warmup_updates=20))
    with pytest.raises(ConfigError, match=r"21 is 21% of 100 updates.*optim.warmup_updates=20"):
        check_schedule(100, replace(OPTIM, warmup_updates=21))

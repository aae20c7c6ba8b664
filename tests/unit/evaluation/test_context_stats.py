"""Each diagnostic must tell a healthy, a collapsed and an untrained-like set of contexts apart, at any scale."""

import numpy as np
import pytest

from etrm.errors import EvaluationError, NonFiniteError
from etrm.evaluation.context_stats import (
    between_task_chance,
    between_task_share,
    effective_rank,
    output_mean,
    output_std,
    task_decodability,
    token_std,
)

pytestmark = pytest.mark.fast

TASKS, EPISODES, T, D = 8, 6, 4, 16
IDS = [f"task{t}" for t in range(TASKS) for _ in range(EPISODES)]


def rms_norm(contexts: np.ndarray) -> np.ndarray:
    return contexts / np.sqrt((contexts**2).mean(axis=-1, keepdims=True))


def healthy(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.repeat(rng.normal(size=(TASKS, T, D)), EPISODES, axis=0)  # (N, T, D)
    return rms_norm(centres + 0.3 * rng.normal(size=centres.shape))


def collapsed(seed: int = 0) -> np.ndarray:
    """A constant context, as float32 arithmetic returns it: equal up to rounding."""
    rng = np.random.default_rng(seed)
    constant = np.broadcast_to(rng.normal(size=(1, T, D)), (TASKS * EPISODES, T, D))
    return rms_norm(constant * (1 + 1e-7 * rng.normal(size=constant.shape))).astype(np.float32)


def unrelated(seed: int = 0) -> np.ndarray:
    """As an untrained projection of something that has nothing to do with the task."""
    rng = np.random.default_rng(seed)
    return rms_norm(rng.normal(size=(TASKS * EPISODES, 5)) @ rng.normal(size=(5, T * D))).reshape(-1, T, D)


def noise(seed: int = 0) -> np.ndarray:
    return rms_norm(np.random.default_rng(seed).normal(size=(TASKS * EPISODES, T, D)))


@pytest.mark.parametrize("seed", range(3))
def test_between_task_share_separates(seed: int) -> None:
    chance = between_task_chance(IDS)
    assert chance == pytest.approx(7 / 47)
    assert between_task_share(healthy(seed), IDS) > 0.8
    assert between_task_share(collapsed(seed), IDS) == 0.0
    assert between_task_share(unrelated(seed), IDS) < 2 * chance
    assert between_task_share(noise(seed), IDS) == pytest.approx(chance, abs=0.05)


@pytest.mark.parametrize("factor", [1e-3, 3.0, 1e4])
def test_scaling_changes_nothing_but_the_seeds_numbers(factor: float) -> None:
    for contexts in (healthy(), collapsed(), unrelated()):
        assert between_task_share(factor * contexts, IDS) == pytest.approx(between_task_share(contexts, IDS))
        assert effective_rank(factor * contexts) == pytest.approx(effective_rank(contexts))
        assert task_decodability(factor * contexts, IDS, 0) == task_decodability(contexts, IDS, 0)
    assert token_std(factor * healthy()) == pytest.approx(factor * token_std(healthy()))


def test_between_task_share_by_hand() -> None:
    contexts = np.array([0.0, 2.0, 4.0, 6.0]).reshape(4, 1, 1)  # means 1 and 5, grand mean 3: 16 between of 20
    assert between_task_share(contexts, ["a", "a", "b", "b"]) == pytest.approx(0.8)
    assert between_task_share(contexts, ["a", "b", "b", "a"]) == pytest.approx(0.0)


@pytest.mark.parametrize("seed", range(3))
def test_effective_rank_separates(seed: int) -> None:
    assert effective_rank(collapsed(seed)) == 0.0
    assert effective_rank(unrelated(seed)) < 6  # five factors, whatever the number of tasks
    assert 6 < effective_rank(healthy(seed)) < 30
    assert effective_rank(noise(seed)) > 35


def test_effective_rank_by_hand() -> None:
    axes = np.concatenate([np.eye(3), -np.eye(3)]).reshape(6, 1, 3)
    assert effective_rank(axes) == pytest.approx(3.0)
    assert effective_rank(axes + 100.0) == pytest.approx(3.0)  # centred first
    assert effective_rank(axes * np.array([1.0, 0.0, 0.0])) == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(3))
def test_task_decodability_separates(seed: int) -> None:
    found = task_decodability(healthy(seed), IDS, seed)
    assert found.accuracy > 0.9 and found.p_value < 1e-6
    assert (found.chance, found.tested, found.correct) == (1 / 8, 24, round(found.accuracy * 24))
    for blind in (collapsed(seed), unrelated(seed), noise(seed)):
        assert task_decodability(blind, IDS, seed).p_value > 0.01
    assert task_decodability(collapsed(seed), IDS, seed).accuracy == pytest.approx(1 / 8)


def test_decodability_is_measured_on_held_out_episodes() -> None:
    """More dimensions than episodes: a probe tested on its own training data would be perfect on pure noise."""
    wide = np.random.default_rng(0).normal(size=(48, 8, 64))
    assert task_decodability(wide, IDS, 0).accuracy < 0.5


def test_the_seeds_numbers_cannot_separate_healthy_from_noise() -> None:
    """Why they are not evidence; `token_std` does drop to zero for a constant, the norms and `output_std` do not."""
    assert token_std(noise()) == pytest.approx(token_std(healthy()), rel=0.15)
    assert token_std(noise()) > 0.9 and token_std(collapsed()) < 1e-5
    for contexts in (healthy(), collapsed(), unrelated(), noise()):
        assert output_std(contexts) == pytest.approx(1.0, abs=0.05)
        assert np.linalg.norm(contexts.astype(np.float64), axis=-1) == pytest.approx(np.sqrt(D), rel=0.5)
    assert output_mean(np.full((2, 3, 4), 2.5)) == 2.5
    assert token_std(np.array([0.0, 2.0]).reshape(2, 1, 1)) == pytest.approx(np.sqrt(2))  # ddof 1, as torch.std


def test_unusable_contexts_are_refused_by_name() -> None:
    contexts = healthy()
    broken = contexts.copy()
    broken[3, 0, 0] = np.nan
    with pytest.raises(NonFiniteError, match="episode 3"):
        token_std(broken)
    with pytest.raises(EvaluationError, match="one id an episode"):
        between_task_share(contexts, IDS[:-1])
    with pytest.raises(EvaluationError, match="two tasks"):
        between_task_share(contexts, ["same"] * len(contexts))
    with pytest.raises(EvaluationError, match="one episode each"):
        between_task_share(contexts, [str(i) for i in range(len(contexts))])
    with pytest.raises(EvaluationError, match="'lonely'"):
        task_decodability(contexts, [*IDS[:-1], "lonely"], 0)
    with pytest.raises(EvaluationError, match="shape"):
        effective_rank(contexts[0])

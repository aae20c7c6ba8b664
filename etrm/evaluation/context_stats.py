"""Diagnostics of contexts that can fail: diversity between tasks, effective rank, decodability of tasks; the seed's.

Measure them in eval mode on the same episodes for the trained encoder, the untrained one and the decoder's own table:
an untrained encoder's random features can still tell tasks apart, so only the comparison is evidence of learning.
What the seed's numbers cannot say: `token_std` and `output_std` grow with the scale of the context and take noise for
diversity, and after a final RMS norm every token has norm sqrt(D) whatever the encoder does, so neither the norm nor
`output_std` can ever look bad. `between_task_share`, `effective_rank` and `task_decodability` do not change when the
contexts are multiplied by a constant.

Sources: between / total sum of squares (eta squared; (G-1)/(N-1) under random labels); effective rank of Roy and
Vetterli (EUSIPCO 2007); linear probes, Alain and Bengio (arXiv 1610.01644).

Legend: N episodes, T context tokens, D hidden size, G tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg, stats

from etrm.errors import EvaluationError, NonFiniteError

CONSTANT = 1e-10  # variance below this share of the energy is rounding: the contexts are constant (float32 gives 1e-14)


@dataclass(frozen=True)
class Decodability:
    """Held-out accuracy of a linear probe for the task id; p_value: binomial chance of that many hits by guessing."""

    accuracy: float
    chance: float
    correct: int
    tested: int
    p_value: float


def between_task_share(contexts: np.ndarray, task_ids: Sequence[str]) -> float:
    """Between-task over total variance of contexts (N, T, D), in [0, 1]; 0 for constant contexts.

    Compare with `between_task_chance`: contexts that ignore the task score about that, not 0.
    Raises EvaluationError on wrong shapes, fewer than two tasks, or one episode for every task (always 1).
    """
    flat, labels, groups = _labelled(contexts, task_ids)  # (N, T*D), (N,), G
    if groups == len(labels):
        raise EvaluationError(
            f"{groups} tasks with one episode each: the share is 1 whatever the encoder does; "
            "give two episodes or more a task"
        )
    centred = flat - flat.mean(axis=0)
    total = float((centred**2).sum())
    if total <= CONSTANT * float((flat**2).sum()):
        return 0.0
    sums = np.zeros((groups, flat.shape[1]))
    np.add.at(sums, labels, centred)
    return float((sums**2).sum(axis=1) @ (1 / np.bincount(labels))) / total


def between_task_chance(task_ids: Sequence[str]) -> float:
    """Expected `between_task_share` of contexts unrelated to the task: (G - 1) / (N - 1)."""
    if len(task_ids) < 2:
        raise EvaluationError(f"between_task_chance got {len(task_ids)} episodes, expected at least 2")
    return (len(set(task_ids)) - 1) / (len(task_ids) - 1)


def effective_rank(contexts: np.ndarray) -> float:
    """exp of the entropy of the normalised singular values of the centred (N, T*D) contexts; 0 if constant, <= N - 1.

    Near G - 1 when only the task matters, near N - 1 for unstructured noise, so read it with `between_task_share`.
    """
    flat = _flat(contexts)
    centred = flat - flat.mean(axis=0)
    if float((centred**2).sum()) <= CONSTANT * float((flat**2).sum()):
        return 0.0
    values = linalg.svdvals(centred)
    weights = values[values > 0] / values.sum()
    return float(np.exp(-(weights * np.log(weights)).sum()))


def task_decodability(contexts: np.ndarray, task_ids: Sequence[str], seed: int, ridge: float = 1e-2) -> Decodability:
    """Ridge probe for the task id, trained on half of each task's episodes and tested on the rest; chance is 1 / G.

    ridge is relative to the mean squared norm of the centred training contexts. EvaluationError if a task has fewer
    than two episodes. Constant contexts score chance: ties go to the first task.
    """
    flat, labels, groups = _labelled(contexts, task_ids)
    counts = np.bincount(labels)
    if counts.min() < 2:
        lonely = sorted(set(task_ids))[int(counts.argmin())]
        raise EvaluationError(f"task '{lonely}' has {counts.min()} episode, expected >= 2: one to train, one to test")
    order = np.random.default_rng(seed).permutation(len(labels))
    train: list[int] = []
    test: list[int] = []
    for group in range(groups):
        mine = order[labels[order] == group]
        half = (len(mine) + 1) // 2
        train.extend(mine[:half].tolist())
        test.extend(mine[half:].tolist())
    mean = flat[train].mean(axis=0)
    inputs, probes = flat[train] - mean, flat[test] - mean  # (n, T*D), (m, T*D)
    energy = float((inputs**2).sum())
    targets = np.eye(groups)[labels[train]]  # (n, G)
    if energy <= CONSTANT * float((flat**2).sum()):
        scores = np.zeros((len(test), groups))
    else:
        # The dual form: T*D is far larger than the number of episodes.
        kernel = inputs @ inputs.T + ridge * energy / len(train) * np.eye(len(train))
        scores = probes @ inputs.T @ linalg.solve(kernel, targets - targets.mean(axis=0), assume_a="pos")
    correct = int((scores.argmax(axis=1) == labels[test]).sum())
    tested, chance = len(test), 1 / groups
    p_value = float(stats.binomtest(correct, tested, chance, alternative="greater").pvalue)
    return Decodability(correct / tested, chance, correct, tested, p_value)


def token_std(contexts: np.ndarray) -> float:
    """The seed's `encoder_token_std`: std over the batch (ddof 1) at each (token, dimension), averaged.

    Despite its name it is about samples, not tokens: roughly the square root of the seed's cross-sample variance, so
    not a second witness. It scales with the contexts and cannot tell diversity between tasks from noise within one.
    """
    return float(_flat(contexts).std(axis=0, ddof=1).mean())


def output_mean(contexts: np.ndarray) -> float:
    """Mean over all N * T * D values; the seed's `encoder_output_mean`."""
    return float(_flat(contexts).mean())


def output_std(contexts: np.ndarray) -> float:
    """Std (ddof 1) over all N * T * D values; the seed's `encoder_output_std`. It is about 1 after any RMS norm."""
    return float(_flat(contexts).std(ddof=1))


def _flat(contexts: np.ndarray) -> np.ndarray:
    """(N, T, D) -> float64 (N, T*D), checked."""
    array = np.asarray(contexts, dtype=np.float64)
    if array.ndim != 3 or array.shape[0] < 2 or array.size == 0:
        raise EvaluationError(
            f"contexts have shape {array.shape}, expected (N >= 2, T, D): stack one context an episode"
        )
    if not np.isfinite(array).all():
        bad = int(np.argwhere(~np.isfinite(array))[0, 0])
        raise NonFiniteError(
            f"the context of episode {bad} is NaN or infinite: check that episode's demonstration mask"
        )
    return array.reshape(len(array), -1)


def _labelled(contexts: np.ndarray, task_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray, int]:
    """Flat contexts (N, T*D), task numbers (N,) in the sorted order of the ids, and G >= 2."""
    flat = _flat(contexts)
    if len(task_ids) != len(flat):
        raise EvaluationError(f"{len(task_ids)} task ids for {len(flat)} contexts, expected one id an episode")
    names, labels = np.unique(np.asarray(task_ids), return_inverse=True)
    if len(names) < 2:
        raise EvaluationError(f"all contexts are of task '{names[0]}', expected two tasks or more")
    return flat, labels, len(names)

"""Plants in what is counted: scores, nulls, votes, caches. Right: INVALID before training.

Legend: N queries, S canvas cells.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from etrm.data.augment import Augmentation
from etrm.data.episodes import Batch, derangement
from etrm.evaluation.controls import Answers, answer, contexts_of, null_contexts, permuted_outputs
from etrm.evaluation.statistics import RungResult, rung_result
from etrm.experiment.arms import Rung
from etrm.experiment.scores import rung_evidence
from etrm.faults.bank import Bench, everywhere, fault, method


def counted(
    id: str,
    happened: str,
    original: Any,
    stand_in: Any,
    catalogue: int | None = None,
    *,
    check: str = "evaluator_true",
    stage: Any = "before training",
    naive: str = "A",
    arm: str = "micro",
) -> None:
    """Enter a fault: a function of the evaluation is another one."""

    @fault(
        id,
        "evaluation",
        happened,
        verdict="INVALID",
        check=check,
        stage=stage,
        catalogue=catalogue,
        naive=naive,
        arm=arm,
    )
    def plant(bench: Bench) -> Iterator[None]:
        with everywhere(original, stand_in):
            yield


def _answers(change: Callable[[Answers, Batch, int], Answers]) -> Callable[..., Answers]:
    def stand_in(decoder: Any, queries: Batch, context: Any, size: int, kind: Any) -> Answers:
        return change(answer(decoder, queries, context, size, kind), queries, size)

    return stand_in


def _any_cell(found: Answers, queries: Batch, size: int) -> Answers:
    return replace(found, exact=(found.tokens == queries.labels).mean(axis=1) > 0.5)


def _ends_dropped(found: Answers, queries: Batch, size: int) -> Answers:
    """The last query of each batch is skipped for good and counts as wrong."""
    ends = np.arange(len(queries)) % size == size - 1
    return replace(found, exact=found.exact & ~ends)


def _first_batch(found: Answers, queries: Batch, size: int) -> Answers:
    return replace(found, exact=found.exact & (np.arange(len(queries)) < size))


def _ignored_counted(found: Answers, queries: Batch, size: int) -> Answers:
    scored = queries.labels >= 0
    return replace(found, exact=((found.tokens == queries.labels) & scored).sum(axis=1) + 0 >= 1)


def _labels_copied(found: Answers, queries: Batch, size: int) -> Answers:
    return replace(
        found, tokens=np.where(queries.labels < 0, found.tokens, queries.labels), exact=np.ones_like(found.exact)
    )


def _padded_denominator(name: str, per_task: Any, *rest: Any, **named: Any) -> RungResult:
    return rung_result(name, {t: (k, n + 3) for t, (k, n) in per_task.items()}, *rest, **named)


def _cached() -> Callable[..., Any]:
    kept: dict[tuple[int, bytes], Any] = {}

    def stand_in(model: Any, queries: Batch, size: int) -> Any:
        key = (id(model), queries.demo_inputs.tobytes())
        if key not in kept:
            kept[key] = contexts_of(model, queries, size)
        return kept[key]

    return stand_in


def _own_demos(task: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.arange(len(task))


def _own_task(task: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A shuffle within the task instead of between tasks."""
    lender = np.arange(len(task))
    for t in np.unique(task):
        at = np.flatnonzero(task == t)
        lender[at] = np.roll(at, 1)
    return lender


def _all_nulls_own(model: Any, untrained: Any, constant: Any, queries: Batch, size: int, seed: int) -> Any:
    real = null_contexts(model, untrained, constant, queries, size, seed)
    return {**real, "mismatched": lambda: contexts_of(model, queries, size)}


counted("half-the-cells-count", "token accuracy was reported as exact match", answer, _answers(_any_cell), 43)
counted("one-right-cell-counts", "any correct cell counted as solved", answer, _answers(_ignored_counted), 43)
counted(
    "last-of-each-batch-dropped",
    "a task whose batch was full lost its other tests",
    answer,
    _answers(_ends_dropped),
    40,
    naive="C",
)
counted(
    "only-the-first-batch-counts",
    "predictions of later batches were overwritten",
    answer,
    _answers(_first_batch),
    40,
    naive="C",
)
counted("labels-reach-the-answer", "teacher forcing left on in evaluation", answer, _answers(_labels_copied))
counted(
    "denominator-of-all-puzzles",
    "divided by 400 although 32 were evaluated",
    rung_result,
    _padded_denominator,
    8,
    naive="C",
)
counted("evaluation-cached", "a second evaluation answered with the first one's contexts", contexts_of, _cached(), 41)
counted("mismatched-null-is-own", "the shuffle of the null was the identity", derangement, _own_demos, 16, naive="C")
counted("mismatched-null-of-own-task", "the null shuffled within a task", derangement, _own_task, 28, naive="C")
counted(
    "null-forgot-its-shuffle",
    "the null's contexts came from the queries' own demonstrations",
    null_contexts,
    _all_nulls_own,
    16,
    naive="C",
)
counted(
    "permuted-null-unpermuted",
    "the permutation of outputs was not assigned",
    permuted_outputs,
    lambda queries: queries,
    None,
    naive="C",
)


def _without_tail(rung: Rung, *rest: Any) -> Any:
    return rung_evidence(replace(rung, batch=rung.batch.take(np.arange(len(rung.batch) - 8))), *rest)


counted(
    "tail-of-the-test-missing",
    "the loader dropped the last, smaller batch",
    rung_evidence,
    _without_tail,
    40,
    check="queries_evaluated",
    stage="full run",
    naive="A",
)


@fault(
    "inverse-of-rot90-and-rot270-swapped",
    "evaluation",
    "votes were turned back the wrong way",
    verdict="INVALID",
    check="evaluator_true",
    catalogue=42,
    naive="C",
    arm="arc",
)
def wrong_inverse(bench: Bench) -> Iterator[None]:
    """Augmentation.invert applies another transform's inverse."""
    whole = Augmentation.invert

    def stand_in(self: Augmentation, grid: np.ndarray) -> np.ndarray:
        other = {1: 3, 3: 1}.get(self.transform, self.transform)
        return whole(replace(self, transform=other), grid)

    with method(Augmentation, "invert", stand_in):
        yield


@fault(
    "encoder-mode-not-set",
    "evaluation",
    "eval() did not reach the encoder through its wrapper",
    verdict="INVALID",
    check="encoder_pure|evaluator_true",
    catalogue=37,
    naive="C",
)
def mode_not_set(bench: Bench) -> Iterator[None]:
    """Dropout in the encoder, and an eval() that stops at the model."""

    def edit(head: Any) -> None:
        head.model.encoder.register_forward_hook(
            lambda module, given, context: torch.nn.functional.dropout(context, 0.2, training=True)
        )

    bench.edits.append(edit)
    yield

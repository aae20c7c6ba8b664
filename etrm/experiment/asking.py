"""Asking a model every question of an evaluation, over any number of ranks, and what is logged of the answers.

Notable: a question is a row of `Questions`; rank r of n takes every n-th of them, so that each is answered exactly once
at any number of ranks. The denominator of a score is what was evaluated.

Legend: S canvas cells, N rows of a batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from etrm.evaluation.controls import evaluating
from etrm.evaluation.voting import ALL_RULE, FRACTION_RULE, Vote, VoteResult, shard_queries
from etrm.experiment.questions import Questions
from etrm.models.etrm import Episodes, decode
from etrm.training.distributed import ALONE, Ranks
from etrm.training.memory import keep_freed_memory

PASS_AT = (1, 2, 5)
Answered = tuple[np.ndarray, np.ndarray, list[float]]  # row numbers (N,), tokens (N, S), halt logits


def answers(
    model: Any, questions: Questions, rows: Sequence[int], size: int, device: torch.device
) -> Iterator[Answered]:
    """Answer the given rows in batches of `size` (fresh carry, all ACT steps). `model` has a decoder and contexts."""
    with torch.inference_mode(), evaluating(model):
        for start in range(0, len(rows), size):
            part = np.asarray(rows[start : start + size])
            episodes = Episodes.of(questions.encode(part), device)
            tokens, halts = decode(model.decoder, episodes.inputs, model.context(episodes).context)
            yield part, tokens.cpu().numpy(), halts.float().cpu().tolist()


def evaluate(
    model: Any,
    questions: Questions,
    size: int,
    device: torch.device,
    advance: Callable[[int], None],
    ranks: Ranks = ALONE,
) -> VoteResult | None:
    """Answer every question once over all ranks and vote: the result on rank 0, None on the others.

    `advance(n)` is called after each batch of n answers of this rank.
    """
    keep_freed_memory()  # an evaluation alone would fault its pages in anew for every batch
    vote = Vote(questions.truths)
    mine = shard_queries(range(len(questions.rows)), ranks.rank, ranks.size)
    for part, tokens, halts in answers(model, questions, mine, size, device):
        for row, predicted, halt in zip(part.tolist(), tokens, halts, strict=True):
            task, query, augmentation = questions.rows[row]
            vote.add(task, query, augmentation, predicted, questions.side, halt, scored=True)
        advance(len(part))
    votes = ranks.gather(vote)
    if not votes:
        return None
    for other in votes[1:]:
        votes[0].merge(other)
    result: VoteResult = votes[0].result(PASS_AT)
    return result


def evaluation_metrics(results: Mapping[str, VoteResult]) -> dict[str, float]:
    """One evaluation's log line. `results` by weights, raw and ema; the plain names are ema's where there is one."""
    head = results["ema"] if "ema" in results else results["raw"]
    line: dict[str, float] = {f"ARC/pass@{k}": head.pass_at(k, FRACTION_RULE) for k in PASS_AT}
    line["ARC/pass@1/all_tests"] = head.pass_at(1, ALL_RULE)
    for weights, result in results.items():
        line[f"ARC/pass@1/{weights}"] = result.pass_at(1, FRACTION_RULE)
    pairs = head.by_k[1].per_task.values()
    line |= {"ARC/evaluated_tasks": len(pairs), "ARC/evaluated_queries": sum(asked for _, asked in pairs)}
    return line | {"ARC/solved_queries": sum(solved for solved, _ in pairs)}

"""What a trained encoder is worth beside its rungs: paired probe losses against controls, and the metrics it ends on.

Notable: every comparison is paired on the same episodes and tested by task (sign flips); the constant-context control
is trained by an optimiser of its own in a tenth of the run's updates at most, and says whether more of them could have
changed the comparison.

Legend: N queries, T context tokens, D hidden.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from etrm.config.schema import RunConfig
from etrm.data.episodes import Batch, derangement
from etrm.evaluation import context_stats, controls
from etrm.evaluation.controls import Answers, answer, contexts_of
from etrm.evaluation.statistics import sign_flip_test
from etrm.experiment.arms import Arm, Rung
from etrm.experiment.evidence import Finding, LossEvidence, RungEvidence
from etrm.experiment.scores import task_means
from etrm.models.etrm import ETRM

SETTLED = 0.95  # a loss that kept this share of itself over the span looked at no longer improves
SMALL = 0.05  # nats a token; below it what is still gained changes no answer worth waiting for


@dataclass(frozen=True, eq=False)
class Controls:
    """The learned constant context (T, D), its loss in ten equal parts of training, and the loss evidence."""

    constant: Tensor
    constant_losses: list[float]
    evidence: LossEvidence


def paired(gain: np.ndarray, batch: Batch) -> float:
    """One-sided p that the mean per-query gain (N,) is above zero, by task (sign flips)."""
    return sign_flip_test(task_means(gain, batch), 10_000, 0).p_greater


def own_answers(config: RunConfig, model: ETRM, rung: Rung) -> Answers:
    """A rung's queries answered with the encoder's contexts of their own demonstrations."""
    size, kind = config.evaluation.batch_size, config.loss.cross_entropy
    return answer(model.decoder, rung.batch, contexts_of(model, rung.batch, size), size, kind)


def settled(validation: list[tuple[int, float]], total: int) -> bool:
    """Has the validation loss stopped improving over the last quarter of the run? False with fewer than two points."""
    late = [loss for step, loss in validation if step >= 0.75 * total]
    return len(late) >= 2 and (late[-1] > SETTLED * late[0] or late[0] < SMALL)


def sufficed(curve: list[float], constant: float, own: float) -> bool:
    """Would the constant context stay above the encoder's own loss if it fell once more by what it fell in the second
    half of its training (a curve that flattens falls less)? `curve`: its training loss in equal parts, two at least.
    """
    return len(curve) >= 2 and constant - max(0.0, curve[(len(curve) - 1) // 2] - curve[-1]) > own


def short_loss_evidence(start: Answers, own: Answers, batch: Batch) -> LossEvidence:
    """The decrease alone: a short run has no controls."""
    first, last = float(start.loss.mean()), float(own.loss.mean())
    return LossEvidence(first, last, paired(start.loss - own.loss, batch), last, None, None, None, None, False, None)


def compare_with_controls(
    config: RunConfig, arm: Arm, model: ETRM, start: Answers, validation: list[tuple[int, float]], total: int
) -> Controls:
    """Train the constant context and compare losses on the probe set: own, constant, mismatched demonstrations."""
    batch = arm.probe.batch
    size, kind = config.evaluation.batch_size, config.loss.cross_entropy
    own = own_answers(config, model, arm.probe)
    updates = min(config.evaluation.constant_updates, max(1, total // 10))
    constant, curve = controls.constant_context(config, model, arm.source, updates)
    flat = answer(model.decoder, batch, constant.expand(len(batch), -1, -1), size, kind)
    lender = derangement(batch.task, np.random.default_rng(3))
    wrong = answer(model.decoder, batch, contexts_of(model, batch.with_demos_of(lender), size), size, kind)
    evidence = LossEvidence(
        probe_start=float(start.loss.mean()),
        probe_end=float(own.loss.mean()),
        p_decrease=paired(start.loss - own.loss, batch),
        own_loss=float(own.loss.mean()),
        constant_context_loss=float(flat.loss.mean()),
        p_below_constant=paired(flat.loss - own.loss, batch),
        mismatched_loss=float(wrong.loss.mean()),
        p_below_mismatched=paired(wrong.loss - own.loss, batch),
        plateaued=settled(validation, total),
        constant_sufficed=sufficed(curve, float(flat.loss.mean()), float(own.loss.mean())),
    )
    return Controls(constant, curve, evidence)


def final_metrics(
    config: RunConfig, arm: Arm, model: ETRM, log: Path, rungs: tuple[RungEvidence, ...]
) -> dict[str, float | None]:
    """The last logged metrics under the seed's names, their first values as `<name>/first`, and context diversity."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    metrics: dict[str, float | None] = {
        k: v for k, v in rows[-1].items() if k != "step" and not k.startswith("grad/layer/")
    }
    metrics |= {f"{k}/first": rows[0].get(k) for k in ("train/lm_loss", "train/encoder_token_std", "grad/encoder_norm")}
    contexts = contexts_of(model, arm.probe.batch, config.evaluation.batch_size)
    found = contexts.numpy()
    ids = [arm.probe.task_ids[t] for t in arm.probe.batch.task]
    metrics["context/between_task_share"] = context_stats.between_task_share(found, ids)
    metrics["context/effective_rank"] = context_stats.effective_rank(found)
    metrics["context/std_over_table"] = spread_ratio(contexts, model.spec.context_std)
    if rungs:
        headline = rungs[-1].score
        metrics["ARC/pass@1"] = headline.k / headline.n
    return metrics


def spread_ratio(contexts: Tensor, table_std: Tensor) -> float:
    """Deviation of contexts (N, T, D) over that of the decoder's own table (T,), mean over its active tokens."""
    own = (contexts - contexts.mean(dim=0)).square().mean(dim=(0, 2)).sqrt()  # (T,)
    active = table_std > 0
    return float((own[active] / table_std[active]).mean()) if bool(active.any()) else float("nan")


def findings(metrics: dict[str, float | None]) -> tuple[Finding, ...]:
    """Context diversity and scale as evidence for or against H3; empty where nothing was trained."""
    bounds = (
        ("context/between_task_share", 0.05, None, "between-task over total context variance, eval mode"),
        ("context/std_over_table", 0.1, 10.0, "deviation of the contexts over that of the decoder's own table"),
    )
    return tuple(
        Finding(name.removeprefix("context/"), value, low, high, "H3", says)
        for name, low, high, says in bounds
        if (value := metrics.get(name)) is not None
    )

"""Is the context a deterministic function of each sample's own shown demonstrations, and of nothing else?

Eval mode. The order of demonstrations may matter to a user's encoder; what stands in a slot that is not shown, or what
the neighbours in the batch are, may not.

Legend: B batch, K demonstrations, S canvas cells, T context tokens, D hidden.
"""

import numpy as np
from torch import Tensor

from etrm.data.episodes import Batch
from etrm.evaluation.controls import contexts_of
from etrm.experiment.arms import Arm
from etrm.experiment.checks import Check, check
from etrm.models.etrm import ETRM

SAMPLES = 6
SHARE = 0.25  # of the spread between samples; bf16 noise on untrained encoders stays below 0.05
FLOOR = 1e-3  # of the context's own size, where samples hardly differ


def encoder_checks(arm: Arm, model: ETRM) -> list[Check]:
    """`encoder_pure` and `trainable_fp32`."""
    batch = arm.source.sample(SAMPLES, np.random.default_rng(21))
    own = contexts_of(model, batch, SAMPLES)  # (B, T, D)
    allowed = SHARE * float((own - own.mean(dim=0)).square().mean().sqrt()) + FLOOR * float(own.abs().max())
    others = {
        "the same batch again": (contexts_of(model, batch, SAMPLES), 0.0),
        "each sample alone": (contexts_of(model, batch, 1), allowed),
        "other neighbours": (contexts_of(model, _reversed(batch), SAMPLES).flip(0), allowed),
        "rubbish in slots that are not shown": (contexts_of(model, _padded(batch), SAMPLES), allowed),
        "other labels of the query": (contexts_of(model, _relabelled(batch), SAMPLES), 0.0),
    }
    faults = [
        f"{what} changes it by {gap:.3g}" for what, (c, most) in others.items() if not (gap := _gap(own, c)) <= most
    ]
    said = f"unchanged by repetition, neighbours, unshown slots and labels (within {allowed:.2g})"
    wide = sorted({str(p.dtype) for p in model.encoder.parameters() if p.requires_grad} - {"torch.float32"})
    count = sum(p.requires_grad for p in model.encoder.parameters())
    return [
        check("encoder_pure", not faults, "; ".join(faults) or said),
        check(
            "trainable_fp32", not wide, f"{count} trainable tensors are fp32" if not wide else f"also {', '.join(wide)}"
        ),
    ]


def _gap(one: Tensor, two: Tensor) -> float:
    return float((one - two).abs().max())


def _reversed(batch: Batch) -> Batch:
    return batch.take(np.arange(len(batch))[::-1])


def _padded(batch: Batch) -> Batch:
    """Rubbish in every slot that is not shown, and in one more. Where an arm shows every slot it ever has, nothing is
    changed: an encoder may then do without the mask.
    """
    if batch.demo_mask.all():
        return batch
    rng = np.random.default_rng(22)

    def filled(grids: np.ndarray) -> np.ndarray:
        extra = rng.integers(2, 12, size=(len(grids), 1, grids.shape[-1]))
        kept = np.where(batch.demo_mask[..., None], grids, rng.integers(2, 12, size=grids.shape))
        return np.concatenate((kept, extra), axis=1)

    mask = np.concatenate((batch.demo_mask, np.zeros((len(batch), 1), dtype=bool)), axis=1)
    inputs, labels = filled(batch.demo_inputs), filled(batch.demo_labels)
    return Batch(batch.inputs, batch.labels, inputs, labels, mask, batch.task, batch.row)


def _relabelled(batch: Batch) -> Batch:
    """Another answer and another query: the context is of the demonstrations alone."""
    turned = np.roll(batch.labels, 1, axis=0), np.roll(batch.inputs, 1, axis=0)
    return Batch(turned[1], turned[0], batch.demo_inputs, batch.demo_labels, batch.demo_mask, batch.task, batch.row)

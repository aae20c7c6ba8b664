"""Losses of TRM: cross-entropy over grid tokens (stablemax or softmax) and the halting loss.

Stablemax: s(x) = x + 1 for x >= 0 and 1 / (1 - x) below (arXiv 2501.04697). The official code needs float64 for it;
here each branch is clamped to its own side, so that fp32 gradients stay finite at every logit, 1.0 and 1e4 included.

Legend: B batch, S canvas cells, V vocabulary.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from etrm.data.grids import IGNORE
from etrm.declared import truncate

CrossEntropy = Literal["stablemax", "softmax"]


class StepLoss(NamedTuple):
    """Losses of one ACT step, one number a sample (B,), fp32; `exact` (B,) bool is the halting target."""

    lm: Tensor
    halt: Tensor
    exact: Tensor
    token_accuracy: Tensor


def log_stablemax(logits: Tensor) -> Tensor:
    """log(s(x) / sum s) over the last axis in fp32; shape kept."""
    x = logits.float()
    # relu(-x) has no slope at 0 and clamp does, so the two sides join with slope 1.
    mass = x.clamp(min=0) + 1.0 / (1.0 + F.relu(-x))
    return mass.log() - mass.sum(dim=-1, keepdim=True).log()


def token_losses(logits: Tensor, labels: Tensor, kind: CrossEntropy) -> Tensor:
    """Cross-entropy a token. logits (B, S, V), labels (B, S) int with IGNORE -> (B, S) fp32, 0 where ignored."""
    log_p = log_stablemax(logits) if kind == "stablemax" else F.log_softmax(logits.float(), dim=-1)
    scored = labels != IGNORE
    picked = log_p.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)  # (B, S)
    return torch.where(scored, -picked, 0.0)


def step_loss(logits: Tensor, halt: Tensor, labels: Tensor, kind: CrossEntropy) -> StepLoss:
    """Losses of one ACT step: the mean over each sample's scored tokens, and BCE of "the whole grid is right now".

    logits (B, S, V), halt (B,), labels (B, S). A sample without scored tokens contributes 0 and counts as not exact.
    """
    scored = labels != IGNORE  # (B, S)
    count = scored.sum(dim=-1)  # (B,)
    lm = token_losses(logits, labels, kind).sum(dim=-1) / count.clamp(min=1)
    right = (truncate(logits, "halting_target").argmax(dim=-1) == labels) & scored  # (B, S)
    exact = (right.sum(dim=-1) == count) & (count > 0)
    halt_loss = F.binary_cross_entropy_with_logits(halt.float(), exact.float(), reduction="none")
    halt_loss = torch.where(count > 0, halt_loss, 0.0)
    return StepLoss(lm, halt_loss, exact, right.sum(dim=-1) / count.clamp(min=1))

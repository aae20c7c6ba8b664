"""An evaluation written a second time, from the definitions alone, for whoever checks the first.

Nothing of etrm.evaluation is used: the model is asked for its contexts, the decoder is unrolled for the bundle's number
of ACT steps, losses are float64.

Legend: N queries, S canvas cells, T context tokens, D hidden, V vocabulary.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from etrm.data.episodes import Batch
from etrm.data.grids import IGNORE
from etrm.models.etrm import ETRM, Episodes
from etrm.models.trm import TRMDecoder


@dataclass(frozen=True, eq=False)
class Reading:
    """Of N queries: exact (bool), LM loss (float64 nats a token) and halt logit at the last ACT step."""

    exact: np.ndarray  # (N,)
    loss: np.ndarray  # (N,)
    halt: np.ndarray  # (N,)


def tensors(batch: Batch) -> Episodes:
    """The batch's arrays as tensors."""
    return Episodes(**{f.name: torch.tensor(getattr(batch, f.name)) for f in fields(Episodes)})


def direct_contexts(model: ETRM, batch: Batch, size: int) -> Tensor:
    """What the model hands to its decoder in eval mode, (N, T, D) fp32."""
    modes = {m: m.training for m in model.modules()}
    model.eval()
    found = []
    with torch.no_grad():
        for start in range(0, len(batch), size):
            part = tensors(batch.take(np.arange(start, min(start + size, len(batch)))))
            found.append(model.context(part).context.detach().float())
    for m, mode in modes.items():
        m.training = mode
    return torch.cat(found)


def token_losses(logits: Tensor, labels: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Mean loss over each sample's scored tokens (B,) float64, and whether all of them are right (B,) bool."""
    x = logits.double()
    mass = x.softmax(dim=-1)
    if kind == "stablemax":
        s = torch.where(x >= 0, x.clamp(min=0) + 1, 1 / (1 - x.clamp(max=0)))
        mass = s / s.sum(dim=-1, keepdim=True)
    losses, right = [], []
    for p, y in zip(mass, labels, strict=True):
        scored = y != IGNORE
        losses.append(-p[scored, y[scored]].log().mean() if bool(scored.any()) else p.sum() * 0)
        right.append(bool(scored.any()) and bool((p[scored].argmax(dim=-1) == y[scored]).all()))
    return torch.stack(losses), torch.tensor(right)


def read(decoder: TRMDecoder, steps: int, batch: Batch, contexts: Tensor, kind: str, size: int) -> Reading:
    """Answers of the decoder after `steps` ACT steps under contexts (N, T, D), gradients on as in training."""
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, len(batch), size):
        e = tensors(batch.take(np.arange(start, min(start + size, len(batch)))))
        latents = decoder.fresh_latents(len(e.inputs))
        for _ in range(steps):
            latents, logits, halt = decoder(latents, e.inputs, contexts[start : start + size].clone())
        loss, right = token_losses(logits.detach(), e.labels, kind)
        found.append((right, loss, halt.detach().float()))
    exact, losses, halts = (torch.cat(column).numpy() for column in zip(*found, strict=True))
    return Reading(exact, losses, halts)

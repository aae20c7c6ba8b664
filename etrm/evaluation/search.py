"""Test-time search: refine the encoder's contexts by gradient through the frozen decoder, on demonstrations only.

Each query starts at its encoder's context; Adam moves it (in units of the decoder's own context deviation) so that the
decoder answers the query's demonstrations, each from its input alone. It is a search in latent space as in Latent
Program Networks (arXiv 2411.08706), with the encoder's answer as its start. `check_blind` holds any such search to the
one rule that matters: what it returns may not depend on the query or on its answer.

Leave-one-out (`held_out`): the same search with one demonstration taken away from encoder and fit, asked for that
demonstration. It tells what the search is worth without any answer of a query, at the price of K more searches.

Legend: N queries, K demonstrations, S canvas cells, T context tokens, D hidden.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from etrm.data.episodes import Batch
from etrm.data.grids import IGNORE, PAD
from etrm.errors import EvaluationError
from etrm.evaluation.controls import answer, contexts_of
from etrm.models.etrm import ETRM
from etrm.models.trm import TRMDecoder
from etrm.training.losses import CrossEntropy, step_loss

Search = Callable[[Batch], Tensor]  # queries -> refined contexts (N, T, D)


@dataclass(frozen=True)
class SearchPlan:
    """How to search; the values are those that won on cal-1's validation rules (docs/experiments/LOG.md).

    `rate` is Adam's, in deviations of the decoder's contexts, falling to 0 along a cosine. `pull` weighs the squared
    distance to the encoder's context (in deviations, summed over T x D) against the mean loss a demonstration.
    `noise`: each update looks at a context moved by so many deviations.
    """

    updates: int
    rate: float = 0.1
    pull: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True)
class SearchCost:
    """What a search took: updates a query, wall seconds a query, and loss on the demonstrations before and after."""

    updates: int
    seconds_per_query: float
    loss_before: float
    loss_after: float


@dataclass(frozen=True, eq=False)
class Shown:
    """Demonstrations as questions, (N * K, S) each, and nothing else of a query; PAD and empty slots are IGNORE."""

    inputs: Tensor
    labels: Tensor
    count: int  # K

    @classmethod
    def of(cls, queries: Batch, device: torch.device) -> "Shown":
        """The demonstrations of each query; `queries.inputs` and `queries.labels` are not read."""
        labels = np.where(queries.demo_mask[..., None] & (queries.demo_labels != PAD), queries.demo_labels, IGNORE)
        inputs = torch.from_numpy(queries.demo_inputs).to(device)
        return cls(inputs.flatten(0, 1), torch.from_numpy(labels).to(device).flatten(0, 1), inputs.shape[1])


def demonstration_loss(decoder: TRMDecoder, context: Tensor, shown: Shown, kind: CrossEntropy) -> Tensor:
    """Mean LM loss a demonstration and ACT step under contexts (N, T, D), (N,); 0 where nothing is shown."""
    moved = context.repeat_interleave(shown.count, dim=0)  # (N * K, T, D)
    latents = decoder.fresh_latents(len(moved))
    loss = torch.zeros(len(moved), device=context.device)
    for _ in range(decoder.structure.halt_max_steps):
        latents, logits, halt = decoder(latents, shown.inputs, moved)
        loss = loss + step_loss(logits, halt, shown.labels, kind).lm
    there = (shown.labels != IGNORE).any(dim=1).view(-1, shown.count).sum(dim=1)  # (N,)
    return loss.view(-1, shown.count).sum(dim=1) / (there.clamp(min=1) * decoder.structure.halt_max_steps)


def refine(
    decoder: TRMDecoder,
    start: Tensor,
    deviation: Tensor,
    queries: Batch,
    plan: SearchPlan,
    kind: CrossEntropy,
    seed: int,
) -> tuple[Tensor, SearchCost]:
    """Contexts (N, T, D) that answer the queries' demonstrations better than `start` (N, T, D) does.

    deviation (T,) is the bundle's; a token of deviation 0 stays where it is. Queries are searched beside each other and
    do not touch: Adam and the loss are per element. The decoder must be frozen: EvaluationError if it has a gradient.
    """
    if any(p.requires_grad for p in decoder.parameters()):
        raise EvaluationError("the decoder is not frozen; call decoder.requires_grad_(False) before searching")
    began = time.monotonic()
    shown = Shown.of(queries, start.device)
    unit = deviation.view(1, -1, 1)
    start = start.detach().clone()
    moved = torch.zeros_like(start, requires_grad=True)
    optimizer = torch.optim.Adam([moved], lr=plan.rate)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        before = demonstration_loss(decoder, start, shown, kind).mean().item() if len(start) else 0.0
    for update in range(plan.updates):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * 0.5 * (1 + np.cos(np.pi * update / plan.updates))
        context = start + unit * moved
        if plan.noise > 0:
            context = context + plan.noise * unit * torch.randn(start.shape, generator=generator).to(start.device)
        loss = demonstration_loss(decoder, context, shown, kind) + plan.pull * moved.square().sum(dim=(1, 2))
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    found = (start + unit * moved).detach()
    with torch.no_grad():
        after = demonstration_loss(decoder, found, shown, kind).mean().item() if len(start) else 0.0
    seconds = (time.monotonic() - began) / max(1, len(start))
    return found, SearchCost(plan.updates, seconds, before, after)


def search_of(
    model: ETRM, deviation: Tensor, plan: SearchPlan, kind: CrossEntropy, size: int, seed: int
) -> Callable[[Batch], tuple[Tensor, SearchCost]]:
    """The search from a trained model's own contexts, `size` queries at a time: queries -> contexts (N, T, D), cost."""

    def run(queries: Batch) -> tuple[Tensor, SearchCost]:
        parts = []
        for part in queries.batches(size):
            start = contexts_of(model, part, size)
            parts.append((len(part), *refine(model.decoder, start, deviation, part, plan, kind, seed)))
        share = [n / len(queries) for n, _, _ in parts]
        means = (
            sum(w * getattr(cost, name) for w, (_, _, cost) in zip(share, parts, strict=True))
            for name in ("seconds_per_query", "loss_before", "loss_after")
        )
        return torch.cat([found for _, found, _ in parts]), SearchCost(plan.updates, *means)

    return run


def held_out(queries: Batch) -> tuple[Batch, np.ndarray]:
    """Each demonstration asked in turn, answered from the others of its query.

    Returns the questions and which query each belongs to. EvaluationError where a query has fewer than two.
    """
    if int(queries.demo_mask.sum(axis=1).min()) < 2:
        raise EvaluationError("leave-one-out needs two demonstrations a query, and one has fewer")
    parts, owners = [], []
    for k in range(queries.demo_mask.shape[1]):
        asked = np.flatnonzero(queries.demo_mask[:, k])
        part = queries.take(asked)
        mask = part.demo_mask.copy()
        mask[:, k] = False
        labels = np.where(part.demo_labels[:, k] == PAD, IGNORE, part.demo_labels[:, k])
        parts.append(replace(part, inputs=part.demo_inputs[:, k], labels=labels, demo_mask=mask))
        owners.append(asked)
    joined = {name: np.concatenate([getattr(p, name) for p in parts]) for name in Batch.__dataclass_fields__}
    return Batch(**joined), np.concatenate(owners)


def leave_one_out_gain(
    model: ETRM, search: Callable[[Batch], tuple[Tensor, SearchCost]], queries: Batch, kind: CrossEntropy, size: int
) -> tuple[int, int, int]:
    """Of all held-out demonstrations: exact without search, exact with it, and how many there are."""
    asked, _ = held_out(queries)
    plain = answer(model.decoder, asked, contexts_of(model, asked, size), size, kind)
    searched = answer(model.decoder, asked, search(asked)[0], size, kind)
    return int(plain.exact.sum()), int(searched.exact.sum()), len(asked)


def check_blind(search: Search, queries: Batch) -> None:
    """EvaluationError unless a search gives bitwise the same contexts when query and answer are replaced.

    Replaced by another query's, and by its own answer turned around; the demonstrations stay. Give it a few queries:
    each is searched three times.
    """
    found = search(queries)
    turn = np.roll(np.arange(len(queries)), 1)
    others = replace(queries, inputs=queries.inputs[turn], labels=queries.labels[turn])
    turned = replace(queries, labels=np.ascontiguousarray(queries.labels[:, ::-1]))
    for what, changed in (("another query and answer", others), ("its answer turned around", turned)):
        moved = (search(changed) != found).flatten(1).any(dim=1)
        if bool(moved.any()):
            raise EvaluationError(
                f"the search sees what it is asked: with {what}, {int(moved.sum())} of {len(queries)} contexts change; "
                "pass it the demonstrations only (etrm.evaluation.search.Shown)"
            )

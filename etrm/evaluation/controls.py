"""Controls: the same queries answered with the information removed (nulls), or with more of it than an encoder has
(oracles).

A null tells what an encoder's score would be if it did not read its demonstrations; an oracle tells whether the frozen
decoder can be steered at all. An oracle that fails shows nothing ("not shown steerable"): gradient search may simply
not find the context.

Legend: N queries, K demonstrations, S canvas cells, T context tokens, D hidden, G tasks, P labelled pairs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from etrm.config.schema import OptimConfig, RunConfig
from etrm.data.augment import dihedral
from etrm.data.episodes import Batch, Source, derangement
from etrm.data.grids import crop, encode_grid
from etrm.errors import DataError
from etrm.models.etrm import ETRM, Episodes
from etrm.models.trm import TRMDecoder, table_context
from etrm.training.loop import encoder_state
from etrm.training.losses import CrossEntropy, step_loss
from etrm.training.update import LossHead, train_batch_encoder

CONSTANT_RATE = 0.4  # of the contexts' standard deviation; near the best on micro, cal-1 and arc-5 (LOG.md)


@dataclass(frozen=True, eq=False)
class Answers:
    """Of N queries: which were answered exactly (bool), and their LM loss at the last ACT step (fp32 nats a token)."""

    exact: np.ndarray  # (N,)
    loss: np.ndarray  # (N,)
    tokens: np.ndarray  # (N, S) int64
    halt: np.ndarray  # (N,) logits


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside the block, every submodule's own mode afterwards."""
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for m, mode in modes.items():
            m.training = mode


def contexts_of(model: ETRM, queries: Batch, size: int) -> Tensor:
    """The encoder's contexts for queries, eval mode, (N, T, D) fp32."""
    device = next(model.decoder.parameters()).device
    with torch.inference_mode(), evaluating(model):
        return torch.cat([model.context(Episodes.of(b, device)).context.float() for b in queries.batches(size)])


def answer(decoder: TRMDecoder, queries: Batch, context: Tensor, size: int, kind: CrossEntropy) -> Answers:
    """Answer queries with given contexts (N, T, D), always the full number of ACT steps from a fresh carry."""
    found: list[tuple[np.ndarray, ...]] = []
    device = next(decoder.parameters()).device
    for start, part in zip(range(0, len(queries), size), queries.batches(size), strict=True):
        episodes = Episodes.of(part, device)
        with torch.inference_mode():
            latents = decoder.fresh_latents(len(part))
            for _ in range(decoder.structure.halt_max_steps):
                latents, logits, halt = decoder(latents, episodes.inputs, context[start : start + size])
            losses = step_loss(logits, halt, episodes.labels, kind)
        values = (losses.exact, losses.lm, logits.argmax(dim=-1), halt)
        found.append(tuple(v.float().cpu().numpy() if v.dtype is torch.bfloat16 else v.cpu().numpy() for v in values))
    exact, loss, tokens, halts = (np.concatenate(column) for column in zip(*found, strict=True))
    return Answers(exact, loss, tokens, halts)


def permuted_outputs(queries: Batch) -> Batch:
    """Each query's demonstration outputs handed on to its next demonstration (cyclic); with one demonstration
    unchanged.
    """
    labels = queries.demo_labels.copy()
    for i, mask in enumerate(queries.demo_mask):
        shown = np.flatnonzero(mask)
        labels[i, shown] = queries.demo_labels[i, np.roll(shown, 1)]
    return replace(queries, demo_labels=labels)


def copy_input(queries: Batch) -> np.ndarray:
    """Is the answer the input itself? (N,) bool."""
    return ((queries.inputs == queries.labels) | (queries.labels < 0)).all(axis=1)


def best_dihedral(queries: Batch, side: int) -> np.ndarray:
    """Does the first dihedral transform that explains all of a query's demonstrations also answer it? (N,) bool."""
    right = np.zeros(len(queries), dtype=bool)
    for i in range(len(queries)):
        shown = np.flatnonzero(queries.demo_mask[i])
        pairs = [(crop(queries.demo_inputs[i, k], side), crop(queries.demo_labels[i, k], side)) for k in shown]
        rule = next((t for t in range(8) if pairs and all(np.array_equal(dihedral(a, t), b) for a, b in pairs)), None)
        if rule is not None:
            guess = encode_grid(dihedral(crop(queries.inputs[i], side), rule), side)
            right[i] = bool(((guess == queries.labels[i]) | (queries.labels[i] < 0)).all())
    return right


class ConstantContext(nn.Module):
    """An "encoder" that ignores its demonstrations: one learned (T, D) context, from the table's mean on."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(mean.clone())

    def forward(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> Tensor:
        return self.value.expand(len(demo_mask), -1, -1)


def constant_context(config: RunConfig, model: ETRM, source: Source, updates: int) -> tuple[Tensor, list[float]]:
    """Train the constant context on the run's episodes and loss, by AdamW at CONSTANT_RATE whatever the run's own
    optimiser and freeze are; returns it (T, D) and its loss in ten equal parts of training.
    """
    torch.manual_seed(config.system.seed)
    head = LossHead(ETRM(ConstantContext(model.spec.context_mean), model.decoder, model.spec), config.loss)
    budget = replace(config.budget, updates=updates, epochs=0)
    # A null must be as strong as it can be: what suits an encoder (Muon, a small rate) leaves it halfway.
    optim = OptimConfig(
        name="adamw",
        lr=CONSTANT_RATE * float(model.spec.context_std.mean()),
        beta1=0.9,
        beta2=0.95,
        warmup_updates=0,
        cooldown_share=0.5,
        min_ratio=0.02,
        weight_decay=0.0,
        clip_norm=1.0,
        ema_decay=0.0,
    )
    loss, freeze = replace(config.loss, objective="lm", table_share=0.0), replace(config.freeze, decoder_updates=-1)
    plain = replace(config, budget=budget, optim=optim, loss=loss, freeze=freeze)
    state = encoder_state(plain, head, len(source.task_ids))
    rng = np.random.default_rng(config.system.seed + 1)
    device = next(model.decoder.parameters()).device
    losses = []
    for _ in range(updates):
        batch = Episodes.of(source.sample(config.budget.batch_size, rng), device)
        losses.append(train_batch_encoder(plain, state, batch, config.budget.batch_size)["train/lm_loss"])
    value = head.model.encoder.value  # type: ignore[union-attr]
    assert isinstance(value, Tensor)
    return value.detach().clone(), [float(np.mean(part)) for part in np.array_split(losses, 10) if len(part)]


def null_contexts(
    model: ETRM, untrained: ETRM, constant: Tensor, queries: Batch, size: int, seed: int
) -> dict[str, Callable[[], Tensor]]:
    """The nulls that go through the decoder: name -> function that gives contexts (N, T, D) for the same queries."""
    count = len(queries)
    lender = derangement(queries.task, np.random.default_rng(seed))
    return {
        "mismatched": lambda: contexts_of(model, queries.with_demos_of(lender), size),
        "permuted_outputs": lambda: contexts_of(model, permuted_outputs(queries), size),
        "zero_context": lambda: torch.zeros_like(constant).expand(count, -1, -1),
        "constant_context": lambda: constant.expand(count, -1, -1),
        "untrained_encoder": lambda: contexts_of(untrained, queries, size),
    }


def own_rows(decoder: TRMDecoder, table: Tensor, queries: Batch) -> Tensor:
    """Positive control: the decoder's own row of each query, (N, T, D). DataError if a query has none."""
    if lacking := int((queries.row < 0).sum()):
        raise DataError(
            f"{lacking} of {len(queries)} queries have no row in the decoder's table; ask tasks and augmentations that "
            "its bundle has rows for"
        )
    return table_context(table[torch.from_numpy(queries.row)], decoder.structure)


def oracle(
    decoder: TRMDecoder,
    start: Tensor,
    pairs: Batch,
    per_task: int,
    updates: int,
    kind: CrossEntropy,
    seed: int,
    batch_pairs: int = 4,
    lr: float = 3e-2,
) -> tuple[Tensor, np.ndarray]:
    """Optimise one free context a task through the frozen decoder on its labelled pairs (Adam, cosine).

    pairs: G x per_task episodes in task order (their demonstrations are ignored); start (G, T, D). Returns contexts
    (G, T, D) and the fit: mean loss a task over the last tenth of the updates (G,), by which restarts are compared
    (never by the queries).
    """
    tasks = len(pairs) // per_task
    context = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([context], lr=lr)
    rng = np.random.default_rng(seed)
    episodes = Episodes.of(pairs, context.device)
    tail = []
    for update in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + np.cos(np.pi * update / updates))
        chosen = np.stack([rng.choice(per_task, min(batch_pairs, per_task), replace=False) for _ in range(tasks)])
        index = torch.from_numpy((chosen + per_task * np.arange(tasks)[:, None]).ravel())
        owner = torch.arange(tasks).repeat_interleave(chosen.shape[1])
        latents = decoder.fresh_latents(len(index))
        loss = torch.zeros(len(index))
        for _ in range(decoder.structure.halt_max_steps):
            latents, logits, halt = decoder(latents, episodes.inputs[index], context[owner])
            loss = loss + step_loss(logits, halt, episodes.labels[index], kind).lm
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        if update >= min(0.9 * updates, updates - 1):  # fewer than ten updates have a last one too
            tail.append(loss.detach().view(tasks, -1).mean(dim=1).numpy())
    return context.detach(), np.mean(tail, axis=0)

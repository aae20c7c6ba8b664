"""Plants between parts that are right by themselves: what is handed on, asked or compared is another thing.

Found by somebody who was asked for bugs that the checks miss. Right: INVALID, named by a second reading.

Legend: B batch, K demonstrations, T context tokens, D hidden.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from etrm.data import episodes as drawing
from etrm.data.episodes import Batch, derangement
from etrm.data.families import random_grids
from etrm.evaluation.controls import answer, contexts_of, copy_input, null_contexts
from etrm.experiment.outcome import own_answers
from etrm.experiment.scores import lift, rung_evidence
from etrm.faults.bank import Bench, Family, Stage, everywhere, fault, method
from etrm.faults.gradient import through
from etrm.faults.late import shorter
from etrm.models.encoders import Encoded, build_encoder
from etrm.models.etrm import Episodes, act_step
from etrm.training.optimizers import make_optimizer
from etrm.training.update import LossHead


def wired(
    id: str,
    family: Family,
    happened: str,
    original: Any,
    stand_in: Callable[[], Any],
    check: str,
    stage: Stage = "before training",
    naive: str = "C",
    short: bool = False,
) -> None:
    """Enter a fault: a function of the library is another one everywhere; `stand_in` makes it, with its own memory.

    `short`: an encoder that is hardly trained shows it as well.
    """

    @fault(id, family, happened, verdict="INVALID", check=check, stage=stage, naive=naive)
    def plant(bench: Bench) -> Iterator[None]:
        if stage == "full run" and short:
            shorter(bench)
        with everywhere(original, stand_in()):
            yield


def _memoised_encoder() -> Any:
    kept: dict[str, Any] = {}
    return lambda config, spec: kept.setdefault(str(config), build_encoder(config, spec))


def _memoised_answers() -> Any:
    kept: dict[str, Any] = {}

    def asked(config: Any, model: Any, rung: Any) -> Any:
        if rung.name not in kept:
            kept[rung.name] = own_answers(config, model, rung)
        return kept[rung.name]

    return asked


def _own_for_zero(model: Any, untrained: Any, constant: Any, queries: Batch, size: int, seed: int) -> Any:
    real = null_contexts(model, untrained, constant, queries, size, seed)
    return {**real, "zero_context": lambda: contexts_of(model, queries, size)}


def _one_step(decoder: Any, *rest: Any) -> Any:
    whole = decoder.structure
    decoder.structure = replace(whole, halt_max_steps=1)
    try:
        return answer(decoder, *rest)
    finally:
        decoder.structure = whole


def _first_batch(decoder: Any, queries: Batch, contexts: Any, size: int, kind: Any) -> Any:
    return answer(decoder, queries, torch.cat([contexts[: len(part)] for part in queries.batches(size)]), size, kind)


def _all_halt(*given: Any, **named: Any) -> Any:
    carry, out = act_step(*given, **named)
    halted = torch.ones_like(carry.halted)
    return replace(carry, halted=halted), replace(out, halted=halted)


wired("every-slot-halts-at-once", "training", "the halting rule was true for every sample",
      act_step, lambda: _all_halt, "update_true", "first updates", "A")  # fmt: skip
wired("decay-ten-times-the-configs", "training", "a default of another optimiser stood in the call",
      make_optimizer, lambda: lambda c, p, lr: make_optimizer(replace(c, weight_decay=10 * c.weight_decay), p, lr),
      "update_true", "first updates", "A")  # fmt: skip
wired("untrained-null-is-trained", "evaluation", "a memoised factory gave null and encoder one module",
      build_encoder, _memoised_encoder, "encoder_as_asked")  # fmt: skip
wired("encoder-size-ignored", "config", "the config's size never reached the factory",
      build_encoder, lambda: lambda c, s: build_encoder(replace(c, hidden_size=4, num_heads=1), s),
      "encoder_as_asked")  # fmt: skip
wired("null-rolled-by-two", "evaluation", "the shuffle moved each query two places, mostly within its task",
      derangement, lambda: lambda task, rng: np.roll(np.arange(len(task)), 2), "evaluator_true")  # fmt: skip
wired("zero-null-is-own", "evaluation", "the zero context was the encoder's own",
      null_contexts, lambda: _own_for_zero, "evaluator_true")  # fmt: skip
wired("one-act-step-in-evaluation", "evaluation", "evaluation stopped after the first ACT step",
      answer, lambda: _one_step, "paths_agree", naive="A")  # fmt: skip
wired("contexts-of-the-first-batch", "evaluation", "every batch was answered under the first one's contexts",
      answer, lambda: _first_batch, "paths_agree")  # fmt: skip
wired("untrained-encoder-scored", "evaluation", "trained and untrained encoder were exchanged in a call",
      rung_evidence, lambda: lambda rung, model, untrained, *rest: rung_evidence(rung, untrained, model, *rest),
      "outcome_true", "full run")  # fmt: skip
wired("lift-the-wrong-way-round", "evaluation", "the null's score minus the encoder's",
      lift, lambda: lambda own, null: lift(null, own), "outcome_true", "full run")  # fmt: skip
wired("copy-null-compares-itself", "evaluation", "inputs were compared with inputs",
      copy_input, lambda: lambda queries: np.ones(len(queries), dtype=bool), "outcome_true", "full run",
      short=True)  # fmt: skip
wired("answers-memoised-by-rung", "evaluation", "the evaluation after training was the one before it",
      own_answers, _memoised_answers, "outcome_true", "full run", "B", short=True)  # fmt: skip


def arriving(id: str, happened: str, change: Callable[[Episodes], Episodes]) -> None:
    """Enter a fault: arrays become other tensors."""

    @fault(id, "data", happened, verdict="INVALID", check="paths_agree", naive="C")
    def plant(bench: Bench) -> Iterator[None]:
        whole = Episodes.of.__func__  # type: ignore[attr-defined]
        with method(Episodes, "of", classmethod(lambda cls, batch, device: change(whole(cls, batch, device)))):
            yield


def _first_alone(e: Episodes) -> Episodes:
    mask = e.demo_mask.clone()
    mask[:, 1:] = False
    return replace(e, demo_mask=mask)


arriving("one-demonstration-arrives", "the mask kept the first demonstration alone", _first_alone)
arriving(
    "colours-clamped-on-the-way",
    "outputs were clamped to a smaller vocabulary",
    lambda e: replace(e, demo_labels=e.demo_labels.clamp(max=4)),
)


def headed(id: str, family: Family, happened: str, change: Callable[[LossHead], None], naive: str = "C") -> None:
    """Enter a fault: the assembled model takes another path in training than in evaluation."""

    @fault(id, family, happened, verdict="INVALID", check="paths_agree", naive=naive)
    def plant(bench: Bench) -> Iterator[None]:
        bench.edits.append(change)
        yield


def _reads_reversed(head: LossHead) -> None:
    decoder: Any = head.decoder
    whole = decoder.embed
    decoder.embed = lambda inputs, context: whole(inputs, context.flip(1) if torch.is_grad_enabled() else context)


def _fewer_cycles(head: LossHead) -> None:
    decoder: Any = head.decoder
    whole = decoder.forward

    def forward(*given: Any) -> Any:
        kept = decoder.structure
        if torch.is_grad_enabled():
            decoder.structure = replace(kept, h_cycles=1)
        try:
            return whole(*given)
        finally:
            decoder.structure = kept

    decoder.forward = forward


def _hands_reversed(head: LossHead) -> None:
    model: Any = head.model
    whole = model.context

    def context(episodes: Episodes) -> Encoded:
        encoded: Encoded = whole(episodes)
        return Encoded(encoded.context.flip(1), encoded.losses) if model.training else encoded

    model.context = context


headed("training-reads-tokens-backwards", "decoder", "two code paths joined tokens in two orders", _reads_reversed)
headed("fewer-cycles-in-training", "decoder", "one H cycle under gradients, to save time", _fewer_cycles, "A")
headed("tokens-reordered-in-training", "encoder", "a layout for the fast kernel in train mode alone", _hands_reversed)


@fault(
    "gradient-of-the-first-chunk",
    "gradient",
    "the encoder ran in chunks of 16, and only the first one had a gradient",
    verdict="B",
    check="gradient",
    stage="first updates",
    naive="C",
)
def _chunks(bench: Bench) -> Iterator[None]:
    through(bench, lambda context, _: torch.cat((context[:16], context[16:].detach())))
    yield


@fault("one-colour-missing", "data", "an exclusive bound left a colour out of every grid", verdict="INVALID",
       check="episodes_fresh", naive="C")  # fmt: skip
def _one_colour(bench: Bench) -> Iterator[None]:
    def fewer(count: int, side: int, colours: int, black: float, rng: np.random.Generator) -> np.ndarray:
        return random_grids(count, side, colours - 1, black, rng)

    kept: Any = drawing
    original, kept.random_grids = kept.random_grids, fewer
    try:
        yield
    finally:
        kept.random_grids = original


@fault("spec-of-another-decoder", "encoder", "the encoder was told another table's mean and deviation",
       verdict="INVALID", check="encoder_as_asked", naive="C")  # fmt: skip
def _other_spec(bench: Bench) -> Iterator[None]:
    b = bench.bundle
    bench.bundle = replace(b, context_mean=b.context_mean * 0, context_std=b.context_std * 20)
    yield

"""Does the evaluator count what was answered? Known answers through the real path, and what it may not depend on.

A decoder that answers from a list gives 100 % with the right list, 0 % with one wrong cell a query, and the same with
any batch size. Labels never reach an answer, the weights of this moment do, and the mismatched null really shows each
query another task's demonstrations.

Legend: N queries, S canvas cells, V vocabulary, T context tokens, D hidden.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etrm.config.schema import RunConfig
from etrm.data.episodes import Batch
from etrm.data.grids import COLOUR0, IGNORE, PAD, VOCAB
from etrm.errors import EtrmError
from etrm.evaluation.controls import answer, contexts_of, null_contexts
from etrm.evaluation.voting import FRACTION_RULE
from etrm.experiment.arms import Arm, Rung
from etrm.experiment.checks import Check, check
from etrm.experiment.scores import result_of
from etrm.experiment.votes import voted
from etrm.models.bundle import Bundle
from etrm.models.encoders import EncoderSpec
from etrm.models.etrm import ETRM
from etrm.models.trm import Latents, TRMDecoder

ASKED = 48


class Listed(TRMDecoder):
    """A decoder that answers query i, whose input (S,) is listed and whose context says i, with row i of a list, and
    with PAD what it cannot place.

    The input alone would not do: two augmentations of a task may ask the same one and want different answers, which
    only the demonstrations tell.
    """

    def __init__(self, like: TRMDecoder, inputs: np.ndarray, answers: np.ndarray) -> None:
        super().__init__(like.structure)
        self.inputs, self.answers = inputs, answers

    def contexts(self) -> Tensor:
        """Context i holds the number i, (N, T, D)."""
        shape = (self.structure.context_tokens, self.structure.hidden_size)
        return torch.arange(len(self.answers), dtype=torch.float32).view(-1, 1, 1).expand(-1, *shape)

    def forward(self, latents: Latents, inputs: Tensor, context: Tensor) -> tuple[Latents, Tensor, Tensor]:
        number = context[:, 0, 0].float().cpu().numpy()  # (B,)
        asked = number.astype(np.int64).clip(0, len(self.answers) - 1)
        placed = (asked == number) & (self.inputs[asked] == inputs.cpu().numpy()).all(axis=1)
        tokens = np.where(placed[:, None], self.answers[asked], PAD)
        logits = F.one_hot(torch.from_numpy(tokens), VOCAB).float() * 9
        return latents, logits.to(inputs.device), torch.zeros(len(tokens), device=inputs.device)


class Fingerprint(nn.Module):
    """An "encoder" whose context names the shown demonstrations: equal contexts mean equal demonstrations."""

    def __init__(self, spec: EncoderSpec, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        size = spec.context_tokens * spec.hidden_size
        self.directions = torch.randn(2 * spec.seq_len, size, generator=generator)
        self.shape = (spec.context_tokens, spec.hidden_size)

    def forward(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> Tensor:
        pairs = torch.cat((demo_inputs, demo_labels), dim=-1).float()  # (B, K, 2S)
        # Not linear in a pair: another pairing of the same inputs and outputs must give another sum.
        waves = torch.sin(pairs @ self.directions) * demo_mask.unsqueeze(-1)
        return waves.sum(dim=1).view(-1, *self.shape)


def evaluator_checks(config: RunConfig, arm: Arm, model: ETRM, bundle: Bundle) -> list[Check]:
    """`evaluator_true`."""
    faults: list[str] = []
    for rung in arm.rungs:
        at = _sample(rung.batch)
        part = Rung(rung.name, rung.batch.take(at), rung.task_ids, rung.known)
        faults += [f"{rung.name}: {f}" for f in (*_counting(config, part, model.decoder), *_nulls(config, rung, model))]
        faults += vote_faults(config, rung, model.decoder, bundle.side)
    faults += _dependence(config, arm, model)
    said = "known answers score 100 % and 0 % at any batch size; nulls show other tasks; labels stay out of answers"
    return [check("evaluator_true", not faults, "; ".join(faults[:3]) or said)]


def _sample(batch: Batch) -> np.ndarray:
    """Indices of at most ASKED queries, in rounds over the tasks."""
    rounds = np.argsort(np.arange(len(batch)) % max(1, len(batch) // ASKED), kind="stable")
    return np.sort(rounds[:ASKED])


def _tokens(labels: np.ndarray) -> np.ndarray:
    """Labels as an answer: what is ignored is answered with a colour, which must not matter."""
    return np.where(labels == IGNORE, COLOUR0, labels)


def _counting(config: RunConfig, rung: Rung, decoder: TRMDecoder) -> list[str]:
    batch, kind = rung.batch, config.loss.cross_entropy
    right = _tokens(batch.labels)
    wrong = right.copy()
    for row, labels in zip(wrong, batch.labels, strict=True):
        first = np.flatnonzero(labels != IGNORE)[0]
        row[first] = COLOUR0 if row[first] != COLOUR0 else COLOUR0 + 1
    faults = []
    for size in (len(batch), 7, 1):
        good, bad = (
            answer(listed, batch, listed.contexts(), size, kind)
            for listed in (Listed(decoder, batch.inputs, right), Listed(decoder, batch.inputs, wrong))
        )
        for found, expected in ((good, len(batch)), (bad, 0)):
            result = result_of(rung.name, found.exact, rung)
            if (result.k, result.n, result.tasks) != (expected, len(batch), len(np.unique(batch.task))):
                faults.append(f"{result.k} of {result.n} counted in batches of {size}, {expected} of {len(batch)} true")
    return faults


def _nulls(config: RunConfig, rung: Rung, model: ETRM) -> list[str]:
    """Each null over the whole rung is what its name says, seen through an encoder that names what it is shown."""
    batch, size = rung.batch, config.evaluation.batch_size
    most = int(np.bincount(batch.task).max())
    if 2 * most > len(batch):
        return [f"one task holds {most} of its {len(batch)} queries, so none can be mismatched"]
    spec = model.spec
    reader, other = (ETRM(Fingerprint(spec, seed), model.decoder, spec) for seed in (0, 1))
    constant = torch.randn(spec.context_tokens, spec.hidden_size, generator=torch.Generator().manual_seed(2))
    found = {n: make().float() for n, make in null_contexts(reader, other, constant, batch, size, 0).items()}
    own = contexts_of(reader, batch, size)
    shown: dict[bytes, set[int]] = {}
    for context, task in zip(own, batch.task, strict=True):
        shown.setdefault(context.numpy().tobytes(), set()).add(int(task))
    keys = [c.numpy().tobytes() for c in found["mismatched"]]
    faults = [f"{name} has no contexts for every query" for name, c in found.items() if len(c) != len(batch)]
    # Demonstrations that another task shows as well are another task's, though on small grids they may look the same.
    kept = sum(shown.get(key, {int(t)}) == {int(t)} for key, t in zip(keys, batch.task, strict=True))
    if kept:
        faults.append(f"the mismatched null shows {kept} of {len(batch)} queries no other task's demonstrations")
    several = batch.demo_mask.sum(axis=1) > 1
    same = (found["permuted_outputs"] == own).flatten(1).all(dim=1).numpy() & several
    if same.sum() > 0.1 * several.sum():
        faults.append(f"permuted outputs are the query's own in {same.sum()} of {several.sum()} queries")
    meant = {
        "zero_context": torch.zeros_like(own),
        "constant_context": constant.expand(len(batch), -1, -1),
        "untrained_encoder": contexts_of(other, batch, size),
    }
    return faults + [f"the null {n} is another context than its name says" for n, c in meant.items()
                     if found[n].shape != c.shape or not torch.allclose(found[n], c, atol=1e-5)]  # fmt: skip


def vote_faults(config: RunConfig, rung: Rung, decoder: TRMDecoder, side: int) -> list[str]:
    """Perfect answers through turning back, cropping and voting."""
    if not rung.asked:
        return []
    right = Listed(decoder, rung.batch.inputs, _answered(rung.batch))
    found = answer(right, rung.batch, right.contexts(), config.evaluation.batch_size, config.loss.cross_entropy)
    try:
        score = voted(rung, found, side).pass_at(1, FRACTION_RULE)
    except EtrmError as error:
        return [f"{rung.name}: perfect answers cannot be voted: {error}"]
    return [] if score == 1.0 else [f"{rung.name}: perfect answers vote to {score:.1%}"]


def _answered(batch: Batch) -> np.ndarray:
    """The right tokens with nothing where nothing is scored, so that a crop finds the grid's end."""
    return np.where(batch.labels == IGNORE, PAD, batch.labels)


def _dependence(config: RunConfig, arm: Arm, model: ETRM) -> list[str]:
    """Answers depend on the encoder's weights of this moment, and not on labels."""
    batch = arm.probe.batch.take(np.arange(min(16, len(arm.probe.batch))))
    size, kind = config.evaluation.batch_size, config.loss.cross_entropy
    own = contexts_of(model, batch, size)
    other = Batch(
        batch.inputs, np.roll(batch.labels, 1, axis=1), batch.demo_inputs, batch.demo_labels, batch.demo_mask,
        batch.task, batch.row,
    )  # fmt: skip
    faults = []
    one, two = (answer(model.decoder, b, own, size, kind) for b in (batch, other))
    if not (np.array_equal(one.tokens, two.tokens) and np.array_equal(one.halt, two.halt)):
        faults.append("answers change with the labels")
    spec = model.spec
    reader = ETRM(Fingerprint(spec), model.decoder, spec)
    first = contexts_of(reader, batch, size)
    assert isinstance(reader.encoder, Fingerprint)
    reader.encoder.directions *= 1.5
    if torch.equal(first, contexts_of(reader, batch, size)):
        faults.append("contexts do not change with the encoder's weights")
    return faults

"""ETRM: an encoder's context in front of a TRM decoder, the ACT carry, and the loss head that training calls.

The carry holds, for every slot of the batch, latents, step count, halting flag and the slot's own episode: a slot that
halted takes the new batch's episode, the others keep theirs (inputs, labels and demonstrations alike). The encoder
reads the carried demonstrations at every ACT step, so that every sample of every update sends it a gradient.

Legend: B batch, K demonstrations, S canvas cells, T context tokens, D hidden, L = T + S, W table width.
"""

from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etrm.data.episodes import Batch
from etrm.declared import truncate
from etrm.errors import DataError
from etrm.models.encoders import Encoded, EncoderSpec, encode
from etrm.models.trm import Latents, TRMDecoder, table_context


@dataclass(frozen=True, eq=False)
class Episodes:
    """A data.Batch on the model's device: int64 tensors and a bool mask, same names and shapes."""

    inputs: Tensor  # (B, S)
    labels: Tensor  # (B, S)
    demo_inputs: Tensor  # (B, K, S)
    demo_labels: Tensor  # (B, K, S)
    demo_mask: Tensor  # (B, K)
    task: Tensor  # (B,)
    row: Tensor  # (B,)

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> "Episodes":
        """Copy a batch of arrays to `device`."""
        return cls(*(torch.from_numpy(getattr(batch, f.name)).to(device) for f in fields(cls)))

    def padded(self, demos: int) -> "Episodes":
        """The same episodes with K raised to `demos` by masked slots."""
        extra = demos - self.demo_mask.shape[1]
        if extra <= 0:
            return self
        inputs, labels = (F.pad(t, (0, 0, 0, extra)) for t in (self.demo_inputs, self.demo_labels))
        mask = F.pad(self.demo_mask, (0, extra))
        return replace(self, demo_inputs=inputs, demo_labels=labels, demo_mask=mask)

    def trimmed(self) -> "Episodes":
        """The same episodes without trailing slots that no sample uses; at least one stays."""
        used = self.demo_mask.any(dim=0).nonzero()
        keep = max(1, int(used.max()) + 1) if len(used) else 1
        inputs, labels, mask = (t[:, :keep] for t in (self.demo_inputs, self.demo_labels, self.demo_mask))
        return replace(self, demo_inputs=inputs, demo_labels=labels, demo_mask=mask)

    def replaced(self, where: Tensor, new: "Episodes") -> "Episodes":
        """`new` in the slots where `where` (B,) bool is set, these in the others; K as large as these need, no larger.

        Raises DataError if the two have another number of slots: torch would repeat a single episode in silence.
        """
        if new.inputs.shape != self.inputs.shape:
            raise DataError(f"a batch of {tuple(new.inputs.shape)} cannot refill slots of {tuple(self.inputs.shape)}")
        demos = max(self.demo_mask.shape[1], new.demo_mask.shape[1])
        mine, theirs = self.padded(demos), new.padded(demos)
        pairs = ((getattr(mine, f.name), getattr(theirs, f.name)) for f in fields(self))
        return Episodes(
            *(torch.where(where.view(-1, *[1] * (old.dim() - 1)), fresh, old) for old, fresh in pairs)
        ).trimmed()


@dataclass(frozen=True, eq=False)
class Carry:
    """State between ACT steps. Nothing in it has gradient history."""

    latents: Latents
    steps: Tensor  # (B,) int64, ACT steps this episode has had
    halted: Tensor  # (B,) bool
    episodes: Episodes


class ContextModel(Protocol):
    """What the loss head needs: a decoder, and a context for episodes."""

    @property
    def decoder(self) -> TRMDecoder:
        """The decoder that reads the context."""
        ...

    def context(self, episodes: Episodes) -> Encoded:
        """The context (B, T, D) of each episode."""
        ...


class ETRM(nn.Module):
    """Encoder and decoder. With `autocast` (by default: where the decoder computes in bf16) the encoder runs under bf16
    autocast; the decoder always computes in its own type.
    """

    def __init__(self, encoder: nn.Module, decoder: TRMDecoder, spec: EncoderSpec) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.spec = spec
        self.autocast = decoder.dtype is torch.bfloat16

    def context(self, episodes: Episodes) -> Encoded:
        """The encoder's context for each episode, held to the encoder contract; (B, T, D)."""
        with torch.autocast(episodes.inputs.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            return encode(self.encoder, self.spec, episodes.demo_inputs, episodes.demo_labels, episodes.demo_mask)


class PuzzleTable(nn.Module):
    """TRM's own context: one row an augmented task, zero at first. `weights` is (rows, W) fp32."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(rows, width))


class TableTRM(nn.Module):
    """A decoder with its puzzle table: pretraining, and the positive control of the frozen-decoder experiment.

    In training each sample's row is moved by Gaussian noise of u x `noise` x the table's deviation, u uniform in
    (0, 1): the decoder then answers around its rows as well as on them, which is where an encoder's contexts lie.
    `width`: numbers of a row, 0 for the whole context; a narrower one leaves the last tokens zero, as TRM's own do.
    """

    def __init__(
        self,
        decoder: TRMDecoder,
        rows: int,
        noise: float = 0.0,
        generator: torch.Generator | None = None,
        width: int = 0,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.noise, self.generator = noise, generator
        structure = decoder.structure
        self.puzzle_emb = PuzzleTable(rows, width or structure.context_tokens * structure.hidden_size)

    def context(self, episodes: Episodes) -> Encoded:
        """The table's rows as context (B, T, D); DataError for an episode whose task has no row."""
        if bool((episodes.row < 0).any()):
            raise DataError(
                "an episode's task has no row in the puzzle table; take tasks that the decoder was trained on"
            )
        rows = self.puzzle_emb.weights[episodes.row]  # (B, W)
        if self.training and self.noise > 0:
            with torch.no_grad():
                spread = self.puzzle_emb.weights.std(dim=0, correction=0).mean()
                share = torch.rand((len(rows), 1), generator=self.generator).to(rows.device)
                moved = torch.randn(rows.shape, generator=self.generator).to(rows.device)
            rows = rows + self.noise * spread * share * moved
        return Encoded(table_context(rows, self.decoder.structure), {})


@dataclass(frozen=True, eq=False)
class StepOutput:
    """One ACT step: what the loss needs, and what was computed on the way."""

    logits: Tensor  # (B, S, V)
    halt: Tensor  # (B,)
    encoded: Encoded
    episodes: Episodes
    halted: Tensor  # (B,)


def fresh_carry(decoder: TRMDecoder, episodes: Episodes) -> Carry:
    """A carry in which every slot has halted, so that the first step takes every episode of the first batch."""
    size, device = episodes.inputs.shape[0], episodes.inputs.device
    steps = torch.zeros(size, dtype=torch.int64, device=device)
    return Carry(decoder.fresh_latents(size), steps, torch.ones(size, dtype=torch.bool, device=device), episodes)


def act_step(
    model: ContextModel,
    carry: Carry,
    new: Episodes,
    exploration: float,
    generator: torch.Generator | None,
    share: tuple[int, int] = (0, 1),
) -> tuple[Carry, StepOutput]:
    """One ACT step in training: refill halted slots, encode, decode, decide who halts.

    `exploration` is the chance that a sample must make a random minimum of 2..halt_max_steps steps; drawn from
    `generator`. `share` (rank, ranks): these slots are that part of the global batch, for all of which is drawn.
    """
    most = model.decoder.structure.halt_max_steps
    episodes = carry.episodes.replaced(carry.halted, new)
    latents = model.decoder.reset_latents(carry.halted, carry.latents)
    steps = torch.where(carry.halted, 0, carry.steps) + 1
    encoded = model.context(episodes)
    latents, logits, halt = model.decoder(latents, episodes.inputs, encoded.context)
    with torch.no_grad():
        halted = steps >= most
        if most > 1:
            wants = truncate(halt, "halting_decision") > 0
            own = slice(share[0] * len(halt), (share[0] + 1) * len(halt))
            everyone = len(halt) * share[1]
            explores = torch.rand(everyone, generator=generator)[own].to(halt.device) < exploration
            least = torch.randint(2, most + 1, (everyone,), generator=generator)[own].to(halt.device)
            halted = halted | (wants & (steps >= torch.where(explores, least, 0)))
    return Carry(latents, steps, halted, episodes), StepOutput(logits, halt, encoded, episodes, halted)


@torch.inference_mode()
def decode(decoder: TRMDecoder, inputs: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluate: a fresh carry and always halt_max_steps ACT steps. (B, S), (B, T, D) -> tokens (B, S) int64, halt
    (B,).
    """
    latents = decoder.fresh_latents(inputs.shape[0])
    for _ in range(decoder.structure.halt_max_steps):
        latents, logits, halt = decoder(latents, inputs, context)
    return logits.argmax(dim=-1), halt

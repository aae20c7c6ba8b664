"""Plants in the encoder that leave its gradient whole: it reads nothing, too much, or speaks another scale.

Legend: B batch, K demonstrations, S canvas cells, T context tokens, D hidden.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from etrm.evaluation.controls import ConstantContext
from etrm.faults.bank import Bench, Stage, fault
from etrm.faults.gradient import through
from etrm.models.encoders import EncoderSpec
from etrm.models.etrm import ETRM
from etrm.training.update import LossHead


def swapped(id: str, happened: str, make: Callable[[EncoderSpec, nn.Module], nn.Module], *, verdict: str, check: str,
            stage: Stage, catalogue: int | None = None, naive: str = "A or C", arm: str = "micro") -> None:  # fmt: skip
    """Enter a fault: another encoder stands in the model."""

    @fault(
        id, "encoder", happened, verdict=verdict, check=check, stage=stage, catalogue=catalogue, naive=naive, arm=arm
    )
    def plant(bench: Bench) -> Iterator[None]:
        def edit(head: LossHead) -> None:
            assert isinstance(head.model, ETRM)
            head.model.encoder = make(head.model.spec, head.model.encoder)

        bench.edits.append(edit)
        yield


class Reading(nn.Module):
    """An encoder that gets altered demonstrations."""

    def __init__(
        self, encoder: nn.Module, alter: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    ) -> None:
        super().__init__()
        self.encoder, self.alter = encoder, alter

    def forward(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> Tensor:
        context: Tensor = self.encoder(*self.alter(demo_inputs, demo_labels, demo_mask))
        return context


class Whole(nn.Module):
    """An encoder whose answer is changed."""

    def __init__(self, encoder: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.encoder, self.change = encoder, change

    def forward(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> Tensor:
        return self.change(self.encoder(demo_inputs, demo_labels, demo_mask))


def _dropping(spec: EncoderSpec, encoder: nn.Module) -> nn.Module:
    """Dropout that stays on: its train flag is turned back at every call."""
    drop = nn.Dropout(0.3)
    return Whole(encoder, lambda c: drop.train()(c))


swapped(
    "constant-context",
    "a learned constant lowers the loss under a frozen decoder too",
    lambda spec, _: ConstantContext(spec.context_mean),
    verdict="C",
    check="loss",
    stage="full run",
    catalogue=5,
)
swapped(
    "reads-inputs-only",
    "outputs of the demonstrations were embedded and dropped",
    lambda spec, e: Reading(e, lambda x, y, m: (x, torch.full_like(y, 2), m)),
    verdict="C|UNDECIDED",
    check="loss|fit|generalisation",
    stage="full run",
    catalogue=5,
)
swapped(
    "reads-outputs-only",
    "inputs of the demonstrations never reached the encoder",
    lambda spec, e: Reading(e, lambda x, y, m: (torch.full_like(x, 2), y, m)),
    verdict="C|UNDECIDED",
    check="loss|fit|generalisation",
    stage="full run",
    catalogue=5,
)
swapped(
    "reads-unshown-slots",
    "the demonstration mask was forgotten",
    lambda spec, e: Reading(e, lambda x, y, m: (x, y, torch.ones_like(m))),
    verdict="INVALID",
    check="encoder_pure",
    stage="before training",
    catalogue=39,
    arm="arc",
)
swapped(
    "neighbours-mixed",
    "a norm over the batch instead of the features",
    lambda spec, e: Whole(e, lambda c: c - c.mean(dim=0, keepdim=True) + c[:1].detach()),
    verdict="INVALID",
    check="encoder_pure",
    stage="before training",
)
swapped(
    "dropout-left-on",
    "dropout stays on in evaluation",
    _dropping,
    verdict="INVALID",
    check="encoder_pure",
    stage="before training",
    catalogue=37,
)
swapped(
    "context-of-nan",
    "a softmax over nothing",
    lambda spec, e: Whole(e, lambda c: c * float("nan")),
    verdict="INVALID",
    check="context_contract",
    stage="before training",
    catalogue=38,
)
swapped(
    "context-of-another-shape",
    "one token too many",
    lambda spec, e: Whole(e, lambda c: torch.cat((c, c[:, :1]), dim=1)),
    verdict="INVALID",
    check="context_contract",
    stage="before training",
    catalogue=22,
)
swapped(
    "context-of-integers",
    "a cast for a log line",
    lambda spec, e: Whole(e, lambda c: c.long()),
    verdict="INVALID",
    check="context_contract",
    stage="before training",
    catalogue=22,
)


@fault(
    "context-times-thirty",
    "encoder",
    "dense unit-RMS tokens where the decoder knew small ones",
    verdict="UNDECIDED|C|INVALID",
    check="loss|fit|generalisation|finite|H3",
    stage="full run",
    catalogue=22,
    naive="C",
)
def thirty_times(bench: Bench) -> Iterator[None]:
    """The decoder sees contexts of thirty times its own scale."""
    through(bench, lambda c, _: 30 * c)
    yield

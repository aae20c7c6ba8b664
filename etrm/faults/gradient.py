"""Plants that cut, starve or bend the encoder's gradient. Right: B, with the line.

Legend: B batch, T context tokens, D hidden.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from etrm.faults.bank import Bench, everywhere, fault
from etrm.models.encoders import Encoded
from etrm.models.etrm import Episodes
from etrm.training.losses import StepLoss, step_loss
from etrm.training.update import LossHead

Change = Callable[[Tensor, Episodes], Tensor]


def through(bench: Bench, change: Change) -> None:
    """Pass every context (B, T, D) through `change` before the decoder reads it."""

    def edit(head: LossHead) -> None:
        whole = head.model.context

        def context(episodes: Episodes) -> Encoded:
            encoded: Encoded = whole(episodes)  # type: ignore[operator]
            return Encoded(change(encoded.context, episodes), encoded.losses)

        head.model.context = context  # type: ignore[assignment]

    bench.edits.append(edit)


def simple(id: str, happened: str, change: Change, catalogue: int | None = None, naive: str = "C") -> None:
    """Enter a fault that is one change of the context."""

    @fault(
        id, "gradient", happened, verdict="B", check="gradient", stage="first updates", catalogue=catalogue, naive=naive
    )
    def plant(bench: Bench) -> Iterator[None]:
        through(bench, change)
        yield


def _numpy(c: Tensor, _: Episodes) -> Tensor:
    return torch.tensor(c.detach().numpy())


def _half(c: Tensor, _: Episodes) -> Tensor:
    return torch.cat((c[: len(c) // 2], c[len(c) // 2 :].detach()))


def _first_only(c: Tensor, _: Episodes) -> Tensor:
    return torch.cat((c[:1], c[1:].detach()))


def _one_token(c: Tensor, _: Episodes) -> Tensor:
    return torch.cat((c[:, :1], c[:, 1:].detach()), dim=1)


def _hooked(factor: float) -> Change:
    def change(c: Tensor, _: Episodes) -> Tensor:
        c = c * 1.0
        if c.requires_grad:
            c.register_hook(lambda g: g * factor)
        return c

    return change


def _nan_hidden(c: Tensor, _: Episodes) -> Tensor:
    c = c * 1.0
    if c.requires_grad:
        # The square root's slope at zero is infinite; times zero it is NaN, and nan_to_num makes that "no gradient".
        c.register_hook(
            lambda g: (g * torch.where(torch.arange(len(g)).view(-1, 1, 1) % 2 == 0, 1.0, float("nan"))).nan_to_num()
        )
    return c


def _straight(c: Tensor, _: Episodes) -> Tensor:
    """A gradient of the wrong place: the value is the context's, the slope another function's."""
    return c.detach() + 3.0 * (c - c.detach()) * (torch.arange(c.shape[-1]) % 2)


simple(
    "encoder-output-detached",
    "both recurrent encoders handed on their detached state; they never trained",
    lambda c, _: c.detach(),
    1,
    "C, encoder too weak",
)
simple("half-the-batch-detached", "a cached context reached the loss for a part of the samples", _half, 2)
simple("one-sample-trains", "2 % of the samples trained the encoder; the norm was not zero", _first_only, 2)
simple("one-token-detached", "a part of the context was rebuilt from stored values", _one_token)
simple("context-through-data", "`.data` kept the values and dropped the history", lambda c, _: c.data.clone())
simple("context-through-numpy", "a round trip through numpy for a log line came back as the context", _numpy)
simple("context-rebuilt", "`torch.tensor(list)` of the context", lambda c, _: torch.tensor(c.tolist(), dtype=c.dtype))
simple("context-rounded", "quantised contexts without a straight-through gradient", lambda c, _: c.round(decimals=2))
simple("context-gated-shut", "a gate initialised to zero and never trained", lambda c, _: c * torch.zeros(1))
simple("gradient-vanishes", "a scale of 1e-9 between encoder and decoder", _hooked(1e-9))
simple("gradient-doubled", "a hook left in from an experiment scales the gradient", _hooked(2.0))
simple("gradient-negated", "a gradient-reversal layer left in", _hooked(-1.0))
simple("nan-hidden", "nan_to_num turns a broken sample into one without gradient", _nan_hidden)
simple("gradient-invented", "a straight-through estimator with another slope than it claims", _straight)


@fault(
    "context-cache-starvation",
    "gradient",
    "contexts were cached in the carry and re-encoded only on reset",
    verdict="B",
    check="gradient",
    stage="first updates",
    catalogue=2,
    naive="C",
)
def cached_in_the_carry(bench: Bench) -> Iterator[None]:
    """Fresh contexts for new episodes, remembered (detached) ones for the others."""
    last: dict[str, Tensor] = {}

    def change(c: Tensor, episodes: Episodes) -> Tensor:
        same = torch.zeros(len(c), dtype=torch.bool)
        if "inputs" in last and last["inputs"].shape == episodes.inputs.shape:
            same = (last["inputs"] == episodes.inputs).all(dim=1)
            c = torch.where(same.view(-1, 1, 1), last["context"], c)
        last["inputs"], last["context"] = episodes.inputs, c.detach()
        return c

    through(bench, change)
    yield


@fault(
    "encoder-skipped-after-first-batch",
    "gradient",
    "nothing halts after batch 1, and the encoder ran only on reset",
    verdict="B|INVALID",
    check="gradient",
    stage="first updates",
    catalogue=3,
    naive="A or C",
)
def skipped_after_the_first(bench: Bench) -> Iterator[None]:
    """The first context of a batch size stands for all later ones."""
    first: dict[int, Tensor] = {}

    def change(c: Tensor, _: Episodes) -> Tensor:
        return (
            c
            if not torch.is_grad_enabled()
            else first.setdefault(len(c), c.detach())
            if len(c) in first
            else _keep(first, c)
        )

    through(bench, change)
    yield


def _keep(first: dict[int, Tensor], c: Tensor) -> Tensor:
    first[len(c)] = c.detach()
    return c


@fault(
    "parameter-never-used",
    "gradient",
    "a layer was built and never called",
    verdict="B",
    check="gradient",
    stage="first updates",
    naive="A",
)
def unused_parameter(bench: Bench) -> Iterator[None]:
    """A spare layer in the encoder."""
    bench.edits.append(lambda head: head.model.encoder.add_module("spare", torch.nn.Linear(4, 4)))  # type: ignore[union-attr]
    yield


@fault(
    "encoder-layer-frozen",
    "gradient",
    "a freeze by name pattern also took a part of the encoder",
    verdict="B",
    check="gradient",
    stage="first updates",
    naive="C",
)
def frozen_layer(bench: Bench) -> Iterator[None]:
    """requires_grad False on one of the encoder's modules."""

    def edit(head: LossHead) -> None:
        list(head.model.encoder.children())[-2].requires_grad_(False)  # type: ignore[union-attr]

    bench.edits.append(edit)
    yield


@fault(
    "encoder-under-no-grad",
    "gradient",
    "the encoder ran under no_grad to save memory",
    verdict="B",
    check="gradient",
    stage="first updates",
)
def under_no_grad(bench: Bench) -> Iterator[None]:
    """The encoder's forward inside torch.no_grad."""

    def edit(head: LossHead) -> None:
        encoder = head.model.encoder
        encoder.forward = torch.no_grad()(encoder.forward)  # type: ignore[union-attr]

    bench.edits.append(edit)
    yield


@fault(
    "loss-of-some-samples-only",
    "gradient",
    "a mask kept some samples out of the loss's gradient",
    verdict="B",
    check="gradient",
    stage="first updates",
    naive="C",
)
def masked_loss(bench: Bench) -> Iterator[None]:
    """Every other sample's loss is a number without history."""

    def stand_in(logits: Tensor, halt: Tensor, labels: Tensor, kind: str) -> StepLoss:
        found = step_loss(logits, halt, labels, kind)  # type: ignore[arg-type]
        odd = torch.arange(len(found.lm)) % 2 == 1
        return found._replace(lm=torch.where(odd, found.lm.detach(), found.lm))

    with everywhere(step_loss, stand_in):
        yield

"""One answer for an encoder in front of a frozen decoder: is its gradient intact, and if not, which line is it?

`diagnose` runs a few ACT steps with the carry kept and puts the probes together. Finite differences judge
(`gradient_audit`): they say whether a gradient is true, cut, scaled or invented, for every parameter tensor and every
context token. Coverage says which sample, which token gets nothing. `observe` names the line. Nothing is changed.

Legend: B batch, T context tokens, D hidden.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from etrm.errors import ProbeError
from etrm.models.etrm import Carry, Episodes, fresh_carry
from etrm.models.trm import Latents
from etrm.probes.break_report import BreakReport, Finding
from etrm.probes.gradient_audit import AuditReport, gradient_audit
from etrm.probes.gradients import Coverage, GradientState, State, classify, coverage, tokens_without_path
from etrm.probes.graph_breaks import observe
from etrm.probes.registration import frozen_parameters
from etrm.probes.subject import Rerun, unwrap, watchable
from etrm.training.update import LossHead

Relation = Literal["true", "cut", "scaled", "invented", "unmeasured"]
STEPS = 2  # a context kept in a carry is read at the second
AUDITED = 2  # samples; one finite difference a token and a parameter tensor is enough at this number
_SMALL = 1e-3  # a gradient scaled below this has all but vanished


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found. `place` is `path/file.py:LINE  code`, '' where nothing is wrong or no line is known."""

    state: State
    relation: Relation
    place: str
    detail: str
    gradient: GradientState
    breaks: BreakReport | None
    audit: AuditReport | None
    coverages: tuple[Coverage, ...]

    @property
    def ok(self) -> bool:
        """The gradient is intact."""
        return self.state == "intact"

    def __str__(self) -> str:
        lines = [f"gradient {self.state}: {self.detail}"]
        lines += [f"  at {self.place}"] if self.place else []
        return "\n".join(lines)


def _sliced(item: Any, rows: int) -> Any:
    """The first `rows` slots of an Episodes or a Carry."""
    if isinstance(item, Tensor):
        return item[:rows]
    if isinstance(item, Latents):
        return Latents(item.z_h[:rows], item.z_l[:rows])
    return type(item)(*(_sliced(getattr(item, f.name), rows) for f in fields(item)))


class _Steps:
    """ACT steps that can be run again: each call starts from the same carry and the same random decisions."""

    def __init__(self, head: LossHead, episodes: Episodes, carry: Carry | None, steps: int, seed: int) -> None:
        self.head, self.episodes, self.carry, self.steps, self.seed = head, episodes, carry, steps, seed

    def run(self) -> list[tuple[Tensor, Tensor]]:
        """For each step the LM losses (B,) and the context (B, T, D)."""
        generator = torch.Generator().manual_seed(self.seed)
        carry = fresh_carry(self.head.decoder, self.episodes) if self.carry is None else self.carry
        found = []
        for _ in range(self.steps):
            carry, out, losses = self.head(carry, self.episodes, 0.0, generator)
            found.append((losses.lm, out.encoded.context))
        return found

    def loss(self) -> Tensor:
        """The sum of all LM losses, a scalar."""
        return torch.stack([lm.sum() for lm, _ in self.run()]).sum()


def diagnose(
    head: LossHead,
    episodes: Episodes,
    *,
    carry: Carry | None = None,
    optimisers: Iterable[Any] = (),
    steps: int = STEPS,
    audit: bool = True,
    directions: int = 1,
    seed: int = 0,
) -> Diagnosis:
    """The state of the encoder's gradient from the LM loss alone, judged against finite differences, with the place.

    Args:
        head: the loss head around an ETRM; its modes (train, eval) are left as they are. An encoder that keeps a part
            frozen on purpose says so: `self.declared_frozen = ("embed.*",)`, names or patterns of its parameters.
        episodes: a batch; `carry` the state before it, fresh where None.
        optimisers: those that should hold the encoder's parameters; not asked for where empty.
        steps: ACT steps, carry kept.
        audit: leave out the finite differences (they cost about 8 passes a tensor), then `relation` is unmeasured.
        directions: random directions a tensor in the audit.
        seed: of the halting decisions and of the directions.

    Raises:
        ProbeError: the head has no encoder module, or the loss does not repeat.
    """
    encoder = getattr(head.model, "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise ProbeError(
            f"{type(head.model).__name__} has no module named encoder; diagnose takes a LossHead of an ETRM."
        )
    if next(encoder.parameters(), None) is None:
        raise ProbeError(f"{type(encoder).__name__} has no parameters, so no gradient can reach it.")
    if any(p.is_meta for p in encoder.parameters()):
        raise ProbeError(
            f"{type(encoder).__name__} is on the meta device, which holds no numbers; put it on a real one."
        )
    inner = unwrap(encoder)  # of torch.compile and DDP, whose names carry a prefix
    own = {n: p for n, p in inner.named_parameters() if p.requires_grad}
    meant = getattr(inner, "declared_frozen", ())
    allowed = ("model.decoder", *(f"model.encoder.{w}{name}" for name in meant for w in ("", "_orig_mod.", "module.")))
    if not own:
        return _frozen_encoder(head, encoder)
    walk = _Steps(head, episodes, carry, steps, seed)
    decoder = {id(p) for p in head.decoder.parameters()}
    held = [] if not optimisers else list(optimisers)
    breaks = observe(head, walk.loss, optimisers=held, frozen=allowed, batch_size=episodes.inputs.shape[0])
    with watchable(head), Rerun(head) as rerun, torch.enable_grad():
        passes = rerun.run(walk.run)
        coverages = tuple(coverage(lm, encoder, context) for lm, context in passes)
        cut = sorted({pair for _, context in passes for pair in tokens_without_path(context, encoder)})
        total = torch.stack([lm.sum() for lm, _ in passes]).sum()
        found: list[Tensor | None] = [None] * len(own)
        if total.requires_grad:
            found = list(torch.autograd.grad(total, list(own.values()), allow_unused=True))
        passes.clear()
    opens = {id(head.get_parameter(n)) for item in breaks.transient for n in item.parameters}
    opening = {n for n, p in own.items() if id(p) in opens}
    gradients = {n: g for n, g in zip(own, found, strict=True) if n not in opening} or dict.fromkeys(own)
    rough = sorted(n for n, g in gradients.items() if g is not None and not bool(torch.isfinite(g).all()))
    if rough:
        place = next((f.place.short for f in breaks.findings if f.place is not None), "")
        lost = GradientState("blocked", float("nan"), tuple(rough), notes=("the gradient is not finite",))
        detail = f"the gradient of '{rough[0]}' is not finite ({len(rough)} parameters in all)"
        return Diagnosis("blocked", "unmeasured", place, detail, lost, breaks, None, coverages)
    truth, unmeasured = None, ""
    if audit:
        small = min(AUDITED, episodes.inputs.shape[0])
        part = _Steps(head, _sliced(episodes, small), None if carry is None else _sliced(carry, small), steps, seed)
        try:
            truth = gradient_audit(
                part.loss, encoder, model=head, context_module=encoder, directions=directions, seed=seed
            )
        except ProbeError as error:  # a loss that does not repeat, code that takes no float64: told in the detail
            unmeasured = f"finite differences could not be taken: {error}"
    state = classify(gradients, {n: own[n] for n in gradients}, float(total.detach()), coverages, truth)
    findings = [f for f in breaks.findings if not _of_decoder(f, head, decoder)]
    state = _settled(state, findings, truth, tuple(cut), len(own))
    if state.state == "intact":
        findings = []
    elif not findings:
        findings = _closer(head, walk, coverages, cut, allowed)
    place = next((f.place.short for f in findings if f.place is not None), "")
    relation = _relation(truth)
    detail = _detail(state, relation, truth, findings, unmeasured)
    return Diagnosis(state.state, relation, place, detail, state, breaks, truth, coverages)


def _of_decoder(finding: Finding, head: LossHead, decoder: set[int]) -> bool:
    """Whether a finding names parameters of the decoder alone."""
    if not finding.parameters:
        return False
    named = dict(head.named_parameters())
    return all(id(named[n]) in decoder for n in finding.parameters if n in named) and all(
        n in named for n in finding.parameters
    )


def _frozen_encoder(head: LossHead, encoder: nn.Module) -> Diagnosis:
    """The diagnosis of an encoder whose parameters all have requires_grad False."""
    names = tuple(name for name, _ in encoder.named_parameters())
    found = frozen_parameters(encoder, ()) or frozen_parameters(head, ("model.decoder",))
    place = next((item.place.short for item in found if item.place is not None), "")
    detail = f"all {len(names)} parameters of {type(encoder).__name__} have requires_grad=False: it is frozen"
    return Diagnosis("blocked", "unmeasured", place, detail, GradientState("blocked", 0.0, names), None, None, ())


def _settled(
    state: GradientState,
    findings: list[Finding],
    truth: AuditReport | None,
    cut: tuple[tuple[int, int], ...],
    count: int,
) -> GradientState:
    """The state after what classify does not look at: tokens behind the encoder, the audit's ratios, registration."""
    if state.state in ("blocked", "partial"):
        return replace(state, tokens=tuple(sorted({*state.tokens, *cut})))
    failures = truth.failures if truth is not None else ()
    severe = [f for f in findings if f.severity == "cut" or truth is None]
    if cut or severe:
        missing = {n for f in severe for n in f.parameters}
        return replace(state, state="blocked" if len(missing) >= count else "partial", tokens=cut)
    small = any(e.status == "scaled" and e.ratio is not None and abs(e.ratio) < _SMALL for e in failures)
    if small or state.state == "vanishing":
        return replace(state, state="vanishing")
    if failures:
        return replace(state, state="partial")
    return state


def _relation(truth: AuditReport | None) -> Relation:
    """How autograd's gradient stands to the true one, the worst first."""
    if truth is None:
        return "unmeasured"
    # What arrives at a millionth is scaled; cut is what does not arrive.
    found = {"scaled" if e.status == "cut" and any(e.autograd) else e.status for e in truth.failures}
    for word in ("cut", "invented", "scaled"):
        if word in found:
            return word
    return "true"


def _detail(
    state: GradientState, relation: Relation, truth: AuditReport | None, findings: list[Finding], unmeasured: str
) -> str:
    """What is wrong in one line."""
    parts = [findings[0].kind] if findings else []
    if relation in ("scaled", "invented", "cut") and truth is not None:
        parts.append(f"against finite differences: {truth.failures[0]} ({len(truth.failures)} tensors in all)")
    parts.append(str(state).replace("\n", ";"))
    parts += [unmeasured] if unmeasured else []
    return "; ".join(parts)


def _closer(
    head: LossHead,
    walk: _Steps,
    coverages: tuple[Coverage, ...],
    cut: list[tuple[int, int]],
    allowed: tuple[str, ...],
) -> list[Finding]:
    """Where the whole batch's loss shows no line: observe one lost sample's own loss, or one lost token."""
    losses: list[Callable[[], Tensor]] = []
    size = head.decoder.structure.hidden_size
    # Not the token's norm: that has no slope where a masked token is zero.
    direction = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(walk.episodes.inputs.device)
    for k, item in enumerate(coverages):
        losses += [lambda k=k, i=i: walk.run()[k][0][i] for i in item.lost_samples[:1]]  # type: ignore[misc]
    for i, t in cut[:1]:
        losses += [lambda i=i, t=t: walk.run()[-1][1][i, t].float() @ direction]  # type: ignore[misc]
    for k, item in enumerate(coverages):
        losses += [lambda k=k, i=i: walk.run()[k][0][i] for i, _ in item.lost_tokens[:1]]  # type: ignore[misc]
    for loss_fn in losses:
        found = observe(head, loss_fn, frozen=allowed).findings
        if found:
            return found
    return []

"""One forward and backward pass under observation: every place where encoder gradient stops, with file and line.

Three sources are put together. The forward pass is followed value by value (etrm.probes.taint); for each place where
a value lost its history, interventions (etrm.probes.interventions) tell whether the loss depends on it, and for which
samples and tokens. The autograd graph is walked backward from the loss for gradients that had a path and died on it
(etrm.probes.autograd_walk). The model's objects are searched for parameters that no pass can show
(etrm.probes.registration).

Observing leaves the model, its buffers, `.grad`, and all random generators as they were. On a model without suspects
it costs one forward and one backward pass; each undeclared suspect adds forward passes.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from etrm.errors import ProbeError
from etrm.probes.autograd_walk import GradStash, leaf_ids, nodes_of, upstream, watch_backward
from etrm.probes.break_report import BreakReport, Finding, Severity
from etrm.probes.calls import Break
from etrm.probes.dead_gradients import dead_findings
from etrm.probes.exceptions import Tape
from etrm.probes.interventions import Interventions
from etrm.probes.other_findings import (
    Observed,
    altered_findings,
    custom_findings,
    limited_backward_findings,
    memory_findings,
    misplaced_finding,
    non_finite_findings,
    unused_findings,
)
from etrm.probes.places import files_near, function_place, user_frame
from etrm.probes.registration import (
    frozen_parameters,
    in_optimisers,
    stale_findings,
    stale_tensors,
    unregistered,
)
from etrm.probes.subject import Rerun, Subject, scalar_loss, trainable_parameters, unwrap, watchable
from etrm.probes.taint import Observer

__all__ = ["BreakReport", "Finding", "observe"]


def observe(
    model: Subject,
    loss_fn: Callable[[], Tensor],
    *,
    optimisers: Iterable[Any] = (),
    frozen: Iterable[str] = (),
    batch_size: int | None = None,
) -> BreakReport:
    """Run `loss_fn` once, watch the gradient of `model`'s parameters, and report every place where it stops.

    Args:
        model: the module (or parameters by name) that should train; any torch module, wrappers are looked through.
        loss_fn: runs the forward pass and returns the scalar loss. It may call `.backward()` itself. For findings by
            sample it must give the same loss when run twice; random generators, buffers and module attributes are put
            back for it.
        optimisers: the optimisers that should hold the parameters, checked when given.
        frozen: names or patterns of parameters that are meant to have requires_grad=False.
        batch_size: B, to be told when a broken tensor's first dimension is not the batch (it is taken to be).

    Raises:
        ProbeError: no parameters, all frozen, a loss that is no scalar, gradient mode off, reentrant checkpointing.
    """
    trainable = trainable_parameters(model)
    if not torch.is_grad_enabled():
        raise ProbeError("gradient mode is off where observe was called; leave the surrounding no_grad block.")
    caller = user_frame(2)
    return _Observation(model, loss_fn, trainable, batch_size).run(
        list(optimisers), tuple(frozen), [] if caller is None else [caller.f_code.co_filename]
    )


class _Observation:
    """The state of one call of `observe`."""

    def __init__(
        self, subject: Subject, loss_fn: Callable[[], Tensor], trainable: dict[str, Tensor], batch_size: int | None
    ) -> None:
        self.subject, self.loss_fn, self.trainable, self.batch_size = subject, loss_fn, trainable, batch_size
        self.module = unwrap(subject) if isinstance(subject, nn.Module) else None
        named = self.module.named_modules() if self.module is not None else ()
        self.paths = {id(child): path or type(child).__name__ for path, child in named}
        self.names = {id(value): name for name, value in trainable.items()}
        self.declared, self.stash = Tape(), GradStash()
        self.masks: dict[Any, Tensor] = {}

    def run(self, optimisers: list[Any], frozen: tuple[str, ...], files: list[str]) -> BreakReport:
        """Observe, judge, restore."""
        observer = Observer({id(v): v for v in self.trainable.values()}, self.paths, self.declared, self.stash)
        with watchable(self.subject), Rerun(self.subject) as rerun:
            stale = stale_tensors(self.module, self.trainable.values())
            try:
                with self.declared.recording(), observer:
                    loss = scalar_loss(self.loss_fn())
                self.rerun = rerun
                report = self._judge(observer, loss)
                what = Observed(self.module, self.trainable, observer.log, loss)
                report.findings.extend(memory_findings(observer.log))
                report.findings.extend(altered_findings(what, lambda: self._gradients(loss)))
                report.findings.extend(misplaced_finding(item, "weakened") for item in stale_findings(stale, loss))
                for finding in custom_findings(what, rerun, self.loss_fn, {item.place for item in report.findings}):
                    report.add(finding)
                if self.module is not None:
                    misplaced = unregistered(self.module)
                    misplaced = [m for m in misplaced if m.ids & leaf_ids([loss])]
                    misplaced += frozen_parameters(self.module, frozen)
                    sources = [function_place(self.loss_fn), function_place(type(self.module).forward)]
                    files = [*files, *(place.file for place in sources)]
                    if optimisers:
                        files += files_near(sources[1].file)
                    misplaced += in_optimisers(self.module, self.trainable, optimisers, files)
                    report.findings.extend(misplaced_finding(item) for item in misplaced)
            finally:
                observer.close()
                self.stash.restore()
        order = {"cut": 0, "weakened": 1}
        report.findings.sort(key=lambda item: (order.get(item.severity, 2), -len(item.parameters)))
        return report

    def _gradients(self, loss: Tensor) -> list[Tensor | None]:
        if not loss.requires_grad:
            return [None] * len(self.trainable)
        if any(node.name() == "CheckpointFunctionBackward" for node in upstream([loss.grad_fn])):
            raise ProbeError("the model uses reentrant checkpointing; pass use_reentrant=False to checkpoint().")
        return list(torch.autograd.grad(loss, list(self.trainable.values()), allow_unused=True, retain_graph=True))

    def _judge(self, observer: Observer, loss: Tensor) -> BreakReport:
        gradients = self._gradients(loss)
        norms = {
            n: None if g is None else float(g.double().norm()) for n, g in zip(self.trainable, gradients, strict=True)
        }
        report = BreakReport(float(loss.detach().double()), norms)
        report.findings.extend(non_finite_findings(loss, self.trainable, gradients))
        log = observer.log
        lost = {id(self.trainable[name]) for name in report.lost}
        reached = leaf_ids([loss]) if loss.requires_grad and lost else set()
        value = observer.value_of(loss)
        in_loss = value.breaks if value is not None else frozenset()
        self.interventions = Interventions(self.rerun, self.loss_fn, self.declared, self.stash, report.loss)
        groups: dict[Any, list[Break]] = {}
        for item in log.breaks:
            if not item.inner or item.ident in in_loss:
                module = "" if item.kind.endswith("block") else item.module  # one block is one finding
                groups.setdefault((item.kind, item.place, item.declared, module), []).append(item)
        live: list[list[Break]] = []
        hidden: list[list[Break]] = []
        for group in groups.values():
            if log.untracked or any(b.ident in in_loss or (b.ident in log.spilled and not b.inner) for b in group):
                live.append(group)
            elif group[0].declared is None:
                hidden.append(group)
            else:
                report.add(self._finding(group, "expected"))
        undeclared = [group for group in live if group[0].declared is None]
        # Blame in this order: what lost a derivative, what died, what had no derivative to lose, what was declared.
        unexplained = set(lost)
        undecided = []
        smooth = self._smooth([g for g in undeclared if g[0].differentiable and not g[0].by_torch], in_loss)
        for group in undeclared:
            if group in smooth:
                finding, behind = self._undeclared(group, lost, loss)
                unexplained -= behind
                report.add(finding)
            else:
                undecided.append(group)
        if loss.requires_grad and lost & reached:
            trace = watch_backward(loss, list(self.trainable.values()))
            trained = set(self.names) - lost
            for found in dead_findings(trace, lost & reached, self.names, self.module, log.hooks, trained):
                report.add(found)
            unexplained -= reached
        for group in self._guards_last(undecided, unexplained):
            behind = self._behind(group, unexplained)[0]
            if behind and self._depends(group):
                report.add(self._undeclared(group, unexplained, loss)[0])
                unexplained -= behind
            else:
                severity: Severity = "expected" if group[0].by_torch else "harmless"
                report.add(
                    replace(self._finding(group, severity), note="torch's own code" if group[0].by_torch else "")
                )
        for group in (g for g in live if g[0].declared is not None):
            finding, behind = self._declared(group, unexplained)
            unexplained -= behind
            report.add(finding)
        listed = {item.declared for item in report.expected + report.findings}
        for entry in self.declared.seen.values():
            if entry.name not in listed:  # what it stops carried nothing, as a halting target made by an argmax
                what = Finding("truncation", "expected", entry.place, shape=entry.shape, count=entry.count)
                report.add(replace(what, declared=entry.name))
        unexplained -= self._hidden(report, hidden, unexplained, loss)
        report.findings.extend(limited_backward_findings(log.backwards, self.trainable))
        report.findings.extend(unused_findings(observer, self.module, self.names, self.trainable, unexplained, loss))
        report.forward_passes = 1 + self.interventions.passes
        return report

    def _hidden(self, report: BreakReport, groups: list[list[Break]], unexplained: set[int], loss: Tensor) -> set[int]:
        """Breaks whose value was lost from sight (a file, a pickle, a transform): asked only while something is
        unexplained, the latest first.
        """
        explained: set[int] = set()
        for group in sorted(groups, key=lambda g: -g[-1].ordinal):
            behind = self._behind(group, unexplained - explained)[0]
            if behind and self.interventions.repeatable and self._depends(group):
                report.add(self._undeclared(group, unexplained - explained, loss)[0])
                explained |= behind
            else:
                report.add(self._finding(group, "harmless"))
        return explained

    def _finding(self, group: list[Break], severity: Severity) -> Finding:
        """The finding of one line, before it is known what is lost by it."""
        last, example = group[-1], max(group, key=lambda item: (len(item.shape), item.ordinal))
        return Finding(
            last.kind,
            severity,
            last.place,
            last.module,
            example.shape,
            example.dtype,
            len(group),
            declared=last.declared,
        )

    def _behind(self, group: list[Break], lost: set[int]) -> tuple[set[int], tuple[str, ...]]:
        """Which lost parameters the broken values were computed from: ids and names."""
        behind = leaf_ids([source for item in group for source in item.sources]) & lost
        return behind, tuple(name for key, name in self.names.items() if key in behind)

    def _declared(self, group: list[Break], unexplained: set[int]) -> tuple[Finding, set[int]]:
        """A declared exception is expected, unless it is all that parameters without gradient had."""
        behind, names = self._behind(group, unexplained)
        if not behind:
            return self._finding(group, "expected"), behind
        note = "declared, but these parameters have no other path to the loss"
        return replace(self._finding(group, "cut"), parameters=names, note=note), behind

    def _smooth(self, groups: list[list[Break]], in_loss: frozenset[int]) -> list[list[Break]]:
        """The groups that the loss follows; when it does not repeat, those whose taint reached it."""
        if not groups:
            return []
        everything = any(item.alias for group in groups for item in group)
        ordinals = {item.ordinal for group in groups for item in group}
        if not self.interventions.moves(ordinals, everything):
            return []  # most often: only metrics and decisions, settled by one pass
        if not self.interventions.repeatable:
            return [group for group in groups if any(item.ident in in_loss for item in group)]
        return [g for g in groups if self.interventions.smooth({item.ordinal for item in g}, g[0].alias)]

    def _guards_last(self, groups: list[list[Break]], unexplained: set[int]) -> list[list[Break]]:
        """The groups in order, but checks that only make a changed pass fail behind those that change the loss."""
        probe = self.interventions
        if not unexplained or not probe.repeatable:
            return groups

        def guards(group: list[Break]) -> bool:
            behind = self._behind(group, unexplained)[0]
            everything = group[0].alias
            return bool(behind) and probe.effect({i.ordinal for i in group}, everything=everything) == "fails"

        return sorted(groups, key=guards)

    def _depends(self, group: list[Break]) -> bool:
        """Whether the loss changes with these values in any way; taken for granted when it does not repeat."""
        probe = self.interventions
        return not probe.repeatable or probe.depends({item.ordinal for item in group}, everything=group[0].alias)

    def _undeclared(self, group: list[Break], lost: set[int], loss: Tensor) -> tuple[Finding, set[int]]:
        """The finding for one undeclared line that the loss depends on, and the lost parameters that it explains."""
        behind, names = self._behind(group, lost)
        example = max(group, key=lambda item: (len(item.shape), item.ordinal))
        repeats = self.interventions.repeatable
        samples, tokens = self._rows(group, example, bool(behind), loss) if repeats else ((), ())
        note = "" if repeats else "loss_fn does not repeat its loss, so samples and tokens are not known"
        if samples and self.batch_size is not None and example.shape[0] != self.batch_size:
            note = f"samples are counted within this tensor: {example.shape[0]} rows of a batch of {self.batch_size}"
        severity: Severity = "cut" if behind or samples or tokens else "weakened"
        finding = self._finding(group, severity)
        return replace(finding, parameters=names, samples=samples, tokens=tokens, note=note), behind

    def _rows(
        self, group: list[Break], example: Break, all_lost: bool, loss: Tensor
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Samples and tokens on which the loss depends through the broken value and which get no gradient otherwise."""
        shape = example.shape
        batched = any(s.grad_fn is not None and s.shape[:1] == shape[:1] for item in group for s in item.sources)
        if example.sink or example.alias or not shape or not (all_lost or batched):
            return (), ()
        ordinals = {item.ordinal for item in group}
        probe = self.interventions
        samples = probe.rows(ordinals, shape[0])
        masks = [] if all_lost else self._masks(group, loss)
        same_batch = [m for m in masks if m.shape[0] == shape[0]]
        covered = torch.zeros(shape[0], dtype=torch.bool)
        for mask in same_batch:
            covered |= mask.reshape(shape[0], -1).any(1).cpu()
        tokens: tuple[int, ...] = ()
        if len(shape) > 2 and samples:
            alive = torch.zeros(shape[:2], dtype=torch.bool)
            for mask in same_batch:
                if mask.shape == alive.shape:
                    alive |= mask.cpu()
            free = [t for t in range(shape[1]) if not bool(alive[list(samples), t].any())]
            depends = probe.columns(ordinals, samples[0], shape[1]) if free else ()
            tokens = tuple(t for t in depends if t in free)
        return tuple(i for i in samples if not bool(covered[i])), tokens

    def _masks(self, group: list[Break], loss: Tensor) -> list[Tensor]:
        """Which leading positions received gradient, for every graph node behind the broken value."""
        nodes = upstream(nodes_of([source for item in group for source in item.sources]))
        if not self.masks and loss.requires_grad:
            everything = upstream(nodes_of([loss]))
            self.masks = watch_backward(loss, list(self.trainable.values()), everything).masks
        return [self.masks[node] for node in nodes if node in self.masks]

"""The frozen-decoder experiment on one arm: checks, gradient watch, training, controls, rungs -> Evidence on disk.

Order: everything that can refuse a run is asked before training; a broken gradient ends it early (scenario B needs no
outcome); then training with evaluations, the controls on the same queries, and the oracles. Files of a finished run:
`evidence.json`, `metrics.jsonl`, `run.json` (curves, watch, timings). `short` runs leave out controls, oracles and
locked-test queries.

Legend: N queries, T context tokens, D hidden.
"""

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from etrm.config.compose import to_dict
from etrm.config.schema import RunConfig
from etrm.errors import BundleError, EncoderContractError, NonFiniteError
from etrm.evaluation.controls import Answers
from etrm.experiment.arms import Arm, arm_name, build_arm
from etrm.experiment.checks import Check, check, failure_of
from etrm.experiment.correction import corrected_over_rungs
from etrm.experiment.drawn import CountingSource, least_distinct
from etrm.experiment.evidence import (
    ALL_NULLS,
    Budget,
    Certificate,
    Evidence,
    GradientEvidence,
    LossEvidence,
    RungEvidence,
    refused,
)
from etrm.experiment.oracles import measure_oracles
from etrm.experiment.outcome import compare_with_controls, final_metrics, findings, own_answers, short_loss_evidence
from etrm.experiment.outcome_audit import outcome_check, spread_faults
from etrm.experiment.preflight import preflight
from etrm.experiment.preflight.data import explanation
from etrm.experiment.preflight.update import rehearsed, update_checks
from etrm.experiment.scores import rung_evidence, score_of
from etrm.experiment.search_rows import with_search
from etrm.experiment.showcase import record_showcase
from etrm.experiment.step_watch import StepWatch
from etrm.experiment.validity import competence, decoder_checks, frozen_checks, positive_control
from etrm.experiment.votes import voted_metrics
from etrm.experiment.watch import gradient_watch, lost_later, slope_later
from etrm.experiment.watch_record import gradient_evidence, watch_json
from etrm.models.bundle import Bundle, load_bundle
from etrm.models.encoders import build_encoder
from etrm.models.etrm import ETRM
from etrm.probes.frozen import FrozenSnapshot, snapshot
from etrm.training.loop import BudgetRecord, encoder_state, evaluation_points, fit, planned_updates
from etrm.training.update import LossHead, TrainState

REHEARSED = 2  # updates beside their transcription at each evaluation of a run
Length = Literal["short", "full"]
Report = Callable[[str, int, int, float], None]  # (phase, done, total, loss) -> None
CONTRACT = check("context_contract", True, "every context was finite and (B, T, D); another ends the run at once")
FAILED: dict[type[Exception], str] = {
    EncoderContractError: "context_contract",
    NonFiniteError: "finite",
    BundleError: "golden_logits",
}


@dataclass
class RunRecord:
    """What a run measured beside its verdict's evidence; written to run.json."""

    curve: list[dict[str, float]] = field(default_factory=list)  # evaluations during training
    constant_losses: list[float] = field(default_factory=list)
    watch: dict[str, Any] = field(default_factory=dict)
    minutes: dict[str, float] = field(default_factory=dict)
    frozen: list[str] = field(default_factory=list)  # how the decoder differed at an evaluation
    lost: list[str] = field(default_factory=list)  # samples and tokens without gradient at an evaluation
    slopes: list[str] = field(default_factory=list)  # evaluations at which the loss did not follow its gradient
    moved: list[str] = field(default_factory=list)  # steps before which something else had moved the weights
    steps_taken: int = 0  # optimiser steps, counted at the optimiser itself
    steps_wrong: list[str] = field(default_factory=list)  # steps and late updates that are not the config's
    draws_wrong: list[str] = field(default_factory=list)  # what was drawn otherwise than the tasks say
    probe: dict[str, Any] = field(default_factory=dict)


class FrozenDecoderRun:
    """One arm, one encoder, one seed. `run()` returns the Evidence; `record` holds the rest.

    `edit(head)` sees the assembled model before anything is measured: the door for planted faults.
    """

    def __init__(
        self,
        config: RunConfig,
        length: Length,
        folder: Path,
        report: Report | None = None,
        certificate: Certificate | None = None,
        bundle: Bundle | None = None,
        edit: Callable[[LossHead], None] | None = None,
    ) -> None:
        self.config, self.length, self.folder = config, length, folder
        self.report, self.certificate, self.given, self.edit = report, certificate, bundle, edit
        self.record = RunRecord()
        self.user_encoder = ":" in config.encoder.name
        self._start = time.monotonic()

    def run(self) -> Evidence:
        """Run the experiment and write its files. Errors of encoder or bundle become INVALID evidence."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            evidence = self._run()
        except (EncoderContractError, NonFiniteError, BundleError) as error:
            evidence = self._refused((check(FAILED[type(error)], False, str(error)),))
        (self.folder / "evidence.json").write_text(evidence.dumps() + "\n")
        (self.folder / "run.json").write_text(json.dumps(asdict(self.record), indent=1) + "\n")
        return evidence

    def _run(self) -> Evidence:
        config = self.config
        bundle = self.given or load_bundle(config.bundle)
        arm = build_arm(config, bundle)
        model, untrained = (self._model(bundle, config.system.seed + i) for i in (0, 1))
        head = LossHead(model, config.loss)
        if self.edit is not None:
            self.edit(head)
        frozen = snapshot(bundle.decoder)
        before = [*decoder_checks(head.decoder, bundle), *arm.checks]
        seen = arm.rungs[0].batch
        if lacking := int((seen.row < 0).sum()):
            said = f"{lacking} of {len(seen)} queries of {arm.rungs[0].name} have no row in the decoder's table"
            return self._refused((*before, check("decoder_competent", False, said)))
        positive = positive_control(config, arm, bundle)
        before.append(competence(positive, arm))
        if not any(c.ok is False for c in before if c.hypothesis == "H1"):
            before += preflight(config, arm, bundle, model, untrained)
        if any(c.ok is False and c.name != "enough_tasks" for c in before):
            return replace(self._refused(tuple(before)), positive_control=score_of("positive", positive, arm.rungs[0]))
        watch = gradient_watch(config, head, arm.source, torch.device("cpu"))
        self.record.watch = watch_json(watch)
        self._lap("set-up and gradient watch")
        gradient = gradient_evidence(watch)
        if gradient.state != "intact" or not watch.finite:
            moved = frozen_checks(frozen, head.decoder, [], [])
            stopped = (*before, *moved, check("finite", watch.finite, "gradients of the first updates"), CONTRACT)
            return self._evidence(arm, stopped, gradient, positive)
        state = encoder_state(config, head, len(arm.source.task_ids))
        before += update_checks(config, arm, state)
        if any(c.ok is False and failure_of(c) == "INVALID" for c in before):
            held = frozen_checks(frozen, head.decoder, [o for o, _ in state.optimizers.values()], [])
            return self._evidence(arm, (*before, *held, CONTRACT), gradient, positive)
        self._lap("update rehearsal")
        if config.loss.objective == "lm+table":
            state.teacher = bundle.table
        start = own_answers(config, model, arm.probe)
        validation: list[tuple[int, float]] = []
        budget = self._train(arm, bundle, head, model, state, validation, frozen)
        self._lap("training")
        loss, rungs = self._outcome(arm, bundle, model, untrained, start, validation, state.total_steps)
        oracles = (None, None) if self.length == "short" else measure_oracles(arm, bundle, config)
        self._lap("oracles")
        optimisers = [o for o, _ in state.optimizers.values()]
        lost, jumps = list(self.record.lost), self.record.moved
        lost += self.record.slopes if len(self.record.slopes) > 1 else []  # one point may stand at a cliff
        taken, planned = self.record.steps_taken, budget.planned_updates
        wrong, drawn = self.record.steps_wrong, self.record.draws_wrong
        points = [int(row["step"]) for row in self.record.curve]
        missed = spread_faults(points, planned, config.budget.evaluations)
        checks = [
            *before,
            *frozen_checks(frozen, head.decoder, optimisers, self.record.frozen),
            check("finite", True, "every loss and gradient norm was finite"),
            CONTRACT,
            check("gradient_kept", not lost, "; ".join(lost[:2]) or f"at {len(self.record.curve)} points of the run"),
            check("weights_continuous", not jumps, "; ".join(jumps[:2]) or "only the optimiser moved the encoder"),
            check("steps_true", not wrong, "; ".join(wrong[:2]) or f"{taken} steps beside their transcription"),
            check("draws_true", not drawn, "; ".join(drawn[:2]) or "drawn episodes follow their tasks, evenly"),
            check(
                "budget",
                taken == planned and not missed,
                "; ".join([f"{taken} of {planned} planned optimiser steps", *missed]),
            ),
        ]
        if self.length == "full":
            asked, expected = sum(r.score.n for r in rungs), sum(arm.planned_queries.values())
            checks.append(check("queries_evaluated", asked == expected, f"{asked} of {expected} planned queries"))
            checks.append(outcome_check(config, arm, model, bundle.structure.halt_max_steps, loss, rungs))
            record_showcase(self.folder, arm, model, bundle, config)
        metrics = final_metrics(config, arm, model, self.folder / "metrics.jsonl", rungs)
        if self.length == "full":
            metrics |= voted_metrics(config, arm, model, bundle)
        evidence = self._evidence(arm, tuple(checks), gradient, positive, loss, rungs, budget, metrics)
        return replace(evidence, oracle_many=oracles[0], oracle_demos=oracles[1])

    def _model(self, bundle: Bundle, seed: int) -> ETRM:
        torch.manual_seed(seed)
        return ETRM(build_encoder(self.config.encoder, bundle.spec()), bundle.decoder, bundle.spec())

    def _train(
        self,
        arm: Arm,
        bundle: Bundle,
        head: LossHead,
        model: ETRM,
        state: TrainState,
        validation: list[tuple[int, float]],
        frozen: FrozenSnapshot,
    ) -> BudgetRecord:
        """Train for the planned budget; evaluate on validation tasks (never the test set) at even points."""
        config, total = self.config, state.total_steps

        def evaluate(step: int) -> None:
            row: dict[str, float] = {"step": step}
            for rung in (arm.probe, arm.validation):
                found = own_answers(config, model, rung)
                row |= {
                    f"{rung.name}/lm_loss": float(found.loss.mean()),
                    f"{rung.name}/exact": float(found.exact.mean()),
                }
            validation.append((step, row["validation/lm_loss"]))
            self.record.curve.append(row)
            moved = frozen.check(head.decoder, [o for o, _ in state.optimizers.values()], modes=False)
            self.record.frozen += [f"update {step}: {d}" for d in moved]
            self.record.lost += [f"update {step}: {d}" for d in lost_later(config, head, arm.source, step)]
            self.record.slopes += [f"update {step}: {d}" for d in slope_later(config, head, arm.source, step)]
            if step + REHEARSED <= total and not self.record.steps_wrong:
                with ExitStack() as stack:
                    for watch in watches:
                        stack.enter_context(watch.paused())
                    again = rehearsed(config, arm, state, REHEARSED)
                self.record.steps_wrong += [f"after update {step}: {d}" for d in again]

        def tell(done: int, value: float) -> None:
            if self.report is not None:
                self.report("train", done, total, value)

        points = dict.fromkeys(evaluation_points(total, config.budget.evaluations), evaluate)
        rng = np.random.default_rng(config.system.seed)
        head.train()
        head.decoder.eval()
        log = self.folder / "metrics.jsonl"
        source = CountingSource(arm.source, explanation(config, bundle))
        watches = [StepWatch(o, config.optim, total) for o, _ in state.optimizers.values()]
        record = fit(config, state, source, rng, torch.device("cpu"), log, None, points, tell)
        for watch in watches:
            watch.close()
            self.record.steps_taken += watch.steps
            self.record.moved += [f"before step {n}" for n in watch.moved_before]
            self.record.steps_wrong += watch.wrong
        self.record.draws_wrong += source.faults()
        return replace(record, episodes=min(record.episodes, len(source.seen)))

    def _outcome(
        self,
        arm: Arm,
        bundle: Bundle,
        model: ETRM,
        untrained: ETRM,
        start: Answers,
        validation: list[tuple[int, float]],
        total: int,
    ) -> tuple[LossEvidence, tuple[RungEvidence, ...]]:
        """Losses against their controls and, in a full run, every rung against its nulls."""
        config = self.config
        if self.length == "short":
            loss = short_loss_evidence(start, own_answers(config, model, arm.probe), arm.probe.batch)
            rungs: tuple[RungEvidence, ...] = ()
        else:
            found = compare_with_controls(config, arm, model, start, validation, total)
            self.record.constant_losses = found.constant_losses
            loss = found.evidence
            self._lap("constant context and probe")
            rungs = corrected_over_rungs(
                [rung_evidence(r, model, untrained, found.constant, config, bundle.side) for r in arm.rungs]
            )
            self._lap("rungs and nulls")
            rungs = with_search(rungs, arm.rungs, model, bundle, config)
        self.record.probe = {"start": loss.probe_start, "end": loss.probe_end, "p_decrease": loss.p_decrease}
        return loss, rungs

    def _evidence(
        self, arm: Arm, checks: tuple[Check, ...], gradient: GradientEvidence, positive: Answers,
        loss: LossEvidence | None = None, rungs: tuple[RungEvidence, ...] = (), budget: BudgetRecord | None = None,
        metrics: dict[str, float | None] | None = None,
    ) -> Evidence:  # fmt: skip
        config, metrics = self.config, metrics or {}
        return Evidence(
            arm=arm.name, encoder=config.encoder.name, user_encoder=self.user_encoder,
            objective=config.loss.objective, seeds=1,
            validity=checks, gradient=gradient, loss=loss, rungs=rungs, oracle_many=None, oracle_demos=None,
            positive_control=score_of("positive", positive, arm.rungs[0]), findings=findings(metrics),
            budget=self._spent(arm, budget), certificate=self.certificate, required_nulls=ALL_NULLS,
            provenance={
                "bundle": config.bundle,
                "config": json.dumps(to_dict(config), sort_keys=True),
                "torch": torch.__version__,
            },
            metrics=metrics,
        )  # fmt: skip

    def _spent(self, arm: Arm, budget: BudgetRecord | None) -> Budget:
        """Planned against executed; without a record the run was stopped at its gradient."""
        planned = planned_updates(self.config.budget, len(arm.source.task_ids))
        slots = planned * self.config.budget.batch_size // arm.most_steps  # each slot refills at least so often
        fresh = least_distinct(slots, arm.pool)
        if budget is None:
            warmup = self.config.optim.warmup_updates / planned
            return Budget(planned, 0, fresh, 0, warmup, True, "broken gradient")
        return Budget(
            budget.planned_updates,
            budget.executed_updates,
            fresh,
            budget.episodes,
            budget.warmup_share,
            budget.reached_base_rate,
        )

    def _refused(self, checks: tuple[Check, ...]) -> Evidence:
        name = arm_name(self.config.data.benchmark)
        return refused(name, self.config.encoder.name, self.user_encoder, checks, "refused before training")

    def _lap(self, name: str) -> None:
        self.record.minutes[name] = (time.monotonic() - self._start) / 60 - sum(self.record.minutes.values())

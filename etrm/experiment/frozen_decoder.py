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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from etrm.config.compose import to_dict
from etrm.config.schema import RunConfig
from etrm.data.episodes import Batch, derangement
from etrm.errors import BundleError, EncoderContractError, NonFiniteError
from etrm.evaluation import context_stats, controls
from etrm.evaluation.controls import Answers, answer, contexts_of
from etrm.evaluation.statistics import sign_flip_test
from etrm.experiment.arms import Arm, Rung, build_arm
from etrm.experiment.checks import Check, check
from etrm.experiment.evidence import (
    ALL_NULLS,
    Budget,
    Certificate,
    Evidence,
    Finding,
    GradientEvidence,
    LossEvidence,
    refused,
)
from etrm.experiment.oracles import measure_oracles
from etrm.experiment.scores import rung_evidence, score_of, task_means
from etrm.experiment.watch import GradientWatch, gradient_watch
from etrm.models.bundle import Bundle, load_bundle
from etrm.models.encoders import build_encoder
from etrm.models.etrm import ETRM
from etrm.probes.frozen import FrozenSnapshot, snapshot
from etrm.training.loop import BudgetRecord, encoder_state, evaluation_points, fit, planned_updates
from etrm.training.update import LossHead, TrainState

Length = Literal["short", "full"]
Report = Callable[[str, int, int, float], None]  # (phase, done, total, loss) -> None
CONTRACT = check("context_contract", True, "every context was finite and (B, T, D); another ends the run at once")
COMPETENT = 0.5  # of its own training tasks' fresh queries; below it a decoder shows nothing about encoders


@dataclass
class RunRecord:
    """What a run measured beside its verdict's evidence; written to run.json."""

    curve: list[dict[str, float]] = field(default_factory=list)  # evaluations during training
    constant_losses: list[float] = field(default_factory=list)
    watch: dict[str, Any] = field(default_factory=dict)
    minutes: dict[str, float] = field(default_factory=dict)
    frozen: list[str] = field(default_factory=list)
    probe: dict[str, Any] = field(default_factory=dict)


class FrozenDecoderRun:
    """One arm, one encoder, one seed. `run()` returns the Evidence; `record` holds the rest."""

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
        arm_name: Any = "arc" if self.config.data.benchmark.startswith("arc") else "calibration"
        try:
            evidence = self._run()
        except (EncoderContractError, NonFiniteError, BundleError) as error:
            names = {EncoderContractError: "context_contract", NonFiniteError: "finite", BundleError: "golden_logits"}
            failed = check(names[type(error)], False, str(error))
            evidence = replace(_refused(arm_name, self), validity=(failed,))
        (self.folder / "evidence.json").write_text(evidence.dumps() + "\n")
        (self.folder / "run.json").write_text(json.dumps(asdict(self.record), indent=1) + "\n")
        return evidence

    def _run(self) -> Evidence:
        config = self.config
        bundle = self.given or load_bundle(config.bundle)
        arm = build_arm(config, bundle)
        torch.manual_seed(config.system.seed)
        model = ETRM(build_encoder(config.encoder, bundle.spec()), bundle.decoder, bundle.spec())
        torch.manual_seed(config.system.seed + 1)
        untrained = ETRM(build_encoder(config.encoder, bundle.spec()), bundle.decoder, bundle.spec())
        head = LossHead(model, config.loss)
        if self.edit is not None:
            self.edit(head)
        frozen = snapshot(bundle.decoder)
        positive = self._positive(arm, bundle)
        before = [*_bundle_checks(bundle), *arm.checks, _competence(positive, arm)]
        if any(c.ok is False and c.name != "enough_tasks" for c in before):
            return replace(
                _refused(arm.name, self),
                validity=tuple(before),
                positive_control=score_of("positive", positive, arm.rungs[0]),
            )
        watch = gradient_watch(config, head, arm.source, torch.device("cpu"))
        self.record.watch = _watch_json(watch)
        self._lap("set-up and gradient watch")
        gradient = _gradient_evidence(watch)
        if watch.state.state != "intact" or not watch.finite:
            stopped = (
                *before,
                *self._frozen_checks(frozen, bundle, []),
                check("finite", watch.finite, "gradients of the first updates"),
                CONTRACT,
            )
            return self._evidence(arm, stopped, gradient, None, (), positive, None, {}, stopped_early=True)
        state = encoder_state(config, head, len(arm.source.task_ids))
        if config.loss.objective == "lm+table":
            state.teacher = bundle.table
        start = self._probe_losses(model, arm.probe)
        validation: list[tuple[int, float]] = []
        budget = self._train(arm, head, state, validation, frozen, bundle)
        self._lap("training")
        kind = config.loss.cross_entropy
        size = config.evaluation.batch_size
        own = answer(bundle.decoder, arm.probe.batch, contexts_of(model, arm.probe.batch, size), size, kind)
        loss, constant = self._loss_evidence(arm, model, start, own, validation, state)
        self._lap("constant context and probe")
        rungs = (
            ()
            if self.length == "short"
            else tuple(rung_evidence(r, model, untrained, constant, config, bundle.side) for r in arm.rungs)
        )
        self._lap("rungs and nulls")
        oracles = (None, None) if self.length == "short" else measure_oracles(arm, bundle, config)
        self._lap("oracles")
        optimisers = [o for o, _ in state.optimizers.values()]
        checks = [
            *before,
            *self._frozen_checks(frozen, bundle, optimisers),
            check("finite", True, "every loss and gradient norm was finite"),
        ]
        checks.append(CONTRACT)
        done, planned = budget.executed_updates, budget.planned_updates
        checks.append(check("budget", done == planned, f"{done} of {planned} planned updates"))
        if self.length == "full":
            asked = sum(r.score.n for r in rungs)
            expected = sum(len(r.batch) for r in arm.rungs)
            checks.append(check("queries_evaluated", asked == expected, f"{asked} of {expected} queries"))
        metrics = self._metrics(arm, model, rungs)
        evidence = self._evidence(arm, tuple(checks), gradient, loss, rungs, positive, budget, metrics)
        return replace(evidence, oracle_many=oracles[0], oracle_demos=oracles[1])

    def _train(
        self,
        arm: Arm,
        head: LossHead,
        state: TrainState,
        validation: list[tuple[int, float]],
        frozen: FrozenSnapshot,
        bundle: Bundle,
    ) -> BudgetRecord:
        """Train for the planned budget; evaluate on validation tasks (never the test set) at even points."""
        config = self.config
        model = head.model
        assert isinstance(model, ETRM)

        def evaluate(step: int) -> None:
            size, kind = config.evaluation.batch_size, config.loss.cross_entropy
            row: dict[str, float] = {"step": step}
            for rung in (arm.probe, arm.validation):
                found = answer(bundle.decoder, rung.batch, contexts_of(model, rung.batch, size), size, kind)
                row |= {
                    f"{rung.name}/lm_loss": float(found.loss.mean()),
                    f"{rung.name}/exact": float(found.exact.mean()),
                }
            validation.append((step, row["validation/lm_loss"]))
            self.record.curve.append(row)
            moved = frozen.check(bundle.decoder, [o for o, _ in state.optimizers.values()], modes=False)
            self.record.frozen += [f"update {step}: {d}" for d in moved]

        points = evaluation_points(state.total_steps, config.budget.evaluations)
        rng = np.random.default_rng(config.system.seed)
        total = state.total_steps

        def tell(done: int, value: float) -> None:
            if self.report is not None:
                self.report("train", done, total, value)

        log = self.folder / "metrics.jsonl"
        head.train()
        bundle.decoder.eval()
        return fit(
            config, state, arm.source, rng, torch.device("cpu"), log, None, dict.fromkeys(points, evaluate), tell
        )

    def _probe_losses(self, model: ETRM, rung: Rung) -> Answers:
        size = self.config.evaluation.batch_size
        return answer(
            model.decoder, rung.batch, contexts_of(model, rung.batch, size), size, self.config.loss.cross_entropy
        )

    def _loss_evidence(
        self,
        arm: Arm,
        model: ETRM,
        start: Answers,
        own: Answers,
        validation: list[tuple[int, float]],
        state: TrainState,
    ) -> tuple[LossEvidence, torch.Tensor]:
        """Paired losses on the probe set: start against end, and the trained encoder against its controls."""
        config, probe = self.config, arm.probe
        p_decrease = _paired(start.loss - own.loss, probe.batch)
        self.record.probe = {"start": float(start.loss.mean()), "end": float(own.loss.mean()), "p_decrease": p_decrease}
        if self.length == "short":
            loss = LossEvidence(
                float(start.loss.mean()),
                float(own.loss.mean()),
                p_decrease,
                float(own.loss.mean()),
                None,
                None,
                None,
                None,
                False,
                None,
            )
            return loss, model.spec.context_mean
        updates = min(config.evaluation.constant_updates, max(1, state.total_steps // 10))
        constant, curve = controls.constant_context(config, model, arm.source, updates)
        self.record.constant_losses = curve
        size, kind = config.evaluation.batch_size, config.loss.cross_entropy
        flat = answer(model.decoder, probe.batch, constant.expand(len(probe.batch), -1, -1), size, kind)
        lender = derangement(probe.batch.task, np.random.default_rng(3))
        wrong = answer(
            model.decoder, probe.batch, contexts_of(model, probe.batch.with_demos_of(lender), size), size, kind
        )
        late = [v for s, v in validation if s >= 0.75 * state.total_steps]
        settled = len(late) >= 2 and late[-1] > 0.95 * late[0]
        return (
            LossEvidence(
                float(start.loss.mean()),
                float(own.loss.mean()),
                p_decrease,
                float(own.loss.mean()),
                float(flat.loss.mean()),
                _paired(flat.loss - own.loss, probe.batch),
                float(wrong.loss.mean()),
                _paired(wrong.loss - own.loss, probe.batch),
                settled,
                len(curve) >= 2 and curve[-1] > 0.95 * curve[-2],
            ),
            constant,
        )

    def _positive(self, arm: Arm, bundle: Bundle) -> Answers:
        """The decoder with its own table rows: on fresh queries (rules) or on the tasks' held-out queries (ARC)."""
        batch = arm.rungs[0].batch
        return answer(
            bundle.decoder,
            batch,
            controls.own_rows(bundle.decoder, bundle.table, batch),
            self.config.evaluation.batch_size,
            self.config.loss.cross_entropy,
        )

    def _frozen_checks(
        self, frozen: FrozenSnapshot, bundle: Bundle, optimisers: list[torch.optim.Optimizer]
    ) -> list[Check]:
        differences = frozen.check(bundle.decoder, optimisers, modes=False)
        held = [str(d) for d in differences if "optimiser" in str(d)]
        moved = [str(d) for d in differences if "optimiser" not in str(d)] + self.record.frozen
        total = len(bundle.decoder.state_dict())
        return [
            check("decoder_unchanged", not moved, "; ".join(moved[:3]) or f"{total} of {total} tensors bitwise equal"),
            check("decoder_not_optimised", not held, "; ".join(held[:3]) or "no optimiser holds a decoder tensor"),
        ]

    def _metrics(self, arm: Arm, model: ETRM, rungs: tuple[Any, ...]) -> dict[str, float | None]:
        rows = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        metrics: dict[str, float | None] = {
            k: v for k, v in rows[-1].items() if k != "step" and not k.startswith("grad/layer/")
        }
        metrics |= {
            f"{k}/first": rows[0].get(k) for k in ("train/lm_loss", "train/encoder_token_std", "grad/encoder_norm")
        }
        found = contexts_of(model, arm.probe.batch, self.config.evaluation.batch_size).numpy()
        ids = [arm.probe.task_ids[t] for t in arm.probe.batch.task]
        metrics["context/between_task_share"] = context_stats.between_task_share(found, ids)
        metrics["context/effective_rank"] = context_stats.effective_rank(found)
        if rungs:
            headline = rungs[-1].score
            metrics["ARC/pass@1"] = headline.k / headline.n
        return metrics

    def _evidence(
        self, arm: Arm, checks: tuple[Check, ...], gradient: GradientEvidence, loss: LossEvidence | None,
        rungs: tuple[Any, ...],
        positive: Answers, budget: BudgetRecord | None, metrics: dict[str, float | None], stopped_early: bool = False,
    ) -> Evidence:  # fmt: skip
        config = self.config
        spent = None
        if stopped_early:
            planned = planned_updates(config.budget, len(arm.source.task_ids))
            spent = Budget(
                planned,
                0,
                planned * config.budget.batch_size,
                0,
                config.optim.warmup_updates / planned,
                True,
                "broken gradient",
            )
        elif budget is not None:
            least = budget.planned_updates * budget.batch_size // max(1, 2)
            spent = Budget(
                budget.planned_updates,
                budget.executed_updates,
                least,
                budget.episodes,
                budget.warmup_share,
                budget.reached_base_rate,
            )
        return Evidence(
            arm=arm.name, encoder=config.encoder.name, user_encoder=self.user_encoder,
            objective=config.loss.objective, seeds=1,
            validity=checks, gradient=gradient, loss=loss, rungs=rungs, oracle_many=None, oracle_demos=None,
            positive_control=score_of("positive", positive, arm.rungs[0]), findings=_findings(metrics), budget=spent,
            certificate=self.certificate, required_nulls=ALL_NULLS,
            provenance={
                "bundle": config.bundle,
                "config": json.dumps(to_dict(config), sort_keys=True),
                "torch": torch.__version__,
            },
            metrics=metrics,
        )  # fmt: skip

    def _lap(self, name: str) -> None:
        self.record.minutes[name] = (time.monotonic() - self._start) / 60 - sum(self.record.minutes.values())


def _paired(gain: np.ndarray, batch: Batch) -> float:
    """One-sided p that the mean per-query gain is above zero, by task (sign flips)."""
    return sign_flip_test(task_means(gain, batch), 10_000, 0).p_greater


def _bundle_checks(bundle: Bundle) -> list[Check]:
    count = len(bundle.decoder.state_dict())
    s = bundle.structure
    return [
        check("bundle_whole", True, f"{count} of {count} decoder tensors, sha256 {bundle.sha256[:12]}"),
        check("golden_logits", True, "reproduced within the bundle's tolerance on load"),
        check("structure", True, f"H {s.h_cycles}, L {s.l_cycles}, as trained"),
    ]


def _competence(positive: Answers, arm: Arm) -> Check:
    k, n = int(positive.exact.sum()), len(positive.exact)
    need = 0.02 if arm.name == "arc" else COMPETENT
    return check("decoder_competent", k >= need * n, f"{k} of {n} exact with its own contexts, {need:.0%} needed")


def _gradient_evidence(watch: GradientWatch) -> GradientEvidence:
    state = watch.state
    place = next(
        iter(
            [
                *state.parameters[:1],
                *[f"sample {i}" for i in state.samples[:1]],
                *[f"token {t}" for t in state.tokens[:1]],
            ]
        ),
        "",
    )
    missing = watch.missing()
    detail = str(state).replace("\n", ";")
    if missing and state.state == "intact":
        return GradientEvidence("partial", f"{missing[0][1]} at update {missing[0][0]}", detail)
    return GradientEvidence(state.state, place, detail)


def _watch_json(watch: GradientWatch) -> dict[str, Any]:
    return {
        "state": watch.state.state,
        "elasticity": watch.state.elasticity,
        "late": watch.late(),
        "missing": [list(m) for m in watch.missing()],
        "lost_samples": [list(c.lost_samples) for c in watch.coverages],
        "lost_tokens": [[list(t) for t in c.lost_tokens] for c in watch.coverages],
        "encoder_calls": watch.encoder_calls,
        "updates": watch.updates,
        "finite": watch.finite,
        "norms": [dict(n) for n in watch.norms],
    }


def _findings(metrics: dict[str, float | None]) -> tuple[Finding, ...]:
    share = metrics.get("context/between_task_share")
    if share is None:
        return ()
    return (
        Finding("between_task_share", share, 0.05, None, "H3", "between-task over total context variance, eval mode"),
    )


def _refused(arm: Any, run: FrozenDecoderRun) -> Evidence:
    return refused(arm, run.config.encoder.name, run.user_encoder, (), "refused before training")

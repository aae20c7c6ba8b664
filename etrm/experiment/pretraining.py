"""An encoder trained in front of a frozen (or later joining) decoder at any scale, and evaluated on the way.

Notable: `ARC/pass@1` is measured with the averaged and with the raw weights and logged for both, since the average of
a short run still holds part of the untrained encoder. The denominator is what was evaluated. That the decoder stayed as
it was while frozen, bitwise, and moved after it joined, is checked and written down, not assumed.

Legend: B batch, S canvas cells, T context tokens, D hidden.
"""

import json
import os
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from etrm.config.compose import build, compose
from etrm.config.schema import RunConfig
from etrm.config.yaml_values import Value, parse_yaml
from etrm.errors import ConfigError, EvaluationError
from etrm.evaluation.controls import evaluating
from etrm.evaluation.voting import ALL_RULE, FRACTION_RULE, Vote, VoteResult
from etrm.experiment.manifest import write_manifest
from etrm.experiment.progress import PhaseProgress
from etrm.experiment.questions import PretrainingConfig, Questions, prepare
from etrm.models.bundle import Bundle
from etrm.models.etrm import ETRM, Episodes, decode
from etrm.models.official import resolve_bundle
from etrm.models.official_file import OFFICIAL_NAMES
from etrm.probes.frozen import FrozenSnapshot, snapshot
from etrm.training.checkpoint import steps_in
from etrm.training.durable import alone_in, append_line, write_whole
from etrm.training.loop import BudgetRecord, encoder_state, evaluation_points, fit, planned_updates
from etrm.training.run import budget_sentence, build_head, check_ranks, choose_device, open_run_folder
from etrm.training.update import TrainState

Say = Callable[[str], None]
CLAIM = "arch."
PASS_AT = (1, 2, 5)
METRICS, INTERRUPTED = "metrics.jsonl", "interrupted.json"


def load_run(
    config_name: str, overrides: Sequence[str], root: Path | None = None
) -> tuple[RunConfig, dict[str, Value]]:
    """The config, and the overrides `arch.KEY=value`: claims about the decoder, which are checked and never merged."""
    claims: dict[str, Value] = {}
    for text in (text for text in overrides if text.startswith(CLAIM)):
        name, _, value = text.removeprefix(CLAIM).partition("=")
        if name not in OFFICIAL_NAMES:
            raise ConfigError(f"command line: unknown key '{CLAIM}{name}'; the decoder has {', '.join(OFFICIAL_NAMES)}")
        claims[name] = parse_yaml(value, f"command line, override '{text}'")
    composed = compose(config_name, [text for text in overrides if not text.startswith(CLAIM)], root)
    kind = PretrainingConfig if "evaluation_tasks" in composed.values else RunConfig
    return build(kind, composed), claims


def check_claims(claims: Mapping[str, Value], bundle: Bundle) -> None:
    """ConfigError if the decoder is not what the command line says it is."""
    own = {name: getattr(bundle.structure, OFFICIAL_NAMES[name]) for name in claims}
    if wrong := [f"{CLAIM}{n}={claims[n]}, but it is {value}" for n, value in own.items() if claims[n] != value]:
        raise ConfigError(
            f"the config disagrees with the decoder {bundle.name}: {'; '.join(wrong)}. What it was trained with is no "
            "choice of the run; drop the key"
        )


def evaluate(
    model: ETRM, questions: Questions, size: int, device: torch.device, advance: Callable[[int], None]
) -> VoteResult:
    """Answer every question once (fresh carry, all ACT steps) and vote. `advance(n)` after each batch of n answers."""
    vote = Vote(questions.truths)
    with torch.inference_mode(), evaluating(model):
        for start in range(0, len(questions.rows), size):
            part = slice(start, start + size)
            episodes = Episodes.of(questions.encode(part), device)
            tokens, halts = decode(model.decoder, episodes.inputs, model.context(episodes).context)
            answers = zip(questions.rows[part], tokens.cpu().numpy(), halts.float().cpu().tolist(), strict=True)
            for (task, query, augmentation), predicted, halt in answers:
                vote.add(task, query, augmentation, predicted, questions.side, halt, scored=True)
            advance(len(episodes.inputs))
    return vote.result(PASS_AT)


def evaluation_metrics(results: Mapping[str, VoteResult]) -> dict[str, float]:
    """One evaluation's log line. `results` by weights, raw and ema; the plain names are ema's where there is one."""
    head = results["ema"] if "ema" in results else results["raw"]
    line: dict[str, float] = {f"ARC/pass@{k}": head.pass_at(k, FRACTION_RULE) for k in PASS_AT}
    line["ARC/pass@1/all_tests"] = head.pass_at(1, ALL_RULE)
    for weights, result in results.items():
        line[f"ARC/pass@1/{weights}"] = result.pass_at(1, FRACTION_RULE)
    pairs = head.by_k[1].per_task.values()
    line |= {"ARC/evaluated_tasks": len(pairs), "ARC/evaluated_queries": sum(asked for _, asked in pairs)}
    return line | {"ARC/solved_queries": sum(solved for solved, _ in pairs)}


class Pretraining:
    """One run: `run()` trains, evaluates and leaves checkpoints, metrics.jsonl and summary.json in the run's folder."""

    def __init__(
        self,
        config: RunConfig,
        claims: Mapping[str, Value],
        root: Path,
        say: Say,
        progress: PhaseProgress | None = None,
    ) -> None:
        self.config, self.say, self.progress = config, say, progress
        check_ranks(config.budget, os.environ)
        self.device = choose_device(config.system.device)
        if config.data.train_tasks > 0:  # told before the decoder is needed
            say(f"budget: {budget_sentence(config.budget, config.optim, config.data.train_tasks)}")
        bundle = resolve_bundle(config.bundle)
        check_claims(claims, bundle)
        self.prepared = prepare(config, bundle)
        s = bundle.structure
        tasks = len(self.prepared.source.task_ids)
        if config.data.train_tasks == 0:
            say(f"budget: {budget_sentence(config.budget, config.optim, tasks)}")
        say(
            f"decoder {bundle.name}: hidden {s.hidden_size}, {s.context_tokens} context tokens, "
            f"H {s.h_cycles}, L {s.l_cycles}, canvas {bundle.side}x{bundle.side}"
        )
        for note in self.prepared.notes:
            say(note)
        head = build_head(config, bundle, self.device)
        self.state: TrainState = encoder_state(config, head, tasks)
        if config.loss.objective == "lm+table":
            known = [t for t in self.prepared.source.task_ids if bundle.row_of(t) >= 0]
            if not known:
                raise ConfigError(
                    f"loss.objective=lm+table, but {bundle.name} has no table row of any training task; use lm"
                )
            self.state.teacher = bundle.table.to(self.device)
        self.frozen: FrozenSnapshot = snapshot(head.decoder, keep_values=False)
        self.folder = open_run_folder(root, config, bundle)  # the first thing that writes
        self.bundle = bundle

    @property
    def model(self) -> ETRM:
        """The encoder and decoder in training."""
        model = self.state.model.model
        assert isinstance(model, ETRM)
        return model

    def run(self, stop_after: int | None = None) -> dict[str, Any]:
        """Train the planned updates (or up to `stop_after`, to go on later); returns what summary.json holds.

        Interrupted, it leaves interrupted.json: how far it came, and from where it goes on.
        """
        with alone_in(self.folder):
            open_run_folder(self.folder.parents[1], self.config, self.bundle)  # the other may have begun in between
            for change in write_manifest(self.folder, self.config, self.bundle, torch.get_num_threads()):
                self.say(f"since this run began, {change}: it may not go on bit by bit")
            try:
                return self._run(stop_after)
            except KeyboardInterrupt:
                self._interrupted()
                raise

    def _interrupted(self) -> None:
        steps = steps_in(self.folder)
        told = {
            "executed_updates": self.state.step,
            "planned_updates": self.state.total_steps,
            "goes_on_from": max(steps, default=0),
            "last_line": _last_line(self.folder / METRICS),
        }
        write_whole(self.folder / INTERRUPTED, (json.dumps(told, indent=1) + "\n").encode())

    def _run(self, stop_after: int | None) -> dict[str, Any]:
        config, updates = self.config, planned_updates(self.config.budget, len(self.prepared.source.task_ids))
        points = evaluation_points(updates, config.budget.evaluations)
        at: dict[int, Callable[[int], None]] = dict.fromkeys((*points, config.freeze.decoder_updates), self._at)
        advance = None if self.progress is None else self.progress.callback("train", updates)

        def report(done: int, loss: float) -> None:
            if advance is not None:
                advance(done - advance.done, loss=loss)

        log = self.folder / METRICS
        rng = np.random.default_rng(config.system.seed)
        random.seed(config.system.seed)  # nothing of ours draws from these two; an encoder of the user's may
        np.random.seed(config.system.seed % 2**32)
        record = fit(
            config,
            self.state,
            self.prepared.source,
            rng,
            self.device,
            log,
            self.folder,
            at,
            report,
            stop_after,
            self.say,
        )
        if advance is not None:
            advance.close()
        summary = self._summary(record, log)
        if record.executed_updates == record.planned_updates:
            write_whole(self.folder / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
            (self.folder / INTERRUPTED).unlink(missing_ok=True)
        return summary

    def _at(self, step: int) -> None:
        if self._frozen_until() >= step:
            self._check_frozen(step)
        if step in evaluation_points(self.state.total_steps, self.config.budget.evaluations):
            self._evaluate(step)

    def _evaluate(self, step: int) -> None:
        questions, ema = self.prepared.questions, self.state.ema
        results: dict[str, VoteResult] = {}
        total = len(questions.rows) * (1 if ema is None else 2)
        with nullcontext() if self.progress is None else self.progress(f"evaluate at {step}", total) as advance:
            for weights in ("raw",) if ema is None else ("raw", "ema"):
                with nullcontext() if weights == "raw" or ema is None else ema.applied(self.state.model):
                    results[weights] = evaluate(
                        self.model,
                        questions,
                        self.config.evaluation.batch_size,
                        self.device,
                        advance or (lambda n: None),
                    )
        line = evaluation_metrics(results)
        if ema is not None:
            line["ARC/ema_initial_weight"] = ema.initial_weight(step)
        append_line(self.folder / METRICS, json.dumps({"step": step, **line}))
        for weights, result in results.items():
            counts = result.by_k[1].k_of_n
            self.say(f"update {step}: ARC/pass@1 ({weights} weights) {counts[FRACTION_RULE]}, {counts['queries']}")

    def _frozen_until(self) -> int:
        joins = self.config.freeze.decoder_updates
        return self.state.total_steps if joins < 0 else min(joins, self.state.total_steps)

    def _check_frozen(self, step: int) -> None:
        optimisers = [optimiser for optimiser, _ in self.state.optimizers.values()]
        moved = self.frozen.check(self.model.decoder, optimisers, modes=False)
        if moved:
            raise EvaluationError(
                f"the decoder should be frozen until update {self._frozen_until()}, but at {step}: "
                f"{'; '.join(map(str, moved[:3]))}. The run is not valid"
            )

    def _summary(self, record: BudgetRecord, log: Path) -> dict[str, Any]:
        """Budget, evaluations and what became of the decoder. EvaluationError if it is not what the freeze says."""
        joins = self._frozen_until()
        if self.state.step <= joins:
            self._check_frozen(self.state.step)
            fate = f"bitwise unchanged over {self.state.step} updates, in no optimiser"
        else:
            found = self.frozen.check(self.model.decoder, flags=False, modes=False)
            names = sorted({d.name for d in found if d.what == "value"})
            count = sum(1 for _ in self.model.decoder.parameters())
            fate = f"frozen for {joins} updates, then {len(names)} of {count} parameters moved"
            if not names:
                raise EvaluationError(
                    f"the decoder joined after update {joins}, but none of its {count} parameters moved"
                )
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        known = set(self.bundle.provenance.task_ids)
        asked = self.prepared.questions.task_ids
        return {
            "budget": asdict(record),
            "decoder": {"bundle": self.bundle.name, "sha256": self.bundle.sha256, "fate": fate},
            "decoder_known_evaluation_tasks": sum(task in known for task in asked),
            "evaluation_tasks": len(asked),
            "notes": list(self.prepared.notes),
            "evaluations": [line for line in lines if "ARC/pass@1" in line],
        }


def _last_line(log: Path) -> dict[str, Any] | None:
    """The last whole line of a metrics file, None where there is none."""
    whole = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")] if log.is_file() else []
    last: dict[str, Any] | None = json.loads(whole[-1]) if whole else None
    return last

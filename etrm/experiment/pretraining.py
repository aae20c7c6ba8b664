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
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from etrm.config.compose import build, compose, to_dict
from etrm.config.schema import RunConfig
from etrm.config.yaml_values import Value, parse_yaml
from etrm.errors import ConfigError, EvaluationError
from etrm.evaluation.voting import FRACTION_RULE, VoteResult
from etrm.experiment.asking import evaluate, evaluation_metrics
from etrm.experiment.manifest import write_manifest
from etrm.experiment.progress import PhaseProgress
from etrm.experiment.questions import PretrainingConfig, prepare
from etrm.experiment.run_facts import JOINED, run_facts, run_verdict
from etrm.models.bundle import Bundle
from etrm.models.etrm import ETRM, Episodes
from etrm.models.official import resolve_bundle
from etrm.models.official_file import OFFICIAL_NAMES
from etrm.probes.frozen import FrozenSnapshot, snapshot
from etrm.training.checkpoint import steps_in
from etrm.training.compiled import compile_checked
from etrm.training.distributed import start, told_ranks
from etrm.training.durable import alone_in, append_line, write_whole
from etrm.training.loop import BudgetRecord, encoder_state, evaluation_points, fit, planned_updates
from etrm.training.run import budget_sentence, build_head, check_ranks, choose_device, open_run_folder
from etrm.training.tracking import Trackers, check_installed
from etrm.training.update import TrainState

Say = Callable[[str], None]
CLAIM = "arch."
PROBE = 2  # episodes on which a compiled model is compared
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
        _, size, local = told_ranks(os.environ)
        check_ranks(config.budget, size)
        if config.freeze.decoder_updates >= 0 and config.freeze.joint_lr == 0:
            raise ConfigError("freeze.joint_lr is 0, so the decoder would join and not move; set it above 0")
        self.device = choose_device(config.system.device, local)
        self.ranks = ranks = start(self.device)
        self.config = config
        self.progress = progress if ranks.main else None
        self.say = say = say if ranks.main else lambda text: None
        if isinstance(config, PretrainingConfig):
            for name in () if config.trackers == "none" else config.trackers.split("+"):
                check_installed(name)
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
        self.bundle = bundle
        self._choose_arithmetic()
        ranks.by_main(lambda: open_run_folder(root, config, bundle))  # the first thing that writes
        self.folder = open_run_folder(root, config, bundle)
        self.trackers: Trackers | None = None

    @property
    def model(self) -> ETRM:
        """The encoder and decoder in training."""
        model = self.state.model.model
        assert isinstance(model, ETRM)
        return model

    def _choose_arithmetic(self) -> None:
        """Precision of the encoder and torch.compile, as the config says; what falls back is said."""
        config, model = self.config, self.model
        if not isinstance(config, PretrainingConfig):
            return
        if config.precision != "auto":
            model.autocast = config.precision == "bfloat16"
        if config.compile:
            drawn = self.prepared.source.sample(PROBE, np.random.default_rng(config.system.seed))
            compile_checked(model, Episodes.of(drawn, self.device), self.say)

    def run(self, stop_after: int | None = None) -> dict[str, Any]:
        """Train the planned updates (or up to `stop_after`, to go on later); returns what summary.json holds.

        Every rank must call it; rank 0 writes and returns the summary, the others return what they know. Interrupted,
        it leaves interrupted.json: how far it came, and from where it goes on.
        """
        with ExitStack() as held:
            self.ranks.by_main(lambda: self._take(held))
            try:
                return self._run(stop_after)
            except KeyboardInterrupt:
                if self.ranks.main:
                    self._interrupted()
                raise
            finally:
                if self.trackers is not None:
                    self.trackers.close()

    def _take(self, held: ExitStack) -> None:
        """Hold the run's folder, check it and write its manifest: rank 0 alone, for all."""
        held.enter_context(alone_in(self.folder))
        open_run_folder(self.folder.parents[1], self.config, self.bundle)  # the other may have begun in between
        for change in write_manifest(self.folder, self.config, self.bundle, torch.get_num_threads()):
            self.say(f"since this run began, {change}: it may not go on bit by bit")

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
            config, self.state, self.prepared.source, rng, self.device, log, self.folder, at, report, stop_after,
            self.say, self.ranks, self._mirror, self._open_trackers,
        )  # fmt: skip
        if advance is not None:
            advance.close()
        self.ranks.wait()  # the log's last line is rank 0's
        summary = self._summary(record, log)
        if record.executed_updates == record.planned_updates and self.ranks.main:
            write_whole(self.folder / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
            (self.folder / INTERRUPTED).unlink(missing_ok=True)
        return summary

    def _open_trackers(self, done: int) -> None:
        config = self.config
        if self.ranks.main and isinstance(config, PretrainingConfig) and config.trackers != "none":
            self.trackers = Trackers(config.trackers, config.project, config.run, to_dict(config), self.folder, done)

    def _mirror(self, step: int, line: Mapping[str, float]) -> None:
        if self.trackers is not None:
            self.trackers(step, line)

    def _at(self, step: int) -> None:
        if self._frozen_until() >= step:
            self._check_frozen(step)
        if step in evaluation_points(self.state.total_steps, self.config.budget.evaluations):
            self._evaluate(step)

    def _evaluate(self, step: int) -> None:
        questions, ema = self.prepared.questions, self.state.ema
        results: dict[str, VoteResult] = {}
        kinds = ("raw",) if ema is None else ("raw", "ema")
        own = len(range(self.ranks.rank, len(questions.rows), self.ranks.size))
        shown = nullcontext() if self.progress is None else self.progress(f"evaluate at {step}", own * len(kinds))
        with shown as advance:
            tell = advance or (lambda n: None)
            for weights in kinds:
                with nullcontext() if weights == "raw" or ema is None else ema.applied(self.state.model):
                    size = self.config.evaluation.batch_size
                    result = evaluate(self.model, questions, size, self.device, tell, self.ranks)
                if result is not None:
                    results[weights] = result
        self.ranks.by_main(lambda: self._tell(step, results))  # rank 0 has them

    def _tell(self, step: int, results: Mapping[str, VoteResult]) -> None:
        line, ema = evaluation_metrics(results), self.state.ema
        if ema is not None:
            line["ARC/ema_initial_weight"] = ema.initial_weight(step)
        append_line(self.folder / METRICS, json.dumps({"step": step, **line}))
        self._mirror(step, line)
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
        lines = [json.loads(line) for line in log.read_text().splitlines()]
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
            # Decay alone would move them as well.
            if not any(line.get("grad/decoder_norm") for line in lines if line["step"] > joins):
                raise EvaluationError(f"the decoder joined after update {joins}, but no gradient ever reached it")
        known = set(self.bundle.provenance.task_ids)
        asked = self.prepared.questions.task_ids
        evaluations = [line for line in lines if "ARC/pass@1" in line]
        verdict: dict[str, Any] | str = JOINED
        facts: dict[str, Any] = {}
        if self.state.step <= joins:
            last = evaluations[-1] if evaluations else None
            facts = run_facts(self.config, self.bundle, self.prepared, record, last)
            verdict = run_verdict(self.config.run, log, facts)
            if record.executed_updates == record.planned_updates:
                self.say(f"verdict: {verdict['scenario']}: {verdict['reasons'][0]}")
                for note in verdict["notes"]:
                    self.say(note)
        return {
            "budget": asdict(record),
            "decoder": {"bundle": self.bundle.name, "sha256": self.bundle.sha256, "fate": fate},
            "decoder_known_evaluation_tasks": sum(task in known for task in asked),
            "evaluation_tasks": len(asked),
            "notes": list(self.prepared.notes),
            "evaluations": evaluations,
            "checkpoint_info": facts,
            "verdict": verdict,
        }


def _last_line(log: Path) -> dict[str, Any] | None:
    """The last whole line of a metrics file, None where there is none."""
    whole = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")] if log.is_file() else []
    last: dict[str, Any] | None = json.loads(whole[-1]) if whole else None
    return last

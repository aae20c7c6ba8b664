"""What scripts/evaluate_arc.py evaluates: a trained encoder with its decoder, or a decoder with its own table rows.

Notable: an encoder is asked tasks that it never saw, those that repeat a training task left out by name. A decoder with
its own rows is TRM's protocol: the demonstrations of the evaluation tasks were in its training, so its pass@1 is no
generalisation to new tasks; every task is asked, as in the published numbers, and repeated ones are scored apart.

Legend: T context tokens, D hidden.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from etrm.config.compose import Composed, build
from etrm.data.arc import Task, Version, fits, load_arc, overlaps
from etrm.data.arc_agi import ARC_AGI, ArcAgiSource, first_tasks
from etrm.data.arc_split import ARC_BENCHMARKS, arc_benchmark, shows_its_answer, split_arc
from etrm.data.augment import SEPARATOR, Augmentation, parse_name
from etrm.data.episodes import ArcQuery
from etrm.errors import CheckpointError, ConfigError, DataError
from etrm.experiment.decoder_files import is_ours
from etrm.experiment.questions import PretrainingConfig, Questions, prepare, repeated_notes
from etrm.models.bundle import Bundle, load_bundle
from etrm.models.etrm import ETRM
from etrm.models.official import build_decoder, record_sha256, resolve_bundle
from etrm.models.official_file import CONFIG, open_official
from etrm.models.official_table import BundleTable, OfficialTable, read_identifiers
from etrm.training.checkpoint import read_checkpoint, refuse_other_weights
from etrm.training.run import arch_of, build_head, differences, read_config


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for. `tasks` 0: all; `augmentations`: votes a query, at most."""

    benchmark: str
    tasks: int
    augmentations: int
    weights: str  # raw or ema, of an encoder's checkpoint
    seed: int

    def __post_init__(self) -> None:
        """ConfigError naming the option that is out of range."""
        if self.benchmark not in ARC_AGI:
            raise ConfigError(f"--benchmark is {self.benchmark}, expected one of {', '.join(ARC_AGI)}")
        for name, value, least in (("augmentations", self.augmentations, 1), ("tasks", self.tasks, 0)):
            if value < least:
                raise ConfigError(f"--{name} is {value}, expected at least {least}")


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with a decoder and contexts, its questions, and what a reader must know."""

    model: nn.Module
    questions: Questions
    identity: Mapping[str, Any]
    notes: tuple[str, ...]
    duplicates: tuple[str, ...]  # evaluation tasks that repeat a training task and were asked nevertheless


def encoder_subject(path: Path, wanted: Wanted, device: torch.device) -> Subject:
    """The encoder of a step_N of ours. CheckpointError or ConfigError says what does not fit."""
    payload = read_checkpoint(path)
    values = payload.get("config")
    if not isinstance(values, dict) or "evaluation_tasks" not in values:
        raise CheckpointError(f"{path} is of no run of pretrain_etrm.py at ARC scale; evaluate one of those")
    config = build(PretrainingConfig, Composed(values, {}, str(path)))
    bundle = resolve_bundle(config.bundle)
    asked = replace(
        config,
        data=replace(config.data, benchmark=wanted.benchmark),
        evaluation_tasks=wanted.tasks,
        evaluation=replace(config.evaluation, augmentations=wanted.augmentations),
        system=replace(config.system, seed=wanted.seed),
    )
    _refuse_other_decoder(path, bundle)
    prepared = prepare(asked, bundle, _trained_on(config.data.benchmark))
    head = build_head(config, bundle, device)
    head.requires_grad_(False)
    joined = 0 <= config.freeze.decoder_updates < payload["step"]
    if joined:  # its decoder moved on purpose
        head.decoder.requires_grad_(True)
    model = head.model
    assert isinstance(model, ETRM) and isinstance(model.encoder, nn.Module)
    model.encoder.requires_grad_(True)
    refuse_other_weights(path, payload["model"], head)
    head.load_state_dict(payload["model"], strict=True)
    if wanted.weights == "ema":
        if payload.get("ema") is None:
            raise CheckpointError(f"{path} holds no averaged weights; use --weights raw")
        own = dict(head.named_parameters())
        with torch.no_grad():
            for name, value in payload["ema"].items():
                own[name].copy_(value)
    if config.precision != "auto":
        model.autocast = config.precision == "bfloat16"
    identity = {
        "checkpoint": record_of(path),
        "decoder": bundle.sha256,
        "structure": asdict(bundle.structure),
        "protocol": "encoder",
        "weights": wanted.weights,
        **_asked(wanted),
    }
    return Subject(model.eval(), prepared.questions, identity, prepared.notes, ())


def _trained_on(benchmark: str) -> list[Task]:
    """Every task that a run on this benchmark may have been trained on."""
    if benchmark in ARC_AGI:
        return list(load_arc(ARC_AGI[benchmark], "training"))
    return list(split_arc(arc_benchmark(benchmark)).decoder) if benchmark in ARC_BENCHMARKS else []


def _learned_answers(version: Version, taught: str, tasks: Sequence[Task]) -> tuple[tuple[str, str], ...]:
    """(learned id, asked id) of the tasks whose queries the decoder was trained on, under their own or another id.

    TRM's protocol learns the training tasks' queries too; our ARC benchmarks learn demonstrations alone, and no two of
    their tasks share one, so there a query was only learned where it is one of its own task's demonstrations.
    """
    if taught in ARC_BENCHMARKS:
        return tuple((t.id, t.id) for t in tasks if shows_its_answer(t))
    return overlaps([*load_arc(version, "training"), *_trained_on(taught)], tasks)


def _refuse_other_decoder(path: Path, bundle: Bundle) -> None:
    """CheckpointError unless the bundle is, with its structure, the one that the run's all_config.yaml names."""
    told = read_config(path.with_name(CONFIG))
    own = {"arch": arch_of(bundle), "bundle_sha256": bundle.sha256}
    if changed := [key for name, value in own.items() for key in differences(told.get(name), value, name)]:
        raise CheckpointError(
            f"{path} was trained in front of another decoder than {bundle.name} is now ({', '.join(changed[:6])} "
            f"differ from {path.with_name(CONFIG)}); put that one back"
        )


def decoder_subject(path: Path, identifiers: Path | None, wanted: Wanted, device: torch.device) -> Subject:
    """A decoder with its own table rows: an official checkpoint and its identifiers.json, or a bundle folder."""
    names: Mapping[str, int]
    if path.is_dir():
        if identifiers is not None:
            raise ConfigError(f"{path} is a bundle, which names its own rows; leave --identifiers out")
        bundle = load_bundle(str(path))
        structure, taught = bundle.structure, bundle.provenance.benchmark
        names = {name: row for row, name in enumerate(bundle.provenance.row_names)}
        model: nn.Module = BundleTable(bundle.decoder, bundle.table)
        side, sha = bundle.side, bundle.sha256
    else:
        file = open_official(path)
        if file.table is None or identifiers is None:
            raise ConfigError(
                f"{path}: which row of the table is whose stands in the data set's identifiers.json alone; give it "
                "with --identifiers FILE"
            )
        names = read_identifiers(identifiers, file.table[1])
        sha = record_sha256(file.path)
        structure, taught = file.structure, wanted.benchmark
        model = OfficialTable(build_decoder(file), file)
        side = round(file.structure.seq_len**0.5)
    questions, notes, duplicates = _row_questions(names, wanted, side, taught)
    identity = {
        "checkpoint": sha,
        "structure": asdict(structure),
        "identifiers": "" if identifiers is None else record_of(identifiers),
        "protocol": "table rows",
        **_asked(wanted),
    }
    return Subject(model.to(device).eval(), questions, identity, notes, duplicates)


def subject_of(path: Path, identifiers: Path | None, wanted: Wanted, device: torch.device) -> Subject:
    """What the file is decides the protocol: a step_N of ours is an encoder, all else a decoder with its own rows."""
    if path.is_file() and is_ours(path):
        if identifiers is not None:
            raise ConfigError(f"{path} is an encoder's checkpoint, which needs no --identifiers; leave it out")
        return encoder_subject(path, wanted, device)
    return decoder_subject(path, identifiers, wanted, device)


def _row_questions(
    names: Mapping[str, int], wanted: Wanted, side: int, taught: str
) -> tuple[Questions, tuple[str, ...], tuple[str, ...]]:
    version = ARC_AGI[wanted.benchmark]
    everything = load_arc(version, "evaluation")
    fitting = [t for t in everything if fits(t, side)]
    bases = {name.split(SEPARATOR, 1)[0] for name in names}
    with_rows = [t for t in fitting if t.id in bases]
    if not with_rows:
        raise DataError(
            f"no evaluation task of {wanted.benchmark} has a row in this table and fits {side}x{side}; the identifiers "
            "or the benchmark are another's"
        )
    tasks = first_tasks(
        with_rows, wanted.tasks, wanted.seed, f"{wanted.benchmark} evaluation tasks with rows", "--tasks"
    )
    source = ArcAgiSource(tasks, 1, True, side, 1, False, wanted.seed)
    by_base: dict[str, list[tuple[str, int]]] = {t.id: [] for t in tasks}
    for name, row in names.items():
        base = name.split(SEPARATOR, 1)[0]
        if base in by_base:
            by_base[base].append((name, row))
    queries: list[ArcQuery] = []
    rows: list[tuple[str, int, Augmentation]] = []
    for index, task in enumerate(tasks):
        own = sorted(by_base[task.id], key=lambda item: (item[0] != task.id, item[1]))[: wanted.augmentations]
        for number, asked in enumerate(task.queries):
            for name, row in own:
                augmentation = parse_name(name)[1]
                queries.append(ArcQuery(index, number, augmentation, (), asked, row))
                rows.append((task.id, number, augmentation))
    truths = {(t.id, i): q.output for t in tasks for i, q in enumerate(t.queries)}
    pairs = _learned_answers(version, taught, tasks)
    notes = [
        f"TRM's protocol: the demonstrations of these {len(tasks)} evaluation tasks were in the decoder's training "
        "(decoder_known), so this is no score on unknown tasks",
        f"up to {wanted.augmentations} rows a task, {len(rows)} answers",
        *repeated_notes("scored apart, its answers were learned", pairs),
    ]
    if left := len(everything) - len(with_rows):
        notes.append(f"left out: {left} evaluation tasks that have no row or do not fit {side}x{side}")
    return (
        Questions(tuple(rows), truths, lambda part: source.encode([queries[i] for i in np.asarray(part)]), side),
        tuple(notes),
        tuple(sorted({test for _, test in pairs})),
    )


def _asked(wanted: Wanted) -> dict[str, Any]:
    return {
        "benchmark": wanted.benchmark,
        "tasks": wanted.tasks,
        "augmentations": wanted.augmentations,
        "seed": wanted.seed,
    }


def record_of(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""What a run of pretrain_etrm.py draws its training episodes from, and what its evaluations ask.

Notable: the benchmarks of the embedded bundles bring their own split, of which only the validation tasks are asked
here; `arc-agi-1` and `arc-agi-2` are the public splits, whose evaluation tasks a decoder may know: then it is said.

Legend: S canvas cells.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from etrm.config.schema import Checked, RunConfig
from etrm.data.arc import Split, Task, load_arc, overlaps
from etrm.data.arc_agi import ARC_AGI, ArcAgiSource, arc_agi
from etrm.data.augment import IDENTITY, Augmentation
from etrm.data.episodes import Batch, Source
from etrm.data.families import BENCHMARKS, benchmark
from etrm.data.grids import PAD, crop
from etrm.errors import ConfigError
from etrm.evaluation.voting import QueryKey
from etrm.experiment.arms import build_arm
from etrm.models.bundle import Bundle


@dataclass(frozen=True)
class PretrainingConfig(RunConfig, Checked):
    """A run of pretrain_etrm.py: RunConfig, and what only that command knows."""

    evaluation_tasks: int  # how many tasks each evaluation asks; 0: all that there are
    precision: Literal["auto", "float32", "bfloat16"]  # of the encoder (bf16: autocast); auto: as the decoder computes
    compile: bool  # torch.compile, where its numbers are those of the plain model
    trackers: Literal["none", "wandb", "tensorboard", "wandb+tensorboard"]  # beside metrics.jsonl


@dataclass(frozen=True, eq=False)
class Questions:
    """What an evaluation asks: rows of (task id, query, augmentation), the right grids, and the rows as episodes."""

    rows: tuple[tuple[str, int, Augmentation], ...]
    truths: Mapping[QueryKey, np.ndarray]
    encode: Callable[[np.ndarray], Batch]  # of row numbers
    side: int

    @property
    def task_ids(self) -> tuple[str, ...]:
        """The base tasks that are asked, in order."""
        return tuple(dict.fromkeys(task for task, _, _ in self.rows))


@dataclass(frozen=True, eq=False)
class Prepared:
    """Where training draws from, what evaluations ask, and what a reader must know about both."""

    source: Source
    questions: Questions
    notes: tuple[str, ...]
    disjoint: bool | None  # ARC: no evaluated task repeats a training task, by canonical hash; rules are split by rule


FEW = 5  # repeated tasks that are named a line each
SPLITS: tuple[Split, ...] = ("training", "evaluation")
UNREAD = (
    "seen_queries",
    "unseen_queries",
    "probe_queries",
    "constant_updates",
    "oracle_tasks",
    "oracle_updates",
    "search_updates",
)


def prepare(config: RunConfig, bundle: Bundle, trained: Sequence[Task] = ()) -> Prepared:
    """Source and questions of the config's benchmark over a bundle. ConfigError or DataError says what does not fit.

    `trained`: tasks of another benchmark that the model was trained on, which are not asked either.
    """
    if config.data.benchmark in ARC_AGI:
        return _whole_arc(config, bundle, trained)
    if config.data.benchmark in BENCHMARKS:
        d, b = config.data, benchmark(config.data.benchmark)
        if (d.augmentations, d.colour_augmentation, d.leave_one_out, d.max_demos) != (1, False, False, b.demos):
            raise ConfigError(
                f"{b.version} is made of procedural rules: set data.augmentations=1 data.colour_augmentation=false "
                f"data.leave_one_out=false data.max_demos={b.demos}"
            )
    arm = build_arm(config, bundle)
    asked = arm.validation.batch
    if isinstance(config, PretrainingConfig) and config.evaluation_tasks:
        there = len(arm.validation.task_ids)
        if config.evaluation_tasks > there:
            raise ConfigError(
                f"evaluation_tasks is {config.evaluation_tasks}, but there are {there}; set it to 0 for all"
            )
        asked = asked.take(np.flatnonzero(asked.task < config.evaluation_tasks))
    seen: dict[int, int] = {}
    rows: list[tuple[str, int, Augmentation]] = []
    for task in asked.task.tolist():  # every row is a query of its own: this evaluation does not vote
        seen[task] = seen.get(task, -1) + 1
        rows.append((arm.validation.task_ids[task], seen[task], IDENTITY))
    grids = [crop(np.where(labels < 0, PAD, labels), bundle.side) for labels in asked.labels]
    truths = {(task, query): grid for (task, query, _), grid in zip(rows, grids, strict=True)}
    note = "evaluation: the benchmark's validation tasks, unvoted; the locked test stays unread"
    return Prepared(arm.source, Questions(tuple(rows), truths, asked.take, bundle.side), (note,), None)


def _whole_arc(config: RunConfig, bundle: Bundle, trained: Sequence[Task]) -> Prepared:
    if not isinstance(config, PretrainingConfig):
        raise ConfigError(
            f"{config.data.benchmark} needs the key evaluation_tasks (0: all); see cfg_test_frozen_decoder"
        )
    data, seed = config.data, config.system.seed
    if config.evaluation.augmentations < 1:
        raise ConfigError("evaluation.augmentations is 0, expected at least 1: the votes of each query")
    if unread := [name for name in UNREAD if getattr(config.evaluation, name)]:
        raise ConfigError(
            f"evaluation.{', evaluation.'.join(unread)} would change nothing on {data.benchmark}, whose tasks bring "
            f"their own queries and no controls here; set {' '.join(f'evaluation.{name}=0' for name in unread)}"
        )
    split = arc_agi(data.benchmark, bundle.side, data.train_tasks, config.evaluation_tasks, seed, trained)

    def source(tasks: Sequence[Task]) -> ArcAgiSource:
        return ArcAgiSource(
            tasks,
            data.augmentations,
            data.colour_augmentation,
            bundle.side,
            data.max_demos,
            data.leave_one_out,
            seed,
            bundle.row_of,
        )

    asked = source(split.evaluation)
    queries = asked.asked(config.evaluation.augmentations)
    rows = tuple((asked.task_ids[q.task], q.query, q.augmentation) for q in queries)
    truths = {(t.id, i): q.output for t in split.evaluation for i, q in enumerate(t.queries)}
    answered = len(known_to_decoder(bundle, split.evaluation))
    notes = [
        f"decoder_known: the decoder was trained on demonstrations of {answered} of {len(split.evaluation)} evaluation "
        f"tasks ({bundle.provenance.recipe.split(',')[0]}); a score on those is no clean generalisation",
        f"up to {config.evaluation.augmentations} votes a query, {len(rows)} answers an evaluation",
    ]
    notes += repeated_notes("excluded from the evaluation", split.duplicates)
    if split.too_large:
        notes.append(f"left out: {split.too_large} tasks whose grids do not fit {bundle.side}x{bundle.side}")
    questions = Questions(rows, truths, lambda part: asked.encode([queries[i] for i in part]), bundle.side)
    disjoint = not overlaps(split.train, split.evaluation)
    return Prepared(source(split.train), questions, tuple(notes), disjoint)


def repeated_notes(what: str, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Each (training id, evaluation id) named in a line of its own, many of them in one."""
    if len(pairs) <= FEW:
        return [f"{what}: {test} repeats the training task {train}" for train, test in pairs]
    tests = sorted({test for _, test in pairs})
    return [f"{what}: {len(tests)} tasks that repeat a training task: {', '.join(tests)}"]


def known_to_decoder(bundle: Bundle, tasks: Sequence[Task]) -> set[str]:
    """Ids of the tasks on which the decoder was trained, under their own name or, by canonical hash, another one."""
    ids = set(bundle.provenance.task_ids)
    splits = [(version, split) for version in ARC_AGI.values() for split in SPLITS]
    known = [t for version, split in splits for t in load_arc(version, split) if t.id in ids]
    return {t.id for t in tasks if t.id in ids} | {test for _, test in overlaps(known, tasks)}

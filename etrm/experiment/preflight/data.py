"""Do episodes say what their task says? Asked of what the source draws and of every rung's queries.

An episode is right if one reading of its task explains all of its pairs: for a procedural rule the rule itself, for a
real task one augmentation of its own pairs. A draw is right if it depends on its generator, reaches the tasks evenly
and seldom repeats itself.

Legend: B batch, K demonstrations, S canvas cells.
"""

import functools
import math
from collections.abc import Callable

import numpy as np

from etrm.config.schema import RunConfig
from etrm.data.arc import Task
from etrm.data.arc_split import (
    ARC_BENCHMARKS,
    arc_benchmark,
    fresh_augmentations,
    split_arc,
    task_augmentations,
    taught,
)
from etrm.data.augment import Augmentation
from etrm.data.episodes import Batch
from etrm.data.families import Member, benchmark, random_grids
from etrm.data.grids import COLOUR0
from etrm.experiment.arms import Arm, Rung
from etrm.experiment.checks import Check, check
from etrm.experiment.preflight.arc_reading import TaskReading
from etrm.models.bundle import Bundle

Explains = Callable[[Batch, int, str], bool]  # (batch, episode, task id): does the task explain every pair of it?
DRAWN = 192
REPEATED = 0.05  # episodes whose query stands among its demonstrations, or that were drawn before: small grids repeat
REACHED = 0.7  # of the tasks that even draws reach on average
LOOKED_AT = 64  # episodes of a rung
ODD = 0.08  # share of a colour beside the recipe's; 192 grids of 9 cells or more repeat within 0.03


def data_checks(config: RunConfig, arm: Arm, bundle: Bundle) -> list[Check]:
    """`episodes_true`, `episodes_fresh`, `rungs_true`."""
    explains = explanation(config, bundle)
    source = arm.source
    first, again, other = (source.sample(DRAWN, np.random.default_rng(s)) for s in (11, 11, 12))
    wrong = _unexplained(first, source.task_ids, explains, range(DRAWN))
    rows = [bundle.row_of(source.task_ids[t]) for t in first.task]
    misplaced = 0 if config.data.benchmark in ARC_BENCHMARKS else int((first.row != np.array(rows)).sum())
    said = f"{DRAWN - len(wrong)} of {DRAWN} drawn episodes follow their task"
    true = check("episodes_true", not wrong and not misplaced, _first(said, wrong) + f"; {misplaced} wrong table rows")
    faults = [*_stale(first, again, other, len(source.task_ids)), *_colours(config, first)]
    fresh = check("episodes_fresh", not faults, "; ".join(faults) or f"{DRAWN} draws, distinct and evenly spread")
    return [true, fresh, _rungs(arm, explains)]


def explanation(config: RunConfig, bundle: Bundle) -> Explains:
    """Tells whether an episode of the config's benchmark is one of its task's."""
    return _explains_arc(config, bundle) if config.data.benchmark in ARC_BENCHMARKS else _explains_rule(config)


def _first(said: str, wrong: list[str]) -> str:
    return f"{said}; {wrong[0]}" if wrong else said


def _unexplained(batch: Batch, ids: tuple[str, ...], explains: Explains, which: range | np.ndarray) -> list[str]:
    return [
        f"episode {i} of {ids[batch.task[i]]} does not" for i in which if not explains(batch, i, ids[batch.task[i]])
    ]


def _content(batch: Batch, i: int) -> bytes:
    shown = batch.demo_mask[i]
    parts = (batch.inputs[i], batch.labels[i], batch.demo_inputs[i][shown], batch.demo_labels[i][shown])
    return b"".join(np.ascontiguousarray(p).tobytes() for p in parts)


def _leaks(batch: Batch, i: int) -> bool:
    shown = batch.demo_inputs[i][batch.demo_mask[i]]
    return bool((shown == batch.inputs[i]).all(axis=-1).any())


def _stale(first: Batch, again: Batch, other: Batch, tasks: int) -> list[str]:
    """Everything that is wrong with how episodes are drawn, in words."""
    faults = []
    contents = [_content(first, i) for i in range(len(first))]
    others = {_content(other, i) for i in range(len(other))}
    if contents != [_content(again, i) for i in range(len(again))]:
        faults.append("the same generator gave two different draws")
    repeated = len(contents) - len(set(contents)) + sum(c in others for c in contents)
    if repeated > REPEATED * len(contents) + 1:
        faults.append(f"{repeated} of {len(contents)} episodes were drawn before")
    leaking = sum(_leaks(first, i) for i in range(len(first)))
    if leaking > REPEATED * len(first):
        faults.append(f"{leaking} of {len(first)} queries stand among their own demonstrations")
    expected = tasks * (1 - math.exp(-len(first) / tasks))
    reached = len(np.unique(first.task))
    if reached < REACHED * expected:
        faults.append(f"{reached} of {tasks} tasks were drawn, about {expected:.0f} expected")
    if not first.demo_mask.any(axis=1).all():
        faults.append("an episode has no demonstration")
    return faults


def _colours(config: RunConfig, batch: Batch) -> list[str]:
    """A procedural benchmark's grids hold every colour that it has, about as often as its recipe says."""
    if config.data.benchmark in ARC_BENCHMARKS:
        return []
    b = benchmark(config.data.benchmark)
    recipe = random_grids(len(batch), b.side, b.colours, b.black, np.random.default_rng(13))
    mine, meant = (np.bincount(g.ravel(), minlength=b.colours)[: b.colours] / g.size
                   for g in ((batch.inputs - COLOUR0).clip(0), recipe))  # fmt: skip
    worst = int(np.abs(mine - meant).argmax())
    if abs(mine[worst] - meant[worst]) > ODD:
        return [f"colour {worst} fills {mine[worst]:.0%} of the cells, the benchmark's recipe gives {meant[worst]:.0%}"]
    return []


def _rungs(arm: Arm, explains: Explains) -> Check:
    """Queries of probe, validation and rungs: explained by their task, not shown, seen or unseen as they claim."""
    faults = []
    trained = set(arm.source.task_ids)
    for rung in (arm.probe, arm.validation, *arm.rungs):
        at = np.linspace(0, len(rung.batch) - 1, min(LOOKED_AT, len(rung.batch))).astype(int)
        faults += [f"{rung.name}: {w}" for w in _unexplained(rung.batch, rung.task_ids, explains, at)[:1]]
        leaking = sum(_leaks(rung.batch, i) for i in at)
        if leaking > REPEATED * len(at) + 1:
            faults.append(f"{rung.name}: {leaking} of {len(at)} queries stand among their own demonstrations")
        faults += _claims(rung, trained)
        faults += _repeats(rung)
    total = sum(len(r.batch) for r in arm.rungs)
    return check("rungs_true", not faults, "; ".join(faults[:3]) or f"{total} queries of {len(arm.rungs)} rungs")


def _claims(rung: Rung, trained: set[str]) -> list[str]:
    """A rung of unseen tasks holds none that was trained on; a rung of seen ones holds no other."""
    used = {rung.task_ids[t] for t in np.unique(rung.batch.task)}
    unseen = rung.name == "validation" or rung.name in ("unseen_composition", "unseen_task")
    wrong = used & trained if unseen else used - trained
    word = "trained on" if unseen else "never trained on"
    return [f"{rung.name}: {len(wrong)} of its tasks were {word}, such as {sorted(wrong)[0]}"] if wrong else []


def _repeats(rung: Rung) -> list[str]:
    contents = [_content(rung.batch, i) + bytes([rung.batch.task[i] % 256]) for i in range(len(rung.batch))]
    again = len(contents) - len(set(contents))
    return (
        [f"{rung.name}: {again} of {len(contents)} queries are asked twice"] if again > REPEATED * len(contents) else []
    )


def _explains_rule(config: RunConfig) -> Explains:
    b = benchmark(config.data.benchmark)
    split = b.split()
    rules = {m.id: m for m in (*split.train, *split.validation, *split.test)}

    def explains(batch: Batch, i: int, task: str) -> bool:
        rule: Member = rules[task]
        shown = batch.demo_mask[i]
        given = np.concatenate((batch.inputs[i][None], batch.demo_inputs[i][shown]))
        answers = np.concatenate((batch.labels[i][None], batch.demo_labels[i][shown]))
        if given.min() < COLOUR0 or int(shown.sum()) != b.demos:
            return False
        grids = (given - COLOUR0).astype(np.uint8).reshape(-1, b.side, b.side)
        return bool(np.array_equal(rule(grids).reshape(len(grids), -1) + COLOUR0, answers))

    return explains


def _explains_arc(config: RunConfig, bundle: Bundle) -> Explains:
    b = arc_benchmark(config.data.benchmark)
    split = split_arc(b)
    tasks = {t.id: t for t in (*split.decoder, *split.validation, *split.unseen)}
    pairs = tasks | {t.id: t for t in taught(b, split.decoder)}

    @functools.cache
    def reading(task: str) -> TaskReading:
        # Augmentations are those of the task as ARC has it: which of them differ depends on its pairs.
        return TaskReading(pairs[task], _augmentations(tasks[task], config, bundle), b.side)

    return lambda batch, i, task: reading(task).explains(batch, i)


def _augmentations(task: Task, config: RunConfig, bundle: Bundle) -> list[Augmentation]:
    """Those that an arm may use for a task: the decoder's own, and the fresh ones of its rungs."""
    data, seed, votes = config.data, config.system.seed, config.evaluation.augmentations
    own = task_augmentations(task, data.augmentations, data.colour_augmentation, bundle.provenance.seed)
    drawn = [a for salt in (992, 993) for a in task_augmentations(task, votes, data.colour_augmentation, salt + seed)]
    fresh = fresh_augmentations(task, own, votes, data.colour_augmentation, 991 + seed)
    return list(dict.fromkeys((*own, *drawn, *fresh)))

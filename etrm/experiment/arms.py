"""What each arm trains on and asks: sources, rungs, the fixed probe set, and the checks that can be made before
training.

`calibration` (cal-1, cal-2) and `micro` are procedural rules split by rule; `arc` is real tasks. Every rung's queries
are fixed by the benchmark and the seed, never by what was trained. The locked test enters only the last rung.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from etrm.config.schema import RunConfig
from etrm.data.arc import Task, overlaps
from etrm.data.arc_split import (
    ARC_BENCHMARKS,
    arc_benchmark,
    fresh_augmentations,
    shows_its_answer,
    split_arc,
    task_augmentations,
    taught,
)
from etrm.data.augment import IDENTITY, Augmentation
from etrm.data.episodes import ArcQuery, ArcSource, Batch, RuleSource, Source
from etrm.data.families import BENCHMARKS, Benchmark, Member, benchmark, random_grids
from etrm.errors import ConfigError
from etrm.experiment.checks import Check, check
from etrm.experiment.evidence import ArmName
from etrm.models.bundle import Bundle

MIN_TASKS = 8
ORACLE_PAIRS = 32
ORACLE_DEMOS = 4


@dataclass(frozen=True, eq=False)
class Rung:
    """One rung's queries; `batch.task` indexes `task_ids`. `known`: the decoder was trained on these demonstrations.

    On real tasks `asked` names each row as (task id, query, augmentation) and `truths` holds the right grids, for
    votes; rules have neither.
    """

    name: str
    batch: Batch
    task_ids: tuple[str, ...]
    known: bool
    asked: tuple[tuple[str, int, Augmentation], ...] = ()
    truths: Mapping[tuple[str, int], np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Arm:
    """Everything one arm needs beside its models."""

    name: ArmName
    source: Source
    probe: Rung  # training tasks, fixed episodes: the loss must fall here
    validation: Rung
    rungs: tuple[Rung, ...]
    oracle_many: tuple[Batch, Batch] | None  # labelled pairs in task order, and queries of the same tasks
    oracle_demos: tuple[Batch, Batch] | None
    checks: tuple[Check, ...]
    planned_queries: dict[str, int]  # by rung, from the config and the split alone
    most_steps: int  # ACT steps after which a slot takes a new episode at the latest
    pool: int | None  # distinct questions that training can draw; None: as many as it likes


def arm_name(benchmark_name: str) -> ArmName:
    """The arm that a benchmark belongs to."""
    if benchmark_name.startswith("arc"):
        return "arc"
    return "micro" if benchmark_name.startswith("micro") else "calibration"


def build_arm(config: RunConfig, bundle: Bundle) -> Arm:
    """The arm of the config's benchmark over a bundle; ConfigError if the bundle's canvas is another."""
    name = config.data.benchmark
    if bundle.provenance.benchmark != name:
        raise ConfigError(
            f"bundle {bundle.name} was trained for benchmark {bundle.provenance.benchmark}, data.benchmark is {name}; "
            f"set data.benchmark={bundle.provenance.benchmark}"
        )
    if name in BENCHMARKS:
        return _rules(config, bundle, benchmark(name))
    if name in ARC_BENCHMARKS:
        return _arc(config, bundle)
    raise ConfigError(f"no benchmark {name!r}; there are {', '.join((*BENCHMARKS, *ARC_BENCHMARKS))}")


def rule_hash(member: Member, b: Benchmark) -> str:
    """Canonical hash of a rule: its outputs on 1,000 fixed random inputs."""
    outputs = member(random_grids(1000, b.side, b.colours, b.black, np.random.default_rng(0)))
    return hashlib.sha256(np.ascontiguousarray(outputs).tobytes()).hexdigest()


def _rules(config: RunConfig, bundle: Bundle, b: Benchmark) -> Arm:
    split, sizes, seed = b.split(), config.evaluation, config.system.seed
    train = split.train[: config.data.train_tasks or None]
    source = RuleSource(train, b, [bundle.row_of(m.id) for m in train])

    def rung(name: str, members: tuple[Member, ...], queries: int, salt: int) -> Rung:
        rows = [bundle.row_of(m.id) for m in members]
        drawn = RuleSource(members, b, rows).each(queries, np.random.default_rng([salt, seed]))
        return Rung(name, drawn, tuple(m.id for m in members), all(row >= 0 for row in rows))

    tested = {rule_hash(m, b): m.id for m in (*split.validation, *split.test)}
    shared = [f"{m.id} = {tested[h]}" for m in train if (h := rule_hash(m, b)) in tested]
    known = [m.id for m in split.test if bundle.row_of(m.id) >= 0]
    checks = (
        check("disjoint", not shared, f"{len(shared)} rules shared by train and test {shared[:3]}"),
        check(
            "provenance", not known, f"the decoder was trained on {len(known)} of {len(split.test)} locked-test rules"
        ),
        check("enough_tasks", len(split.test) >= MIN_TASKS, f"{len(split.test)} locked-test rules, {MIN_TASKS} needed"),
    )
    queries = sizes.unseen_queries
    members = split.test[: sizes.oracle_tasks]
    test = RuleSource(members, b)
    asked = test.each(8, np.random.default_rng([5, seed]))
    many = test.each(ORACLE_PAIRS, np.random.default_rng([6, seed]))
    few = test.each(b.demos, np.random.default_rng([7, seed]))
    return Arm(
        arm_name(b.version),
        source,
        rung("probe", train, sizes.probe_queries, 1),
        rung("validation", split.validation, 4 * sizes.probe_queries, 2),
        (rung("seen_task", train, sizes.seen_queries, 3), rung("unseen_composition", split.test, queries, 4)),
        (many, asked),
        (few, asked),
        checks,
        {
            "seen_task": len(train) * sizes.seen_queries,
            "unseen_composition": len(split.test) * sizes.unseen_queries,
        },
        bundle.structure.halt_max_steps,
        None,
    )


def _arc(config: RunConfig, bundle: Bundle) -> Arm:
    b = arc_benchmark(config.data.benchmark)
    split, data, seed = split_arc(b), config.data, config.system.seed
    train = split.train[: data.train_tasks or None]
    # The decoder's rows were drawn with its own seed; the encoder trains on the same augmented tasks.
    trained = [
        task_augmentations(t, data.augmentations, data.colour_augmentation, bundle.provenance.seed) for t in train
    ]

    def source(tasks: tuple[Task, ...], augmentations: list[list[Augmentation]], own: Sequence[int] = ()) -> ArcSource:
        share = b.own_asked if own else 0.0
        return ArcSource(tasks, augmentations, b.side, data.max_demos, bundle.row_of, data.leave_one_out, own, share)

    def rung(name: str, tasks: tuple[Task, ...], augmentations: list[list[Augmentation]], known: bool) -> Rung:
        tasks, augmentations = _claimable(tasks, augmentations)
        drawn = source(tasks, augmentations)
        queries = drawn.queries()
        asked = tuple((drawn.task_ids[q.task], q.query, q.augmentation) for q in queries)
        truths = {(t.id, i): pair.output for t in tasks for i, pair in enumerate(t.queries)}
        return Rung(name, drawn.encode(queries), drawn.task_ids, known, asked, truths)

    votes = config.evaluation.augmentations
    fresh = [
        fresh_augmentations(task, used, votes, data.colour_augmentation, 991 + seed)
        for task, used in zip(train, trained, strict=True)
    ]
    unseen = split.unseen
    voted = [task_augmentations(t, votes, data.colour_augmentation, 992 + seed) for t in unseen]
    checked = [task_augmentations(t, votes, data.colour_augmentation, 993 + seed) for t in split.validation]
    shared = overlaps(train, (*split.validation, *unseen))
    known = sorted({t.id for t in unseen} & set(bundle.provenance.task_ids))
    steered = _claimable(unseen, voted)[0][: config.evaluation.oracle_tasks]
    own = [len(t.demos) for t in train] if b.generated else []
    drawn = source(taught(b, train), trained, own)
    probe = drawn.sample(sum(1 for _ in train) * config.evaluation.probe_queries, np.random.default_rng([1, seed]))
    checks = (
        check("disjoint", not shared, f"{len(shared)} pairs of tasks share a canonical hash {shared[:3]}"),
        check("provenance", not known, f"the decoder was trained on {len(known)} of {len(unseen)} unseen tasks"),
        check("enough_tasks", len(unseen) >= MIN_TASKS, f"{len(unseen)} unseen tasks, {MIN_TASKS} needed"),
    )
    return Arm(
        arm_name(b.version),
        drawn,
        Rung("probe", probe, drawn.task_ids, True),
        rung("validation", split.validation, checked, False),
        (
            rung("seen_task", train, [a[:votes] for a in trained], True),
            rung("unseen_augmentation", train, fresh, True),
            rung("unseen_task", unseen, voted, False),
        ),
        None,  # a real task has no more labelled pairs than its demonstrations
        _arc_oracle(source(steered, [[IDENTITY]] * len(steered))),
        checks,
        {
            "seen_task": _votes(train, [a[:votes] for a in trained]),
            "unseen_augmentation": _votes(train, fresh),
            "unseen_task": _votes(unseen, voted),
        },
        bundle.structure.halt_max_steps,
        sum(len(t.demos) * len(a) for t, a in zip(drawn.tasks, trained, strict=True)),
    )


def _arc_oracle(asked: ArcSource) -> tuple[Batch, Batch]:
    """ORACLE_DEMOS pairs a task, its demonstrations in turn, and its queries, all as they are in the data."""
    pairs: list[ArcQuery] = []
    demos = asked.demonstrations()
    for task in range(len(asked.tasks)):
        own = [d for d in demos if d.task == task]
        pairs += [own[i % len(own)] for i in range(ORACLE_DEMOS)]
    return asked.encode(pairs), asked.encode(asked.queries())


def _claimable(
    tasks: tuple[Task, ...], augmentations: list[list[Augmentation]]
) -> tuple[tuple[Task, ...], list[list[Augmentation]]]:
    """Without the tasks whose query is one of their demonstrations, turned or recoloured, and those that have no
    augmentation left to be asked under; both are trained on only.
    """
    kept = [(t, a) for t, a in zip(tasks, augmentations, strict=True) if a and not shows_its_answer(t)]
    return tuple(t for t, _ in kept), [a for _, a in kept]


def _votes(tasks: tuple[Task, ...], augmentations: list[list[Augmentation]]) -> int:
    kept, listed = _claimable(tasks, augmentations)
    return sum(len(t.queries) * len(a) for t, a in zip(kept, listed, strict=True))

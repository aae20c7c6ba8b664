"""Plants in the episodes: leaks, shifts, stuck samplers, overlapping splits. Right: INVALID before training.

Legend: B batch, K demonstrations, S canvas cells.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from etrm.data.episodes import Batch, RuleSource, Source
from etrm.data.families import Benchmark, Split, benchmark
from etrm.experiment.arms import Arm, Rung
from etrm.faults.bank import Bench, fault, method, on_arm

Sample = Callable[[Source, int, np.random.Generator], Batch]


class Altered:
    """A source whose draws are made by another function."""

    def __init__(self, source: Source, sample: Sample) -> None:
        self.source, self.draw = source, sample
        self.task_ids, self.side = source.task_ids, source.side

    def sample(self, count: int, rng: np.random.Generator) -> Batch:
        """The altered draw."""
        return self.draw(self.source, count, rng)


def drawn(
    id: str,
    happened: str,
    sample: Sample,
    check: str,
    catalogue: int | None = None,
    naive: str = "C",
    arm: str = "micro",
) -> None:
    """Enter a fault: training draws other episodes."""

    @fault(id, "data", happened, verdict="INVALID", check=check, catalogue=catalogue, naive=naive, arm=arm)
    def plant(bench: Bench) -> Iterator[None]:
        with on_arm(lambda a: replace(a, source=Altered(a.source, sample))):
            yield


def _leak(source: Source, count: int, rng: np.random.Generator) -> Batch:
    batch = source.sample(count, rng)
    inputs, labels = batch.demo_inputs.copy(), batch.demo_labels.copy()
    inputs[:, 0], labels[:, 0] = batch.inputs, np.where(batch.labels < 0, 0, batch.labels)
    return replace(batch, demo_inputs=inputs, demo_labels=labels)


def _repeat(source: Source, count: int, rng: np.random.Generator) -> Batch:
    return source.sample(count, np.random.default_rng(0))


def _own_generator(state: np.random.Generator) -> Sample:
    return lambda source, count, rng: source.sample(count, state)


def _few(source: Source, count: int, rng: np.random.Generator) -> Batch:
    pool = source.sample(40 * count, rng)
    return pool.take(np.flatnonzero(pool.task < 8)[:count])


def _recoloured_demos(source: Source, count: int, rng: np.random.Generator) -> Batch:
    batch = source.sample(count, rng)
    colours = np.arange(12)
    colours[3:7] = np.roll(colours[3:7], 1)
    return replace(batch, demo_inputs=colours[batch.demo_inputs])


def _one_hidden(source: Source, count: int, rng: np.random.Generator) -> Batch:
    batch = source.sample(count, rng)
    mask = batch.demo_mask.copy()
    mask[:, -1] = False
    return replace(batch, demo_mask=mask)


def _swapped(source: Source, count: int, rng: np.random.Generator) -> Batch:
    batch = source.sample(count, rng)
    return replace(batch, demo_inputs=batch.demo_labels, demo_labels=batch.demo_inputs)


drawn("query-among-demos", "the asked pair was shown as a demonstration", _leak, "episodes_fresh", 48, "A")
drawn("query-among-demos-arc", "leave-one-out forgotten on real tasks", _leak, "episodes_fresh", 48, "A", "arc")
drawn(
    "labels-shifted",
    "labels were rolled by one cell",
    lambda s, n, r: (lambda b: replace(b, labels=np.roll(b.labels, 1, axis=1)))(s.sample(n, r)),
    "episodes_true",
)
drawn(
    "labels-of-a-neighbour",
    "inputs and labels were shuffled apart",
    lambda s, n, r: (lambda b: replace(b, labels=np.roll(b.labels, 1, axis=0)))(s.sample(n, r)),
    "episodes_true",
    23,
)
drawn(
    "demos-of-a-neighbour",
    "demonstrations of the new batch with the inputs of the old",
    lambda s, n, r: (lambda b: b.with_demos_of(np.roll(np.arange(n), 1)))(s.sample(n, r)),
    "episodes_true",
    23,
)
drawn(
    "demos-recoloured",
    "another colour permutation for demonstrations than for the query",
    _recoloured_demos,
    "episodes_true",
    48,
)
drawn("demos-recoloured-arc", "the same on real tasks", _recoloured_demos, "episodes_true", 48, "C", "arc")
drawn("demos-swapped", "input and output of each demonstration exchanged", _swapped, "episodes_true")
drawn("one-demo-too-few", "an off-by-one hides the last demonstration", _one_hidden, "episodes_true", 39)
drawn("sampler-repeats", "the sampler was seeded anew at every call", _repeat, "episodes_fresh", 30)
drawn(
    "sampler-ignores-its-seed",
    "a global generator draws the data",
    _own_generator(np.random.default_rng(5)),
    "episodes_fresh",
    None,
    "A",
)
drawn("sampler-stuck-on-few-tasks", "a limit meant for tasks took eight of them", _few, "episodes_fresh", 15)
drawn(
    "rows-misplaced",
    "table rows were counted from one",
    lambda s, n, r: (lambda b: replace(b, row=b.row + 1))(s.sample(n, r)),
    "episodes_true",
    None,
)


@fault(
    "test-rules-in-training",
    "data",
    "the split was made over augmented names, so tasks stood on both sides",
    verdict="INVALID",
    check="disjoint|rungs_true",
    catalogue=15,
    naive="A",
)
def test_in_training(bench: Bench) -> Iterator[None]:
    """The encoder trains on the locked test's rules as well."""
    b = benchmark(bench.config.data.benchmark)
    split = b.split()

    def change(arm: Arm) -> Arm:
        members = (*split.train, *split.test)
        return replace(arm, source=RuleSource(members, b, [bench.bundle.row_of(m.id) for m in members]))

    with on_arm(change):
        yield


@fault(
    "decoder-knew-the-test",
    "data",
    "the decoder was pretrained on the evaluation's demonstrations",
    verdict="INVALID",
    check="provenance",
    catalogue=13,
    naive="A",
)
def decoder_knew(bench: Bench) -> Iterator[None]:
    """The bundle's rows name the locked test's rules."""
    test = [m.id for m in benchmark(bench.config.data.benchmark).split().test]
    names = (*test, *bench.bundle.provenance.row_names[len(test) :])
    bench.bundle = replace(bench.bundle, provenance=replace(bench.bundle.provenance, row_names=names))
    yield


def asked(id: str, happened: str, catalogue: int | None, change: Callable[[Arm, Rung], Rung], naive: str = "A") -> None:
    """Enter a fault: the headline rung asks something else."""

    @fault(id, "data", happened, verdict="INVALID", check="rungs_true", catalogue=catalogue, naive=naive)
    def plant(bench: Bench) -> Iterator[None]:
        with on_arm(lambda a: replace(a, rungs=(*a.rungs[:-1], change(a, a.rungs[-1])))):
            yield


def _leaked(arm: Arm, rung: Rung) -> Rung:
    labels = rung.batch.demo_labels.copy()
    inputs = rung.batch.demo_inputs.copy()
    inputs[:, 0], labels[:, 0] = rung.batch.inputs, rung.batch.labels
    return replace(rung, batch=replace(rung.batch, demo_inputs=inputs, demo_labels=labels))


asked(
    "evaluated-on-training-tasks",
    "the 'unseen' loader was the training loader",
    24,
    lambda arm, rung: replace(arm.rungs[0], name=rung.name, known=rung.known),
)
asked("evaluation-leaks-the-query", "the asked pair stands among the demonstrations of the test", 13, _leaked)
asked(
    "one-query-asked-again-and-again",
    "a loader that restarts its epoch fills the score with one query",
    40,
    lambda arm, rung: replace(rung, batch=rung.batch.take(np.zeros(len(rung.batch), dtype=int))),
)
asked(
    "test-labels-shifted",
    "labels of the evaluation were rolled",
    None,
    lambda arm, rung: replace(rung, batch=replace(rung.batch, labels=np.roll(rung.batch.labels, 1, axis=1))),
    "C",
)


@fault(
    "four-test-tasks",
    "data",
    "a verdict from 4 evaluation tasks",
    verdict="UNDECIDED",
    check="enough_tasks",
    catalogue=17,
    naive="C",
    stage="full run",
)
def four_tasks(bench: Bench) -> Iterator[None]:
    """The locked test holds four rules."""
    whole = Benchmark.split

    def split(b: Benchmark) -> Split:
        return replace(whole(b), test=whole(b).test[:4])

    with method(Benchmark, "split", split):
        yield

"""Episodes: what may stand together in one, what a batch holds, and pairings that never lend a task to itself."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etrm.data.arc import Pair, Task
from etrm.data.augment import IDENTITY, Augmentation, sample_augmentations
from etrm.data.episodes import ArcSource, Batch, RuleSource, derangement
from etrm.data.families import BENCHMARKS, benchmark
from etrm.data.grids import IGNORE, PAD, encode_grid, labels_of
from etrm.errors import DataError

pytestmark = pytest.mark.fast

SIDE = 5
TURNED = Augmentation(3, (0, 9, 2, 3, 4, 5, 6, 7, 8, 1))


def task(name: str, demos: int, queries: int = 2, seed: int = 0) -> Task:
    """A task of random grids up to 4 x 4, all different."""
    rng = np.random.default_rng([seed, *name.encode()])
    pairs = []
    for _ in range(demos + queries):
        shapes = rng.integers(2, 5, size=(2, 2))
        pairs.append(Pair(*(rng.integers(0, 10, size=tuple(s)).astype(np.uint8) for s in shapes)))
    return Task(name, tuple(pairs[:demos]), tuple(pairs[demos:]), "test")


TASKS = (task("a", 2), task("b", 4, queries=1), task("c", 7))


def arc(max_demos: int = 10, augmentations: Sequence[Augmentation] = (IDENTITY, TURNED), **options: bool) -> ArcSource:
    rows = {a.name(t.id): i for i, (t, a) in enumerate((t, a) for t in TASKS for a in augmentations)}
    return ArcSource(TASKS, [augmentations] * len(TASKS), SIDE, max_demos, rows.__getitem__, **options)


def tokens(pair: Pair, augmentation: Augmentation) -> tuple[bytes, bytes]:
    """A pair as encoded bytes under an augmentation, the output as the answer's tokens."""
    grids = (encode_grid(augmentation.apply(g), SIDE) for g in (pair.input, pair.output))
    first, second = (np.asarray(g, dtype=np.int64).tobytes() for g in grids)
    return first, second


def labelled(pair: Pair, augmentation: Augmentation) -> bytes:
    return np.asarray(labels_of(encode_grid(augmentation.apply(pair.output), SIDE)), dtype=np.int64).tobytes()


def test_an_arc_episode_is_one_task_under_one_augmentation_and_its_query_is_not_shown() -> None:
    """Fault 48: another colour permutation for demonstrations and query, and nothing can be learned."""
    batch = arc().sample(200, np.random.default_rng(0))
    seen = set()
    for i in range(len(batch)):
        one, augmentation = TASKS[batch.task[i]], (IDENTITY, TURNED)[batch.row[i] % 2]
        assert batch.row[i] // 2 == batch.task[i]
        shown = [
            (batch.demo_inputs[i, k].tobytes(), batch.demo_labels[i, k].tobytes())
            for k in np.flatnonzero(batch.demo_mask[i])
        ]
        pool = {tokens(p, augmentation): index for index, p in enumerate(one.demos)}
        asked = [
            index
            for index, p in enumerate(one.demos)
            if (tokens(p, augmentation)[0], labelled(p, augmentation))
            == (batch.inputs[i].tobytes(), batch.labels[i].tobytes())
        ]
        assert len(asked) == 1
        indices = [pool[pair] for pair in shown]
        assert sorted([*indices, asked[0]]) == list(range(len(one.demos))), "each demonstration once, the asked one not"
        seen.add((int(batch.task[i]), asked[0], int(batch.row[i])))
    assert len(seen) == 2 * sum(len(t.demos) for t in TASKS), "every demonstration is asked under every augmentation"


def test_the_evaluations_queries_are_never_sampled() -> None:
    batch = arc().sample(300, np.random.default_rng(0))
    own = {tokens(q, a)[0] for t in TASKS for q in t.queries for a in (IDENTITY, TURNED)}
    assert not own & {row.tobytes() for row in batch.inputs}
    assert not own & {row.tobytes() for demos in batch.demo_inputs for row in demos}


def test_without_leave_one_out_a_sample_would_show_its_own_answer_and_is_refused() -> None:
    with pytest.raises(DataError, match="leave_one_out=true"):
        arc(leave_one_out=False).sample(1, np.random.default_rng(0))


def test_max_demos_limits_what_is_shown_to_a_random_part_everywhere() -> None:
    source = arc(max_demos=2)
    for batch in (source.sample(100, np.random.default_rng(0)), source.encode(source.demonstrations())):
        assert batch.demo_mask.shape[1] == 2 and batch.demo_mask.sum(axis=1).max() == 2
    sampled = source.sample(200, np.random.default_rng(1))
    of_c = {row.tobytes() for row in sampled.demo_inputs[sampled.task == 2].reshape(-1, SIDE**2)}
    assert len(of_c) == 7 * 2, "every demonstration of the large task gets its turn"


def test_k_is_padded_only_to_the_largest_of_the_batch_with_masked_pad() -> None:
    source = arc()
    every = source.demonstrations()
    few = source.encode([q for q in every if q.task == 0])
    all_of_them = source.encode(every)
    assert few.demo_inputs.shape == (2, 1, SIDE**2) and few.demo_mask.all()
    assert all_of_them.demo_inputs.shape[1] == 6
    hidden = ~all_of_them.demo_mask
    assert (all_of_them.demo_inputs[hidden] == PAD).all() and (all_of_them.demo_labels[hidden] == PAD).all()
    assert (all_of_them.demo_inputs[all_of_them.demo_mask] != PAD).any(axis=-1).all()
    assert source.encode([]).inputs.shape == (0, SIDE**2)


def test_demonstrations_answered_from_the_others_never_show_themselves() -> None:
    for query in arc().demonstrations():
        assert query.asked not in query.shown and query.asked == TASKS[query.task].demos[query.query]
        assert len(query.shown) == len(TASKS[query.task].demos) - 1 and query.augmentation == IDENTITY


def test_every_query_of_every_task_under_every_augmentation_comes_once_with_all_demonstrations() -> None:
    """Fault 40."""
    source = arc()
    listed = source.queries()
    assert [(q.task, q.query, q.augmentation) for q in listed] == [
        (t, q, a) for t, one in enumerate(TASKS) for q in range(len(one.queries)) for a in (IDENTITY, TURNED)
    ]
    assert all(q.shown == TASKS[q.task].demos and q.asked == TASKS[q.task].queries[q.query] for q in listed)
    assert [q.row for q in listed] == [2 * q.task + (q.augmentation == TURNED) for q in listed]


def test_labels_ignore_padding_and_score_everything_else() -> None:
    batch = arc().encode(arc().queries())
    for i, query in enumerate(arc().queries()):
        output = encode_grid(query.augmentation.apply(query.asked.output), SIDE)
        assert np.array_equal(batch.labels[i], np.where(output == PAD, IGNORE, output))
    assert (batch.demo_labels != IGNORE).all(), "demonstrations are tokens, not targets"


def test_a_list_of_augmentations_for_each_task_is_required() -> None:
    with pytest.raises(DataError, match="3 tasks but 1 lists"):
        ArcSource(TASKS, [(IDENTITY,)], SIDE, 3)


def test_sampling_depends_on_its_generator_alone() -> None:
    for source in (arc(), rules()):
        one, two, other = (source.sample(20, np.random.default_rng(s)) for s in (5, 5, 6))
        fields = Batch.__dataclass_fields__
        assert all(np.array_equal(getattr(one, f), getattr(two, f)) for f in fields)
        assert not np.array_equal(one.inputs, other.inputs)
        np.random.seed(0)
        assert np.array_equal(source.sample(20, np.random.default_rng(5)).inputs, one.inputs)


@pytest.mark.parametrize("size", range(1, 8))
def test_batches_hold_every_episode_exactly_once_in_order_for_any_size(size: int) -> None:
    source = arc()
    whole = source.encode(source.queries())
    parts = list(whole.batches(size))
    assert [len(p) for p in parts[:-1]] == [size] * (len(parts) - 1) and 0 < len(parts[-1]) <= size
    for field in Batch.__dataclass_fields__:
        assert np.array_equal(np.concatenate([getattr(p, field) for p in parts]), getattr(whole, field))


def test_borrowed_demonstrations_leave_the_query_and_its_owner_alone() -> None:
    source = arc()
    batch = source.encode(source.queries())
    lender = derangement(batch.task, np.random.default_rng(0))
    mixed = batch.with_demos_of(lender)
    for field in ("inputs", "labels", "task", "row"):
        assert np.array_equal(getattr(mixed, field), getattr(batch, field))
    for field in ("demo_inputs", "demo_labels", "demo_mask"):
        assert np.array_equal(getattr(mixed, field), getattr(batch, field)[lender])
    assert (batch.task[lender] != batch.task).all()


# ---- rules ------------------------------------------------------------------------------------------------------


def rules(version: str = "micro-2", rows: Sequence[int] | None = None) -> RuleSource:
    b = benchmark(version)
    return RuleSource(b.split().train, b, rows)


@pytest.mark.parametrize("version", BENCHMARKS)
def test_every_pair_of_a_rules_episode_follows_its_rule_and_the_query_is_none_of_them(version: str) -> None:
    b, source = benchmark(version), rules(version)
    batch = source.sample(64, np.random.default_rng(0))
    assert batch.demo_inputs.shape == (64, b.demos, b.side**2) and batch.demo_mask.all() and (batch.row == -1).all()
    shape = (b.side, b.side)
    for i in range(64):
        member = source.members[batch.task[i]]
        pairs = [(batch.inputs[i], batch.labels[i]), *zip(batch.demo_inputs[i], batch.demo_labels[i], strict=True)]
        for given_tokens, answer in pairs:
            grid = (given_tokens.reshape(shape) - 2).astype(np.uint8)
            assert np.array_equal(member(grid), answer.reshape(shape) - 2)
            assert np.array_equal(encode_grid(grid, b.side), given_tokens), "tokens as everywhere else"
        if b.side > 3:  # nine cells of three colours may repeat by chance, 25 cells do not
            assert not any(np.array_equal(d, batch.inputs[i]) for d in batch.demo_inputs[i])


def test_each_member_gets_its_queries_in_order_and_its_row() -> None:
    source = rules(rows=range(100, 248))
    batch = source.each(2, np.random.default_rng(0))
    assert batch.task.tolist() == [m for m in range(148) for _ in range(2)]
    assert np.array_equal(batch.row, 100 + batch.task) and source.task_ids[3] == source.members[3].id


def test_sampled_members_are_uniform() -> None:
    counts = np.bincount(rules().sample(14800, np.random.default_rng(0)).task, minlength=148)
    assert counts.min() > 60 and counts.max() < 150


# ---- derangement ------------------------------------------------------------------------------------------------


OWNERS = st.lists(st.integers(0, 5), min_size=2, max_size=24)


def most_of_one(tasks: list[int]) -> int:
    return max(tasks.count(t) for t in tasks)


@pytest.mark.thorough
@settings(deadline=None, derandomize=True, max_examples=150)
@given(OWNERS.filter(lambda tasks: 2 * most_of_one(tasks) <= len(tasks)), st.integers(0, 9))
def test_no_episode_borrows_from_its_own_task_and_each_lends_once(tasks: list[int], seed: int) -> None:
    owners = np.array(tasks)
    lender = derangement(owners, np.random.default_rng(seed))
    assert (owners[lender] != owners).all() and sorted(lender) == list(range(len(tasks)))
    assert np.array_equal(lender, derangement(owners, np.random.default_rng(seed)))


@settings(deadline=None, derandomize=True, max_examples=40)
@given(OWNERS.filter(lambda tasks: 2 * most_of_one(tasks) > len(tasks)))
def test_where_one_task_holds_more_than_half_there_is_no_derangement_and_the_error_counts(tasks: list[int]) -> None:
    with pytest.raises(DataError, match=f"one task holds {most_of_one(tasks)} of {len(tasks)}"):
        derangement(np.array(tasks), np.random.default_rng(0))


def test_another_seed_gives_another_derangement() -> None:
    owners = np.repeat(np.arange(8), 3)
    drawn = {tuple(derangement(owners, np.random.default_rng(s))) for s in range(5)}
    assert len(drawn) == 5


def test_augmented_tasks_of_one_base_task_count_as_one() -> None:
    """A derangement over augmented names would lend a task its own rule, turned."""
    source = ArcSource(TASKS, [sample_augmentations(t, 4, np.random.default_rng(0)) for t in TASKS], SIDE, 3)
    batch = source.sample(60, np.random.default_rng(0))
    assert set(batch.task.tolist()) == {0, 1, 2}


def test_half_of_the_episodes_of_a_task_with_generated_pairs_show_its_own_demonstrations() -> None:
    """An encoder that never saw a task's own demonstrations read them badly, and those are what an evaluation shows."""
    generated = tuple(Pair(np.full((2, n), 3), np.full((n, 2), 4)) for n in range(1, 5))
    more, own = [replace(t, demos=(*t.demos, *generated)) for t in TASKS], [len(t.demos) for t in TASKS]
    source = ArcSource(more, [(IDENTITY,)] * len(TASKS), SIDE, 10, own=own)
    batch = source.sample(400, np.random.default_rng(0))
    asked = {tokens(pair, IDENTITY)[0] for pair in generated}
    shows = np.zeros(400, dtype=bool)
    for i, index in enumerate(batch.task):
        given = {x.astype(np.int64).tobytes() for x in batch.demo_inputs[i][batch.demo_mask[i]]}
        shows[i] = given == {tokens(pair, IDENTITY)[0] for pair in TASKS[index].demos}
        assert not shows[i] or batch.inputs[i].astype(np.int64).tobytes() in asked
    assert 0.4 < shows.mean() < 0.6
    for wrong in ([len(t.demos) for t in more], [0] * len(TASKS), [1]):
        with pytest.raises(DataError, match="own"):
            ArcSource(more, [(IDENTITY,)] * len(TASKS), SIDE, 10, own=wrong)


def test_own_demonstrations_are_asked_as_often_as_the_benchmark_says_and_answered_from_the_others() -> None:
    """Of 500 generated pairs and 3 real ones the real ones were next to never asked, and looked unlike the others."""
    generated = tuple(Pair(np.full((2, n), 3), np.full((n, 2), 4)) for n in range(1, 5))
    two = [t for t in TASKS if len(t.demos) > 1]
    more, own = [replace(t, demos=(*t.demos, *generated)) for t in two], [len(t.demos) for t in two]
    source = ArcSource(more, [(IDENTITY,)] * len(two), SIDE, 10, own=own, own_asked=1.0)
    batch = source.sample(200, np.random.default_rng(0))
    for i, index in enumerate(batch.task):
        real = [tokens(pair, IDENTITY)[0] for pair in two[index].demos]
        given = [x.astype(np.int64).tobytes() for x in batch.demo_inputs[i][batch.demo_mask[i]]]
        assert sorted([*given, batch.inputs[i].astype(np.int64).tobytes()]) == sorted(real)
    asked = {tokens(pair, IDENTITY)[0] for pair in generated}
    few = ArcSource(more, [(IDENTITY,)] * len(two), SIDE, 10, own=own, own_asked=0.5).sample(
        800, np.random.default_rng(0)
    )
    # Half of the episodes ask no generated pair; of the rest half ask one, and the others any pair alike.
    of_any = np.mean([len(generated) / len(t.demos) for t in more])
    expected = 0.5 * (0.5 + 0.5 * of_any)
    assert abs(np.mean([x.astype(np.int64).tobytes() in asked for x in few.inputs]) - expected) < 0.05
    with pytest.raises(DataError, match=r"own_asked is 0\.1"):
        ArcSource(more, [(IDENTITY,)] * len(two), SIDE, 10, own_asked=0.1)

"""Test-time search: it lowers the demonstrations' loss, touches nothing else, and one that peeks is caught."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from etrm.config.compose import load
from etrm.config.schema import RunConfig
from etrm.data.episodes import Batch, RuleSource
from etrm.data.families import benchmark
from etrm.data.grids import IGNORE, PAD
from etrm.errors import EvaluationError
from etrm.evaluation.controls import contexts_of
from etrm.evaluation.search import (
    SearchPlan,
    Shown,
    check_blind,
    demonstration_loss,
    held_out,
    leave_one_out_gain,
    refine,
    search_of,
)
from etrm.experiment.arms import Rung
from etrm.experiment.evidence import NullEvidence, RungEvidence, Score
from etrm.experiment.search_rows import with_search
from etrm.models.bundle import Bundle, load_bundle
from etrm.models.encoders import build_encoder
from etrm.models.etrm import ETRM
from etrm.models.trm import table_context

pytestmark = pytest.mark.thorough

PLAN = SearchPlan(8)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle("micro")


@pytest.fixture(scope="module")
def queries(bundle: Bundle) -> Batch:
    b = benchmark("micro-2")
    members = b.split().train[:4]
    rows = [bundle.row_of(m.id) for m in members]
    return RuleSource(members, b, rows).each(2, np.random.default_rng(0))


def started(bundle: Bundle, queries: Batch) -> Tensor:
    """The queries' own rows, moved by one deviation of noise."""
    rows = table_context(bundle.table[torch.from_numpy(queries.row)], bundle.structure)
    noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(1))
    return rows + bundle.context_std.view(1, -1, 1) * noise


def searched(bundle: Bundle, queries: Batch, plan: SearchPlan = PLAN) -> Tensor:
    return refine(bundle.decoder, started(bundle, queries), bundle.context_std, queries, plan, "softmax", seed=0)[0]


def loss_under(bundle: Bundle, context: Tensor, queries: Batch) -> Tensor:
    with torch.no_grad():
        return demonstration_loss(bundle.decoder, context, Shown.of(queries, torch.device("cpu")), "softmax")


def test_it_lowers_the_loss_on_the_demonstrations_and_says_by_how_much(bundle: Bundle, queries: Batch) -> None:
    start = started(bundle, queries)
    found, cost = refine(bundle.decoder, start, bundle.context_std, queries, PLAN, "softmax", seed=0)
    before, after = (loss_under(bundle, c, queries).mean().item() for c in (start, found))
    assert after < 0.8 * before
    assert cost.updates == PLAN.updates and cost.seconds_per_query > 0
    assert (cost.loss_before, cost.loss_after) == pytest.approx((before, after), rel=1e-5)


def test_no_update_returns_the_start_and_leaves_it_alone(bundle: Bundle, queries: Batch) -> None:
    start = started(bundle, queries)
    kept = start.clone()
    found, _ = refine(bundle.decoder, start, bundle.context_std, queries, SearchPlan(0), "softmax", seed=0)
    assert torch.equal(found, kept) and torch.equal(start, kept)


def test_the_decoder_is_left_bitwise_alone_and_must_be_frozen(bundle: Bundle, queries: Batch) -> None:
    before = {n: t.clone() for n, t in bundle.decoder.state_dict().items()}
    searched(bundle, queries)
    assert all(torch.equal(t, before[n]) for n, t in bundle.decoder.state_dict().items())
    assert all(p.grad is None for p in bundle.decoder.parameters())
    bundle.decoder.lm_head.weight.requires_grad_(True)
    try:
        with pytest.raises(EvaluationError, match="not frozen"):
            searched(bundle, queries)
    finally:
        bundle.decoder.lm_head.weight.requires_grad_(False)


def test_queries_are_searched_independently_of_each_other(bundle: Bundle, queries: Batch) -> None:
    start, part = started(bundle, queries), np.array([1, 6])
    alone, _ = refine(bundle.decoder, start[part], bundle.context_std, queries.take(part), PLAN, "softmax", seed=0)
    torch.testing.assert_close(alone, searched(bundle, queries)[part], rtol=1e-3, atol=1e-3)


def test_a_pull_keeps_it_closer_to_the_encoder_and_an_unused_token_stays(bundle: Bundle, queries: Batch) -> None:
    start = started(bundle, queries)
    free, pulled = (searched(bundle, queries, replace(PLAN, pull=pull)) - start for pull in (0.0, 1.0))
    assert pulled.norm() < 0.9 * free.norm()
    one = bundle.context_std.clone()
    one[1] = 0.0
    found, _ = refine(bundle.decoder, start, one, queries, PLAN, "softmax", seed=0)
    assert torch.equal(found[:, 1], start[:, 1]) and not torch.equal(found[:, 0], start[:, 0])


def test_empty_slots_and_what_stands_in_them_change_nothing(bundle: Bundle, queries: Batch) -> None:
    mask = queries.demo_mask.copy()
    mask[:, 2] = False
    two = replace(queries, demo_mask=mask)
    rubbish = queries.demo_labels.copy()
    rubbish[:, 2] = rubbish[::-1, 2]
    assert torch.equal(searched(bundle, two), searched(bundle, replace(two, demo_labels=rubbish)))
    loss = loss_under(bundle, started(bundle, queries), two)
    only_two = replace(
        two, demo_inputs=two.demo_inputs[:, :2], demo_labels=two.demo_labels[:, :2], demo_mask=mask[:, :2]
    )
    torch.testing.assert_close(loss, loss_under(bundle, started(bundle, queries), only_two))
    none = replace(queries, demo_mask=np.zeros_like(mask))
    assert torch.equal(searched(bundle, none), started(bundle, queries))


def test_the_search_is_blind_to_query_and_answer(bundle: Bundle, queries: Batch) -> None:
    check_blind(lambda q: searched(bundle, q, SearchPlan(2)), queries)


@pytest.mark.parametrize("leak", ["answer", "query"])
def test_a_planted_leak_is_caught(bundle: Bundle, queries: Batch, leak: str) -> None:
    """The query with its answer (or with itself) passed off as one more demonstration."""

    def peeking(q: Batch) -> Tensor:
        shown = np.where(q.labels == IGNORE, PAD, q.labels) if leak == "answer" else q.inputs
        pairs = [
            np.concatenate((a, b[:, None]), axis=1) for a, b in ((q.demo_inputs, q.inputs), (q.demo_labels, shown))
        ]
        mask = np.pad(q.demo_mask, ((0, 0), (0, 1)), constant_values=True)
        # The start is of the true rows in any case, so that only what is fitted can tell.
        return searched(bundle, replace(q, demo_inputs=pairs[0], demo_labels=pairs[1], demo_mask=mask), SearchPlan(2))

    with pytest.raises(EvaluationError, match="sees what it is asked"):
        check_blind(peeking, queries)


def test_held_out_asks_every_demonstration_once_without_showing_it(queries: Batch) -> None:
    asked, owner = held_out(queries)
    count, k = queries.demo_mask.shape
    assert len(asked) == count * k and sorted(owner) == sorted(np.repeat(np.arange(count), k))
    assert (asked.demo_mask.sum(axis=1) == k - 1).all()
    for i in range(len(asked)):
        hidden = int(np.flatnonzero(~asked.demo_mask[i])[0])
        assert np.array_equal(asked.inputs[i], queries.demo_inputs[owner[i], hidden])
        assert np.array_equal(asked.labels[i], queries.demo_labels[owner[i], hidden])
    lonely = replace(queries, demo_mask=np.arange(k) < np.ones((count, 1)))
    with pytest.raises(EvaluationError, match="two demonstrations"):
        held_out(lonely)


def model_of(bundle: Bundle) -> tuple[RunConfig, ETRM]:
    config = load(RunConfig, "cfg_micro", ["evaluation.search_updates=2", "evaluation.batch_size=5"])
    torch.manual_seed(0)
    return config, ETRM(build_encoder(config.encoder, bundle.spec()), bundle.decoder, bundle.spec())


def test_it_starts_at_the_encoders_contexts_in_batches_of_any_size(bundle: Bundle, queries: Batch) -> None:
    _, model = model_of(bundle)
    start = contexts_of(model, queries, 3)
    stayed, _ = search_of(model, bundle.context_std, SearchPlan(0), "softmax", 3, 0)(queries)
    torch.testing.assert_close(stayed, start)
    found, cost = search_of(model, bundle.context_std, SearchPlan(2), "softmax", 3, 0)(queries)
    assert found.shape == start.shape and not torch.allclose(found, start) and cost.updates == 2
    search = search_of(model, bundle.context_std, SearchPlan(2), "softmax", 24, 0)
    plain, after, count = leave_one_out_gain(model, search, queries, "softmax", 24)
    assert 0 <= plain <= count and 0 <= after <= count == 24


def test_the_row_beside_a_rung_counts_the_same_queries_and_is_absent_without_updates(
    bundle: Bundle, queries: Batch
) -> None:
    config, model = model_of(bundle)
    rung = Rung("seen_task", queries, tuple("abcd"), True)
    plain = RungEvidence("seen_task", Score(0, 8, 4, (0.0, 0.1)), {"mismatched": NullEvidence(0, 8, None)}, True)
    (row,) = with_search((plain,), (rung,), model, bundle, config)
    found = row.searched
    assert found is not None and (found.score.n, found.score.tasks, found.updates) == (8, 4, 2)
    assert found.seconds_per_query > 0 and found.loss_after != found.loss_before
    assert replace(row, searched=None) == plain
    off = replace(config, evaluation=replace(config.evaluation, search_updates=0))
    assert with_search((plain,), (rung,), model, bundle, off) == (plain,)

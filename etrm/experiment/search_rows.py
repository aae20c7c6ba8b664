"""The row `with_search` beside a rung: the same queries after test-time search, scored by task; decides nothing.

Before a rung is searched, the search is shown to be blind to queries and answers on a few of them (`check_blind`).
`evaluation.search_updates` says for how long to search.

Legend: N queries.
"""

from dataclasses import replace

import numpy as np

from etrm.config.schema import RunConfig
from etrm.evaluation.controls import answer
from etrm.evaluation.search import SearchPlan, check_blind, search_of
from etrm.experiment.arms import Rung
from etrm.experiment.evidence import RungEvidence, Score, SearchEvidence
from etrm.experiment.scores import result_of
from etrm.models.bundle import Bundle
from etrm.models.etrm import ETRM

BLIND = 4  # queries on which the search is shown to be blind


def searched(rung: Rung, model: ETRM, bundle: Bundle, config: RunConfig) -> SearchEvidence:
    """A rung's queries answered from searched contexts: score with its interval by task, and the search's cost.

    Raises EvaluationError if the search turns out to see what it is asked.
    """
    size, kind, batch = config.evaluation.batch_size, config.loss.cross_entropy, rung.batch
    plan = SearchPlan(config.evaluation.search_updates)
    search = search_of(model, bundle.context_std, plan, kind, size, config.system.seed)
    if len(batch) > 1:
        few = batch.take(np.unique(np.linspace(0, len(batch) - 1, BLIND).round().astype(int)))
        check_blind(lambda queries: search(queries)[0], few)
    contexts, cost = search(batch)
    result = result_of(rung.name, answer(model.decoder, batch, contexts, size, kind).exact, rung)
    score = Score(result.k, result.n, result.tasks, result.ci95)
    return SearchEvidence(score, cost.updates, cost.seconds_per_query, cost.loss_before, cost.loss_after)


def with_search(
    evidence: tuple[RungEvidence, ...], rungs: tuple[Rung, ...], model: ETRM, bundle: Bundle, config: RunConfig
) -> tuple[RungEvidence, ...]:
    """The rungs' evidence with `searched` filled in, in order; unchanged where `evaluation.search_updates` is 0."""
    if not config.evaluation.search_updates:
        return evidence
    by_name = {rung.name: rung for rung in rungs}
    return tuple(replace(e, searched=searched(by_name[e.name], model, bundle, config)) for e in evidence)

"""The positive control asks each query with its own row, and refuses a query that has none."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from etrm.data.episodes import RuleSource
from etrm.data.families import benchmark
from etrm.errors import DataError
from etrm.evaluation.controls import own_rows
from etrm.models.bundle import load_bundle
from etrm.models.trm import table_context

pytestmark = pytest.mark.fast


def test_each_query_gets_its_own_row_and_one_without_a_row_is_no_silent_last_one() -> None:
    bundle, b = load_bundle("micro"), benchmark("micro-2")
    members = b.split().train[:3]
    queries = RuleSource(members, b, [bundle.row_of(m.id) for m in members]).each(2, np.random.default_rng(0))
    contexts = own_rows(bundle.decoder, bundle.table, queries)
    assert torch.equal(contexts, table_context(bundle.table[queries.row], bundle.structure))
    lacking = replace(queries, row=np.array([0, 0, 1, -1, 2, -1]))
    with pytest.raises(DataError, match="2 of 6 queries have no row"):
        own_rows(bundle.decoder, bundle.table, lacking)

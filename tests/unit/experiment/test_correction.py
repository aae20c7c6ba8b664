"""Correction over rungs: three rungs asked of one null cost three times the smallest p."""

import pytest

from etrm.experiment.correction import corrected_over_rungs
from etrm.experiment.evidence import NullEvidence, RungEvidence, Score

pytestmark = pytest.mark.fast


def rung(name: str, **ps: float | None) -> RungEvidence:
    nulls = {null: NullEvidence(0, 10, p, (0.1, 0.2)) for null, p in ps.items()}
    return RungEvidence(name, Score(5, 10, 10, (0.2, 0.8)), nulls, False)


def test_each_null_is_corrected_over_the_rungs_and_by_itself() -> None:
    first, second, third = corrected_over_rungs(
        [rung("a", mismatched=0.01, zero=0.04), rung("b", mismatched=0.02), rung("c", mismatched=0.5, zero=None)]
    )
    assert [r.nulls["mismatched"].p for r in (first, second, third)] == pytest.approx([0.03, 0.04, 0.5])
    assert first.nulls["zero"].p == pytest.approx(0.04) and third.nulls["zero"].p is None
    assert first.nulls["mismatched"].lift_ci95 == (0.1, 0.2) and first.score.k == 5


def test_a_null_beaten_alone_need_not_be_beaten_among_three() -> None:
    alone = corrected_over_rungs([rung("a", mismatched=0.03)])[0].nulls["mismatched"].p
    among = corrected_over_rungs([rung(n, mismatched=0.03) for n in "abc"])[0].nulls["mismatched"].p
    assert alone is not None and among is not None and alone < 0.05 < among

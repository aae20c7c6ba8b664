"""One rung, one loss, one oracle at a time: the word and the numbers in its sentence."""

from dataclasses import replace

import pytest

from etrm.experiment.checks import CHECK_RULES
from etrm.experiment.demo_evidence import PASSED, demo_rung, healthy
from etrm.experiment.evidence import Budget, NullEvidence, OracleEvidence, Score
from etrm.experiment.reading import (
    beats,
    count_text,
    oracle_text,
    percent,
    read_loss,
    read_rung,
    steerable,
    validity_checks,
)

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("rate", "text"), [(0, "0 %"), (0.006, "0.6 %"), (0.02, "2 %"), (0.6, "60 %"), (0.996, "99.6 %"), (1.0, "100 %")]
)
def test_percent(rate: float, text: str) -> None:
    assert percent(rate) == text


def test_counts_are_told_with_tasks_and_interval() -> None:
    text = count_text(Score(307, 512, 40, (0.52, 0.67)))
    assert text == "307 of 512 exact over 40 tasks (60 %, 95 % interval 52 % to 67 %)"


@pytest.mark.parametrize(
    ("null", "answer"),
    [
        (NullEvidence(6, 512, 0.001, (0.4, 0.6)), True),
        (NullEvidence(6, 512, 0.06, (0.4, 0.6)), False),
        (NullEvidence(6, 512, 0.001, (-0.01, 0.6)), False),
        (NullEvidence(6, 512, 0.001), True),
        (NullEvidence(290, 512, 0.001), False),  # unpaired: the lower bound 52 % is below 57 %
        (NullEvidence(6, 512, None, (0.4, 0.6)), None),
        (NullEvidence(0, 0, 0.001, (0.4, 0.6)), None),
    ],
)
def test_beats(null: NullEvidence, answer: bool | None) -> None:
    assert beats(demo_rung("seen_task", 307, (0.52, 0.67)), null) is answer


@pytest.mark.parametrize(
    ("k", "ci95", "word"),
    [
        (307, (0.52, 0.67), "above"), (0, (0.0, 0.60), "undecided"), (0, (0.0, 0.109), "undecided"),
        (0, (0.0, 0.0092), "below"), (40, (0.035, 0.29), "above"), (40, (0.02, 0.15), "undecided"),
    ],
)  # fmt: skip
def test_rung_word_depends_on_the_interval(k: int, ci95: tuple[float, float], word: str) -> None:
    """0 of 4, 0 of 32 and 0 of 400 are the three middle cases: only the last excludes the useful 2 %."""
    rung = replace(demo_rung("seen_task", k, ci95), nulls=demo_rung("seen_task", 307, (0.52, 0.67)).nulls)
    assert read_rung(replace(healthy(), rungs=(rung,)), "seen_task").word == word


def test_rung_sentence_names_the_nulls_that_are_in_the_way() -> None:
    rung = demo_rung("seen_task", 307, (0.52, 0.67))
    nulls = {"mismatched": rung.nulls["mismatched"], "copy_input": NullEvidence(300, 512, 0.4, (-0.1, 0.1))}
    reading = read_rung(replace(healthy(), rungs=(replace(rung, nulls=nulls),)), "seen_task")
    assert reading.beats_every_null is False and reading.word == "undecided"
    assert "mismatched 6 of 512, copy_input 300 of 512" in reading.says
    assert "not above copy_input" in reading.says and "not tested against constant_context" in reading.says


@pytest.mark.parametrize(
    ("changes", "word", "text"),
    [
        ({}, "uses demonstrations", "0.21 nats with its own demonstrations against 1.02"),
        ({"p_decrease": None}, "unmeasured", "not measured"),
        ({"probe_end": 1.31}, "flat", "does not fall"),
        ({"p_decrease": 0.05}, "flat", "does not fall"),
        ({"p_decrease": float("nan")}, "flat", "does not fall"),
        ({"own_loss": 1.02}, "ignored", "best constant context: 1.02 against 1.02"),
        ({"p_below_mismatched": 0.3}, "ignored", "mismatched demonstrations"),
        ({"p_below_constant": None}, "falls", "not compared with the best constant context"),
        ({"p_below_constant": None, "own_loss": 2.0}, "ignored", "mismatched"),
        ({"own_loss": None}, "falls", "not compared with any control"),
    ],
)
def test_loss(changes: dict[str, float | None], word: str, text: str) -> None:
    loss = healthy().loss
    assert loss is not None
    got, says = read_loss(replace(loss, **changes))
    assert got == word and text in says


def test_oracles_never_say_impossible() -> None:
    failed = OracleEvidence(1, Score(2, 512, 32, (0.0, 0.015)), 6)
    good = healthy()
    assert (steerable(failed), steerable(good.oracle_demos), steerable(None)) == (False, True, None)
    only_many = oracle_text(replace(good, oracle_demos=failed))
    assert "steerable: 28 of 32 tasks" in only_many and "not shown steerable: 1 of 32 tasks" in only_many
    assert "may not be concluded" in only_many and "impossible" not in only_many
    assert "was not run" in oracle_text(replace(good, oracle_many=None, oracle_demos=None))
    assert "may not be concluded" not in oracle_text(good)


def test_numbers_overrule_a_reported_pass() -> None:
    lying = replace(healthy(), validity=PASSED, budget=Budget(6000, 3000, 10, 10, 0.05, True))
    assert next(c for c in validity_checks(lying) if c.name == "budget").ok is False
    failing = replace(lying, validity=tuple(replace(c, ok=False) for c in PASSED), budget=None)
    assert all(c.ok is False for c in validity_checks(failing))


def test_required_checks_that_nobody_reported_are_open() -> None:
    checks = validity_checks(replace(healthy("arc"), validity=()))
    assert [c.name for c in checks] == list(CHECK_RULES) and len(checks) == len(CHECK_RULES)
    told = {c.name: c.ok for c in checks if c.ok is not None}
    assert told == {"schedule": True, "certificate": True}, (
        "they follow from the budget and from the certificate itself"
    )
    bare = replace(healthy("arc"), validity=(), budget=None, certificate=None)
    assert all(c.ok is None for c in validity_checks(bare))
    assert "certificate" not in {c.name for c in validity_checks(replace(healthy(), validity=()))}

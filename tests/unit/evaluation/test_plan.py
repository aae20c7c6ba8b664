"""Planning: known sizes, agreement with simulated evaluations, and the command."""

import json

import numpy as np
import pytest

from etrm.errors import EvaluationError
from etrm.evaluation.plan import main, plan, tasks_needed, tasks_to_beat, tasks_to_decide
from etrm.evaluation.statistics import decision, rung_result, sign_flip_test

pytestmark = pytest.mark.fast


def test_tasks_to_decide_known_sizes() -> None:
    assert tasks_to_decide(0.0, 0.02, 1, 1.0) == 183  # 0.025 ** (1 / 183) > 0.98
    assert tasks_to_decide(0.0, 0.02, 4, 0.0) == 183  # more queries a task cannot stand in for tasks at zero
    assert tasks_to_decide(0.3, 0.02, 1, 1.0) < tasks_to_decide(0.1, 0.02, 1, 1.0) < tasks_to_decide(0.05, 0.02, 1, 1.0)
    assert tasks_to_decide(0.1, 0.02, 4, 1.0) == pytest.approx(tasks_to_decide(0.1, 0.02, 1, 1.0), rel=0.1)
    assert tasks_to_decide(0.1, 0.02, 4, 0.2) < tasks_to_decide(0.1, 0.02, 4, 0.8)
    assert tasks_to_decide(0.1, 0.02, 1, 1.0, power=0.9) > tasks_to_decide(0.1, 0.02, 1, 1.0)


@pytest.mark.parametrize(("queries", "correlation"), [(1, 1.0), (4, 0.3)])
def test_tasks_to_decide_agrees_with_simulated_decisions(queries: int, correlation: float) -> None:
    rate, rng = 0.15, np.random.default_rng(4)
    tasks = tasks_to_decide(rate, 0.02, queries, correlation)
    size = max(1 / correlation - 1, 1e-6)
    above = 0
    for _ in range(200):
        solved = rng.binomial(queries, rng.beta(rate * size, (1 - rate) * size, tasks))
        above += rung_result("sim", [(int(s), queries) for s in solved], resamples=200).ci95[0] > 0.02
    assert 0.72 <= above / 200 <= 0.97


@pytest.mark.parametrize(("queries", "correlation"), [(1, 1.0), (4, 0.5)])
def test_tasks_to_beat_agrees_with_simulated_sign_flips(queries: int, correlation: float) -> None:
    own, null, rng = 0.25, 0.1, np.random.default_rng(9)
    tasks = tasks_to_beat(own, null, queries, correlation)
    size = max(1 / correlation - 1, 1e-6)

    def draw(rate: float) -> np.ndarray:
        return rng.binomial(queries, rng.beta(rate * size, (1 - rate) * size, tasks)) / queries

    wins = sum(sign_flip_test(draw(own) - draw(null), 400, seed).p_greater < 0.05 for seed in range(200))
    assert 0.72 <= wins / 200 <= 0.95


def test_at_a_null_of_zero_five_solved_tasks_are_needed() -> None:
    assert tasks_to_beat(1.0, 0.0, 1, 1.0) == 5
    assert 120 <= tasks_to_beat(0.05, 0.0, 1, 1.0) <= 145  # P(at least 5 of 134 | 5 %) = 0.80
    assert tasks_to_beat(0.05, 0.0, 4, 1.0) == tasks_to_beat(0.05, 0.0, 1, 1.0)


def test_tasks_needed_follows_the_decision() -> None:
    none, null = rung_result("own", [(0, 1)] * 32), rung_result("null", [(0, 1)] * 32)
    assert decision(none, 0.02, null).word == "undecided" and tasks_needed(none, 0.02, [null]) == 183
    four = rung_result("own", [(1, 1)] * 4 + [(0, 1)] * 28)
    assert 40 <= (tasks_needed(four, 0.02, [null]) or 0) <= 70
    assert tasks_needed(four, 0.02, [four]) is None  # as good as its null: more tasks do not help
    assert tasks_needed(rung_result("own", [(0, 1)] * 400), 0.02, [rung_result("null", [(0, 1)] * 400)]) is None


def test_plan_counts_every_condition_and_both_demands() -> None:
    made = plan(0.05, 0.0, queries_per_task=4, seconds_per_query=0.5, intra_task_correlation=0.5, conditions=3)
    assert [row.power for row in made.rows] == [0.8, 0.9]
    for row in made.rows:
        assert row.queries == 4 * row.tasks and row.evaluations == 3 * row.queries
        assert row.minutes == pytest.approx(row.evaluations * 0.5 / 60)
    stricter = plan(0.05, 0.0, 4, 0.5, 0.5, threshold=0.02)
    assert stricter.rows[0].tasks > made.rows[0].tasks


@pytest.mark.parametrize(
    "call",
    [
        lambda: plan(0.0, 0.1, 4, 0.01, 0.5),
        lambda: plan(5.0, 0.0, 4, 0.01, 0.5),
        lambda: tasks_to_decide(0.02, 0.02, 1, 1.0),
        lambda: tasks_to_decide(0.0200001, 0.02, 1, 1.0),
        lambda: tasks_to_decide(0.1, 0.02, 1, 1.5),
        lambda: tasks_to_beat(0.1, 0.1, 1, 1.0),
    ],
)
def test_designs_that_cannot_work_are_refused(call) -> None:
    with pytest.raises(EvaluationError):
        call()


def test_command_prints_text_json_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--effect", "0.05", "--null", "0.0", "--queries-per-task", "4", "--seconds-per-query", "0.01"]
    assert main(asked) == 0
    assert "power 80%" in capsys.readouterr().out
    assert main([*asked, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows[0]["tasks"] == plan(0.05, 0.0, 4, 0.01, 0.5).rows[0].tasks
    assert main(["--effect", "-1", *asked[2:]]) == 2
    assert "effect=-1" in capsys.readouterr().err

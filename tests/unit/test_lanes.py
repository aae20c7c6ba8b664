"""Lanes and exit codes of the root conftest.py, seen from outside: each session here runs with that very file."""

from pathlib import Path

import pytest

from etrm.errors import ConfigError
from etrm.experiment.session import SessionOutcome, asks_for, parse_threads

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parents[2]

LANES = """
    import pytest

    @pytest.mark.fast
    def test_quick(): pass

    @pytest.mark.fast
    @pytest.mark.slow
    def test_long(): pass

    @pytest.mark.slow
    @pytest.mark.arc
    def test_long_arc(): pass
"""


@pytest.fixture
def session(pytester: pytest.Pytester):
    """Run pytest on a source with the repository's own conftest.py and pytest.ini."""
    pytester.makeconftest((ROOT / "conftest.py").read_text())
    pytester.makefile(".ini", pytest=(ROOT / "pytest.ini").read_text())

    def run(source: str, *arguments: str) -> pytest.RunResult:
        path = pytester.makepyfile(source)
        return pytester.runpytest_inprocess(
            path, "-p", "no:cacheprovider", "-p", "no:randomly", *arguments, no_reraise_ctrlc=True
        )

    return run


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), {"passed": 1, "skipped": 2}),
        (("--slow",), {"passed": 3}),
        (("-m", "fast"), {"passed": 1, "skipped": 1, "deselected": 1}),
        (("-m", "fast", "--slow"), {"passed": 2, "deselected": 1}),
        (("-m", "slow"), {"passed": 2, "deselected": 1}),
        (("-m", "fast and not slow"), {"passed": 1, "deselected": 2}),
    ],
)
def test_slow_tests_run_only_when_asked_for(session, arguments, expected):
    result = session(LANES, *arguments)
    result.assert_outcomes(**expected)
    if "skipped" in expected:
        result.stdout.fnmatch_lines(["*slow: add --slow*"])


@pytest.mark.parametrize(
    ("expression", "asked"),
    [
        ("", False),
        ("slow", True),
        ("arc and slow", True),
        ("not slow", False),
        ("not not slow", True),
        ("fast or not (arc or slow)", False),
        ("not (fast or not slow)", True),
        ("not (fast or (arc or slow))", False),
        ("not (fast) and slow", True),
        ("slower and not slow", False),
    ],
)
def test_asking_for_slow_is_naming_it_unnegated(expression, asked):
    assert asks_for(expression, "slow") is asked


@pytest.mark.parametrize(
    ("body", "code", "word"),
    [
        ("gate.undecided('8 tasks, 40 would decide')", 10, "*UNDECIDED*8 tasks, 40 would decide*"),
        ("gate.invalid('golden logits differ')", 11, "*INVALID*golden logits differ*"),
    ],
)
def test_gate_that_cannot_be_evaluated_replaces_pass_and_fail(session, body, code, word):
    result = session(f"def test_gate(gate): {body}\ndef test_fails(): assert 0\ndef test_passes(): pass")
    assert result.ret == code
    result.stdout.fnmatch_lines([word, f"*exit code {code},*"])


def test_invalid_outranks_undecided_and_a_fixture_may_say_so(session, pytester):
    result = session(
        """
        import pytest

        @pytest.fixture(scope="session")
        def experiment(gate, session_outcome):
            session_outcome.show("the verdict panel")
            gate.invalid("a tensor is missing")

        def test_first(experiment): pass
        def test_second(experiment): pass
        def test_third(gate): gate.undecided("too few tasks")
        """
    )
    assert result.ret == 11
    result.stdout.fnmatch_lines(
        ["the verdict panel", "*gates that could not be evaluated*", "INVALID *test_first: a tensor*"]
    )


@pytest.mark.thorough
def test_pytests_own_exit_codes_stay(session):
    assert session(LANES, "-m", "gpu").ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert session("def test_fails(): assert 0").ret == pytest.ExitCode.TESTS_FAILED
    interrupted = "def test_gate(gate): gate.undecided('x')\ndef test_stop(): raise KeyboardInterrupt"
    assert session(interrupted).ret == pytest.ExitCode.INTERRUPTED
    outcome = SessionOutcome()
    outcome.record("INVALID", "test", "why")
    assert [outcome.exit_code(code) for code in range(6)] == [11, 11, 2, 3, 4, 5]


def test_gate_is_noted_once():
    outcome = SessionOutcome()
    for reason in ("golden logits differ", "golden logits differ", "too few tasks"):
        outcome.record("INVALID", "test_x", reason)
    assert [gate.reason for gate in outcome.gates] == ["golden logits differ", "too few tasks"]


def test_gate_without_a_reason_is_refused():
    with pytest.raises(ConfigError, match="has no reason"):
        SessionOutcome().record("UNDECIDED", "test_x", " ")
    with pytest.raises(ConfigError, match="expected 'UNDECIDED' or 'INVALID'"):
        SessionOutcome().record("PERHAPS", "test_x", "why")


def test_missing_gpu_is_a_skip_or_with_require_gpu_a_failure(session, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    source = "import pytest\n@pytest.mark.gpu\ndef test_gpu(): pass"
    session(source).assert_outcomes(skipped=1)
    session(source, "--require-gpu").assert_outcomes(errors=1)


def test_the_fast_lane_leaves_the_thorough_tests_to_their_own(session):
    source = """
        import pytest
        pytestmark = pytest.mark.fast
        def test_quick(): pass
        @pytest.mark.thorough
        def test_thorough(): pass
    """
    session(source, "-m", "fast").assert_outcomes(passed=1, deselected=1)
    session(source, "-m", "thorough").assert_outcomes(passed=1, deselected=1)
    session(source, "-m", "fast or thorough").assert_outcomes(passed=2)
    session(source).assert_outcomes(passed=2)


@pytest.mark.parametrize("lane", ["benchmark", "sweep"])
def test_benchmarks_and_sweeps_are_skipped_unless_selected(session, lane):
    source = f"import pytest\n@pytest.mark.{lane}\ndef test_pace(): pass"
    session(source).assert_outcomes(skipped=1)
    session(source, "--slow").assert_outcomes(skipped=1)
    session(source, "-m", lane).assert_outcomes(passed=1)


@pytest.mark.parametrize("wrong", ["--encoder=my_encoder.py", "--encoder=a:b:", "--seeds=0", "--run-name=../up"])
def test_malformed_options_stop_the_session_at_once(session, wrong):
    result = session(LANES, wrong)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{wrong.split('=')[0]} *expected*"])


@pytest.mark.parametrize(
    "asked", [(), ("-m", "frozen_decoder"), ("-m", "fast or frozen_decoder"), ("-m", "not fast"), ("-m", "sweep")]
)
@pytest.mark.parametrize("shared", [("-n", "2"), ("--tx", "2*popen", "--dist", "load")])
def test_the_experiment_is_not_shared_out_over_processes(session, asked, shared):
    result = session(LANES, *shared, "--slow", *asked)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    found = asked[-1] if asked else "no -m"
    result.stderr.fnmatch_lines([f"*-n shares out the lanes fast and thorough alone*{found}*"])


@pytest.mark.thorough
@pytest.mark.parametrize(("processes", "threads"), [("0", 2), ("1", 1)])
def test_a_process_of_several_has_one_thread(session, monkeypatch, processes, threads):
    for name in ("ETRM_THREADS", "PYTEST_XDIST_WORKER"):
        monkeypatch.delenv(name, raising=False)
    source = f"""
        import pytest
        @pytest.mark.fast
        def test_threads(torch_threads):
            assert torch_threads == {threads}
    """
    session(source, "-m", "fast", "-n", processes).assert_outcomes(passed=1)


def test_progress_reaches_the_person_although_pytest_captures(session, capfd):
    result = session(
        """
        def test_trains(progress):
            print("captured")
            with progress("train micro", 2) as advance:
                advance(2, loss=0.5)
            progress.say("reused a finished run")
        """
    )
    result.assert_outcomes(passed=1)
    shown = result.stdout.str()
    assert "[train micro] 2/2 (100%)" in shown and "loss 0.5" in shown and "reused a finished run" in shown
    assert "captured" not in shown


@pytest.mark.parametrize("text", ["0", "two", "-1", ""])
def test_malformed_thread_count_is_an_error(text):
    with pytest.raises(ConfigError, match="ETRM_THREADS"):
        parse_threads(text)
    assert (parse_threads(None), parse_threads("3")) == (2, 3)

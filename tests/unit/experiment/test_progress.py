"""Progress: plain lines on a clock of ours, bars on a terminal, capture held off only while drawing."""

import io
from contextlib import contextmanager

import pytest
from rich.console import Console

from etrm.errors import ConfigError
from etrm.experiment.progress import PhaseProgress, span

pytestmark = pytest.mark.fast


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def shown_by(clock, terminal=False, suspend=None):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=200, color_system=None, _environ={})
    return PhaseProgress(console, clock=clock, **({"suspend": suspend} if suspend else {})), console.file


def test_plain_lines_come_every_20_seconds_with_the_time_left(clock):
    progress, out = shown_by(clock)
    with progress("train", 100) as advance:
        for _ in range(50):
            clock.now += 1.0
            advance(1, loss=0.41234)
        for _ in range(50):
            clock.now += 0.1
            advance()
    lines = out.getvalue().split("\n")
    assert lines == [
        "",
        "[train] 100 steps",
        "[train] 20/100 (20%), 20 s, 1 min 20 s left, loss 0.4123",
        "[train] 40/100 (40%), 40 s, 1 min 0 s left, loss 0.4123",
        "[train] 100/100 (100%), 55 s, loss 0.4123",
        "",
    ]


def test_phase_that_raises_says_that_it_stopped_early(clock):
    progress, out = shown_by(clock)
    with pytest.raises(ZeroDivisionError), progress("train", 10) as advance:
        advance(3)
        1 / 0  # noqa: B018
    assert "[train] 3/10 (30%), 0 s, stopped early" in out.getvalue()


def test_callback_ends_with_its_last_step_or_with_close(clock):
    progress, out = shown_by(clock)
    done, left = progress.callback("evaluate", 2), progress.callback("train", 5)
    done(2)
    done(1)
    left(1)
    progress.close()
    assert out.getvalue().count("[evaluate] 2/2") == 1
    assert "[train] 1/5 (20%), 0 s, stopped early" in out.getvalue()


def test_terminal_gets_a_bar_and_capture_is_held_off_only_while_drawing(clock):
    depth, drawn = [0], []

    @contextmanager
    def suspend():
        depth[0] += 1
        drawn.append(clock.now)
        yield
        depth[0] -= 1

    progress, out = shown_by(clock, terminal=True, suspend=suspend)
    with progress("train [b]", 10) as advance:
        assert depth == [0]
        clock.now = 1.0
        advance(4, loss="0.5 [x]")
        assert depth == [0]
        with progress("evaluate", 3) as inner:
            inner(3)
    assert drawn.count(1.0) >= 3
    assert "train [b]" in out.getvalue() and "4/10 1 s, 2 s left, loss 0.5 [x]" in out.getvalue()
    assert "stopped early" in out.getvalue()


def test_empty_phase_is_an_error(clock):
    progress, _ = shown_by(clock)
    with pytest.raises(ConfigError, match="total 0"):
        progress.callback("train", 0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (61, "1 min 1 s"), (700, "11 min"), (3900, "1 h 5 min")]
)
def test_span(seconds, text):
    assert span(seconds) == text

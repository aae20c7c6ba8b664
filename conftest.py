"""pytest glue of the repository: options, lanes, exit codes, capture, and the verdict panel at the end of the session.

Notable: what is decided here is decided in torch-free, pytest-free modules (`etrm.experiment.session`, `.progress`,
`.run_cache`); this file only connects them. The options of the installable plugin (`etrm.pytest_plugin`) all begin with
`--etrm-`, so both may be loaded at once. torch is imported only once a test runs.
"""

from __future__ import annotations

import gc
import io
import ipaddress
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import settings
from rich.console import Console

import etrm
from etrm.errors import ConfigError
from etrm.experiment.progress import PhaseProgress
from etrm.experiment.run_cache import RunCache, sources_hash
from etrm.experiment.session import EXIT_CODES, RunOptions, SessionOutcome, asks_for, parse_threads
from etrm.experiment.session_report import SUMMARY_VARIABLE, SessionRuns

pytest_plugins = "pytester"  # pytest allows this line in the root conftest only

OPTIONS = pytest.StashKey[RunOptions]()
OUTCOME = pytest.StashKey[SessionOutcome]()
RUNS = pytest.StashKey[SessionRuns]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("frozen-decoder experiment")
    group.addoption("--slow", action="store_true", help="run the slow tests among those that -m selects")
    group.addoption("--fresh", action="store_true", help="ignore finished runs of earlier sessions and train again")
    group.addoption("--encoder", metavar="PATH_OR_MODULE:FACTORY", help="judge this encoder instead of the default one")
    group.addoption("--verdict-json", metavar="PATH", type=Path, help="also write the verdict to this file")
    group.addoption("--seeds", metavar="N", type=int, help="number of seeds (default: the arm's config decides)")
    group.addoption("--run-name", metavar="NAME", help="write to runs/NAME (default: the experiment names it)")
    group.addoption("--require-gpu", action="store_true", help="a gpu test without a CUDA device fails, not skips")


@pytest.hookimpl(tryfirst=True)  # pytest-benchmark reads its switch in its own pytest_configure
def pytest_configure(config: pytest.Config) -> None:
    config.stash[OPTIONS] = _resolved_options(config)
    config.stash[OUTCOME] = SessionOutcome()
    config.stash[RUNS] = SessionRuns()
    if not asks_for(config.option.markexpr, "benchmark") and hasattr(config.option, "benchmark_disable"):
        config.option.benchmark_disable = True
    # A deadline would time torch's first call; in CI the same examples run every time.
    settings.register_profile("etrm", deadline=None, derandomize="CI" in os.environ)
    settings.load_profile("etrm")


def _resolved_options(config: pytest.Config) -> RunOptions:
    encoder, seeds, run_name = (config.getoption(name) for name in ("encoder", "seeds", "run_name"))
    if encoder is not None and not re.fullmatch(r".+:[^\W\d]\w*", encoder):
        raise pytest.UsageError(f"--encoder {encoder}: expected path/to/file.py:factory or package.module:factory")
    if seeds is not None and seeds < 1:
        raise pytest.UsageError(f"--seeds {seeds}: expected at least 1")
    if run_name is not None and not re.fullmatch(r"\w[\w.-]*", run_name):
        raise pytest.UsageError(f"--run-name {run_name!r}: expected letters, digits, '.', '_' and '-', such as trial-2")
    shared = config.getoption("numprocesses", None) or config.getoption("tx", None)
    asked = [word for word in re.findall(r"\w+", config.option.markexpr) if asks_for(config.option.markexpr, word)]
    if shared and not (asked and set(asked) <= {"fast", "thorough"}):
        # A gate's reason and a run's verdict stay in the process that found them, so the exit code would lose them.
        found = f"-m {config.option.markexpr!r}" if config.option.markexpr else "no -m"
        raise pytest.UsageError(f"-n shares out the lanes fast and thorough alone; with {found} leave it out")
    try:
        # One thread in each of several processes: on two cores they are quicker than one process of two threads.
        threads = parse_threads(os.environ.get("ETRM_THREADS"), default=1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
    except ConfigError as error:
        raise pytest.UsageError(str(error)) from error
    return RunOptions(
        slow=config.getoption("slow") or asks_for(config.option.markexpr, "slow"),
        fresh=config.getoption("fresh"),
        encoder=encoder,
        verdict_json=config.getoption("verdict_json"),
        seeds=seeds,
        run_name=run_name,
        require_gpu=config.getoption("require_gpu"),
        threads=threads,
    )


def pytest_report_header(config: pytest.Config) -> str:
    options = config.stash[OPTIONS]
    slow = "run" if options.slow else "skipped (--slow runs them)"
    return (
        f"etrm {etrm.__version__}: encoder {options.encoder or 'default'}, {options.threads} threads, slow tests {slow}"
    )


@pytest.hookimpl(trylast=True)  # after -m has deselected, so that a reason is only printed for what was asked
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if asks_for(config.option.markexpr, "fast") and not asks_for(config.option.markexpr, "thorough"):
        left_out = [item for item in items if item.get_closest_marker("thorough")]
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]
        config.hook.pytest_deselected(items=left_out)
    skip_slow = pytest.mark.skip(reason="slow: add --slow (or select it with -m slow)")
    own_lanes = [name for name in ("benchmark", "sweep") if not asks_for(config.option.markexpr, name)]
    for item in items:
        if not config.stash[OPTIONS].slow and item.get_closest_marker("slow"):
            item.add_marker(skip_slow)
        for name in own_lanes:
            if item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=f"{name}: select it with -m {name}"))


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.freeze()  # modules and tests stay to the end; each full collection would walk through millions of their objects


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        if item.config.stash[OPTIONS].require_gpu:
            pytest.fail("gpu: torch sees no CUDA device and --require-gpu was given", pytrace=False)
        pytest.skip("gpu: torch sees no CUDA device (--require-gpu makes this a failure)")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    arm = getattr(item, "callspec", None) and item.callspec.params.get("arm_run")  # type: ignore[attr-defined]
    if arm:
        item.user_properties += item.config.stash[RUNS].properties((arm,))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    options = session.config.stash[OPTIONS]
    if options.slow:
        summary = os.environ.get(SUMMARY_VARIABLE)
        session.config.stash[RUNS].publish(
            Path("runs") / (options.run_name or "experiment"), options.verdict_json, Path(summary) if summary else None
        )
    session.exitstatus = session.config.stash[OUTCOME].exit_code(int(exitstatus))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config) -> None:
    outcome, runs = config.stash[OUTCOME], config.stash[RUNS]
    if runs.report is not None:
        width = min(120, shutil.get_terminal_size((100, 40)).columns)
        outcome.show(runs.shown(width, terminalreporter.hasmarkup, quiet=terminalreporter.verbosity < 0))
    for panel in outcome.panels:
        terminalreporter.write("\n" + _rendered(panel, color=terminalreporter.hasmarkup))
    if not outcome.gates:
        return
    terminalreporter.section("gates that could not be evaluated")
    for gate in outcome.gates:
        terminalreporter.write_line(f"{gate.state} {gate.where}: {gate.reason}")
    code = outcome.exit_code(int(exitstatus))
    terminalreporter.write_line(f"exit code {code}, {EXIT_CODES[code]}")


def _rendered(panel: object, color: bool) -> str:
    text = io.StringIO()
    width = min(120, shutil.get_terminal_size((100, 40)).columns)
    plain = isinstance(panel, str)  # a log's line is never broken or coloured, so that it can be searched
    Console(file=text, force_terminal=color, width=width).print(
        panel, markup=not plain, soft_wrap=plain, highlight=not plain
    )
    return text.getvalue()


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """No test reaches another machine: names do not resolve, and only loopback and unix sockets connect."""
    patch = pytest.MonkeyPatch()
    guard_network(patch)
    yield
    patch.undo()


class NetworkRefused(Exception):
    """A test tried to reach another machine. No OSError, so that nothing takes it for a network that is down."""


def guard_network(patch: pytest.MonkeyPatch) -> None:
    """Let sockets reach this machine alone; whatever else is tried is a NetworkRefused that names the address."""

    def local(address: object) -> bool:
        host = address[0] if isinstance(address, tuple) else None
        if not isinstance(host, str):
            return not isinstance(address, tuple)  # a path of a unix socket, or a kernel's own kind
        try:
            return host in ("", "localhost") or ipaddress.ip_address(host.partition("%")[0]).is_loopback
        except ValueError:
            return False

    def guarded(name: str) -> Callable[..., object]:
        real = getattr(socket.socket, name)

        def call(self: socket.socket, *arguments: object) -> object:
            if not local(arguments[-1]):
                raise NetworkRefused(f"a test tried to {name} to {arguments[-1]!r}; tests use this machine alone")
            return real(self, *arguments)

        return call

    def resolving(name: str) -> Callable[..., object]:
        real = getattr(socket, name)

        def call(host: object, *arguments: object, **named: object) -> object:
            text = host.decode() if isinstance(host, bytes) else host
            # This machine's own name is asked for by torch.distributed; it answers without a network.
            if text is not None and text != socket.gethostname() and not local((text,)):
                raise NetworkRefused(f"a test tried to resolve {text!r}; tests use this machine alone")
            return real(host, *arguments, **named)

        return call

    for name in ("connect", "connect_ex", "sendto"):
        patch.setattr(socket.socket, name, guarded(name))
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
        patch.setattr(socket, name, resolving(name))


class Gate:
    """Ends the running test where its assertion cannot be evaluated, and gives the session exit code 10 or 11."""

    def __init__(self, outcome: SessionOutcome) -> None:
        self._outcome = outcome

    def undecided(self, reason: str) -> NoReturn:
        """Skip the test: the evidence does not decide. Say what would."""
        self._outcome.record("UNDECIDED", _running_test(), reason)
        pytest.skip(f"UNDECIDED: {reason}")

    def invalid(self, reason: str) -> NoReturn:
        """Fail the test: the experiment itself is not valid. Say why, and what to do."""
        self._outcome.record("INVALID", _running_test(), reason)
        pytest.fail(f"INVALID: {reason}", pytrace=False)


def _running_test() -> str:
    return os.environ.get("PYTEST_CURRENT_TEST", "session").rpartition(" (")[0] or "session"


@pytest.fixture(scope="session", autouse=True)
def torch_threads(pytestconfig: pytest.Config) -> int:
    """CPU threads of torch: $ETRM_THREADS, else 2, under -n 1. They change the last bits; every run key has them."""
    import torch

    threads = pytestconfig.stash[OPTIONS].threads
    torch.set_num_threads(threads)
    return threads


@pytest.fixture(scope="session")
def run_options(pytestconfig: pytest.Config) -> RunOptions:
    """The session's command line, resolved."""
    return pytestconfig.stash[OPTIONS]


@pytest.fixture(scope="session")
def session_outcome(pytestconfig: pytest.Config) -> SessionOutcome:
    """`session_outcome.show(panel)`: a string or rich renderable to print when the session ends."""
    return pytestconfig.stash[OUTCOME]


@pytest.fixture(scope="session")
def session_runs(pytestconfig: pytest.Config) -> SessionRuns:
    """`session_runs.note(arm, run)`: a finished run (`evidence`, `folder`) to report when a full session ends."""
    return pytestconfig.stash[RUNS]


@pytest.fixture(scope="session")
def gate(session_outcome: SessionOutcome) -> Gate:
    """`gate.undecided(reason)` and `gate.invalid(reason)`, in a test or in a fixture."""
    return Gate(session_outcome)


@pytest.fixture(scope="session")
def progress(pytestconfig: pytest.Config) -> Iterator[PhaseProgress]:
    """`with progress(phase, total) as advance: advance(1, loss=loss)`: reaches the person although pytest captures."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")

    def suspend() -> AbstractContextManager[None]:
        return nullcontext() if capture is None else capture.global_and_fixture_disabled()

    shown = PhaseProgress(suspend=suspend)
    yield shown
    shown.close()


@pytest.fixture(scope="session")
def run_cache(progress: PhaseProgress) -> RunCache:
    """Finished runs, shared within and across sessions ($ETRM_CACHE, else runs/cache)."""
    sources_hash()  # now, before anyone edits a file that is already imported
    return RunCache(announce=progress.say)


@pytest.fixture(scope="session", autouse=True)
def suite_properties(
    pytestconfig: pytest.Config, record_testsuite_property: Callable[[str, object], None]
) -> Iterator[None]:
    """Scenario and rungs of every arm as properties of the JUnit file (--junitxml)."""
    yield
    for name, value in pytestconfig.stash[RUNS].properties():
        record_testsuite_property(name, value)

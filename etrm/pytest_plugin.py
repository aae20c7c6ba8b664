"""The probes as pytest assertions, for any repository: `pip install etrm`, then

    from etrm.pytest_plugin import assert_gradient_reaches

    def test_encoder_trains():
        assert_gradient_reaches(model.encoder, lambda: loss_of(model, batch))

Notable: torch is imported when an assertion runs, never when pytest starts. All options begin with `--etrm-`. The
assertions are plain functions that raise AssertionError, so they also work without pytest's fixtures; failure
messages print each break as a traceback would.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from etrm.errors import ProbeError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from etrm.experiment.encoder_verdict import EncoderVerdict
    from etrm.probes.break_report import BreakReport
    from etrm.probes.frozen import FrozenSnapshot
    from etrm.probes.gradient_audit import AuditReport


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the plugin's options."""
    group = parser.getgroup("etrm", "gradient probes")
    group.addoption(
        "--etrm-show-harmless", action="store_true", help="list the harmless places in gradient reports too"
    )
    group.addoption(
        "--etrm-directions", type=int, default=2, help="random directions a tensor in the finite-difference audit"
    )
    group.addoption("--etrm-tolerance", type=float, default=1e-4, help="relative disagreement that the audit accepts")


def assert_gradient_reaches(
    model: "nn.Module | Mapping[str, Tensor]",
    loss_fn: "Callable[[], Tensor]",
    *,
    optimisers: Iterable[Any] = (),
    frozen: Iterable[str] = (),
) -> "BreakReport":
    """Every trainable parameter of `model` gets a non-zero gradient from `loss_fn()`; returns the report.

    A parameter behind an all-zero weight that itself trains (a zero-initialised gate) passes: it opens after one
    update.

    Args:
        model: the module that should train, or its parameters by name.
        loss_fn: runs the forward pass and returns the scalar loss.
        optimisers: when given, they must hold every trainable parameter.
        frozen: names or patterns of parameters that are meant to be frozen.

    Raises:
        AssertionError: a gradient is missing or exactly zero; the message prints where it stops.
        ProbeError: nothing can be observed (frozen model, loss that is no scalar).
    """
    __tracebackhide__ = True
    from etrm.probes.graph_breaks import observe

    report = observe(model, loss_fn, optimisers=optimisers, frozen=frozen)
    if any(item.severity == "cut" for item in report.findings):
        named = {name for item in report.findings for name in item.parameters}
        raise AssertionError(f"the loss's gradient does not reach {len(named) or 'part'} of the parameters.\n{report}")
    return report


def assert_no_detach(
    model: "nn.Module | Mapping[str, Tensor]", loss_fn: "Callable[[], Tensor]", *, frozen: Iterable[str] = ()
) -> "BreakReport":
    """No value that the loss depends on loses its history, be it only one path of several; returns the report.

    What is meant to be stopped is declared in the model: `etrm.declared.truncate(value, "name")` instead of
    `value.detach()`.

    Raises:
        AssertionError: an undeclared break; the message prints file, line and source of each.
        ProbeError: nothing can be observed.
    """
    __tracebackhide__ = True
    from etrm.probes.graph_breaks import observe

    report = observe(model, loss_fn, frozen=frozen)
    if not report.ok:
        raise AssertionError(f"{len(report.findings)} undeclared gradient break(s).\n{report}")
    return report


def assert_every_sample_trains(model: "nn.Module | Mapping[str, Tensor]", losses_fn: "Callable[[], Tensor]") -> None:
    """Each sample's own loss gives `model` a gradient; `losses_fn()` returns one loss a sample, shape (B,).

    Raises:
        AssertionError: names the samples that train nothing, and the place where the first one's gradient stops.
        ProbeError: losses_fn does not return a vector, or nothing can be observed.
    """
    __tracebackhide__ = True
    from etrm.probes.samples import observe_samples

    cover, report = observe_samples(model, losses_fn)
    if cover.lost_samples:
        lost = ", ".join(map(str, cover.lost_samples))
        total = len(cover.sample_norms)
        message = f"{len(cover.lost_samples)} of {total} samples give the model no gradient: {lost}."
        raise AssertionError(f"{message}\nFor sample {cover.lost_samples[0]}:\n{report}")


def assert_gradient_is_true(
    model: "nn.Module",
    loss_fn: "Callable[[], Tensor]",
    *,
    whole_model: "nn.Module | None" = None,
    context_module: "nn.Module | None" = None,
    directions: int = 2,
    tolerance: float = 1e-4,
    skip: Mapping[str, str] | None = None,
) -> "AuditReport":
    """Autograd agrees with finite differences in float64 for every parameter tensor; returns the report.

    Args:
        model: the module whose parameters are audited.
        loss_fn: runs the forward pass and returns the scalar loss; must repeat.
        whole_model: every module the loss runs through, when that is more than `model`.
        context_module: a module whose output is audited by sample and token as well.
        directions, tolerance, skip: as in `etrm.probes.gradient_audit`.

    Raises:
        AssertionError: some gradient is cut, scaled or invented; the message lists them.
        ProbeError: the loss does not repeat, or the model cannot run in float64.
    """
    __tracebackhide__ = True
    from etrm.probes.gradient_audit import gradient_audit

    report = gradient_audit(
        loss_fn, model, model=whole_model, context_module=context_module,
        directions=directions, tolerance=tolerance, skip=skip,
    )  # fmt: skip
    if not report.ok:
        raise AssertionError("autograd disagrees with finite differences:\n" + "\n".join(map(str, report.failures)))
    return report


class FrozenGuard:
    """Remembers a module; `check()`, or leaving the `with` block, raises AssertionError when it changed."""

    def __init__(self, module: "nn.Module", remembered: "FrozenSnapshot", optimisers: list[Any]) -> None:
        self.module, self.remembered, self.optimisers = module, remembered, optimisers

    def check(self) -> None:
        """Compare bitwise with the remembered state."""
        __tracebackhide__ = True
        differences = self.remembered.check(self.module, self.optimisers)
        if differences:
            listing = "\n".join(f"  {item}" for item in differences)
            raise AssertionError(
                f"{type(self.module).__name__} is not frozen ({len(differences)} differences):\n{listing}"
            )

    def __enter__(self) -> "FrozenGuard":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        __tracebackhide__ = True
        if kind is None:
            self.check()


def assert_frozen(
    module: "nn.Module", *, optimisers: Iterable[Any] = (), golden: "Callable[[], Tensor] | None" = None
) -> FrozenGuard:
    """The module is frozen now, and, as `with assert_frozen(module): train()`, bitwise the same afterwards.

    Now: no parameter requires gradient and no optimiser holds one. Afterwards also: every parameter and buffer by
    sha256, train/eval flags, and the output of `golden()` when given.

    Raises:
        AssertionError: names each tensor that differs and by how much.
        ProbeError: the module has neither parameters nor buffers.
    """
    __tracebackhide__ = True
    from etrm.probes.frozen import snapshot

    guard = FrozenGuard(module, snapshot(module, golden=golden), list(optimisers))
    guard.check()
    return guard


@pytest.fixture
def etrm_observe(request: pytest.FixtureRequest) -> "Callable[..., BreakReport]":
    """`etrm.probes.observe`; prints what it saw, harmless places too under --etrm-show-harmless."""

    def run(*args: Any, **kwargs: Any) -> "BreakReport":
        from etrm.probes.graph_breaks import observe

        report = observe(*args, **kwargs)
        print(report.text(show_harmless=request.config.getoption("--etrm-show-harmless")))
        return report

    return run


@pytest.fixture
def etrm_audit(request: pytest.FixtureRequest) -> "Callable[..., AuditReport]":
    """`etrm.probes.gradient_audit` with the directions and tolerance of the command line."""

    def run(*args: Any, **kwargs: Any) -> "AuditReport":
        from etrm.probes.gradient_audit import gradient_audit

        kwargs.setdefault("directions", request.config.getoption("--etrm-directions"))
        kwargs.setdefault("tolerance", request.config.getoption("--etrm-tolerance"))
        return gradient_audit(*args, **kwargs)

    return run


@pytest.fixture
def etrm_keep_frozen() -> "Iterator[Callable[..., FrozenGuard]]":
    """`keep(module)` checks now and once more when the test ends."""
    guards: list[FrozenGuard] = []

    def keep(module: "nn.Module", **kwargs: Any) -> FrozenGuard:
        guards.append(assert_frozen(module, **kwargs))
        return guards[-1]

    yield keep
    for guard in guards:
        guard.check()


@pytest.fixture
def frozen_decoder_verdict(request: pytest.FixtureRequest, tmp_path: Path) -> "Callable[..., EncoderVerdict]":
    """Can this encoder drive a frozen decoder? `frozen_decoder_verdict("my_encoder.py:make", bundle="micro")`.

    The file is looked for beside the test first. `length="short"` asks for gradient, frozen decoder and loss only;
    `overrides=["budget.updates=200"]` changes the bundle's config. `.scenario` is A, B, C, UNDECIDED or INVALID.
    In full length the instrument first earns its certificate on that bundle, kept in $ETRM_CACHE or runs/cache;
    without one the verdict is UNDECIDED and says why.
    """

    def run(encoder: str, bundle: str = "micro", **kwargs: Any) -> "EncoderVerdict":
        from etrm.experiment.encoder_verdict import encoder_verdict, located

        name = located(encoder, request.path.parent)
        return encoder_verdict(name, bundle, tmp_path / f"{bundle}_verdict", **kwargs)

    return run


__all__ = [
    "FrozenGuard",
    "ProbeError",
    "assert_every_sample_trains",
    "assert_frozen",
    "assert_gradient_is_true",
    "assert_gradient_reaches",
    "assert_no_detach",
]

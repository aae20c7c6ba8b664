"""The frozen-decoder verdict for one encoder file in one call, for the pytest plugin and for scripts.

The embedded bundles have a config each; `micro` takes minutes on a CPU, its short length (gradient, frozen decoder,
falling loss, no pass@1) less than one.
"""

import functools
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from etrm.config.compose import load, shipped_root
from etrm.config.schema import RunConfig
from etrm.errors import BundleError
from etrm.experiment.certificate import certify, planted
from etrm.experiment.evidence import Certificate, GradientEvidence
from etrm.experiment.frozen_decoder import FrozenDecoderRun, Length
from etrm.experiment.reading import needs_certificate
from etrm.experiment.verdict import Scenario, Verdict, judge
from etrm.models.bundle import load_bundle

CONFIGS = {"micro": "cfg_micro", "cal-1": "cfg_calibration"}


@dataclass(frozen=True)
class EncoderVerdict:
    """A verdict that reads well in a failing assertion; `verdict` holds everything."""

    scenario: Scenario
    reasons: tuple[str, ...]
    gradient: GradientEvidence
    verdict: Verdict

    def __repr__(self) -> str:
        at = f" at {self.gradient.place}" if self.gradient.place else ""
        return f"{self.scenario} (gradient {self.gradient.state}{at}): {self.reasons[0] if self.reasons else ''}"


def located(encoder: str, near: Path) -> str:
    """`file.py:factory` with the file found beside `near` where it is there; anything else as it is."""
    place, _, factory = encoder.rpartition(":")
    beside = near / place
    return f"{beside.resolve()}:{factory}" if place.endswith(".py") and beside.is_file() else encoder


def encoder_verdict(
    encoder: str, bundle: str, folder: Path, *, length: Length = "full", overrides: Iterable[str] = ()
) -> EncoderVerdict:
    """Train `encoder` (`path/to/file.py:factory`, `package.module:factory` or a registered name) and judge it.

    Args:
        encoder: which encoder.
        bundle: an embedded decoder, `micro` or `cal-1`.
        folder: where evidence.json, metrics.jsonl and run.json are written.
        length: `full`, or `short` for gradient, frozen decoder and loss only (never A or C).
        overrides: `key=value` of the bundle's config.

    Raises:
        BundleError: no config for that bundle. Errors of the encoder itself become an INVALID verdict.
    """
    if bundle not in CONFIGS:
        raise BundleError(f"no embedded config for bundle {bundle!r}; there are {', '.join(CONFIGS)}")
    config = load(RunConfig, CONFIGS[bundle], [f"encoder.name={encoder}", *overrides], root=shipped_root())
    evidence = FrozenDecoderRun(config, length, folder).run()
    if length == "full" and needs_certificate(evidence) and evidence.rungs:
        evidence = replace(evidence, certificate=_certificate(bundle))
    found = judge(evidence)
    return EncoderVerdict(found.scenario, found.reasons, found.evidence.gradient, found)


@functools.cache
def _certificate(bundle: str) -> Certificate:
    """Earned on the bundle's own config with the default encoder and planted faults; once a process.

    Raises EvaluationError where a planted fault or the healthy encoder gave another verdict than it must.
    """
    config = load(RunConfig, CONFIGS[bundle], [], root=shipped_root())
    config = replace(config, evaluation=replace(config.evaluation, oracle_tasks=0))
    with tempfile.TemporaryDirectory() as folder:
        healthy = FrozenDecoderRun(config, "full", Path(folder) / "healthy").run()
        return certify(healthy, planted(config, load_bundle(config.bundle), Path(folder)))

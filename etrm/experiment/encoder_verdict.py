"""The frozen-decoder verdict for one encoder file in one call, for the pytest plugin and for scripts.

The embedded bundles have a config each; `micro` takes minutes on a CPU, its short length (gradient, frozen decoder,
falling loss, no pass@1) less than one.

Notable: a person's own encoder is judged under the instrument's certificate, which is earned first, on the same bundle
with its own config, and kept with the finished runs. A short run never comes as far as needing it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from etrm.config.compose import load, shipped_root
from etrm.config.schema import RunConfig
from etrm.errors import BundleError
from etrm.experiment.certificate import earn
from etrm.experiment.checks import check
from etrm.experiment.evidence import Certificate, Evidence, GradientEvidence
from etrm.experiment.frozen_decoder import FrozenDecoderRun, Length
from etrm.experiment.run_cache import RunCache
from etrm.experiment.verdict import Scenario, Verdict, judge

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


def under(evidence: Evidence, held: Certificate | str) -> Evidence:
    """The evidence with its certificate; or, where there is none, with the reason as the check's detail."""
    if isinstance(held, Certificate):
        return replace(evidence, certificate=held)
    rest = tuple(c for c in evidence.validity if c.name != "certificate")
    return replace(evidence, certificate=None, validity=(*rest, check("certificate", None, held)))


def encoder_verdict(
    encoder: str,
    bundle: str,
    folder: Path,
    *,
    length: Length = "full",
    overrides: Iterable[str] = (),
    cache: RunCache | None = None,
) -> EncoderVerdict:
    """Train `encoder` (`path/to/file.py:factory`, `package.module:factory` or a registered name) and judge it.

    Args:
        encoder: which encoder.
        bundle: an embedded decoder, `micro` or `cal-1`.
        folder: where evidence.json, metrics.jsonl and run.json are written.
        length: `full`, or `short` for gradient, frozen decoder and loss only (never A or C).
        overrides: `key=value` of the bundle's config; the certificate is earned without them.
        cache: where the certificate is kept (else $ETRM_CACHE, else runs/cache).

    Raises:
        BundleError: no config for that bundle. Errors of the encoder itself become an INVALID verdict.
    """
    if bundle not in CONFIGS:
        raise BundleError(f"no embedded config for bundle {bundle!r}; there are {', '.join(CONFIGS)}")
    root = shipped_root()
    config = load(RunConfig, CONFIGS[bundle], [f"encoder.name={encoder}", *overrides], root=root)
    needed = length == "full" and ":" in encoder
    held = earn(load(RunConfig, CONFIGS[bundle], [], root=root), cache or RunCache()) if needed else None
    evidence = FrozenDecoderRun(config, length, folder).run()
    if held is not None:
        evidence = under(evidence, held)
        (folder / "evidence.json").write_text(evidence.dumps() + "\n")
    found = judge(evidence)
    return EncoderVerdict(found.scenario, found.reasons, found.evidence.gradient, found)

"""The known findings of the default encoder (`expected_findings.yaml`): what its full run gave, and how far a repeat
may lie from that.

A default run that leaves an interval fails, upwards too: then something changed that nobody wrote down. A user's
encoder is never compared with them. Rates are k of n on a rung, as fractions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from etrm.errors import ConfigError
from etrm.experiment.evidence import RUNGS
from etrm.experiment.verdict import Verdict
from etrm.experiment.verdict_schema import SCENARIOS


@dataclass(frozen=True)
class KnownArm:
    """One arm's scenario and, by rung, the interval [low, high] of its rate; `date` and `commit` of the run."""

    scenario: str
    date: str
    commit: str
    rungs: Mapping[str, tuple[float, float]]


def read_known_findings(path: Path) -> dict[str, KnownArm]:
    """The file's arms. ConfigError names the arm and field that is missing, unknown or out of range."""
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, ValueError, RecursionError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} cannot be read: {reason}; restore it from the repository") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path} holds no mapping of arms; restore it from the repository")
    return {arm: _known_arm(path, arm, body) for arm, body in document.items()}


def _known_arm(path: Path, arm: Any, body: Any) -> KnownArm:
    if not isinstance(arm, str) or arm not in RUNGS:
        raise ConfigError(f"{path}: arm {arm!r} is not known; expected {', '.join(RUNGS)}")
    if not isinstance(body, dict) or set(body) != {"scenario", "date", "commit", "rungs"}:
        raise ConfigError(f"{path}: arm {arm} needs exactly scenario, date, commit and rungs, has {body!r}")
    if not isinstance(body["scenario"], str) or body["scenario"] not in SCENARIOS:
        raise ConfigError(f"{path}: scenario {body['scenario']!r} of arm {arm}; expected one of {', '.join(SCENARIOS)}")
    rungs = body["rungs"]
    if not isinstance(rungs, dict) or set(rungs) != set(RUNGS[arm]):
        raise ConfigError(f"{path}: arm {arm} needs the rungs {', '.join(RUNGS[arm])}, has {rungs!r}")
    for name, interval in rungs.items():
        whole = isinstance(interval, list) and len(interval) == 2 and all(type(v) in (int, float) for v in interval)
        if not whole or not 0 <= interval[0] <= interval[1] <= 1:
            raise ConfigError(f"{path}: {arm}.{name} is {interval!r}, expected [low, high] within 0 and 1")
    bounds = {name: (float(low), float(high)) for name, (low, high) in rungs.items()}
    return KnownArm(body["scenario"], str(body["date"]), str(body["commit"]), bounds)


def departures(known: KnownArm, verdict: Verdict) -> list[str]:
    """How a default run's verdict differs from what is known, one sentence each; empty: as expected."""
    found = []
    if verdict.scenario != known.scenario:
        found.append(f"scenario {verdict.scenario}, known since {known.date} is {known.scenario}: {verdict.reasons[0]}")
    for name, (low, high) in known.rungs.items():
        rung = verdict.evidence.rung(name)
        if rung is None:
            found.append(f"{name} was not evaluated, known is {low:.0%} to {high:.0%}")
        elif not low <= rung.score.k / rung.score.n <= high:
            found.append(
                f"{name}: {rung.score.k} of {rung.score.n}, known since {known.date} is {low:.0%} to {high:.0%}"
            )
    return found

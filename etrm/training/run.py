"""What surrounds the loop of an encoder's training run: device and ranks, the model, the run's folder and config file.

Notable: the decoder's structure is the bundle's and stands in the folder's `all_config.yaml` under the public trainer's
own key names (`arch.L_cycles`, …), so that a checkpoint of ours can be compared with an official one. A folder that was
written under another config is refused, never continued or overwritten.
"""

from pathlib import Path
from typing import Any

import torch
import yaml

from etrm.config.compose import to_dict
from etrm.config.schema import BudgetConfig, OptimConfig, RunConfig
from etrm.errors import CheckpointError, ConfigError
from etrm.models.bundle import Bundle
from etrm.models.encoders import build_encoder
from etrm.models.etrm import ETRM
from etrm.models.official_file import CONFIG, OFFICIAL_NAMES, first_line
from etrm.models.trm import Structure
from etrm.training.checkpoint import checkpoint_folder, steps_in
from etrm.training.checkpoint_check import same_plain
from etrm.training.durable import write_whole
from etrm.training.update import LossHead


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of `system.device` for a rank; auto takes CUDA, then MPS, then the CPU.

    The only place that chooses one. With several ranks on CUDA, each has the device of its local number. Raises
    ConfigError if it is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = next(kind for kind, found in there.items() if found) if name == "auto" else name
    if not there[kind]:
        found = ", ".join(kind for kind, ok in there.items() if ok)
        raise ConfigError(f"system.device is {name}, but torch finds {found} here; set system.device=auto")
    if kind == "cuda" and local_rank:
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"local rank {local_rank}, but this machine has {torch.cuda.device_count()} CUDA devices; "
                f"set --nproc-per-node to at most that"
            )
        return torch.device(kind, local_rank)
    return torch.device(kind)


def check_ranks(budget: BudgetConfig, ranks: int) -> None:
    """ConfigError if the ranks cannot share a batch evenly."""
    if budget.batch_size % ranks:
        raise ConfigError(
            f"budget.batch_size {budget.batch_size} is not divisible by {ranks} ranks; "
            f"set budget.batch_size={max(1, budget.batch_size // ranks) * ranks}"
        )


def budget_sentence(budget: BudgetConfig, optim: OptimConfig, tasks: int) -> str:
    """The budget in words, e.g. "20,000 epochs x 32 tasks / 256 = 2,500 updates, warm-up 500 of them (20 %)"."""
    from etrm.training.loop import planned_updates  # the loop imports this module by way of its dumps

    updates = planned_updates(budget, tasks)
    share = f"warm-up {optim.warmup_updates:,} of them ({optim.warmup_updates / updates:.0%})"
    if budget.epochs:
        return f"{budget.epochs:,} epochs x {tasks:,} tasks / {budget.batch_size} = {updates:,} updates, {share}"
    epochs = updates * budget.batch_size / tasks
    return f"{updates:,} updates x {budget.batch_size} / {tasks:,} tasks = {epochs:,.0f} epochs, {share}"


def build_head(config: RunConfig, bundle: Bundle, device: torch.device) -> LossHead:
    """Encoder (initialised from `system.seed`) in front of the bundle's decoder, with its losses, on `device`."""
    torch.manual_seed(config.system.seed)
    spec = bundle.spec()
    return LossHead(ETRM(build_encoder(config.encoder, spec), bundle.decoder, spec), config.loss).to(device)


def official_arch(structure: Structure) -> dict[str, Any]:
    """A structure under the public trainer's key names; `official_file.structure_of` reads it back."""
    return {name: getattr(structure, field) for name, field in OFFICIAL_NAMES.items()}


def open_run_folder(root: Path, config: RunConfig, bundle: Bundle) -> Path:
    """`root/project/run` with its all_config.yaml, which is written once.

    Raises CheckpointError if the folder was written under another config or bundle, or lost this file.
    """
    folder = checkpoint_folder(root, config.project, config.run)
    keep_config(folder, to_dict(config) | {"arch": arch_of(bundle), "bundle_sha256": bundle.sha256})
    return folder


def arch_of(bundle: Bundle) -> dict[str, Any]:
    """A bundle's structure as all_config.yaml has it; the official reader asks for the width of a row beside it."""
    return official_arch(bundle.structure) | {"puzzle_emb_ndim": int(bundle.table.shape[1])}


def keep_config(folder: Path, wanted: dict[str, Any], name: str = CONFIG) -> None:
    """Write the run's config file once. CheckpointError if the folder was written under another, or lost this file."""
    path = folder / name
    if path.is_file():
        changed = sorted(differences(read_config(path), wanted))
        if changed:
            raise CheckpointError(
                f"{folder} was written under another config ({', '.join(changed[:6])} differ); nothing was written, "
                "choose another run=NAME"
            )
        return
    if steps_in(folder):
        raise CheckpointError(f"{folder} has checkpoints but no {name} to tell what they are; choose another run=NAME")
    write_whole(path, yaml.safe_dump(wanted).encode())


def read_config(path: Path) -> dict[str, Any]:
    """A run's config file. CheckpointError where it is missing or no mapping."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({first_line(error)}); choose another run=NAME") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is no mapping; choose another run=NAME")
    return found


def differences(found: object, wanted: object, at: str = "") -> list[str]:
    """Dotted keys in which two nested configs differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = dict.fromkeys((*wanted, *found))
        absent = object()  # a key whose value is null is there
        pairs = ((k, found.get(k, absent), wanted.get(k, absent)) for k in keys)
        return [d for k, mine, theirs in pairs for d in differences(mine, theirs, f"{at}.{k}" if at else str(k))]
    return [] if same_plain(found, wanted) else [at or CONFIG]

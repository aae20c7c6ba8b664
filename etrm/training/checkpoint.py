"""Checkpoints `checkpoints/<project>/<run>/step_N`, N in executed updates: everything an exact resume needs, written
atomically.

A file holds raw weights, EMA, optimisers, carry, data and ACT generators, and the config. It is read with
`weights_only`, so a pickle that would run code is refused and not run.
"""

import os
import pickle
import re
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from etrm.config.compose import to_dict
from etrm.config.schema import PretrainConfig, RunConfig
from etrm.errors import CheckpointError
from etrm.models.etrm import Carry, Episodes
from etrm.models.trm import Latents
from etrm.training.distributed import ALONE, Ranks, carry_part, carry_to, gather_carry
from etrm.training.update import TrainState

FORMAT = 1
KEEP = 2


def checkpoint_folder(root: Path, project: str, run: str) -> Path:
    """`root/project/run`; CheckpointError if a name would leave the root."""
    for name in (project, run):
        if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
            raise CheckpointError(
                f"{name!r} is no folder name; use letters, digits, '-', '_' and '.' in project and run"
            )
    return root / project / run


def write_atomically(path: Path, payload: Any) -> None:
    """torch.save to a temporary file beside `path`, fsync, rename, fsync the folder: a kill leaves the old file or the
    new.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with temporary.open("wb") as file:
        torch.save(payload, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save_checkpoint(
    folder: Path,
    config: RunConfig | PretrainConfig,
    state: TrainState,
    rng: np.random.Generator,
    tasks: int,
    ranks: Ranks = ALONE,
) -> Path:
    """Write `folder/step_N` and keep the last KEEP; returns the path. Every rank must call it, rank 0 writes.

    The file holds the whole batch's carry, so any number of ranks that divides the batch can go on from it.
    """
    path = folder / f"step_{state.step}"
    trained = {n: p for n, p in state.model.named_parameters() if p.requires_grad}
    ranks.check_equal(trained, f"at update {state.step}")
    carry = None if state.carry is None else gather_carry(state.carry, ranks)
    if not ranks.main:
        ranks.wait()
        return path
    payload = {
        "format": FORMAT,
        "step": state.step,
        "epoch": state.step * config.budget.batch_size / tasks,
        "model": state.model.state_dict(),
        "ema": None if state.ema is None else state.ema.shadow,
        "optimizers": {n: o.state_dict() for n, (o, _) in state.optimizers.items()},
        "carry": None
        if carry is None
        else {
            "latents": list(carry.latents),
            "steps": carry.steps,
            "halted": carry.halted,
            "episodes": {f.name: getattr(carry.episodes, f.name) for f in fields(Episodes)},
        },
        "act_generator": state.generator.get_state(),
        "data_generator": rng.bit_generator.state,
        "episodes_entered": state.episodes_entered,
        "config": to_dict(config),
    }
    write_atomically(path, payload)
    for old in sorted(steps_in(folder))[:-KEEP]:
        (folder / f"step_{old}").unlink()
    ranks.wait()
    return path


def steps_in(folder: Path) -> list[int]:
    """The N of every step_N file of a folder."""
    found = (re.fullmatch(r"step_(\d+)", p.name) for p in folder.glob("step_*")) if folder.is_dir() else ()
    return [int(m.group(1)) for m in found if m]


def described(path: Path) -> str:
    """A checkpoint's name and epoch, or its name and that it cannot be read."""
    try:
        return f"{path.name} (epoch {read_checkpoint(path)['epoch']:g})"
    except (CheckpointError, KeyError, TypeError, ValueError):
        return f"{path.name} (cannot be read)"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint file with weights_only. CheckpointError lists those that do exist (and epochs), or says why
    not.
    """
    if not path.is_file():
        shown = ", ".join(described(path.parent / f"step_{n}") for n in sorted(steps_in(path.parent)))
        raise CheckpointError(f"{path} does not exist; {path.parent} has {shown or 'no checkpoints'}")
    if not zipfile.is_zipfile(path):
        # What torch would go on to try with it, an old pickle, is nothing that we have ever written.
        raise CheckpointError(f"{path} is truncated or unsafe, it is no file of torch.save; use an earlier step_N")
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is truncated or unsafe and was not loaded: {reason}; use an earlier step_N"
        ) from error
    if not isinstance(payload, dict):
        raise CheckpointError(f"{path} holds a {type(payload).__name__}, expected a dict of tensors")
    return payload


def refuse_other_weights(path: Path, saved: dict[str, torch.Tensor], model: torch.nn.Module) -> None:
    """CheckpointError if names or shapes differ from the model's, or if a frozen tensor is not this bundle's."""
    own = model.state_dict()
    faults = [f"{n} is only in one of them" for n in sorted(set(own) ^ set(saved))]
    faults += [
        f"{n} is {tuple(saved[n].shape)}, expected {tuple(own[n].shape)}"
        for n in own
        if n in saved and saved[n].shape != own[n].shape
    ]
    if not faults:
        frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
        faults = [f"frozen {n} has other values" for n in frozen if not torch.equal(saved[n].to(own[n].device), own[n])]
    if faults:
        raise CheckpointError(
            f"{path} is of another encoder or bundle: {'; '.join(faults[:5])}; choose another run name"
        )


def resume(
    path: Path,
    config: RunConfig | PretrainConfig,
    state: TrainState,
    rng: np.random.Generator,
    ranks: Ranks = ALONE,
) -> None:
    """Put a checkpoint's whole state (of the carry: this rank's slots) into `state` and `rng`.

    CheckpointError if it is of another config or lacks a part.
    """
    payload = read_checkpoint(path)
    missing = {"model", "ema", "optimizers", "carry", "act_generator", "data_generator", "config"} - set(payload)
    if payload.get("format") != FORMAT or missing:
        raise CheckpointError(f"{path} is no resumable checkpoint of format {FORMAT}; it lacks {sorted(missing)}")
    if payload["config"] != to_dict(config):
        changed = sorted(k for k, v in to_dict(config).items() if payload["config"].get(k) != v)
        raise CheckpointError(
            f"{path} was written under another config ({', '.join(changed)}); choose another run name"
        )
    if (state.ema is None) != (payload["ema"] is None) or set(state.optimizers) != set(payload["optimizers"]):
        raise CheckpointError(
            f"{path} was written in another phase of training; its parts are {list(payload['optimizers'])}"
        )
    refuse_other_weights(path, payload["model"], state.model)
    state.model.load_state_dict(payload["model"], strict=True)
    if state.ema is not None:
        state.ema.load(payload["ema"])
    for name, saved in payload["optimizers"].items():
        state.optimizers[name][0].load_state_dict(saved)
    carried = payload["carry"]
    if carried is not None:
        whole = Carry(
            Latents(*carried["latents"]), carried["steps"], carried["halted"], Episodes(**carried["episodes"])
        )
        own = whole if ranks.size == 1 else carry_part(whole, ranks.part(len(whole.steps)))
        state.carry = carry_to(own, state.model.decoder.H_init.device)
    state.generator.set_state(payload["act_generator"])
    rng.bit_generator.state = payload["data_generator"]
    state.step, state.episodes_entered = payload["step"], payload["episodes_entered"]

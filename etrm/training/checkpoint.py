"""Checkpoints `checkpoints/<project>/<run>/step_N`, N in executed updates: everything an exact resume needs, written
atomically.

A file holds raw weights, EMA, optimisers, carry, every random generator, the config, and how long the metrics file was
with its hash. It is read with `weights_only`, so a pickle that would run code is refused and not run, and after its
checksums, so that a flipped bit is refused too. What it holds is compared with the run's own state before any of it is
taken over (`checkpoint_check`).
"""

import hashlib
import io
import random
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from etrm.config.compose import to_dict
from etrm.config.schema import PretrainConfig, RunConfig
from etrm.errors import CheckpointError
from etrm.models.archive import UNREADABLE, archive_fault
from etrm.models.etrm import Carry, Episodes
from etrm.models.trm import Latents
from etrm.training.checkpoint_check import brief, refuse_misfits, same_plain
from etrm.training.distributed import ALONE, Ranks, carry_part, carry_to, gather_carry
from etrm.training.durable import sync, unwritten, write_whole
from etrm.training.update import TrainState

FORMAT = 2
KEEP = 2
PARTS = (
    "step",
    "model",
    "ema",
    "optimizers",
    "carry",
    "act_generator",
    "data_generator",
    "global_generators",
    "episodes_entered",
    "log",
    "config",
)


def checkpoint_folder(root: Path, project: str, run: str) -> Path:
    """`root/project/run`; CheckpointError if a name would leave the root."""
    for name in (project, run):
        if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
            raise CheckpointError(
                f"{name!r} is no folder name; use letters, digits, '-', '_' and '.' in project and run"
            )
    return root / project / run


def write_atomically(path: Path, payload: Any) -> None:
    """torch.save to `path`, wholly or not at all: a kill leaves the old file or the new. CheckpointError if the disk is
    full.
    """
    buffer = io.BytesIO()  # torch's own writer turns a full disk into an error without a cause
    torch.save(payload, buffer)
    write_whole(path, buffer.getbuffer())


def global_generators() -> dict[str, Any]:
    """States of the generators that code may draw from without saying so: torch's (also CUDA's), Python's, numpy's."""
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    inner = numpy_state["state"]
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],  # each rank has one device
        "python": random.getstate(),
        "numpy": numpy_state | {"state": {"key": inner["key"].tolist(), "pos": int(inner["pos"])}},
    }


def set_global_generators(states: dict[str, Any]) -> None:
    """Put back what `global_generators` gave."""
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state(states["cuda"][0])
    random.setstate(states["python"])
    inner = states["numpy"]["state"]
    np.random.set_state(states["numpy"] | {"state": inner | {"key": np.asarray(inner["key"], dtype=np.uint32)}})


def log_prefix(log: Path, length: int | None = None) -> dict[str, Any]:
    """Length and sha256 of the first `length` bytes of a metrics file, all of them where it is None."""
    data = log.read_bytes() if log.is_file() else b""
    data = data if length is None else data[:length]
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def save_checkpoint(
    folder: Path,
    config: RunConfig | PretrainConfig,
    state: TrainState,
    rng: np.random.Generator,
    tasks: int,
    log: Path | None = None,
    ranks: Ranks = ALONE,
) -> Path:
    """Write `folder/step_N` and keep the last KEEP; returns the path. `log` is the metrics file that belongs to it.

    Every rank must call it, rank 0 writes; where it cannot, CheckpointError on every rank. The file holds the whole
    batch's carry, so any number of ranks that divides the batch can go on from it.
    """
    path = folder / f"step_{state.step}"
    trained = {n: p for n, p in state.model.named_parameters() if p.requires_grad}
    ranks.check_equal(trained, f"at update {state.step}")
    carry = None if state.carry is None else gather_carry(state.carry, ranks)
    generators = ranks.gather(global_generators())

    def write() -> None:
        if log is not None and log.is_file():
            try:
                sync(log)  # a checkpoint may not outlive the lines that it counts on
            except OSError as error:
                raise unwritten(log, error) from error
        write_atomically(path, _payload(config, state, rng, tasks, log, carry, generators))
        prune(folder)

    ranks.by_main(write)
    return path


def _payload(
    config: RunConfig | PretrainConfig,
    state: TrainState,
    rng: np.random.Generator,
    tasks: int,
    log: Path | None,
    carry: Carry | None,
    generators: list[dict[str, Any]],
) -> dict[str, Any]:
    """A checkpoint's parts; `carry` is the whole batch's, `generators` one a rank."""
    return {
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
        "global_generators": generators,
        "episodes_entered": state.episodes_entered,
        "log": None if log is None else log_prefix(log),
        "config": to_dict(config),
    }


def prune(folder: Path) -> None:
    """Keep the last KEEP checkpoints."""
    for old in sorted(steps_in(folder))[:-KEEP]:
        (folder / f"step_{old}").unlink()


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
    if fault := archive_fault(path):
        raise CheckpointError(f"{path} is truncated or unsafe and was not loaded: {fault}; use an earlier step_N")
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
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


def newest_whole(folder: Path, log: Path, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that is whole, and whose metrics lines still are; None where there are no checkpoints.

    What had to be passed over is said. CheckpointError where there are some and none is whole: then nothing is begun
    anew in silence.
    """
    passed: list[str] = []
    for step in sorted(steps_in(folder), reverse=True):
        path = folder / f"step_{step}"
        try:
            payload = read_checkpoint(path)
            refuse_incomplete(path, payload, log)
        except CheckpointError as error:
            passed.append(str(error))
            continue
        if passed:
            say(f"going on from {path}, not from the newest: {'; '.join(passed)}")
        else:
            prune(folder)  # a kill may have come between the last write and this
        return path, payload
    if passed:
        raise CheckpointError(
            f"no checkpoint of {folder} can be used: {'; '.join(passed)}; choose another run name, or delete the "
            "folder to begin again"
        )
    return None


def agreed_newest(
    folder: Path, log: Path, say: Callable[[str], None], ranks: Ranks
) -> tuple[Path, dict[str, Any]] | None:
    """`newest_whole` as rank 0 finds it, on every rank; the others read the file that it names."""
    found: list[tuple[Path, dict[str, Any]]] = []

    def choose() -> Path | None:
        found.extend(filter(None, [newest_whole(folder, log, say)]))
        return found[0][0] if found else None

    path = ranks.by_main(choose)
    if path is None:
        return None
    return found[0] if found else (path, read_checkpoint(path))


def refuse_incomplete(path: Path, payload: dict[str, Any], log: Path | None) -> None:
    """CheckpointError if a part is missing, the format is another, the name is of another step, or the metrics file no
    longer begins with the lines that were in it when the checkpoint was written.
    """
    missing = set(PARTS) - set(payload)
    if not same_plain(payload.get("format"), FORMAT) or missing:
        raise CheckpointError(
            f"{path} is no resumable checkpoint of format {FORMAT} (it says {brief(payload.get('format'))}, lacks "
            f"{sorted(missing)}); choose another run name"
        )
    if type(payload["step"]) is not int or path.name != f"step_{payload['step']}":
        raise CheckpointError(f"{path} holds step {brief(payload['step'])}; restore its name, or use another step_N")
    told = payload["log"]
    if log is None:
        return
    whole = isinstance(told, dict) and set(told) == {"bytes", "sha256"} and type(told["bytes"]) is int
    if not whole or told["bytes"] < 0 or not same_plain(log_prefix(log, told["bytes"]), told):
        raise CheckpointError(f"{log} does not begin with what was logged when {path.name} was written")


def resume(
    path: Path,
    config: RunConfig | PretrainConfig,
    state: TrainState,
    rng: np.random.Generator,
    payload: dict[str, Any] | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Put a checkpoint's whole state (of the carry: this rank's slots) into `state`, `rng` and the global generators.

    `payload`: the file, if read already. Each rank takes its own global generators; with another number of ranks than
    wrote the file all take rank 0's, as they all begin alike in a fresh run.
    CheckpointError if it is of another config, lacks a part, or a part does not fit; then nothing was changed.
    """
    payload = read_checkpoint(path) if payload is None else payload
    refuse_incomplete(path, payload, None)
    own = to_dict(config)
    if not same_plain(payload["config"], own):
        theirs = payload["config"] if isinstance(payload["config"], dict) else {}
        changed = sorted(k for k, v in own.items() if not same_plain(theirs.get(k), v))
        raise CheckpointError(
            f"{path} was written under another config ({', '.join(changed)}); choose another run name"
        )
    optimizers, ema = payload["optimizers"], payload["ema"]
    if (state.ema is None) != (ema is None) or not isinstance(optimizers, dict):
        raise CheckpointError(f"{path} was written with another optim.ema_decay, or has no optimisers")
    if set(state.optimizers) != set(optimizers):
        raise CheckpointError(f"{path} was written in another phase of training; its parts are {list(optimizers)}")
    refuse_misfits(path, payload, state, rng, global_generators(), config.budget.batch_size)
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
        mine = whole if ranks.size == 1 else carry_part(whole, ranks.part(len(whole.steps)))
        state.carry = carry_to(mine, state.model.decoder.H_init.device)
    state.generator.set_state(payload["act_generator"])
    rng.bit_generator.state = payload["data_generator"]
    saved_globals = payload["global_generators"]
    set_global_generators(saved_globals[ranks.rank if len(saved_globals) == ranks.size else 0])
    state.step, state.episodes_entered = payload["step"], payload["episodes_entered"]

"""An official TRM checkpoint on disk: `step_N` (a state dict) and `all_config.yaml`, checked before a weight is read.

Notable: the file is mapped, and every access maps it anew, so that pages leave memory with the tensor that needed them.
The cycles (L_cycles 4 in the public checkpoint, where the public code's default is 6) are in no tensor: they come from
all_config.yaml alone. What both can tell must agree, else the pair is refused. Facts: the published files' own names.

Legend: S canvas cells, T context tokens, D hidden, R table rows, W a row's width.
"""

import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from etrm.errors import CheckpointError
from etrm.models.archive import UNREADABLE, archive_fault
from etrm.models.layers import swiglu_width
from etrm.models.trm import DTYPES, Structure, split_official, structure_from_official

HUB = "arcprize/trm_arc_prize_verification"
PUBLIC, PUBLIC_STEP = "arc_v1_public", "step_518071"
CONFIG = "all_config.yaml"
CANVAS = 900  # cells of ARC's 30 x 30 canvas, where neither config nor tensors tell (all_config.yaml never does)
POSITIVE = ("hidden_size", "num_heads", "L_layers", "H_cycles", "L_cycles", "halt_max_steps")
COUNTS = (*POSITIVE, "puzzle_emb_ndim")
OPTIONAL_COUNTS = ("puzzle_emb_len", "vocab_size", "seq_len")
NUMBERS = ("expansion", "rope_theta", "rms_norm_eps")
POSITIONS = ("rope", "learned", "none")
EMBEDDING = "embed_tokens.embedding_weight"
OFFICIAL_NAMES = {  # the config's key: our Structure's field
    "vocab_size": "vocab_size",
    "seq_len": "seq_len",
    "puzzle_emb_len": "context_tokens",
    "hidden_size": "hidden_size",
    "num_heads": "num_heads",
    "expansion": "expansion",
    "L_layers": "layers",
    "H_cycles": "h_cycles",
    "L_cycles": "l_cycles",
    "pos_encodings": "pos_encodings",
    "mlp_t": "mlp_t",
    "rope_theta": "rope_theta",
    "rms_norm_eps": "rms_norm_eps",
    "forward_dtype": "forward_dtype",
    "halt_max_steps": "halt_max_steps",
}


@dataclass(frozen=True, eq=False)
class OfficialFile:
    """A checkpoint whose names and config were checked against each other; no weight has been read yet."""

    path: Path
    structure: Structure
    names: Mapping[str, str]  # our decoder name -> name in the file
    shapes: Mapping[str, Tensor]  # our decoder name -> tensor on the meta device
    table: tuple[str, int, int] | None  # name in the file, R, W
    others: tuple[str, ...]  # an encoder's tensors
    config: Mapping[str, Any]  # the whole all_config.yaml

    def tensor(self, name: str) -> Tensor:
        """A decoder tensor by our name, mapped from the file: copy it if you keep it. CheckpointError if not finite."""
        value = map_state(self.path)[self.names[name]]
        if not math.isfinite(value.sum(dtype=torch.float32).item()):  # isfinite would copy it
            raise CheckpointError(f"{self.path}: {name} is not finite; fetch the file again from {address()}")
        return value


def address() -> str:
    """Where the public checkpoints are published."""
    return f"https://huggingface.co/{HUB}"


def missing_message(path: Path) -> str:
    """That `path` does not exist, where the public checkpoint is published, and the command that fetches it there."""
    folder = path.parent
    known = re.fullmatch(r"arc_v\d+_\w+", folder.name) is not None
    version = folder.name if known else PUBLIC
    step = PUBLIC_STEP if version == PUBLIC else path.name
    target = folder.parent if known else Path("checkpoints/official_trm")
    found = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    there = sorted(name for name in found if re.fullmatch(r"step_\d+", name))
    beside = f" (its folder has {', '.join(there)})" if there else ""
    return (
        f"{path} does not exist{beside}. The public TRM checkpoint is published at {address()} as {version}/{step} "
        f"(1.8 GB); fetch it with: pip install -e '.[official]' && "
        f"hf download {HUB} {version}/{step} {version}/{CONFIG} --local-dir {target}"
    )


def map_state(path: Path) -> dict[str, Tensor]:
    """The file's state dict with mapped storage (nothing is read until it is used), opened with weights_only.

    Raises CheckpointError for a missing, truncated or unsafe file, and for one that holds anything but named tensors.
    """
    if not path.is_file():
        raise CheckpointError(missing_message(path))
    if fault := archive_fault(path, checksums=False):  # the file's sha256 is held from its first use on
        raise CheckpointError(f"{path} is truncated or no torch checkpoint ({fault}); fetch it again from {address()}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds a pickle that is more than tensors and could run code; it was refused and not run "
            f"({first_line(error)}). Fetch the file again from {address()}"
        ) from error
    except UNREADABLE as error:
        raise CheckpointError(
            f"{path} is truncated or no torch checkpoint ({first_line(error)}); fetch it again from {address()}"
        ) from error
    if not isinstance(state, dict) or not state or not all(isinstance(t, Tensor) for t in state.values()):
        raise CheckpointError(f"{path} is no official state dict: expected names and tensors, and nothing else")
    if odd := [name for name, t in state.items() if t.layout is not torch.strided]:
        raise CheckpointError(f"{path}: {odd[0]} is {state[odd[0]].layout}, expected a plain tensor")
    return state


def first_line(error: BaseException) -> str:
    """What an exception says, in one line of at most 160 characters."""
    told = str(error).strip().splitlines()
    return (told[0] if told else type(error).__name__)[:160]


def open_official(path: Path, encoder_too: bool = False) -> OfficialFile:
    """Check a checkpoint's names against its config, without reading a weight.

    `encoder_too` admits tensors under `encoder.` beside the decoder's. Raises CheckpointError naming what does not fit.
    """
    state = map_state(path)
    decoder, table = split_official(state)
    others = tuple(n for n in decoder if n.startswith("encoder.")) if encoder_too else ()
    shapes = {name: tensor.to("meta") for name, tensor in decoder.items() if name not in others}
    bare = {n: next(iter(split_official({n: t})[0]), None) for n, t in state.items()}  # None: the table
    if EMBEDDING not in shapes or shapes[EMBEDDING].dim() != 2:
        raise CheckpointError(f"{path} is no TRM checkpoint: no {EMBEDDING} among {', '.join(list(state)[:4])}, …")
    size = None
    if table is not None:
        if table.dim() != 2 or not table.is_floating_point() or not table.shape[0]:
            raise CheckpointError(
                f"{path}: its puzzle table is {tuple(table.shape)} {table.dtype}, expected (rows, width)"
            )
        size = (next(n for n, b in bare.items() if b is None), int(table.shape[0]), int(table.shape[1]))
    config = read_config(path.parent / CONFIG)
    structure = structure_of(path, config["arch"], shapes, table)
    names = {b: n for n, b in bare.items() if b in shapes}
    return OfficialFile(path, structure, names, shapes, size, others, config)


def read_config(path: Path) -> dict[str, Any]:
    """The published all_config.yaml; its section `arch` must be there, other keys are its owner's.

    Read with PyYAML's safe loader, not with ours: its author writes YAML 1.1. Raises CheckpointError.
    """
    remedy = f"fetch it beside the checkpoint from {address()}"
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing, and only it tells the cycles that the decoder was trained with; {remedy}"
        )
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({first_line(error)}); {remedy}") from error
    if not isinstance(found, dict) or not isinstance(found.get("arch"), dict):
        raise CheckpointError(f"{path} has no section 'arch', expected the config of a TRM run; {remedy}")
    return found


def structure_of(path: Path, arch: Mapping[str, Any], shapes: Mapping[str, Tensor], table: Tensor | None) -> Structure:
    """The structure that config and tensors agree on. CheckpointError names each missing, ill-typed or clashing key."""
    where = path.parent / CONFIG
    if lacking := [key for key in (*COUNTS, "expansion", "pos_encodings") if key not in arch]:
        raise CheckpointError(f"{where}: arch lacks {', '.join(lacking)}; it has {', '.join(map(str, arch))}")
    if wrong := _ill_typed(arch):
        raise CheckpointError(f"{where}: arch.{'; arch.'.join(wrong)}; fetch it again from {address()}")
    visible = _visible(arch, shapes, table)
    given = {key: arch[key] for key in visible if key in arch}
    if clashes := [f"{k} is {v!r} there, {visible[k]!r} in the tensors" for k, v in given.items() if v != visible[k]]:
        raise CheckpointError(
            f"{where} disagrees with {path.name}: {'; '.join(clashes)}. Nothing was loaded; take both from one release"
        )
    return structure_from_official({"seq_len": CANVAS, **visible, **arch})


def _ill_typed(arch: Mapping[str, Any]) -> list[str]:
    wrong = []
    for key in (*COUNTS, *OPTIONAL_COUNTS):
        least = 1 if key in POSITIVE else 0
        if key in arch and not (type(arch[key]) is int and arch[key] >= least):
            wrong.append(f"{key} is {arch[key]!r}, expected a count of at least {least}")
    for key in NUMBERS:
        if key in arch and (not isinstance(arch[key], int | float) or isinstance(arch[key], bool)):
            wrong.append(f"{key} is {arch[key]!r}, expected a number such as 1.0e-5")
    for key, allowed in (("pos_encodings", POSITIONS), ("forward_dtype", tuple(DTYPES)), ("mlp_t", (True, False))):
        if key in arch and arch[key] not in allowed:
            wrong.append(f"{key} is {arch[key]!r}, expected one of {', '.join(map(str, allowed))}")
    if not wrong and arch["hidden_size"] % arch["num_heads"]:
        wrong.append(f"num_heads {arch['num_heads']} does not divide hidden_size {arch['hidden_size']}")
    return wrong


def _visible(arch: Mapping[str, Any], shapes: Mapping[str, Tensor], table: Tensor | None) -> dict[str, Any]:
    """What the tensors themselves say about the structure, under the config's key names."""
    vocabulary, hidden = shapes[EMBEDDING].shape
    layers = {m.group(1) for n in shapes if (m := re.match(r"L_level\.layers\.(\d+)\.", n))}
    found: dict[str, Any] = {"vocab_size": vocabulary, "hidden_size": hidden, "L_layers": len(layers)}
    mixing = shapes.get("L_level.layers.0.mlp_t.gate_up_proj.weight")
    found["mlp_t"] = mixing is not None
    gates = shapes.get("L_level.layers.0.mlp.gate_up_proj.weight")
    if gates is not None and gates.shape[0] != 2 * swiglu_width(hidden, arch["expansion"]):
        found["expansion"] = f"inner width {gates.shape[0] // 2}"  # several expansions give one width
    if table is not None:
        found["puzzle_emb_ndim"] = table.shape[1]
    learned = shapes.get("embed_pos.embedding_weight")
    if (learned is not None) != (arch["pos_encodings"] == "learned"):
        found["pos_encodings"] = "learned" if learned is not None else "not learned"
    positions = learned.shape[0] if learned is not None else mixing.shape[1] if mixing is not None else None
    if positions is not None:
        found["seq_len"] = positions - (arch.get("puzzle_emb_len", 16) or -(arch["puzzle_emb_ndim"] // -hidden))
    return found

"""The decoder inside any file that may hold one, and whether two of them are the same decoder.

Notable: equal weights are not an equal decoder: the cycles are in no tensor. So three things are compared: every tensor
bitwise (never within a tolerance, which hides a slow drift), the structure where both files tell it, and the logits on
the same inputs and contexts. The averaged copy of a decoder that a checkpoint may hold is compared too.

Legend: B batch, S canvas cells, T context tokens, D hidden.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from etrm.errors import CheckpointError
from etrm.models.bundle import golden_pass, load_bundle
from etrm.models.official import build_decoder
from etrm.models.official_file import CONFIG, map_state, open_official, read_config, structure_of
from etrm.models.trm import Structure, TRMDecoder, load_decoder_tensors
from etrm.training.checkpoint import read_checkpoint, steps_in

PROBES = 2
DECODER, TABLE = "model.decoder.", "model.puzzle_emb.weights"


@dataclass(frozen=True, eq=False)
class DecoderFile:
    """A decoder found in a file: tensors on the CPU by our names, the structure if it is told, and other facts."""

    path: str
    kind: str  # bundle, official checkpoint, etrm checkpoint
    tensors: Mapping[str, Tensor]
    averaged: Mapping[str, Tensor]  # the moving average's copy of decoder tensors, often none
    structure: Structure | None
    facts: Mapping[str, Any]  # step, table, parameters of an encoder, …


@dataclass(frozen=True)
class TensorRow:
    """One tensor in both files. `state` is equal, differs, shape, missing in A or missing in B."""

    name: str
    shape: tuple[int, ...]
    state: str
    detail: str


@dataclass(frozen=True)
class Comparison:
    """What `compare` found. `structure` and `function` hold differences, or None where they could not be compared."""

    own: tuple[TensorRow, ...]
    averaged: tuple[TensorRow, ...]  # a file's moving average against the other file's tensors
    structure: tuple[str, ...] | None
    function: tuple[str, ...] | None
    note: str

    @property
    def rows(self) -> tuple[TensorRow, ...]:
        """All rows, own ones first."""
        return self.own + self.averaged

    @property
    def same(self) -> bool:
        """Every tensor equal, and no difference in structure or function where they could be compared."""
        return all(row.state == "equal" for row in self.rows) and not self.structure and not self.function


def open_decoder(path: Path) -> DecoderFile:
    """The decoder of a bundle folder, an official checkpoint or a step_N of ours. CheckpointError, BundleError."""
    if path.is_dir():
        bundle = load_bundle(str(path))
        facts: dict[str, Any] = {
            "sha256": bundle.sha256,
            "table": list(bundle.table.shape),
            "provenance": asdict(bundle.provenance),
        }
        return DecoderFile(str(path), "bundle", bundle.decoder.state_dict(), {}, bundle.structure, facts)
    if is_ours(path):
        return _ours(path)
    file = open_official(path, encoder_too=True)
    tensors = build_decoder(file).state_dict()
    facts = {"table": None if file.table is None else list(file.table[1:]), "encoder_tensors": len(file.others)}
    return DecoderFile(str(path), "official checkpoint", tensors, {}, file.structure, facts)


def is_ours(path: Path) -> bool:
    """Whether a file holds a training state of ours, not a bare state dict; CheckpointError if it is neither."""
    try:
        map_state(path)
    except CheckpointError:
        if not path.is_file():
            beside = steps_in(path.parent)
            if beside and is_ours(path.parent / f"step_{beside[0]}"):
                read_checkpoint(path)  # lists the steps that there are, and their epochs
            raise  # tells where the public one is published
        return {"format", "model"} <= set(read_checkpoint(path))  # a damaged or unsafe file raises here again
    return False


def _ours(path: Path) -> DecoderFile:
    payload = read_checkpoint(path)
    model, ema = payload["model"], payload.get("ema") or {}
    tensors = {n.removeprefix(DECODER): t for n, t in model.items() if n.startswith(DECODER)}
    if not tensors:
        raise CheckpointError(
            f"{path} holds no decoder: no tensor under {DECODER}, it has {', '.join(list(model)[:4])}, …"
        )
    averaged = {n.removeprefix(DECODER): t for n, t in ema.items() if n.startswith(DECODER)}
    encoder = [t for n, t in model.items() if not n.startswith(DECODER) and n != TABLE]
    structure = None
    if (path.parent / CONFIG).is_file():
        arch = read_config(path.parent / CONFIG)["arch"]
        structure = structure_of(path, arch, tensors, None)
        load_decoder_tensors(TRMDecoder(structure), tensors, str(path))
    facts = {
        "step": payload.get("step"),
        "epoch": payload.get("epoch"),
        "run": payload.get("config", {}).get("run"),
        "table": list(model[TABLE].shape) if TABLE in model else None,
        "encoder_tensors": len(encoder),
        "encoder_parameters": sum(t.numel() for t in encoder),
        "ema_tensors": len(ema),
    }
    return DecoderFile(str(path), "etrm checkpoint", tensors, averaged, structure, facts)


def compare(a: DecoderFile, b: DecoderFile) -> Comparison:
    """Tensors bitwise, structure, and the logits of both on the same PROBES inputs and contexts after two ACT steps.

    CheckpointError if neither file tells its structure.
    """
    own = tuple(_tensor_rows(a.tensors, b.tensors, ""))
    averaged: list[TensorRow] = []
    for mine, other in ((a, b), (b, a)):
        theirs = {name: other.tensors[name] for name in mine.averaged if name in other.tensors}
        averaged += _tensor_rows(mine.averaged, theirs, "ema of ")
    telling = [file.structure for file in (a, b) if file.structure is not None]
    if not telling:
        raise CheckpointError(
            f"neither {a.path} nor {b.path} has its {CONFIG} beside it: without cycles no decoder is known"
        )
    structure = tuple(telling[0].differences(telling[1])) if len(telling) == 2 else None
    note = "" if len(telling) == 2 else f"only one file tells its structure ({CONFIG}); both were run with it"
    function = None
    if any(row.state not in ("equal", "differs") for row in own) or (structure and _sizes_differ(*telling)):
        note = "the decoders do not take the same inputs: function not compared"
    else:
        function = _function(a, b, telling)
    return Comparison(own, tuple(averaged), structure, function, note)


def _tensor_rows(a: Mapping[str, Tensor], b: Mapping[str, Tensor], prefix: str) -> list[TensorRow]:
    rows = []
    for name in dict.fromkeys((*a, *b)):
        mine, other = a.get(name), b.get(name)
        if mine is None or other is None:
            there = mine if mine is not None else other
            assert there is not None
            rows.append(TensorRow(prefix + name, tuple(there.shape), f"missing in {'A' if mine is None else 'B'}", ""))
        elif mine.shape != other.shape or mine.dtype != other.dtype:
            detail = f"{tuple(mine.shape)} {mine.dtype} and {tuple(other.shape)} {other.dtype}"
            rows.append(TensorRow(prefix + name, tuple(mine.shape), "shape", detail))
        else:
            changed = _bits(mine) != _bits(other)  # bits, so that a NaN equals itself
            if not bool(changed.any()):
                rows.append(TensorRow(prefix + name, tuple(mine.shape), "equal", ""))
                continue
            gap, count = (mine.double() - other.double()).abs(), int((mine != other).sum())
            detail = f"{count} of {mine.numel()} numbers differ, by at most {gap.max().item():.3g}"
            rows.append(TensorRow(prefix + name, tuple(mine.shape), "differs", detail))
    return rows


def _bits(value: Tensor) -> Tensor:
    return value.contiguous().reshape(-1).view(torch.uint8)


def _sizes_differ(a: Structure, b: Structure) -> bool:
    keys = ("vocab_size", "seq_len", "context_tokens", "hidden_size")
    return any(getattr(a, key) != getattr(b, key) for key in keys)


def _function(a: DecoderFile, b: DecoderFile, telling: list[Structure]) -> tuple[str, ...]:
    """Differences of logits and halt logits, empty where they are equal to the last bit."""
    s = telling[0]
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, s.vocab_size, (PROBES, s.seq_len), generator=generator)  # (B, S)
    context = torch.randn(PROBES, s.context_tokens, s.hidden_size, generator=generator)  # (B, T, D)
    found = []
    for file, structure in ((a, telling[0]), (b, telling[-1])):
        decoder = TRMDecoder(structure)
        load_decoder_tensors(decoder, file.tensors, file.path)
        found.append(golden_pass(decoder.eval(), inputs, context))
    gaps = {name: (x - y).abs().max().item() for name, x, y in zip(("logits", "halt"), *found, strict=True)}
    return tuple(f"{name} differ by up to {gap:.3g}" for name, gap in gaps.items() if gap != 0)

"""Decoder bundles: weights, structure, provenance, context statistics, puzzle table and golden logits, checked on
every load.

A bundle is a folder with `manifest.json` and `weights.safetensors`. A state dict alone does not say how many cycles a
decoder was trained with, so a load also re-computes stored logits: a bundle that lacks a tensor, has one too many,
another shape or hash, or does not reproduce its golden logits is refused.

Legend: B golden samples, S canvas cells, T context tokens, D hidden, V vocabulary, R table rows, W = T x D or less.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from etrm.config.json_values import read_json
from etrm.errors import BundleError, CheckpointError
from etrm.models.encoders import EncoderSpec
from etrm.models.trm import Latents, Structure, TRMDecoder, load_decoder_tensors, table_context

FORMAT = 1
ASSETS = Path(__file__).resolve().parent.parent / "assets"
GOLDEN_STEPS = 2
MOST_PASSES = 10_000  # through a layer in one ACT step; the public decoder needs 24
GOLDEN_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.25}


@dataclass(frozen=True)
class Provenance:
    """Where a decoder comes from. `row_names` names its table rows, `task_ids` the base tasks that trained it."""

    recipe: str  # the command that makes it
    benchmark: str
    seed: int
    updates: int
    data_hash: str
    task_ids: tuple[str, ...]
    row_names: tuple[str, ...]
    torch: str
    ceiling: Mapping[str, Any]  # exact on fresh or held-out queries with its own contexts, k of n

    def __post_init__(self) -> None:
        """CheckpointError if a list of names is none, or names one row twice."""
        for name, names in (("task_ids", self.task_ids), ("row_names", self.row_names)):
            if not isinstance(names, tuple) or not all(isinstance(n, str) for n in names):
                raise CheckpointError(f"{name} is no list of names")
            if len(set(names)) != len(names):
                raise CheckpointError(f"{name} holds a name twice")


@dataclass(frozen=True, eq=False)
class Golden:
    """Stored answers of the decoder to fixed queries under its own rows; `tolerance` is the largest allowed gap."""

    inputs: Tensor  # (B, S) int64
    context: Tensor  # (B, T, D) fp32
    logits: Tensor  # (B, S, V) fp32
    halt: Tensor  # (B,) fp32
    tolerance: float


@dataclass(frozen=True, eq=False)
class Bundle:
    """A loaded and checked bundle. `table` is (R, W) fp32; `context_mean` (T, D), `context_std` (T,)."""

    name: str
    sha256: str
    structure: Structure
    provenance: Provenance
    decoder: TRMDecoder
    table: Tensor
    context_mean: Tensor
    context_std: Tensor
    golden: Golden | None = None  # an official checkpoint has none on record
    described: str = ""  # digest of structure and provenance that the weights were saved with

    @property
    def side(self) -> int:
        """Side of the canvas in cells."""
        return math.isqrt(self.structure.seq_len)

    def spec(self) -> EncoderSpec:
        """What an encoder for this decoder must know."""
        s = self.structure
        return EncoderSpec(
            s.seq_len, s.vocab_size, s.context_tokens, s.hidden_size, self.context_mean, self.context_std
        )

    def row_of(self, name: str) -> int:
        """The table row of a (possibly augmented) task name, -1 where the decoder has none."""
        return self._rows.get(name, -1)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rows", {n: i for i, n in enumerate(self.provenance.row_names)})

    _rows: Mapping[str, int] = None  # type: ignore[assignment]  # filled after init from row_names


def context_statistics(table: Tensor, structure: Structure) -> tuple[Tensor, Tensor]:
    """Mean context (T, D) and per-token deviation (T,) over the table's rows, fp32.

    An inactive token (zero in every row) has deviation 0: an encoder matched to it stays silent there.
    """
    contexts = table_context(table.float(), structure)  # (R, T, D)
    mean = contexts.mean(dim=0)
    return mean, (contexts - mean).pow(2).mean(dim=(0, 2)).sqrt()


def golden_pass(decoder: TRMDecoder, inputs: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, S, V) and halt (B,) fp32 after GOLDEN_STEPS ACT steps from a fresh carry."""
    with torch.no_grad():
        latents: Latents = decoder.fresh_latents(inputs.shape[0])
        for _ in range(GOLDEN_STEPS):
            latents, logits, halt = decoder(latents, inputs, context)
    return logits.float(), halt.float()


def golden_gap(bundle: Bundle, decoder: TRMDecoder) -> tuple[float, float]:
    """Largest difference of a decoder's golden logits (and halt logits) to the bundle's stored ones, and the allowed
    one; BundleError where the bundle has none.
    """
    golden = bundle.golden
    if golden is None:
        raise BundleError(f"bundle {bundle.name} has no golden logits; write it as a bundle folder first")
    logits, halt = golden_pass(decoder, golden.inputs, golden.context)
    gap = max((logits - golden.logits).abs().max().item(), (halt - golden.halt).abs().max().item())
    return gap, golden.tolerance


def digest(described: Mapping[str, Any]) -> str:
    """sha256 of structure and provenance as JSON; it lies in the weights' file, so that neither can be edited alone."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def save_bundle(
    folder: Path, decoder: TRMDecoder, table: Tensor, provenance: Provenance, golden_inputs: Tensor, golden_rows: Tensor
) -> None:
    """Write a bundle folder. golden_inputs (B, S) int64 are queries, golden_rows (B,) int64 their table rows."""
    structure = decoder.structure
    mean, std = context_statistics(table, structure)
    logits, halt = golden_pass(decoder, golden_inputs, table_context(table[golden_rows], structure))
    tensors = {f"decoder.{name}": t for name, t in decoder.state_dict().items()}
    tensors |= {"table": table.float(), "context_mean": mean, "context_std": std}
    tensors |= {"golden.inputs": golden_inputs.to(torch.int32), "golden.rows": golden_rows.to(torch.int32)}
    tensors |= {"golden.logits": logits, "golden.halt": halt}
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "weights.safetensors"
    described = {"structure": asdict(structure), "provenance": asdict(provenance)}
    save_file(
        {n: t.detach().contiguous().clone() for n, t in tensors.items()}, weights, {"described": digest(described)}
    )
    manifest = {
        "format": FORMAT,
        **described,
        "golden_tolerance": GOLDEN_TOLERANCE[structure.forward_dtype],
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def check_out(folder: Path, recipe: str, data_hash: str) -> None:
    """BundleError unless a bundle of this recipe and data may be written to `folder`: absent, empty, or its last."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    manifest = folder / "manifest.json"
    told = read_json(manifest, BundleError, "give a folder that is not there") if manifest.is_file() else None
    found = told.get("provenance") if isinstance(told, dict) else None
    if not isinstance(found, dict) or (found.get("recipe"), found.get("data_hash")) != (recipe, data_hash):
        raise BundleError(f"{folder} is there and holds something else; give an --out that is not there")


def replace_bundle(folder: Path, *parts: Any) -> Bundle:
    """`save_bundle`, whole or not at all, and the bundle, which is loaded from beside its place first. BundleError
    where it cannot be kept.
    """
    place = folder.resolve()
    partial, before = (place.with_name(f".{place.name}.{os.getpid()}.{word}") for word in ("partial", "before"))
    try:
        save_bundle(partial, *parts)
        bundle = load_bundle(str(partial))
        if place.exists():
            os.replace(place, before)
        os.replace(partial, place)
    except OSError as error:
        raise BundleError(f"{folder} was not written ({error.strerror or error}); give another folder") from error
    finally:
        if before.exists() and not place.exists():  # the second renaming failed
            os.replace(before, place)
        for leftover in (partial, before):
            shutil.rmtree(leftover, ignore_errors=True)
    return replace(bundle, name=str(folder))


def available() -> tuple[str, ...]:
    """Names of the bundles shipped in the package."""
    return tuple(sorted(p.parent.name for p in ASSETS.glob("*/manifest.json")))


def bundle_folder(name: str) -> Path:
    """The folder of an embedded bundle or of a path; BundleError lists the embedded ones."""
    for folder in (ASSETS / name, Path(name)):
        if (folder / "manifest.json").is_file():
            return folder
    raise BundleError(
        f"no decoder bundle {name!r}: neither embedded ({', '.join(available()) or 'none'}) nor a folder with "
        "manifest.json; "
        "make one with: python pretrain_trm.py --config-name cfg_pretrain_cal1"
    )


def _dataclass_from(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise BundleError(f"{where} is {type(data).__name__}, expected an object")
    names = {f.name for f in fields(kind)}
    if set(data) != names:
        raise BundleError(f"{where} lacks {sorted(names - set(data))} and has unknown {sorted(set(data) - names)}")
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})
    except CheckpointError as error:
        raise BundleError(f"{where} is wrong: {error}") from error


def load_bundle(name: str) -> Bundle:
    """Load and check a bundle by embedded name or folder. Its decoder is frozen (`requires_grad` False) and in eval
    mode.

    Raises BundleError naming what is wrong and what to do; never returns a bundle that failed a check.
    """
    folder = bundle_folder(name)
    manifest_path, weights = folder / "manifest.json", folder / "weights.safetensors"
    again = f"; restore {folder} from the release or make it again with its recipe"
    manifest = read_json(manifest_path, BundleError, again.removeprefix("; "))
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError(f"{manifest_path} is not of bundle format {FORMAT}{again}")
    missing = {"structure", "provenance", "golden_tolerance", "weights_sha256"} - set(manifest)
    if missing:
        raise BundleError(f"{manifest_path} lacks {sorted(missing)}{again}")
    if not weights.is_file():
        raise BundleError(f"{weights} is missing{again}")
    sha = hashlib.sha256(weights.read_bytes()).hexdigest()
    told = manifest["weights_sha256"]
    if sha != told:
        raise BundleError(f"{weights} has sha256 {sha[:12]}…, the manifest says {str(told)[:12]}…{again}")
    structure = _dataclass_from(Structure, manifest["structure"], f"structure of {manifest_path}")
    provenance = _dataclass_from(Provenance, manifest["provenance"], f"provenance of {manifest_path}")
    try:
        with safe_open(weights, "pt") as file:
            written = (file.metadata() or {}).get("described")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (safe_open is no mapping)
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{weights} cannot be read: {error}{again}") from error
    if structure.forward_dtype not in GOLDEN_TOLERANCE:
        raise BundleError(f"structure of {manifest_path}: no bundle computes in {structure.forward_dtype}{again}")
    allowed = GOLDEN_TOLERANCE[structure.forward_dtype]
    if manifest["golden_tolerance"] != allowed:
        raise BundleError(
            f"golden_tolerance of {manifest_path} is {manifest['golden_tolerance']!r}, not {allowed}{again}"
        )
    bundle = assemble(name, structure, provenance, tensors, allowed, sha)
    # Golden logits do not depend on every field (halt_max_steps, task ids), so the rest is held by its hash.
    if digest({"structure": asdict(structure), "provenance": asdict(provenance)}) != written:
        raise BundleError(f"structure or provenance of {manifest_path} is not what {weights} was saved with{again}")
    return replace(bundle, described=written)


def _size_faults(own: Mapping[str, Tensor], s: Structure) -> list[str]:
    """Sizes that the tensors do not have: told before a decoder of that size is built. What remains is told after."""
    layers = {n.split(".")[2] for n in own if n.startswith("L_level.layers.")}
    embedding = own.get("embed_tokens.embedding_weight")
    told = {
        "layers": (s.layers, len(layers)),
        "vocab_size and hidden_size": ((s.vocab_size, s.hidden_size), () if embedding is None else embedding.shape),
    }
    faults = [f"{n} is {said}, {found} in the tensors" for n, (said, found) in told.items() if said != found]
    largest = max((t.numel() for t in own.values()), default=0)
    if s.expansion * s.hidden_size**2 > 64 * largest + 256 * 1024 or s.h_cycles * s.l_cycles * s.layers > MOST_PASSES:
        faults.append(f"expansion {s.expansion:g}, {s.h_cycles} H and {s.l_cycles} L cycles are no such decoder's")
    return faults


def _extra_faults(tensors: Mapping[str, Tensor], s: Structure) -> list[str]:
    """What of table, statistics and golden samples has not the type, shape or range that the structure asks for."""
    table, inputs = tensors["table"], tensors["golden.inputs"]
    width = table.shape[1] if table.dim() == 2 else 0
    count = len(inputs) if inputs.dim() == 2 else 0
    expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "table": ((len(table) if table.dim() else 0, width), torch.float32),  # (R, W)
        "context_mean": ((s.context_tokens, s.hidden_size), torch.float32),
        "context_std": ((s.context_tokens,), torch.float32),
        "golden.inputs": ((count, s.seq_len), torch.int32),  # (B, S)
        "golden.rows": ((count,), torch.int32),
        "golden.logits": ((count, s.seq_len, s.vocab_size), torch.float32),
        "golden.halt": ((count,), torch.float32),
    }
    faults = [
        f"{n} is {tuple(tensors[n].shape)} {tensors[n].dtype}, expected {shape} {dtype}"
        for n, (shape, dtype) in expected.items()
        if tuple(tensors[n].shape) != shape or tensors[n].dtype != dtype
    ]
    faults += [f"{n} is not finite" for n in sorted(tensors) if not bool(torch.isfinite(tensors[n]).all())]
    if faults or not count:
        return faults or ["it has no golden samples"]
    if not 0 < width <= s.context_tokens * s.hidden_size:
        faults.append(f"table rows are {width} wide, expected 1..{s.context_tokens * s.hidden_size}")
    for name, most in (("golden.inputs", s.vocab_size), ("golden.rows", len(table))):
        if not 0 <= int(tensors[name].min()) <= int(tensors[name].max()) < most:
            faults.append(f"{name} leaves 0..{most - 1}")
    return faults


def assemble(
    name: str, structure: Structure, provenance: Provenance, tensors: Mapping[str, Tensor], tolerance: float, sha: str
) -> Bundle:
    """Build a bundle from its parts and check keys, shapes, statistics and golden logits; BundleError says which
    fails.
    """
    extras = {"table", "context_mean", "context_std", "golden.inputs", "golden.rows", "golden.logits", "golden.halt"}
    own = {n.removeprefix("decoder."): t for n, t in tensors.items() if n.startswith("decoder.")}
    others = {n for n in tensors if not n.startswith("decoder.")}
    if others != extras:
        raise BundleError(f"bundle {name}: lacks {sorted(extras - others)}, has unknown {sorted(others - extras)}")
    if faults := _size_faults(own, structure) or _extra_faults(tensors, structure):
        raise BundleError(f"bundle {name}: {'; '.join(faults)}; make the bundle again with: {provenance.recipe}")
    decoder = TRMDecoder(structure)
    try:
        load_decoder_tensors(decoder, own, f"bundle {name}")
    except CheckpointError as error:
        raise BundleError(f"{error}; make the bundle again with: {provenance.recipe}") from error
    decoder.requires_grad_(False).eval()
    table = tensors["table"]
    if table.shape[0] != len(provenance.row_names):
        raise BundleError(f"bundle {name}: {table.shape[0]} table rows but {len(provenance.row_names)} row names")
    mean, std = context_statistics(table, structure)
    for key, value in (("context_mean", mean), ("context_std", std)):
        if tensors[key].shape != value.shape or not torch.allclose(tensors[key], value, atol=1e-5):
            raise BundleError(f"bundle {name}: {key} does not describe its table")
    rows = tensors["golden.rows"].long()
    logits, halt = golden_pass(decoder, tensors["golden.inputs"].long(), table_context(table[rows], structure))
    for key, value in (("golden.logits", logits), ("golden.halt", halt)):
        gap = (value - tensors[key]).abs().max().item()
        if not gap <= tolerance:
            raise BundleError(
                f"bundle {name} does not reproduce its {key}: largest difference {gap:.3g}, allowed {tolerance:g}. "
                f"Weights are right (sha256), so its structure (H/L cycles, positions, dtype) or this code is not what "
                f"was "
                f"trained; compare with: {provenance.recipe}"
            )
    golden = Golden(
        tensors["golden.inputs"].long(),
        table_context(table[rows], structure),
        tensors["golden.logits"],
        tensors["golden.halt"],
        tolerance,
    )
    return Bundle(
        name, sha, structure, provenance, decoder, table, tensors["context_mean"], tensors["context_std"], golden
    )

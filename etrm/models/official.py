"""The public TRM checkpoint as a decoder bundle.

Notable: the file is 1.8 GB, of which the decoder is 27 MB and the rest one table row for each of 876,406 augmented
puzzles. Tensors are copied one at a time from a mapped file, so at most one is in memory twice; of the table only
TABLE_SAMPLE rows, evenly spread, are read, and they stand for it in the bundle and in its context statistics. A row
fills the first of 16 context tokens, the others are zero.

Legend: S canvas cells, T context tokens, D hidden, W a row's width.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from etrm.data.arc import Task, load_arc
from etrm.errors import BundleError, CheckpointError
from etrm.models.bundle import (
    ASSETS,
    Bundle,
    Provenance,
    bundle_folder,
    context_statistics,
    load_bundle,
    replace_bundle,
)
from etrm.models.layers import Attention
from etrm.models.official_file import CONFIG, OfficialFile, map_state, open_official
from etrm.models.trm import TRMDecoder, decoder_faults

TABLE_SAMPLE = 256
ROWS_AT_ONCE = 8
RECIPE = "public checkpoint"


class Unfilled(TorchFunctionMode):
    """Inside, `torch.empty` gives tensors without storage and filling them in place does nothing.

    So a module whose weights are loaded anyway costs neither memory nor random draws for them. `torch.device("meta")`
    would do arithmetic on such tensors too, for which torch imports 60 MB of itself.
    """

    FILLING = ("uniform_", "normal_", "erfinv_", "mul_", "add_", "clamp_", "zero_", "fill_")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func is torch.empty:
            return func(*args, **named | {"device": "meta"})
        return args[0] if getattr(func, "__name__", "") in self.FILLING else func(*args, **named)


def build_decoder(file: OfficialFile) -> TRMDecoder:
    """The decoder with the file's weights, copied one tensor at a time; frozen, in eval mode.

    CheckpointError naming missing, unexpected and misshapen tensors, or one that is not finite.
    """
    with Unfilled():
        decoder = TRMDecoder(file.structure)
    if faults := decoder_faults(decoder, file.shapes):
        more = f"; and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise CheckpointError(
            f"{file.path} is of another architecture than its config says: {'; '.join(faults[:4])}{more}; "
            "take both from one release"
        )
    dtypes = {name: own.dtype for name, own in decoder.state_dict().items()}
    weights = {name: file.tensor(name).to(dtype, copy=True) for name, dtype in dtypes.items()}
    decoder.load_state_dict(weights, strict=True, assign=True)
    for module in decoder.modules():
        if isinstance(module, Attention):
            module.fused = True
    return decoder.requires_grad_(False).eval()


def sample_rows(file: OfficialFile, rows: Mapping[str, int] | None) -> tuple[tuple[str, ...], Tensor]:
    """Names and values (n, W) fp32 of the given rows, else of TABLE_SAMPLE spread evenly, row 0 (blank) left out."""
    if file.table is None:
        raise CheckpointError(
            f"{file.path} has no puzzle table, which an encoder's contexts must match; fetch the whole file"
        )
    name, count, _ = file.table
    if rows is None:
        first = min(1, count - 1)
        spread = torch.linspace(first, count - 1, min(TABLE_SAMPLE, count - first), dtype=torch.float64)
        rows = {f"row_{i}": i for i in spread.round().long().tolist()}
    if outside := [n for n, i in rows.items() if not 0 <= i < count]:
        raise CheckpointError(f"{file.path}: its table has {count} rows; {outside[0]} asks for row {rows[outside[0]]}")
    index, values = list(rows.values()), []
    for start in range(0, len(index), ROWS_AT_ONCE):  # a row drags its neighbourhood into memory, a new mapping lets go
        values.append(map_state(file.path)[name][torch.tensor(index[start : start + ROWS_AT_ONCE])].float())
    table = torch.cat(values)
    if not bool(torch.isfinite(table).all()):
        raise CheckpointError(f"{file.path}: its puzzle table has rows that are not finite; fetch the file again")
    return tuple(rows), table


def record_sha256(path: Path) -> str:
    """The file's sha256: written to `path`.sha256 the first time, then compared with it. CheckpointError if changed."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    note = path.with_name(f"{path.name}.sha256")
    try:
        if not note.is_file():
            partial = note.with_name(f".{note.name}.{os.getpid()}.partial")  # another rank may be reading
            partial.write_text(f"{found}  {path.name}\n")
            os.replace(partial, note)
        told = (note.read_text().split() or ["nothing"])[0]
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{note} cannot be read or written ({error}); move the checkpoint to a folder of yours"
        ) from error
    if told != found:
        raise CheckpointError(
            f"{path} has sha256 {found[:16]}…, but {note} recorded {told[:16]}… at its first use: it has changed. "
            f"Fetch it again, or delete {note.name} if you changed it yourself"
        )
    return found


def known_tasks(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Base ids whose demonstrations trained the decoder: all of the ARC versions that its data paths name, or of both.

    TRM trains on the demonstrations of its evaluation tasks too. ConceptARC's tasks were among them, without ids here.
    """
    paths = str(config.get("data_paths", ""))
    tasks: list[Task] = []
    if "arc1" in paths or "arc2" not in paths:
        tasks += [*load_arc(1, "training"), *load_arc(1, "evaluation")]
    if "arc2" in paths or "arc1" not in paths:
        tasks += [*load_arc(2, "training"), *load_arc(2, "evaluation")]
    return tuple(sorted({task.id for task in tasks}))


def load_official(path: Path | str, rows: Mapping[str, int] | None = None) -> Bundle:
    """A checkpoint as a bundle: its decoder, a sample of its table (or the named `rows`), and their statistics.

    Records the file's sha256 beside it on first use. Raises CheckpointError; nothing is merged or padded to fit.
    """
    file = open_official(Path(path))
    sha = record_sha256(file.path)
    names, table = sample_rows(file, rows)
    mean, std = context_statistics(table, file.structure)
    decoder = build_decoder(file)
    step = re.fullmatch(r"step_(\d+)", file.path.name)
    seed = file.config.get("seed")
    assert file.table is not None  # else sample_rows has raised
    provenance = Provenance(
        recipe=f"{RECIPE} {file.path.parent.name}/{file.path.name}, sha256 {sha}",
        benchmark="arc-agi-1",
        seed=seed if type(seed) is int else -1,
        updates=int(step.group(1)) if step else -1,
        data_hash="not published",
        task_ids=known_tasks(file.config),
        row_names=names,
        torch="not published",
        ceiling={
            "k": 0,
            "n": 0,
            "note": f"not measured; {len(names)} of {file.table[1]} table rows stand for the table",
        },
    )
    return Bundle(str(path), sha, file.structure, provenance, decoder, table, mean, std)


def write_bundle_once(path: Path | str, folder: Path, rows: Mapping[str, int] | None = None) -> Bundle:
    """Make a bundle folder (28 MB, or with all of the table's `rows` 1.8 GB) of an official checkpoint, or load the one
    that was made of it before.

    Raises BundleError if `folder` holds something else, also other rows: nothing is written over.
    """
    if (folder / "manifest.json").is_file():
        bundle = load_bundle(str(folder))
        source = Path(path)
        # Without the 1.8 GB its name must do.
        told = record_sha256(source) if source.is_file() else f"{source.parent.name}/{source.name},"
        if not bundle.provenance.recipe.startswith(RECIPE) or told not in bundle.provenance.recipe:
            raise BundleError(
                f"{folder} holds another bundle ({bundle.provenance.recipe}); give a folder that is not there"
            )
        if source.is_file() and (changed := bundle.structure.differences(open_official(source).structure)):
            raise BundleError(
                f"{folder} was made when {source.parent / CONFIG} said otherwise ({'; '.join(changed)}); give a folder "
                "that is not there"
            )
        held = bundle.provenance.row_names
        if rows is not None and held != tuple(rows):
            raise BundleError(
                f"{folder} holds {len(held)} table rows ({held[0]}, …), not the {len(rows)} asked for "
                f"({next(iter(rows), 'none')}, …); give a folder that is not there"
            )
        return bundle
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleError(f"{folder} is there and is no bundle; give a folder that is not there")
    official = load_official(path, rows)
    s = official.structure
    golden = torch.randint(2, s.vocab_size, (1, s.seq_len), generator=torch.Generator().manual_seed(0))
    first = torch.zeros(1, dtype=torch.int64)
    return replace_bundle(folder, official.decoder, official.table, official.provenance, golden, first)


def resolve_bundle(name: str) -> Bundle:
    """A bundle by embedded name, by folder, or of an official checkpoint `…/step_N`. BundleError or CheckpointError."""
    path = Path(name)
    if (ASSETS / name / "manifest.json").is_file() or (path / "manifest.json").is_file():
        return load_bundle(name)
    if path.is_file() or re.fullmatch(r"step_\d+", path.name):
        return load_official(path)
    if steps := sorted(p.name for p in path.glob("step_*") if p.is_file()):
        raise BundleError(f"{path} is the folder of a checkpoint; give the file in it: bundle={path / steps[-1]}")
    return load_bundle(str(bundle_folder(name)))  # bundle_folder raises, naming the bundles that there are

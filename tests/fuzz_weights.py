"""Files of weights for the fuzzers: samples, damage, and second opinions on what a reader took."""

import hashlib
import io
import json
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from etrm.models.bundle import ASSETS, Bundle, golden_gap, load_bundle
from tests.fuzz_damage import damage_bytes, damage_json, damage_yaml
from tests.official_samples import TINY, write_official


def equal(mine: Any, theirs: Any) -> bool:
    """Bit by bit, through nested values."""
    if isinstance(mine, torch.Tensor) and isinstance(theirs, torch.Tensor):
        same = mine.shape == theirs.shape and mine.dtype == theirs.dtype
        return same and torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (mine, theirs)))
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return mine.keys() == theirs.keys() and all(equal(v, theirs[k]) for k, v in mine.items())
    if isinstance(mine, list | tuple) and isinstance(theirs, list | tuple):
        return len(mine) == len(theirs) and all(equal(a, b) for a, b in zip(mine, theirs, strict=True))
    return bool(type(mine) is type(theirs) and mine == theirs)


CHECKPOINT = {
    "format": 2,
    "step": 7,
    "epoch": 0.5,
    "model": {"model.decoder.a": torch.arange(300.0).view(3, 100), "model.encoder.b": torch.ones(5, dtype=torch.int64)},
    "config": {"run": "r", "n": [1, 2.5, None, True]},
}


def torch_sample(folder: Path, draw: random.Random) -> Path:
    path = folder / "step_7"
    torch.save(CHECKPOINT, path)
    return path


def state_sample(folder: Path, draw: random.Random) -> Path:
    path = folder / "step_7"
    torch.save(CHECKPOINT["model"], path)
    return path


def damage_archive(path: Path, draw: random.Random) -> None:
    """Damage of bytes; or the entries packed, inflated or dropped; or the pickle's bytes with a right checksum."""
    way = draw.randrange(6)
    if way < 2:
        return damage_bytes(path, draw)
    with zipfile.ZipFile(path) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    kind = zipfile.ZIP_STORED
    if way == 2:
        kind = zipfile.ZIP_DEFLATED
        entries = [(n, d if draw.random() < 0.7 else b"\0" * 2_000_000) for n, d in entries]
    elif way == 3:
        del entries[draw.randrange(len(entries))]
    else:
        i = next(i for i, (n, _) in enumerate(entries) if n.endswith("data.pkl"))
        data = bytearray(entries[i][1])
        for _ in range(draw.choice((1, 2, 4))):
            data[draw.randrange(len(data))] = draw.randrange(256)
        entries[i] = (entries[i][0], bytes(data))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    path.write_bytes(buffer.getvalue())
    return None


def checkpoint_wrong(payload: Any, path: Path) -> str | None:
    """With right checksums another pickle may be taken: then the run's own check must refuse it (see `resumable`)."""
    return None if equal(payload, CHECKPOINT) or not _bytes_only(path) else "its content is not what was written"


def _bytes_only(path: Path) -> bool:
    """Whether the pickle inside is the one that torch wrote (so that any other content is a flipped bit)."""
    with zipfile.ZipFile(path) as archive:
        name = next((n for n in archive.namelist() if n.endswith("data.pkl")), None)
        return name is None or archive.read(name) == _pickle()


def _pickle() -> bytes:
    buffer = io.BytesIO()
    torch.save(CHECKPOINT, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))


_GOOD: dict[str, Bundle] = {}


def bundle_sample(folder: Path, draw: random.Random) -> Path:
    target = folder / "bundle"
    shutil.copytree(ASSETS / "micro", target, dirs_exist_ok=True)
    return target


def damage_bundle(path: Path, draw: random.Random) -> None:
    """Bytes of either file; the manifest's values; or other weights under a right hash."""
    weights, manifest = path / "weights.safetensors", path / "manifest.json"
    way = draw.randrange(5)
    if way == 0:
        return damage_json(manifest, draw)
    if way == 1:
        damage_bytes(weights, draw)
        if draw.random() < 0.3:
            return None
    elif way == 2:
        tensors = load_file(weights)
        name = draw.choice(sorted(tensors))
        value = tensors[name]
        match draw.randrange(6):
            case 0:
                tensors[name] = value.to(draw.choice((torch.float16, torch.bfloat16, torch.int64, torch.bool)))
            case 1:
                tensors[name] = value[..., :-1].contiguous()
            case 2:
                del tensors[name]
            case 3:
                tensors[name + "x"] = value.clone()
            case 4:
                tensors[name] = value.clone().view(-1).index_fill(0, torch.tensor([0]), -3).view(value.shape)
            case 5:
                tensors[name] = value.reshape(-1)
        save_file(tensors, weights, {"described": "x" * draw.randrange(3)})
    elif way == 3:
        (weights if draw.random() < 0.5 else manifest).unlink()
        return None
    else:
        length = draw.choice((2**63 - 1, 2**40, 0, len(weights.read_bytes())))
        weights.write_bytes(length.to_bytes(8, "little") + weights.read_bytes()[8:])
    written = json.loads(manifest.read_text())
    written["weights_sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(written))
    return None


def bundle_wrong(bundle: Bundle, path: Path) -> str | None:
    """Whoever writes a new hash into the manifest makes another bundle, shown under another sha256; with the old hash,
    or other than the golden logits tell, it must be the old one.
    """
    good = _GOOD.setdefault("micro", load_bundle("micro"))
    if bundle.sha256 != good.sha256:
        gap, allowed = golden_gap(good, bundle.decoder)
        return None if gap <= allowed and bundle.structure == good.structure else "it answers otherwise"
    same = equal(bundle.decoder.state_dict(), good.decoder.state_dict()) and equal(bundle.table, good.table)
    same = same and (bundle.structure, bundle.provenance) == (good.structure, good.provenance)
    return None if same else "it is not the decoder that was saved"


def official_sample(folder: Path, draw: random.Random) -> Path:
    path = folder / "step_5"
    if not (folder / "all_config.yaml").is_file():
        write_official(folder, TINY, rows=20, step=5)
    return path


def damage_official(path: Path, draw: random.Random) -> None:
    if draw.random() < 0.5:
        damage_archive(path, draw)
    else:
        damage_yaml(path.with_name("all_config.yaml"), draw)


def official_wrong(file: Any, path: Path) -> str | None:
    return None if file.structure.hidden_size == 32 else "another structure than the tensors'"

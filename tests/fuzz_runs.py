"""What a run leaves in its folder, for the fuzzers: cache entries, manifests, configs, and checkpoints to go on from.

Notable: a checkpoint is damaged inside, part by part, under right checksums; what is taken all the same must be fit for
one more update.
"""

import copy
import json
import random
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from etrm.config.compose import load, to_dict
from etrm.config.schema import RunConfig
from etrm.data.episodes import Source
from etrm.errors import CheckpointError
from etrm.experiment.arms import build_arm
from etrm.experiment.manifest import read_manifest, write_manifest
from etrm.experiment.rerun import config_of
from etrm.experiment.run_cache import DONE, REQUIRED_PARTS, RunCache, find_damage
from etrm.models.bundle import load_bundle
from etrm.models.etrm import Episodes
from etrm.training.checkpoint import newest_whole, resume
from etrm.training.loop import encoder_state, fit
from etrm.training.run import build_head, open_run_folder
from etrm.training.update import TrainState, train_batch_encoder
from tests.fuzz_damage import damage_bytes, damage_json

CPU = torch.device("cpu")
SIZE = ("encoder.hidden_size=32", "encoder.num_heads=2", "encoder.layers=1", "budget.batch_size=4", "budget.updates=8")
REST = ("budget.log_every=1", "budget.checkpoint_every=4", "optim.ema_decay=0.9", "optim.warmup_updates=1")
PARTS = {name: f"{name}-1" for name in REQUIRED_PARTS}


@lru_cache(maxsize=1)
def config() -> RunConfig:
    return load(RunConfig, "cfg_micro", [*SIZE, *REST], Path(__file__).resolve().parent.parent / "config")


@lru_cache(maxsize=1)
def source() -> Source:
    return build_arm(config(), load_bundle("micro")).source


def fresh() -> TrainState:
    return encoder_state(config(), build_head(config(), load_bundle("micro"), CPU), len(source().task_ids))


@lru_cache(maxsize=1)
def state() -> TrainState:
    """The state that every damaged checkpoint is offered to."""
    return fresh()


@lru_cache(maxsize=1)
def finished() -> Path:
    """A folder with metrics and the checkpoint step_4 of a run that is to go on."""
    folder = Path(tempfile.mkdtemp())
    rng = np.random.default_rng(0)
    fit(config(), fresh(), source(), rng, CPU, folder / "metrics.jsonl", folder, stop_after=4)
    return folder


def resume_sample(folder: Path, draw: random.Random) -> Path:
    for name in ("step_4", "metrics.jsonl"):
        shutil.copy(finished() / name, folder / name)
    return folder / "step_4"


def damage_parts(path: Path, draw: random.Random) -> None:
    """One or two places inside the payload, or the metrics file beside it."""
    if draw.random() < 0.1:
        return damage_bytes(path.with_name("metrics.jsonl"), draw)
    payload = torch.load(path, weights_only=True)
    for _ in range(draw.choice((1, 1, 2))):
        spoil(payload, draw)
    torch.save(payload, path)
    return None


def spoil(value: Any, draw: random.Random) -> None:
    """One random change somewhere inside nested dicts and lists that hold tensors."""
    while True:
        key = draw.choice(list(value)) if isinstance(value, dict) else draw.randrange(len(value))
        inner = value[key]
        if isinstance(inner, dict | list) and inner and draw.random() < 0.85:
            value = inner
            continue
        if isinstance(inner, torch.Tensor) and draw.random() < 0.8:
            value[key] = other(inner, draw)
        elif draw.random() < 0.3:
            del value[key]
        else:
            odd = (None, True, -1, 2**70, 1.5, float("nan"), "x", [], {}, torch.zeros(3), torch.ones(2, 2).bool())
            value[key] = draw.choice(odd)
        return


def other(t: torch.Tensor, draw: random.Random) -> torch.Tensor:
    """Another shape, type or range; or numbers that no training gives."""
    flat = t.reshape(-1)
    match draw.randrange(7):
        case 0:
            return t.double() if t.is_floating_point() else t.float()
        case 1:
            return flat
        case 2:
            return torch.cat((flat, flat))
        case 3:
            return t.new_zeros((0,))
        case 4:
            return t.clone().fill_(float("nan")) if t.is_floating_point() else t.clone().fill_(99)
        case 5:
            return t.new_zeros(()).expand(2**20, 2**10)
        case _:
            return t.to(torch.int32) if not t.is_floating_point() else t.half()


def read_resumed(path: Path) -> Any:
    say: list[str] = []
    found = newest_whole(path.parent, path.with_name("metrics.jsonl"), say.append)
    assert found is not None
    rng = np.random.default_rng(0)
    resume(found[0], config(), state(), rng, found[1])
    return rng


def resume_wrong(rng: np.random.Generator, path: Path) -> str | None:
    trial = copy.deepcopy(state())
    batch = Episodes.of(source().sample(4, rng), CPU)
    metrics = train_batch_encoder(config(), trial, batch, 4)
    return None if all(np.isfinite(v) or "exact" in n for n, v in metrics.items()) else "an update gave no number"


def folder_sample(folder: Path, draw: random.Random) -> Path:
    return open_run_folder(folder, config(), load_bundle("micro")) / "all_config.yaml"


def read_folder(path: Path) -> Path:
    return open_run_folder(path.parents[2], config(), load_bundle("micro"))


def folder_wrong(found: Path, path: Path) -> str | None:
    import yaml

    written = yaml.safe_load(path.read_text())
    same = all(written[k] == v for k, v in to_dict(config()).items())
    return None if same else "another config was taken for this one"


def manifest_sample(folder: Path, draw: random.Random) -> Path:
    good = finished() / "manifest.json"
    if not good.is_file():
        write_manifest(finished(), config(), load_bundle("micro"), 1)
    shutil.copy(good, folder / "manifest.json")
    return folder / "manifest.json"


def damage_manifest(path: Path, draw: random.Random) -> None:
    """Damage of JSON, half the time with the hash of the config made right again."""
    damage_json(path, draw)
    if draw.random() < 0.5:
        import hashlib

        try:
            document = json.loads(path.read_bytes())
            text = json.dumps(document["config"], sort_keys=True, separators=(",", ":"))
            document["config_sha256"] = hashlib.sha256(text.encode()).hexdigest()
        except (ValueError, KeyError, TypeError, RecursionError):
            return
        path.write_text(json.dumps(document))


def read_run(path: Path) -> Any:
    manifest = read_manifest(path)
    return config_of(path, manifest)


def manifest_wrong(found: RunConfig, path: Path) -> str | None:
    return None if to_dict(found) == json.loads(path.read_text(encoding="utf-8-sig"))["config"] else "another config"


def cache_sample(folder: Path, draw: random.Random) -> Path:
    def produce(place: Path) -> None:
        (place / "weights").write_bytes(b"w" * 100)

    return RunCache(folder, announce=lambda _: None).get_or_run(PARTS, produce).path / DONE


def damage_cache(path: Path, draw: random.Random) -> None:
    if draw.random() < 0.8:
        damage_json(path, draw)
    else:
        damage_bytes(path.with_name("weights"), draw)


def read_cached(path: Path) -> Path:
    """The cache tells damage by a sentence, not by an error: the run is done again."""
    if damage := find_damage(path.parent, PARTS):
        raise CheckpointError(damage)
    return path


def cache_wrong(found: Path, path: Path) -> str | None:
    return None if path.with_name("weights").read_bytes() == b"w" * 100 else "altered weights were taken"

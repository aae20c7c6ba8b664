"""Every key of the seed's config changes something that a run leaves behind or says; none is read and forgotten.

Each key is changed alone, on a run of a few updates on which it can matter, and the two runs' traces are compared:
metrics, summary, files, what was said, or a refusal.
"""

import importlib.util
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from etrm.errors import EtrmError
from etrm.experiment.pretraining import Pretraining, load_run
from etrm.experiment.questions import PretrainingConfig
from tests.official_samples import write_official


def words(text: str) -> list[str]:
    return text.split()


MICRO = words(
    "bundle=micro run=r data.benchmark=micro-2 data.train_tasks=0 data.augmentations=1 data.max_demos=3 "
    "data.colour_augmentation=false encoder.name=aligned encoder.hidden_size=32 encoder.num_heads=2 encoder.layers=1 "
    "budget.updates=4 budget.epochs=0 budget.batch_size=4 budget.log_every=1 budget.checkpoint_every=2 "
    "budget.evaluations=1 optim.warmup_updates=0 optim.ema_decay=0.5 evaluation_tasks=2 evaluation.seen_queries=1 "
    "evaluation.unseen_queries=1 evaluation.probe_queries=1 system.device=cpu"
)
ARC = words(
    "run=r data.train_tasks=3 encoder.hidden_size=32 encoder.num_heads=2 encoder.layers=1 budget.updates=2 "
    "budget.epochs=0 budget.batch_size=4 budget.log_every=1 budget.checkpoint_every=2 budget.evaluations=1 "
    "optim.warmup_updates=0 evaluation_tasks=2 evaluation.augmentations=2 system.device=cpu"
)
TEACH = ["loss.objective=lm+table", "loss.table_share=0.5"]
STAGED = ["freeze.decoder_updates=2"]
COOL = ["optim.cooldown_share=1.0"]
# key: (run on which it matters, further overrides of both runs, the changed value)
CHANGED: dict[str, tuple[list[str], list[str], str]] = {
    "project": (MICRO, [], "other"),
    "run": (MICRO, [], "other"),
    "bundle": (MICRO, [], "cal-1"),
    "evaluation_tasks": (MICRO, [], "3"),
    "precision": (MICRO, [], "bfloat16"),
    "compile": (MICRO, [], "true"),
    "trackers": (MICRO, [], "wandb"),
    "data.benchmark": (ARC, [], "arc-agi-2"),
    "data.train_tasks": (ARC, [], "4"),
    "data.augmentations": (ARC, [], "1"),
    "data.colour_augmentation": (ARC, [], "false"),
    "data.max_demos": (ARC, [], "1"),
    "data.leave_one_out": (ARC, [], "true"),
    "encoder.name": (MICRO, [], "standard"),
    "encoder.hidden_size": (MICRO, [], "16"),
    "encoder.num_heads": (MICRO, [], "1"),
    "encoder.layers": (MICRO, [], "2"),
    "encoder.set_layers": (MICRO, ["encoder.name=standard"], "2"),
    "loss.objective": (MICRO, ["loss.table_share=0.5"], "lm+table"),
    "loss.cross_entropy": (MICRO, [], "softmax"),
    "loss.halt_weight": (MICRO, [], "0.1"),
    "loss.table_share": (MICRO, TEACH, "1.0"),
    "optim.name": (MICRO, [], "adamw"),
    "optim.lr": (MICRO, [], "1e-3"),
    "optim.beta1": (MICRO, [], "0.5"),
    "optim.beta2": (MICRO, [], "0.5"),
    "optim.weight_decay": (MICRO, [], "0.5"),
    "optim.warmup_updates": (MICRO, ["budget.updates=10"], "2"),
    "optim.cooldown_share": (MICRO, ["optim.min_ratio=0.1"], "1.0"),
    "optim.min_ratio": (MICRO, COOL, "0.1"),
    "optim.clip_norm": (MICRO, [], "1e-4"),
    "optim.ema_decay": (MICRO, [], "0.9"),
    "budget.updates": (MICRO, [], "6"),
    "budget.epochs": (MICRO, ["budget.updates=0", "budget.epochs=36"], "18"),
    "budget.batch_size": (MICRO, [], "6"),
    "budget.evaluations": (MICRO, [], "2"),
    "budget.log_every": (MICRO, [], "2"),
    "budget.checkpoint_every": (MICRO, [], "4"),
    "act.exploration": (MICRO, ["bundle=micro", "budget.updates=24", "budget.checkpoint_every=24"], "1.0"),
    "freeze.decoder_updates": (MICRO, [], "2"),
    "freeze.joint_lr": (MICRO, STAGED, "1e-2"),
    "evaluation.batch_size": (MICRO, [], "1"),
    "evaluation.seen_queries": (ARC, [], "1"),
    "evaluation.unseen_queries": (ARC, [], "1"),
    "evaluation.probe_queries": (ARC, [], "1"),
    "evaluation.augmentations": (ARC, [], "3"),
    "evaluation.constant_updates": (ARC, [], "1"),
    "evaluation.oracle_tasks": (ARC, [], "1"),
    "evaluation.oracle_updates": (ARC, [], "1"),
    "evaluation.search_updates": (ARC, [], "1"),
    "system.device": (MICRO, [], "mps"),
    "system.seed": (MICRO, [], "1"),
}


def leaves(kind: Any, at: str = "") -> list[str]:
    return [
        name
        for f in fields(kind)
        for name in (leaves(f.type, f"{at}{f.name}.") if is_dataclass(f.type) else [f"{at}{f.name}"])
    ]


def trace(root: Path, overrides: list[str], batches: list[int]) -> dict[str, Any]:
    """What a run leaves, without what merely repeats the config; what compiling said; or why it was refused."""
    said: list[str] = []
    try:
        config, claims = load_run("cfg_test_frozen_decoder", overrides)
        made = Pretraining(config, claims, root, said.append)
        encode = made.prepared.questions.encode

        def counted(part):
            batches.append(len(part))
            return encode(part)

        object.__setattr__(made.prepared.questions, "encode", counted)
        summary = made.run()
    except EtrmError as error:
        return {"refused": str(error)}
    files = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    kept = {"evaluations": summary["evaluations"], "fate": summary["decoder"]["fate"]}
    told = [line for line in said if line.startswith("compile:")]
    return {"files": files, **kept, "told": told, "log": (made.folder / "metrics.jsonl").read_text()}


@pytest.mark.fast
def test_no_key_is_left_out() -> None:
    assert set(leaves(PretrainingConfig)) == set(CHANGED)


@pytest.mark.slow
@pytest.mark.parametrize("base", [MICRO, ARC], ids=["micro", "arc"])
def test_the_same_keys_leave_the_same_trace(tmp_path: Path, base: list[str]) -> None:
    """So that a difference below is the key's."""
    both = [f"bundle={write_official(tmp_path / 'arc_v1_public')}"] if base is ARC else []
    assert trace(tmp_path / "one", [*base, *both], []) == trace(tmp_path / "two", [*base, *both], [])


@pytest.mark.slow
@pytest.mark.parametrize("key", CHANGED)
def test_changing_a_key_changes_the_run(tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base, both, value = CHANGED[key]
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "wandb" else found(name))
    monkeypatch.setattr(
        "etrm.experiment.pretraining.compile_checked", lambda model, probe, say: say("compile: pretended")
    )
    if base is ARC:
        both = [*both, f"bundle={write_official(tmp_path / 'arc_v1_public')}"]
    sizes: tuple[list[int], list[int]] = ([], [])
    before = trace(tmp_path / "before", [*base, *both], sizes[0])
    after = trace(tmp_path / "after", [*base, *both, f"{key}={value}"], sizes[1])
    assert "refused" not in before, before
    assert (before, sizes[0]) != (after, sizes[1])
    if key == "evaluation.batch_size":  # the answers must not change with it
        assert before == after

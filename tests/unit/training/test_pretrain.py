"""Pretraining from config to bundle: an interrupted run exports what a straight one does; every field is read."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etrm.config.compose import load
from etrm.config.schema import PretrainConfig
from etrm.data.arc import load_arc
from etrm.data.arc_split import ARC_BENCHMARKS
from etrm.data.grids import IGNORE
from etrm.errors import BundleError, CheckpointError, ConfigError, DataError
from etrm.models.bundle import load_bundle
from etrm.models.etrm import TableTRM
from etrm.models.trm import TRMDecoder, table_context
from etrm.training import pretrain as module
from etrm.training.loop import pretrain_state
from etrm.training.optimizers import SignSGD
from etrm.training.pretrain import data_hash, exact_with_own_contexts, make_structure, pretrain, pretraining_task
from etrm.training.update import LossHead

pytestmark = pytest.mark.thorough

CONFIG_ROOT = Path(__file__).resolve().parents[3] / "config"
SMALL = ("arch.hidden_size=16", "system.device=cpu", "optim.warmup_updates=1")
BUDGET = ("budget.updates=8", "budget.batch_size=4", "budget.log_every=2", "budget.checkpoint_every=4")


def config(*overrides: str, name: str = "cfg_pretrain_micro") -> PretrainConfig:
    return load(PretrainConfig, name, [*SMALL, *BUDGET, *overrides], CONFIG_ROOT)


def run(folder: Path, chosen: PretrainConfig, **options: Any) -> Any:
    return pretrain(chosen, "cfg_x", folder / "bundle", folder / "checkpoints", say=lambda text: None, **options)


@pytest.fixture(autouse=True)
def few_ceiling_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CEILING_QUERIES", 48)


@pytest.mark.parametrize("ema", ["0.0", "0.9"])
def test_an_interrupted_run_exports_the_bundle_of_a_straight_one_bit_for_bit(tmp_path: Path, ema: str) -> None:
    chosen = config(f"optim.ema_decay={ema}")
    run(tmp_path / "straight", chosen)
    state = run(tmp_path / "stopped", chosen, stop_after=4)
    assert state.step == 4 and not (tmp_path / "stopped" / "bundle").exists()
    run(tmp_path / "stopped", chosen)
    files = [
        [(tmp_path / f / "bundle" / n).read_bytes() for n in ("weights.safetensors", "manifest.json")]
        for f in ("straight", "stopped")
    ]
    assert files[0] == files[1]
    run(tmp_path / "stopped", chosen)  # a finished run exports again without another update
    assert (tmp_path / "stopped" / "bundle" / "weights.safetensors").read_bytes() == files[0][0]


def test_the_exported_bundle_loads_and_says_what_was_executed(tmp_path: Path) -> None:
    chosen = config("optim.ema_decay=0.5")
    state = run(tmp_path, chosen)
    bundle = load_bundle(str(tmp_path / "bundle"))
    task = pretraining_task(chosen)
    p = bundle.provenance
    assert (p.benchmark, p.updates, p.seed, p.row_names) == ("micro-2", 8, 0, task.row_names)
    assert p.recipe == "python pretrain_trm.py --config-name cfg_x" and p.ceiling["n"] == 48
    assert bundle.structure == make_structure(chosen.arch, 3)
    # The averaged weights are exported, and the table has learned something.
    assert state.ema is not None
    assert torch.equal(bundle.table, state.ema.shadow["model.puzzle_emb.weights"]) and bundle.table.any()


def test_decoder_and_table_both_move_each_by_its_own_optimiser(tmp_path: Path) -> None:
    chosen = config("optim.weight_decay=0.0")
    task = pretraining_task(chosen)
    head = LossHead(TableTRM(TRMDecoder(make_structure(chosen.arch, 3)), len(task.row_names)), chosen.loss)
    state = pretrain_state(chosen, head, len(task.row_names))
    held = [id(p) for o, _ in state.optimizers.values() for group in o.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in head.parameters()) and set(state.optimizers) == {"decoder", "table"}
    assert state.optimizers["table"][1] == pytest.approx(chosen.optim.lr * chosen.table.lr_ratio)
    signs = pretrain_state(replace(chosen, table=replace(chosen.table, optimizer="sign_sgd")), head, 148)
    assert isinstance(signs.optimizers["table"][0], SignSGD)


@pytest.mark.parametrize(
    "change",
    [
        "table.optimizer=sign_sgd",
        "table.width=16",
        "table.lr_ratio=1.0",
        "table.weight_decay=0.9",
        "data.train_tasks=5",
        "system.seed=1",
        "act.exploration=1.0",
        "loss.cross_entropy=stablemax",
        "arch.halt_max_steps=1",
        "budget.batch_size=5",
    ],
)
def test_every_field_of_pretraining_changes_the_bundle(unchanged: bytes, tmp_path: Path, change: str) -> None:
    """Fault 12."""
    assert exported(tmp_path, config(change)) != unchanged


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of the config as it is, exported once; a second export equals them bit for bit."""
    first, second = (exported(tmp_path_factory.mktemp("unchanged"), config()) for _ in range(2))
    assert first == second
    return first


def exported(folder: Path, chosen: PretrainConfig) -> bytes:
    """A run's weights. The halting head starts at its threshold, so that exploration can matter in eight updates."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TRMDecoder", ready_to_halt)
        patch.setattr(module, "CEILING_QUERIES", 48)
        run(folder, chosen)
    return (folder / "bundle" / "weights.safetensors").read_bytes()


def ready_to_halt(structure: Any) -> TRMDecoder:
    decoder = TRMDecoder(structure)
    with torch.no_grad():
        assert decoder.q_head.bias is not None
        decoder.q_head.bias.fill_(1.0)
    return decoder


def test_it_is_measured_as_often_as_the_config_says(tmp_path: Path) -> None:
    said: list[str] = []
    chosen = config("budget.evaluations=4")
    pretrain(chosen, "cfg_x", tmp_path / "bundle", tmp_path / "checkpoints", say=said.append)
    assert [text.split(":")[0] for text in said[:-1]] == ["update 2", "update 4", "update 6", "update 8"]
    assert said[-1].startswith("wrote ")


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (("data.train_tasks=149",), "train_tasks is 149, but there are 148"),
        (("data.max_demos=2",), "max_demos is 2"),
        (("data.augmentations=2",), "data.augmentations=1"),
        (("data.leave_one_out=true",), "leave_one_out false"),
        (("loss.objective=lm+table",), "loss.objective=lm"),
        (("loss.table_share=0.5",), "loss.table_share=0"),
    ],
)
def test_a_field_that_cannot_be_meant_is_refused(overrides: tuple[str, ...], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        pretraining_task(config(*overrides))


def test_a_device_that_is_not_there_is_refused_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"system.device is cuda"):
        run(tmp_path, config("system.device=cuda"))


def test_exact_with_own_contexts_counts_whole_grids_and_skips_ignored_cells() -> None:
    chosen = config()
    torch.manual_seed(0)
    task = pretraining_task(chosen)
    table = TableTRM(TRMDecoder(make_structure(chosen.arch, 3)), 148)
    decoder = table.decoder
    with torch.no_grad():
        decoder.lm_head.weight.zero_()
        decoder.lm_head.weight[5] = 1e-6  # constant direction, so the answer varies with the sign of a sum
    queries = task.ceiling
    first = exact_with_own_contexts(table, queries, torch.device("cpu"))
    assert first.shape == (48,) and first.dtype == bool and not first.any()
    ignored = replace(queries, labels=np.full_like(queries.labels, IGNORE))
    assert exact_with_own_contexts(table, ignored, torch.device("cpu"), size=7).all()


def test_the_data_hash_changes_with_rows_and_queries() -> None:
    task = pretraining_task(config())
    base = data_hash(task.row_names, task.ceiling)
    assert base == data_hash(task.row_names, task.ceiling)
    assert base != data_hash(task.row_names[:-1], task.ceiling)
    assert base != data_hash(task.row_names, task.ceiling.take(slice(0, 47)))


def test_an_arc_bundle_knows_its_decoder_tasks_by_row_and_keeps_their_queries_for_the_ceiling() -> None:
    chosen = config("data.train_tasks=3", name="cfg_pretrain_arc1")
    task = pretraining_task(chosen)
    assert chosen.data.benchmark in ARC_BENCHMARKS and len(task.source.task_ids) == 3
    assert len(set(task.row_names)) == len(task.row_names) and set(task.source.task_ids) <= set(task.row_names)
    assert {n.split("|||")[0] for n in task.row_names} == set(task.source.task_ids)
    assert (task.ceiling.row >= 0).all() and set(task.ceiling.row.tolist()) <= set(range(len(task.row_names)))
    sampled = task.source.sample(40, np.random.default_rng(0))
    asked = [{(int(r), i.tobytes()) for r, i in zip(b.row, b.inputs, strict=True)} for b in (sampled, task.ceiling)]
    assert not asked[0] & asked[1]


NEVER = ("optim.lr=1e-30", "optim.weight_decay=0.0", "table.lr_ratio=1.0")  # what is exported is the start


def started(folder: Path, first: Path, *overrides: str, **options: Any) -> Any:
    """A run of seven tasks that starts from a bundle of five."""
    return run(folder, config(f"start={first}", "data.train_tasks=7", *overrides), **options)


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """The bundle of a run of five tasks."""
    run(tmp_path / "first", config("data.train_tasks=5"))
    return tmp_path / "first" / "bundle"


@pytest.mark.parametrize("ema", ["0.0", "0.9"])
def test_a_run_may_start_from_a_bundle_of_a_part_of_its_tasks(tmp_path: Path, first: Path, ema: str) -> None:
    started(tmp_path / "then", first, *NEVER, f"optim.ema_decay={ema}")
    begun, then = load_bundle(str(first)), load_bundle(str(tmp_path / "then" / "bundle"))
    for name, tensor in begun.decoder.state_dict().items():
        assert torch.equal(then.decoder.state_dict()[name], tensor)
    for name in begun.provenance.row_names:
        assert torch.equal(then.table[then.row_of(name)], begun.table[begun.row_of(name)])
    assert len(then.table) == 7 and not then.table[5:].abs().gt(1e-20).any()
    for told in (begun.sha256[:12], "8 updates", begun.provenance.recipe):
        assert told in then.provenance.recipe


def test_once_there_is_a_checkpoint_the_first_bundle_is_not_needed_and_cannot_be_exchanged(
    tmp_path: Path, first: Path
) -> None:
    started(tmp_path / "straight", first)
    started(tmp_path / "stopped", first, stop_after=4)
    first.rename(tmp_path / "away")
    started(tmp_path / "stopped", first)
    one, two = (load_bundle(str(tmp_path / f / "bundle")) for f in ("straight", "stopped"))
    assert one.sha256 == two.sha256 and one.provenance == two.provenance


def test_a_start_that_was_exchanged_before_the_first_checkpoint_is_refused(tmp_path: Path, first: Path) -> None:
    started(tmp_path / "then", first, "budget.checkpoint_every=8", stop_after=2)
    shutil.rmtree(first)
    for path in (tmp_path / "then").rglob("step_*"):
        path.unlink()
    run(tmp_path / "other", config("data.train_tasks=5", "optim.lr=1e-3"))
    (tmp_path / "other" / "bundle").rename(first)
    with pytest.raises(CheckpointError, match=r"another config \(started_from differ"):
        started(tmp_path / "then", first, "budget.checkpoint_every=8")


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (("data.train_tasks=4",), "trained on 1 tasks that this run does not have, first dihedral_recolour"),
        (("arch.l_cycles=1",), "a decoder of another structure: l_cycles: 2, 1"),
        (("table.width=16",), "whose rows hold 32 numbers, here 16; set table.width=32"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(
    tmp_path: Path, first: Path, overrides: tuple[str, ...], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        started(tmp_path / "then", first, *overrides)


def test_a_start_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"start is .*absent, which cannot be loaded.*Train that bundle first"):
        started(tmp_path / "then", tmp_path / "absent")


def test_a_start_of_another_benchmark_is_refused_although_its_rules_have_the_same_names(tmp_path: Path) -> None:
    """cal-1 trained 55 of cal-2's locked-test rules, and ids alone would not tell for a part of it."""
    small = ("data.train_tasks=1", "arch.num_heads=2")
    run(tmp_path / "one", config(*small, name="cfg_pretrain_cal1"))
    with pytest.raises(ConfigError, match="trained on cal-1, this run is on cal-2"):
        chosen = config(f"start={tmp_path / 'one' / 'bundle'}", "arch.num_heads=2", name="cfg_pretrain_cal2")
        run(tmp_path / "two", chosen)


def test_a_start_of_an_arc_benchmark_that_locks_the_same_tasks_is_taken_and_of_another_cut_is_not(
    tmp_path: Path,
) -> None:
    small = ("data.train_tasks=2", "data.augmentations=4", "arch.num_heads=2", "budget.evaluations=1")
    run(tmp_path / "one", config(*small, name="cfg_pretrain_arc3"))
    start = f"start={tmp_path / 'one' / 'bundle'}"
    run(tmp_path / "two", config(*small, start, name="cfg_pretrain_arc4"))
    one, two = (load_bundle(str(tmp_path / f / "bundle")).provenance for f in ("one", "two"))
    assert one.row_names == two.row_names and two.benchmark == "arc-4" and one.recipe in two.recipe
    with pytest.raises(ConfigError, match="trained on arc-3, this run is on arc-2"):
        run(tmp_path / "three", config(*small, start, name="cfg_pretrain_arc2"))


def test_rows_that_were_drawn_otherwise_are_not_dropped_in_silence(tmp_path: Path) -> None:
    small = ("data.train_tasks=2", "data.augmentations=4", "arch.num_heads=2", "budget.evaluations=1")
    run(tmp_path / "one", config(*small, name="cfg_pretrain_arc1"))
    start = f"start={tmp_path / 'one' / 'bundle'}"
    with pytest.raises(ConfigError, match=r"\d of whose 8 rows are not this run's.*system.seed=0"):
        run(tmp_path / "two", config(start, *small, "system.seed=1", name="cfg_pretrain_arc1"))


TRM = ("data.train_tasks=2", "data.augmentations=3", "arch.halt_max_steps=1", "arch.h_cycles=1", "arch.l_cycles=1")


def trm_protocol(*overrides: str) -> PretrainConfig:
    small = (*TRM, "arch.context_tokens=3", "arch.num_heads=2", "table.width=16")
    return config(*small, *overrides, name="cfg_pretrain_trm_arc1")


def test_trms_own_protocol_ends_in_a_bundle_whose_rows_fill_the_first_token(tmp_path: Path) -> None:
    run(tmp_path, trm_protocol("budget.evaluations=1"))
    bundle = load_bundle(str(tmp_path / "bundle"))
    p = bundle.provenance
    assert len(p.task_ids) == 4 and len(p.row_names) == 12 and bundle.side == 30
    assert bundle.table.shape == (12, 16) and bundle.table.any(dim=1).sum() > 2
    context = table_context(bundle.table, bundle.structure)
    assert torch.equal(context[:, 0], bundle.table) and not context[:, 1:].any()
    evaluation = {t.id: t for t in load_arc(1, "evaluation")}
    assert p.ceiling["n"] == sum(len(evaluation[t].queries) for t in p.task_ids if t in evaluation)


def test_trms_protocol_refuses_what_it_does_not_have() -> None:
    for wrong in ("data.max_demos=2", "data.leave_one_out=true"):
        with pytest.raises(ConfigError, match=r"data.max_demos=1 and data.leave_one_out=false"):
            pretraining_task(trm_protocol(wrong))
    with pytest.raises(DataError, match=r"data.train_tasks is 401"):
        pretraining_task(trm_protocol("data.train_tasks=401"))


def test_ranks_that_would_draw_the_same_noise_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"table.noise is 1.0, which 2 ranks would draw alike"):
        run(tmp_path, config())


def test_nothing_is_written_over(tmp_path: Path) -> None:
    chosen = config()
    run(tmp_path, chosen)
    kept = {p.name: p.read_bytes() for p in (tmp_path / "bundle").iterdir()}
    other = replace(config("system.seed=5"), run="other")
    with pytest.raises(BundleError, match="holds something else; give an --out"):
        pretrain(other, "cfg_y", tmp_path / "bundle", tmp_path / "c", say=lambda text: None)
    assert kept == {p.name: p.read_bytes() for p in (tmp_path / "bundle").iterdir()} and not (tmp_path / "c").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").write_text("{}")
    with pytest.raises(BundleError, match="holds something else"):
        pretrain(chosen, "cfg_x", tmp_path / "mine", tmp_path / "checkpoints", say=lambda text: None)


def test_a_run_without_a_checkpoint_keeps_its_log_from_another(tmp_path: Path) -> None:
    first = config("budget.checkpoint_every=0")
    run(tmp_path / "first", first)
    log = next(tmp_path.rglob("metrics.jsonl"))
    kept = log.read_bytes()
    with pytest.raises(CheckpointError, match=r"written under another config \(system.seed differ"):
        pretrain(replace(first, system=replace(first.system, seed=9)), "cfg_x", tmp_path / "b",
                 tmp_path / "first" / "checkpoints", say=lambda text: None)  # fmt: skip
    assert log.read_bytes() == kept

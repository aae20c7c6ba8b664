"""The shipped configs and their schemas: each file builds, each number has a range, each field is read somewhere."""

import re
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest

from etrm.config.compose import load
from etrm.config.schema import (
    ActConfig,
    ArchConfig,
    BudgetConfig,
    DataConfig,
    FreezeConfig,
    OptimConfig,
    PretrainConfig,
    RunConfig,
)
from etrm.data.arc_agi import ARC_AGI
from etrm.data.arc_split import ARC_BENCHMARKS
from etrm.data.families import BENCHMARKS
from etrm.errors import ConfigError
from etrm.experiment.pretraining import load_run
from etrm.training.loop import planned_updates
from etrm.training.pretrain import make_structure
from etrm.training.schedule import check_schedule

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parents[3]
NAMES = sorted(p.stem for p in (ROOT / "config").glob("cfg_*.yaml"))
PRETRAIN = [n for n in NAMES if n.startswith("cfg_pretrain_")]
MANY_TASKS = 1000


def loaded(name: str, *overrides: str) -> RunConfig | PretrainConfig:
    """The config as its own command line reads it."""
    if name in PRETRAIN:
        return load(PretrainConfig, name, overrides, ROOT / "config")
    return load_run(name, overrides, ROOT / "config")[0]


def test_the_three_bundles_have_their_recipes() -> None:
    assert (
        {"cfg_pretrain_micro", "cfg_pretrain_cal1", "cfg_pretrain_arc1", "cfg_pretrain_trm_arc1"}
        <= set(PRETRAIN)
        < set(NAMES)
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_config_builds_and_can_be_run_as_it_stands(name: str) -> None:
    """Its benchmark exists, its budget says one thing, its warm-up is short, and its logs and checkpoints agree."""
    config = loaded(name)
    assert config.data.benchmark in {**BENCHMARKS, **ARC_BENCHMARKS, **ARC_AGI}
    updates = planned_updates(config.budget, MANY_TASKS)
    check_schedule(max(updates, config.budget.updates), config.optim)
    assert config.budget.checkpoint_every % config.budget.log_every == 0
    assert config.run and config.project


@pytest.mark.parametrize("name", NAMES)
def test_a_mistyped_key_of_a_shipped_config_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"budget\.batch_size"):
        loaded(name, "budget.batchsize=1")


@pytest.mark.parametrize("name", PRETRAIN)
def test_a_pretraining_run_is_resumable_and_is_one_of_the_embedded_bundles(name: str) -> None:
    config = loaded(name)
    assert config.budget.checkpoint_every > 0
    assert re.sub(r"(\d)", r"-\1", name.removeprefix("cfg_pretrain_")).replace("_", "-") == config.run.replace("_", "-")


@pytest.mark.parametrize("schema", [RunConfig, PretrainConfig])
def test_no_field_of_a_schema_has_a_default(schema: type) -> None:
    """A default is a value that stands in no file."""
    sections = [schema, *(f.type for f in fields(schema) if is_dataclass(f.type))]
    for section in sections:
        for f in fields(section):
            with pytest.raises(AttributeError):
                getattr(section, f.name)


ARCH = ArchConfig(2, 16, 2, 4.0, 1, 2, 3, "rope", False, 10000.0, 1e-5, "float32", 4)
OTHER_ARCH = {
    "context_tokens": 3,
    "hidden_size": 32,
    "num_heads": 4,
    "expansion": 2.0,
    "layers": 2,
    "h_cycles": 3,
    "l_cycles": 4,
    "pos_encodings": "learned",
    "mlp_t": True,
    "rope_theta": 500.0,
    "rms_norm_eps": 1e-3,
    "forward_dtype": "bfloat16",
    "halt_max_steps": 5,
}


def test_each_field_of_the_architecture_reaches_its_own_field_of_the_structure_and_no_other() -> None:
    """Fault 12; what each field of a structure then changes is tested with the decoder."""
    assert set(OTHER_ARCH) == {f.name for f in fields(ArchConfig)}
    base = make_structure(ARCH, 3)
    for name, value in OTHER_ARCH.items():
        changed = make_structure(replace(ARCH, **{name: value}), 3)
        assert [d.split(":")[0] for d in base.differences(changed)] == [name]
    assert base.seq_len == 9 and base.vocab_size == 12


OPTIM = OptimConfig("adamw", 1e-2, 0.9, 0.95, 0.1, 0, 0.0, 0.1, 1.0, 0.0)
BUDGET = BudgetConfig(1, 0, 1, 0, 1, 0)
DATA = DataConfig("micro-2", 0, 1, False, 3, False)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        (OPTIM, "lr", -1e-3),
        (OPTIM, "beta1", 1.0),
        (OPTIM, "beta2", 1.5),
        (OPTIM, "ema_decay", 1.0),
        (OPTIM, "cooldown_share", 1.1),
        (OPTIM, "min_ratio", -0.1),
        (OPTIM, "warmup_updates", -1),
        (OPTIM, "clip_norm", float("nan")),
        (BUDGET, "batch_size", 0),
        (BUDGET, "log_every", 0),
        (BUDGET, "updates", -1),
        (ActConfig(0.1), "exploration", 2.0),
        (FreezeConfig(-1, 0.0), "decoder_updates", -2),
        (DATA, "train_tasks", -1),
        (DATA, "max_demos", 0),
        (ARCH, "num_heads", 0),
    ],
)
def test_a_number_outside_its_range_is_refused_by_name(section: object, field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{type(section).__name__}.{field} is {value}, expected"):
        replace(section, **{field: value})


@pytest.mark.parametrize(
    ("section", "field", "value", "limit"),
    [
        (OPTIM, "beta1", 1.0, "at most 1, without 1 itself, and at least 0"),
        (OPTIM, "min_ratio", 1.5, "at most 1 and at least 0"),
        (OPTIM, "lr", -1e-3, "at least 0"),
        (BUDGET, "batch_size", 0, "at least 1"),
        (FreezeConfig(-1, 0.0), "decoder_updates", -2, "at least -1"),
    ],
)
def test_the_refusal_of_a_number_says_its_range(section: object, field: str, value: float, limit: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(section, **{field: value})
    assert str(caught.value) == f"{type(section).__name__}.{field} is {value}, expected {limit}"


@pytest.mark.parametrize(("field", "value"), [("beta1", 0.0), ("cooldown_share", 1.0), ("min_ratio", 1.0)])
def test_the_ends_of_a_range_are_inside(field: str, value: float) -> None:
    assert getattr(replace(OPTIM, **{field: value}), field) == value


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("encoder.num_heads=5", r": EncoderConfig\.hidden_size is 96, expected a multiple of num_heads 5;"),
        ("arch.num_heads=5", r": ArchConfig\.hidden_size is 32, expected a multiple of num_heads 5;"),
    ],
)
def test_heads_share_the_hidden_size_evenly(override: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        loaded("cfg_micro" if override.startswith("encoder") else "cfg_pretrain_micro", override)

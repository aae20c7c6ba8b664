"""The typed configs: one dataclass a section, no field with a default, so that every value stands in a file.

Sizes are counts, rates are per update unless said. `RunConfig` trains an encoder on a decoder bundle; `PretrainConfig`
makes such a bundle. What a decoder computes (H, L, heads, …) is the bundle's, never the run's: see
`models.trm.Structure`.
"""

from dataclasses import dataclass, fields
from typing import Literal

from etrm.errors import ConfigError

Objective = Literal["lm", "lm+table"]


SHARES = frozenset({"table_share", "cooldown_share", "min_ratio", "exploration"})  # 0..1
DECAYS = frozenset({"beta1", "beta2", "ema_decay"})  # 0..1 without 1
COUNTED = frozenset({"batch_size", "log_every", "max_demos", "num_heads", "hidden_size"})  # from 1


class Checked:
    """Refuses numbers outside their field's range: nothing below is negative, but for `decoder_updates` -1. Where a
    section has both, `num_heads` must divide `hidden_size`.
    """

    def __post_init__(self) -> None:
        """ConfigError naming the section's field, its value and what was expected."""
        for f in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = getattr(self, f.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            least = -1 if f.name == "decoder_updates" else int(f.name in COUNTED)
            most = 1.0 if f.name in SHARES | DECAYS else float("inf")
            if not least <= value <= most or (f.name in DECAYS and value == 1):
                limit = (
                    "at least" if most > 1 else f"at most 1{', without 1 itself,' * (f.name in DECAYS)} and at least"
                )
                raise ConfigError(f"{type(self).__name__}.{f.name} is {value}, expected {limit} {least}")
        size, heads = getattr(self, "hidden_size", 0), getattr(self, "num_heads", 1)
        if size % heads:
            raise ConfigError(f"{type(self).__name__}.hidden_size is {size}, expected a multiple of num_heads {heads}")


@dataclass(frozen=True)
class DataConfig(Checked):
    """Which tasks, and how episodes are drawn from them."""

    benchmark: str
    train_tasks: int  # 0: all that the benchmark has
    augmentations: int  # a task, identity included; 1 for procedural rules
    colour_augmentation: bool
    max_demos: int
    leave_one_out: bool  # demonstrations also serve as training queries, answered from the others


@dataclass(frozen=True)
class EncoderConfig(Checked):
    """Which encoder of the registry, and its size."""

    name: str
    hidden_size: int
    num_heads: int
    layers: int
    set_layers: int


@dataclass(frozen=True)
class LossConfig(Checked):
    """Objective and weights. `table_share` is the part of the updates in which the decoder's own rows teach
    (lm+table).
    """

    objective: Objective
    cross_entropy: Literal["stablemax", "softmax"]
    halt_weight: float
    table_share: float


@dataclass(frozen=True)
class OptimConfig(Checked):
    """Optimiser and schedule: linear warm-up, then constant, then cosine to `min_ratio` over the last
    `cooldown_share`.
    """

    name: Literal["muon", "adamw", "adam_atan2"]
    lr: float
    beta1: float
    beta2: float
    weight_decay: float
    warmup_updates: int
    cooldown_share: float
    min_ratio: float
    clip_norm: float  # 0: no clipping
    ema_decay: float  # 0: raw weights are evaluated


@dataclass(frozen=True)
class BudgetConfig(Checked):
    """How long. Either `updates`, or `epochs` (one visit a task each) with updates 0."""

    updates: int
    epochs: int
    batch_size: int
    evaluations: int
    log_every: int
    checkpoint_every: int


@dataclass(frozen=True)
class ActConfig(Checked):
    """Adaptive computation in training; evaluation always runs the structure's halt_max_steps."""

    exploration: float  # chance that a sample gets a random minimum number of ACT steps


@dataclass(frozen=True)
class FreezeConfig(Checked):
    """Staged training: the decoder is frozen for `decoder_updates` (-1: for good), then joins at `joint_lr`."""

    decoder_updates: int
    joint_lr: float


@dataclass(frozen=True)
class EvaluationConfig(Checked):
    """Sizes of the evaluation; queries a task for procedural rules (ARC tasks bring their own)."""

    batch_size: int
    seen_queries: int
    unseen_queries: int
    probe_queries: int
    augmentations: int  # votes a query
    constant_updates: int  # budget of the constant-context control
    oracle_tasks: int
    oracle_updates: int
    search_updates: int  # of the test-time search a query; 0: none


@dataclass(frozen=True)
class SystemConfig(Checked):
    """Where it runs."""

    device: Literal["auto", "cpu", "cuda", "mps"]
    seed: int


@dataclass(frozen=True)
class RunConfig:
    """An encoder trained through a decoder bundle (config/cfg_*.yaml)."""

    project: str
    run: str
    bundle: str  # name of an embedded bundle, a bundle folder, or an official checkpoint
    data: DataConfig
    encoder: EncoderConfig
    loss: LossConfig
    optim: OptimConfig
    budget: BudgetConfig
    act: ActConfig
    freeze: FreezeConfig
    evaluation: EvaluationConfig
    system: SystemConfig


@dataclass(frozen=True)
class ArchConfig(Checked):
    """A decoder's structure; the fields of models.trm.Structure that data does not decide."""

    context_tokens: int
    hidden_size: int
    num_heads: int
    expansion: float
    layers: int
    h_cycles: int
    l_cycles: int
    pos_encodings: Literal["rope", "learned", "none"]
    mlp_t: bool
    rope_theta: float
    rms_norm_eps: float
    forward_dtype: Literal["float32", "bfloat16"]
    halt_max_steps: int


@dataclass(frozen=True)
class TableConfig(Checked):
    """The puzzle table in pretraining: `lr_ratio` times the decoder's rate, Adam-type or TRM's sign-SGD. `noise`: in
    training a row is moved by up to so many of the table's deviations (0: never, as TRM does).
    """

    optimizer: Literal["adamw", "sign_sgd"]
    width: int  # numbers of a row; 0: the whole context, context_tokens x hidden_size
    lr_ratio: float
    weight_decay: float
    noise: float


@dataclass(frozen=True)
class PretrainConfig:
    """A decoder trained with its own puzzle table and exported as a bundle (config/cfg_pretrain_*.yaml)."""

    project: str
    run: str
    start: str  # bundle of a part of the same tasks whose decoder and rows to start from; "": random weights
    data: DataConfig
    arch: ArchConfig
    loss: LossConfig
    optim: OptimConfig
    table: TableConfig
    budget: BudgetConfig
    act: ActConfig
    system: SystemConfig

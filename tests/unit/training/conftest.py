"""A toy run for the tests of the training package: 2x2 grids, a random decoder, the aligned encoder at 16 wide."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etrm.config.schema import (
    ActConfig,
    BudgetConfig,
    DataConfig,
    EncoderConfig,
    EvaluationConfig,
    FreezeConfig,
    LossConfig,
    OptimConfig,
    RunConfig,
    SystemConfig,
)
from etrm.data.episodes import RuleSource
from etrm.data.families import Benchmark, members
from etrm.models.encoders import EncoderSpec, build_encoder
from etrm.models.etrm import ETRM, Episodes
from etrm.models.trm import Structure, TRMDecoder
from etrm.training.loop import BudgetRecord, encoder_state, fit
from etrm.training.update import LossHead, TrainState

STRUCTURE = Structure(12, 4, 2, 16, 2, 4.0, 1, 2, 1, "learned", False, 10000.0, 1e-5, "float32", 3)
BENCHMARK = Benchmark("toy", ("dihedral_recolour",), 2, 3, 0.0, 2, 8, 4, 1)
CONFIG = RunConfig(
    project="toy",
    run="run",
    bundle="toy",
    data=DataConfig("toy", 0, 1, False, 2, False),
    encoder=EncoderConfig("aligned", 16, 2, 1, 1),
    loss=LossConfig("lm", "stablemax", 0.5, 0.0),
    optim=OptimConfig("adamw", 1e-2, 0.9, 0.95, 0.1, 2, 0.5, 0.1, 1.0, 0.9),
    budget=BudgetConfig(12, 0, 6, 1, 3, 6),
    act=ActConfig(0.5),
    freeze=FreezeConfig(-1, 1e-3),
    evaluation=EvaluationConfig(4, 1, 1, 1, 1, 1, 1, 1, 0),
    system=SystemConfig("cpu", 0),
)


@dataclass
class Toy:
    """Builds configs, states and batches of the toy run; `tasks` rules are its training members."""

    source: RuleSource = field(default_factory=lambda: RuleSource(members("dihedral_recolour", 3)[:12], BENCHMARK))

    @property
    def tasks(self) -> int:
        return len(self.source.task_ids)

    def config(self, **sections: dict[str, Any]) -> RunConfig:
        """The toy config with fields of sections replaced: `config(optim={"lr": 1.0})`."""
        changed = {name: replace(getattr(CONFIG, name), **fields) for name, fields in sections.items()}
        return replace(CONFIG, **changed)

    def state(self, config: RunConfig, halt_bias: float = -5.0, decoder_seed: int = 1) -> TrainState:
        """A fresh state: encoder and decoder from fixed seeds, whatever was drawn before."""
        torch.manual_seed(decoder_seed)
        decoder = TRMDecoder(STRUCTURE)
        with torch.no_grad():
            decoder.q_head.weight.normal_(std=0.05)
            assert decoder.q_head.bias is not None
            decoder.q_head.bias.fill_(halt_bias)
        spec = EncoderSpec(4, 12, 2, 16, torch.zeros(2, 16), torch.ones(2))
        torch.manual_seed(config.system.seed)
        head = LossHead(ETRM(build_encoder(config.encoder, spec), decoder, spec), config.loss)
        return encoder_state(config, head, self.tasks)

    def batch(self, seed: int = 0, size: int = 6) -> Episodes:
        return Episodes.of(self.source.sample(size, np.random.default_rng(seed)), torch.device("cpu"))

    def fit(self, config: RunConfig, state: TrainState, folder: Path, **options: Any) -> BudgetRecord:
        """`fit` with the config's seed, its metrics and checkpoints in `folder`."""
        rng = np.random.default_rng(config.system.seed)
        device = torch.device("cpu")
        return fit(config, state, self.source, rng, device, folder / "metrics.jsonl", folder / "steps", **options)


@pytest.fixture
def toy() -> Toy:
    return Toy()

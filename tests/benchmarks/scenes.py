"""What the benchmarks run on: a decoder of the official size, ARC demonstrations of ordinary size, the embedded arm.

Notable: the official batch holds tasks with exactly three demonstrations, the ones whose grids are nearest to the mean
of all such training tasks, so that its real cells are ARC's own and two samples stand for many.

Legend: B batch, K demonstrations, S canvas cells.
"""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch

from etrm.config.schema import EncoderConfig, RunConfig
from etrm.data.arc import Task, load_arc
from etrm.data.augment import IDENTITY
from etrm.data.episodes import ArcSource
from etrm.experiment.pretraining import load_run
from etrm.experiment.questions import prepare
from etrm.models.bundle import Bundle, load_bundle
from etrm.models.encoders import EncoderSpec, build_encoder
from etrm.models.etrm import ETRM, Episodes
from etrm.models.trm import TRMDecoder
from etrm.training.loop import encoder_state
from etrm.training.run import build_head
from etrm.training.update import LossHead, TrainState, train_batch_encoder
from tests.benchmarks.reference_cost import Sizes
from tests.official_samples import FULL

DEMOS = 3
EMBEDDED = Sizes(cells=25, tokens=4, hidden=96, heads=4, inner=256, h_cycles=2, l_cycles=2, steps=2)
EMBEDDED_ARC = replace(EMBEDDED, cells=81, l_cycles=1)
CPU = torch.device("cpu")


def cells(task: Task) -> int:
    """Real cells that an encoder reads: every demonstration's, with a frame of EOS on two sides."""
    return sum((h + 1) * (w + 1) for pair in task.demos for h, w in (pair.input.shape, pair.output.shape))


@cache
def ordinary_tasks(count: int) -> tuple[Task, ...]:
    """The `count` training tasks with three demonstrations that are nearest to the mean of all such in real cells."""
    tasks = [t for t in load_arc(1, "training") if len(t.demos) == DEMOS]
    mean = float(np.mean([cells(t) for t in tasks]))
    return tuple(sorted(tasks, key=lambda t: (abs(cells(t) - mean), t.id))[:count])


def arc_source(count: int) -> ArcSource:
    """Ordinary tasks as they are in the data, on the official canvas."""
    return ArcSource(ordinary_tasks(count), [[IDENTITY]] * count, 30, 10)


def official_batch(count: int) -> Episodes:
    """One query each of `count` ordinary tasks, with its three demonstrations."""
    source = arc_source(count)
    first = {q.task: q for q in reversed(source.queries())}
    return Episodes.of(source.encode([first[t] for t in range(count)]), CPU)


def official_model(encoder: str) -> ETRM:
    """A random decoder of the public checkpoint's structure, frozen, behind the encoder at the reference's size."""
    torch.manual_seed(0)
    decoder = TRMDecoder(FULL).requires_grad_(False).eval()
    spec = EncoderSpec(900, 12, 16, 512, torch.zeros(16, 512), torch.ones(16))
    return ETRM(build_encoder(EncoderConfig(encoder, 512, 8, 2, 1), spec), decoder, spec)


@dataclass
class Training:
    """A run in the middle of training: `update(batch)` is one whole update, optimiser and metrics included."""

    config: RunConfig
    state: TrainState

    def update(self, batch: Episodes) -> dict[str, float]:
        return train_batch_encoder(self.config, self.state, batch, len(batch.inputs))


def official_training(encoder: str) -> Training:
    """The official experiment's config over a random decoder of its size."""
    config, _ = load_run("cfg_test_frozen_decoder", [])
    return Training(config, encoder_state(config, LossHead(official_model(encoder), config.loss), 32))


def embedded_training(name: str) -> tuple[Training, Bundle, list[Episodes]]:
    """A run of an embedded arm's config, its bundle, and ten batches of its own size."""
    config, _ = load_run(name, [])
    bundle = load_bundle(config.bundle)
    source = prepare(config, bundle).source
    state = encoder_state(config, build_head(config, bundle, CPU), len(source.task_ids))
    rng = np.random.default_rng(0)
    batches = [Episodes.of(source.sample(config.budget.batch_size, rng), CPU) for _ in range(10)]
    return Training(config, state), bundle, batches

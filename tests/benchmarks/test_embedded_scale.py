"""The embedded scale (cal-1: hidden 96, 25 cells, batch 64) and what surrounds a run: data, bundle, import.

The baseline is the reference's cost at these sizes (ten slots, float64 loss, the encoder at every ACT step). How
today's updates compare with an earlier commit of ours is told by `python scripts/compare_speed.py COMMIT`.

Legend: B batch.
"""

import statistics
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from etrm.data.augment import IDENTITY
from etrm.data.episodes import ArcSource, RuleSource
from etrm.data.families import benchmark as rules
from etrm.experiment.pretraining import evaluate
from etrm.experiment.questions import prepare
from etrm.models.bundle import load_bundle
from etrm.models.etrm import ETRM, Episodes
from etrm.training.optimizers import AdamATan2
from tests.benchmarks.measures import interleaved, operations, peak_memory
from tests.benchmarks.reference_cost import Reference
from tests.benchmarks.scenes import CPU, EMBEDDED, embedded_training, ordinary_tasks

pytestmark = pytest.mark.benchmark

EVALUATION, IMPORT = 4.0, 0.2  # times the baseline, at least; seconds beyond torch's own, at most


def reference_update(batch: Episodes) -> Any:
    """One update of the reference at the embedded sizes on `batch`."""
    torch.manual_seed(0)
    reference = Reference(EMBEDDED)
    trained = [p for p in reference.parameters() if p.requires_grad]
    optimizer = AdamATan2(trained, 3e-4, (0.9, 0.95), 0.01)

    def update() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = reference.loss(batch.inputs, batch.labels, batch.demo_inputs, batch.demo_labels, batch.demo_mask)
        (loss / len(batch.inputs)).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    return update


def test_embedded_update(benchmark: Any) -> None:
    """One update of the calibration arm, its encoder and its bundle."""
    benchmark.group = "embedded update, cal-1, batch 64"
    memory: dict[str, Any] = {}
    with peak_memory(memory, "peak_bytes"):
        training, _, batches = embedded_training("cfg_calibration")
        training.update(batches[0])
    flop = operations(lambda: training.update(batches[0]))
    interleaved(
        benchmark, lambda: training.update(batches[0]), reference_update(batches[0]), 10, len(batches[0].inputs), flop
    )
    benchmark.extra_info |= memory


def test_embedded_evaluation_with_voting(benchmark: Any) -> None:
    """Every validation query of the calibration arm answered, cropped, hashed and voted on."""
    benchmark.group = "embedded evaluation with voting, cal-1"
    training, bundle, _ = embedded_training("cfg_calibration")
    questions = prepare(training.config, bundle).questions
    model, size = training.state.model.model, training.config.evaluation.batch_size
    assert isinstance(model, ETRM)
    reference = Reference(EMBEDDED)

    def theirs() -> None:
        for start in range(0, len(questions.rows), size):
            e = Episodes.of(questions.encode(slice(start, start + size)), CPU)
            reference.answer(e.inputs, e.demo_inputs, e.demo_labels, e.demo_mask)

    interleaved(
        benchmark, lambda: evaluate(model, questions, size, CPU, lambda n: None), theirs, 3, len(questions.rows)
    )
    assert benchmark.extra_info["speedup"] >= EVALUATION


@pytest.mark.parametrize("source", ["rules", "arc"])
def test_data_pipeline(benchmark: Any, source: str) -> None:
    """Sampling 64 episodes: fresh grids of cal-1's rules, or ARC tasks on the full canvas."""
    benchmark.group = "data pipeline, 64 episodes"
    rng = np.random.default_rng(0)
    drawn = (
        RuleSource(rules("cal-1").split().train, rules("cal-1"))
        if source == "rules"
        else ArcSource(ordinary_tasks(32), [[IDENTITY]] * 32, 30, 10)
    )
    interleaved(benchmark, lambda: Episodes.of(drawn.sample(64, rng), CPU), None, 20, 64)


@pytest.mark.parametrize("name", ["micro", "cal-1"])
def test_bundle_load(benchmark: Any, name: str) -> None:
    """Reading an embedded bundle, its hashes and its golden logits included."""
    benchmark.group = "bundle load"
    interleaved(benchmark, lambda: load_bundle(name), None, 5, 1)


def test_import_time(benchmark: Any) -> None:
    """The library's own share of a cold start: everything that an experiment imports, less torch, in turn."""
    benchmark.group = "import"

    def cold(statement: str) -> float:
        code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
        return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)

    pairs = [(cold("import torch"), cold("import torch; import etrm")) for _ in range(5)]
    benchmark.pedantic(lambda: cold("import etrm"), rounds=3)
    over = statistics.median(both for _, both in pairs) - statistics.median(alone for alone, _ in pairs)
    whole = statistics.median(cold("import torch; import etrm.experiment.frozen_decoder") for _ in range(3))
    alone = statistics.median(alone for alone, _ in pairs)
    benchmark.extra_info |= {"seconds_over_torch": over, "torch_seconds": alone, "experiment_over_torch": whole - alone}
    assert over <= IMPORT

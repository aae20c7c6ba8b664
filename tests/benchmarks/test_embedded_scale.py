"""The embedded scale (cal-1: hidden 96, 25 cells; arc-5: 81 cells) and what surrounds a run: data, bundle, import.

Votes are ARC's: the rules of cal-1 are asked once each. The baseline is the reference's cost at these sizes (ten slots,
float64 loss, the encoder at every ACT step). How today's updates compare with an earlier commit of ours is told by
`python scripts/compare_speed.py COMMIT`.

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
from etrm.experiment.arms import build_arm
from etrm.experiment.asking import evaluate
from etrm.experiment.questions import Questions, prepare
from etrm.models.bundle import load_bundle
from etrm.models.etrm import ETRM, Episodes
from etrm.training.optimizers import AdamATan2
from tests.benchmarks.measures import interleaved, operations, peak_memory
from tests.benchmarks.reference_cost import Reference, Sizes
from tests.benchmarks.scenes import CPU, EMBEDDED, EMBEDDED_ARC, Training, embedded_training, ordinary_tasks

pytestmark = pytest.mark.benchmark

EVALUATION, IMPORT = 4.0, 0.2  # times the baseline, at least; seconds beyond torch's own, at most
VOTED = 6  # queries of the ARC arm


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
    benchmark.group = "embedded update, cal-1"
    memory: dict[str, Any] = {}
    with peak_memory(memory, "peak_bytes"):
        training, _, batches = embedded_training("cfg_calibration")
        training.update(batches[0])
    flop = operations(lambda: training.update(batches[0]))
    interleaved(
        benchmark, lambda: training.update(batches[0]), reference_update(batches[0]), 10, len(batches[0].inputs), flop
    )
    benchmark.extra_info |= memory


def asked_in_turn(benchmark: Any, training: Training, questions: Questions, sizes: Sizes) -> None:
    """Time the answers to `questions`, cropped, hashed and voted on, beside the reference's answers alone."""
    model, size = training.state.model.model, training.config.evaluation.batch_size
    assert isinstance(model, ETRM)
    own = model.decoder.structure
    assert (sizes.cells, sizes.tokens, sizes.hidden) == (own.seq_len, own.context_tokens, own.hidden_size)
    assert (sizes.h_cycles, sizes.l_cycles, sizes.steps) == (own.h_cycles, own.l_cycles, own.halt_max_steps)
    reference = Reference(sizes)

    def theirs() -> None:
        for start in range(0, len(questions.rows), size):
            e = Episodes.of(questions.encode(np.arange(len(questions.rows))[start : start + size]), CPU)
            reference.answer(e.inputs, e.demo_inputs, e.demo_labels, e.demo_mask)

    interleaved(
        benchmark, lambda: evaluate(model, questions, size, CPU, lambda n: None), theirs, 3, len(questions.rows)
    )


def test_embedded_evaluation(benchmark: Any) -> None:
    """Every validation query of the calibration arm, answered once."""
    benchmark.group = "embedded evaluation, cal-1"
    training, bundle, _ = embedded_training("cfg_calibration")
    asked_in_turn(benchmark, training, prepare(training.config, bundle).questions, EMBEDDED)
    assert benchmark.extra_info["speedup"] >= EVALUATION


def test_embedded_evaluation_with_voting(benchmark: Any) -> None:
    """Queries of the ARC arm, each answered under all its augmentations and voted on."""
    benchmark.group = "embedded evaluation with voting, arc-5"
    training, bundle, _ = embedded_training("cfg_arc")
    rung, each = build_arm(training.config, bundle).rungs[0], training.config.evaluation.augmentations
    rows = rung.asked[: VOTED * each]
    asked = {(task, query) for task, query, _ in rows}
    assert len(asked) == VOTED and len(set(rows)) == VOTED * each
    truths = {query: rung.truths[query] for query in asked}
    questions = Questions(rows, truths, rung.batch.take, bundle.side)
    asked_in_turn(benchmark, training, questions, EMBEDDED_ARC)
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

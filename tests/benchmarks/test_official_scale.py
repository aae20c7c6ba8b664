"""The official scale: hidden 512, 900 cells, H 3, L 4, batch 2, three real demonstrations, bf16; baseline interleaved.

`pytest -m benchmark --benchmark-json FILE` writes each number under `extra_info`; only ratios are gated. The baseline
is our transcription of the reference's cost (reference_cost.py). `standard` is the reference's encoder;
`standard_cells` is the same network over real cells only (see etrm/models/encoders/standard.py for the difference).

Legend: B batch.
"""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from etrm.evaluation.voting import Vote
from etrm.experiment.pretraining import evaluate
from etrm.experiment.questions import Questions
from etrm.models.trm import TRMDecoder
from etrm.training.optimizers import AdamATan2
from tests.benchmarks.measures import interleaved, matrix_peak, operations, peak_memory
from tests.benchmarks.reference_cost import Reference, Sizes
from tests.benchmarks.scenes import arc_source, official_batch, official_model, official_training
from tests.official_samples import FULL

pytestmark = pytest.mark.benchmark

BATCH = 2
UPDATE, EVALUATION = 6.0, 4.0  # times the baseline, at least
SHARE, MEMORY = 0.5, 1.5e9  # of the bf16 peak, at least; bytes, at most


@pytest.fixture(scope="module")
def baseline() -> Reference:
    torch.manual_seed(0)
    return Reference(Sizes())


def reference_update(reference: Reference) -> Any:
    """Forward, backward, clipping and optimiser step of the reference on the official batch."""
    e = official_batch(BATCH)
    trained = [p for p in reference.parameters() if p.requires_grad]
    optimizer = AdamATan2(trained, 3e-4, (0.9, 0.95), 0.01)

    def update() -> None:
        optimizer.zero_grad(set_to_none=True)
        (reference.loss(e.inputs, e.labels, e.demo_inputs, e.demo_labels, e.demo_mask) / BATCH).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    return update


def test_the_baseline_costs_what_the_reference_does(baseline: Reference) -> None:
    """Published: 6.83 M and 10.51 M parameters; counted from the reference: about 1.46 TFLOP a sample and update."""
    sizes = {n: sum(p.numel() for p in getattr(baseline, n).parameters()) for n in ("decoder", "encoder")}
    assert sizes["decoder"] == pytest.approx(6.83e6, rel=0.01) and sizes["encoder"] == pytest.approx(10.51e6, rel=0.01)
    with torch.device("meta"):
        model = Reference(Sizes())
    given = official_batch(1)
    given = replace(given, **{f.name: getattr(given, f.name).to("meta") for f in fields(given)})
    tensors = (given.inputs, given.labels, given.demo_inputs, given.demo_labels, given.demo_mask)
    assert operations(lambda: model.loss(*tensors).backward()) == pytest.approx(1.46e12, rel=0.05)


@pytest.mark.parametrize("encoder", ["standard_cells", "standard"])
def test_official_scale_update(benchmark: Any, baseline: Reference, encoder: str) -> None:
    """One update with a frozen decoder. Of `standard`, which must attend to PAD, only the ratio is told."""
    benchmark.group = "official_scale update, batch 2"
    memory: dict[str, Any] = {}
    with peak_memory(memory, "peak_bytes"):
        training, batch = official_training(encoder), official_batch(BATCH)
        training.update(batch)
    theirs = reference_update(baseline)
    with peak_memory(memory, "baseline_peak_bytes"):
        theirs()
    flop = operations(lambda: training.update(batch))
    interleaved(benchmark, lambda: training.update(batch), theirs, rounds=3, samples=BATCH, flop=flop)
    info = benchmark.extra_info
    info |= memory
    if encoder == "standard_cells":
        assert info["speedup"] >= UPDATE and info["share_of_bf16_peak"] >= SHARE
        assert info["peak_bytes"] is None or info["peak_bytes"] <= MEMORY


@pytest.mark.parametrize("encoder", ["standard_cells", "standard"])
def test_official_scale_encoder(benchmark: Any, baseline: Reference, encoder: str) -> None:
    """The encoder alone, forward and backward."""
    benchmark.group = "official_scale encoder, batch 2"
    model, e = official_model(encoder), official_batch(BATCH)
    demos = e.demo_inputs, e.demo_labels, e.demo_mask

    def ours() -> None:
        model.context(e).context.square().sum().backward()

    def theirs() -> None:
        baseline.encoder(*(baseline.slots(t) for t in demos)).float().square().sum().backward()

    interleaved(benchmark, ours, theirs, rounds=3, samples=BATCH, flop=operations(ours))


def test_official_scale_decoder_step(benchmark: Any, baseline: Reference) -> None:
    """One ACT step of the frozen decoder and the way back to its context."""
    benchmark.group = "official_scale decoder ACT step, batch 2"
    torch.manual_seed(0)
    decoder, e = TRMDecoder(FULL).requires_grad_(False), official_batch(BATCH)
    context = torch.randn(BATCH, 16, 512, requires_grad=True)

    def ours() -> None:
        decoder(decoder.fresh_latents(BATCH), e.inputs, context)[1].float().square().sum().backward()

    def theirs() -> None:
        model = baseline.decoder
        model(model.fresh(BATCH), e.inputs, context)[2].float().square().sum().backward()

    interleaved(benchmark, ours, theirs, rounds=5, samples=BATCH, flop=operations(ours))


def test_official_scale_evaluation_with_voting(benchmark: Any, baseline: Reference) -> None:
    """Answers and votes with two ACT steps instead of sixteen: the more steps, the more an encoding is used again."""
    benchmark.group = "official_scale evaluation, batch 2, 2 ACT steps"
    model, source = official_model("standard_cells"), arc_source(BATCH)
    model.decoder.structure = replace(FULL, halt_max_steps=2)
    asked = {q.task: q for q in reversed(source.queries())}
    rows = tuple((source.task_ids[t], asked[t].query, asked[t].augmentation) for t in range(BATCH))
    truths = {(task, query): asked[t].asked.output for t, (task, query, _) in enumerate(rows)}
    questions = Questions(rows, truths, lambda part: source.encode([asked[int(t)] for t in np.arange(BATCH)[part]]), 30)
    e = official_batch(BATCH)
    reference = Reference(replace(Sizes(), steps=2))
    reference.load_state_dict(baseline.state_dict())

    def ours() -> None:
        evaluate(model, questions, BATCH, torch.device("cpu"), lambda n: None)

    def theirs() -> None:
        reference.answer(e.inputs, e.demo_inputs, e.demo_labels, e.demo_mask)

    assert Vote(truths) is not None
    interleaved(benchmark, ours, theirs, rounds=2, samples=BATCH)  # torch counts no operations in inference mode
    assert benchmark.extra_info["speedup"] >= EVALUATION


def test_matrix_peak(benchmark: Any) -> None:
    """The machine itself, so that a table of these numbers says what they were measured on."""
    benchmark.group = "machine"
    benchmark.pedantic(lambda: matrix_peak.cache_clear() or matrix_peak(torch.bfloat16), rounds=1)
    benchmark.extra_info |= {
        "matrix_peak_bf16": matrix_peak(torch.bfloat16),
        "matrix_peak_fp32": matrix_peak(torch.float32),
    }

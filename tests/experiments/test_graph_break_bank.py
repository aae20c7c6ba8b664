"""The bank of gradient breaks: every kind in every model is found at its line, and healthy models are left in peace.

`python scripts/graph_break_table.py` prints the same as a table.
"""

import importlib.util
import sys
import time
from pathlib import Path

import pytest
import torch

from etrm.probes.graph_breaks import observe

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("ignore::UserWarning")]
MOST_OVERHEAD = 3.0


def _load_bank():
    path = Path(__file__).with_name("graph_break_bank.py")
    spec = importlib.util.spec_from_file_location("graph_break_bank", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["graph_break_bank"] = module
    spec.loader.exec_module(module)
    return module


bank = _load_bank()


def test_the_bank_is_as_large_as_promised():
    assert len(bank.PLANTS) >= 25
    assert len(bank.MODELS) >= 3


@pytest.mark.parametrize("kind", bank.PLANTS)
def test_the_break_is_found_at_its_line(kind, tmp_path):
    cells = [bank.run_cell(kind, model, tmp_path) for model in bank.MODELS]
    assert [cell.model for cell in cells if not cell.detected] == []
    assert [f"{cell.model}: {cell.first}" for cell in cells if not cell.located] == []


@pytest.mark.parametrize("model", bank.MODELS)
def test_fifty_healthy_models_report_nothing_but_what_they_declare(model, tmp_path):
    reports = bank.healthy_reports(model, tmp_path, 50)
    assert [str(report) for report in reports if not report.ok or report.lost or report.transient] == []
    assert [{item.declared for item in report.expected} for report in reports] == [bank.EXPECTED[model]] * 50


def test_a_marker_on_the_wrong_line_would_be_noticed(tmp_path):
    cell = bank.run_cell("detach", "mlp", tmp_path)
    assert cell.located
    moved = bank.Plant("h = h.detach()\nh = h * 1.0  # BREAK")
    path = bank.write_model("mlp", moved, tmp_path / "moved.py")
    assert bank.observe_cell(path, 0).findings[0].place.line == bank.planted_line(path) - 1


@pytest.mark.benchmark
@pytest.mark.parametrize("model", ["transformer", "recursive"])
def test_observing_costs_at_most_three_steps(model, tmp_path, monkeypatch):
    """Hidden 64, batch 16, 60 tokens; the best of interleaved runs, since others use the machine."""
    large = bank.MODELS[model].replace("D, 16", "D, 128").replace("16, D", "128, D")
    monkeypatch.setitem(bank.MODELS, model, large)
    path = bank.write_model(model, bank.Plant(), tmp_path / "large.py")
    text = (
        path.read_text().replace("D = 8", "D = 64").replace("(4, 3)", "(16, 60)").replace("(0, 5, (4,)", "(0, 5, (16,)")
    )
    path.write_text(text)
    built, task, optimiser = bank.load(path).make(0)

    def step():
        torch.autograd.grad(task(), list(built.parameters()))

    def observed():
        observe(built, task, optimisers=[optimiser])

    times = {step: [], observed: []}
    for turn in range(12):
        for run, kept in times.items():
            begun = time.perf_counter()
            run()
            if turn > 1:
                kept.append(time.perf_counter() - begun)
    ratio = min(times[observed]) / min(times[step])
    assert ratio <= MOST_OVERHEAD, f"observing costs {ratio:.2f} steps"

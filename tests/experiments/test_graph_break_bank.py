"""The bank of gradient breaks: every kind in every model is found at its line, and healthy models are left in peace.

`python scripts/graph_break_table.py` prints the same as a table.
"""

import importlib.util
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("ignore::UserWarning")]


def _load(name):
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


bank, etrm_bank = _load("graph_break_bank"), _load("etrm_break_bank")
fresh, plants = _load("etrm_plants_fresh"), _load("etrm_plants")
CORE = ("aligned", "cell_reader", "standard")  # the others share their parts; with --slow, all of the registry
OTHERS = tuple(name for name in etrm_bank.encoders() if name not in CORE)
UNSEEN_LINES = {"fresh: in a thread", "fresh: bytes of the storage"}  # torch sees neither; named is the line before


def test_the_bank_is_as_large_as_promised():
    assert len(bank.PLANTS) >= 25
    assert len(bank.MODELS) >= 3
    assert len(plants.ETRM_PLANTS) >= 25
    assert set(CORE) | set(OTHERS) == set(etrm_bank.encoders()) and len(OTHERS) >= 8


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


@pytest.mark.parametrize("encoders", [CORE, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["core", "others"])
@pytest.mark.parametrize("kind", plants.ETRM_PLANTS)
def test_the_break_in_the_etrm_is_found_at_its_line(kind, encoders, tmp_path):
    found = [etrm_bank.run_etrm_cell(kind, plants.ETRM_PLANTS[kind], name, tmp_path) for name in encoders]
    assert [cell.model for cell in found if not cell.detected] == []
    wrong = [f"{cell.model}: {cell.first}" for cell in found if not cell.located]
    assert bool(wrong) is (kind in UNSEEN_LINES), wrong


@pytest.mark.parametrize("encoder", [*CORE, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_fifty_healthy_etrms_show_their_declared_places_and_nothing_else(encoder, tmp_path):
    found = etrm_bank.healthy_diagnoses(encoder, tmp_path, 50)
    assert [f"{item}\n{item.breaks}" for item in found if etrm_bank.false_report(item)] == []


@pytest.mark.parametrize("encoder", etrm_bank.encoders())
def test_finite_differences_agree_with_a_healthy_etrm(encoder, tmp_path):
    for found in etrm_bank.healthy_diagnoses(encoder, tmp_path, 3, audit=True):
        assert found.relation == "true", [str(entry) for entry in found.audit.failures]
        assert {entry.name for entry in found.audit.entries} >= {"context[0, 0]", "context[1, 1]"}


@pytest.mark.parametrize(
    ("kind", "relation", "state"),
    [
        ("detach", "cut", "blocked"),
        ("user: Function scales by 100", "scaled", "partial"),
        ("user: hook scales by 1e-12", "scaled", "vanishing"),
        ("user: bound Function reverses", "scaled", "partial"),
        ("user: Function invents", "invented", "partial"),
        ("block: half of it detached", "scaled", "partial"),
        ("decoder never reads the context", "true", "blocked"),
        ("fresh: memory scaled by numpy", "scaled", "partial"),
    ],
)
def test_finite_differences_tell_cut_scaled_and_invented_apart(kind, relation, state, tmp_path):
    for name in etrm_bank.encoders():
        package = tmp_path / f"planted_{name}"
        found = etrm_bank.diagnose_etrm(name, plants.ETRM_PLANTS[kind], package, audit=True)
        assert (found.relation, found.state) == (relation, state), f"{name}: {found}\n{found.audit}"


def test_a_marker_on_the_wrong_line_would_be_noticed(tmp_path):
    cell = bank.run_cell("detach", "mlp", tmp_path)
    assert cell.located
    moved = bank.Plant("h = h.detach()\nh = h * 1.0  # BREAK")
    path = bank.write_model("mlp", moved, tmp_path / "moved.py")
    assert bank.observe_cell(path, 0).findings[0].place.line == bank.planted_line(path) - 1

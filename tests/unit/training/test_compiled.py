"""torch.compile is used where it gives the plain model's numbers, and dropped, audibly, where it does not.

The fast tests put other backends in the compiler's place; the slow one compiles in earnest.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from etrm.errors import NonFiniteError
from etrm.training.compiled import compile_checked, probe_pass
from etrm.training.nonfinite import dumping
from etrm.training.update import train_batch_encoder

pytestmark = [  # of torch's own tracing; as errors they would end a compilation that is in order
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


def changed(graph: torch.fx.GraphModule, inputs: Any) -> Any:
    """A backend whose code is not the graph's: it doubles the first output."""

    def run(*arguments: Any) -> Any:
        first, *rest = graph.forward(*arguments)
        return (first * 2, *rest)

    return run


def broken(graph: torch.fx.GraphModule, inputs: Any) -> Any:
    """A backend that cannot compile."""
    raise OSError("no C++ compiler")


def plain(toy: Any) -> tuple[Any, list[torch.Tensor], list[str]]:
    torch._dynamo.reset()
    model = toy.state(toy.config()).model.model
    return model, probe_pass(model, toy.batch(0, 2)), list(model.state_dict())


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("backend", "told"),
    [(broken, "torch.compile failed (BackendCompilerFailed"), (changed, "gradients differ by")],
)
def test_what_does_not_hold_is_dropped_and_said(toy: Any, backend: Any, told: str) -> None:
    model, before, names = plain(toy)
    said: list[str] = []
    assert compile_checked(model, toy.batch(0, 2), said.append, backend) is False
    assert len(said) == 1
    assert told in said[0]
    assert said[0].endswith("the run goes on without it")
    assert all(torch.equal(a, b) for a, b in zip(before, probe_pass(model, toy.batch(0, 2)), strict=True))
    assert list(model.state_dict()) == names
    from torch._dynamo.exc import BackendCompilerFailed  # a second of imports, at the top for each collection

    assert issubclass(BackendCompilerFailed, RuntimeError)  # what the fallback catches


@pytest.mark.thorough
def test_a_backend_that_holds_is_used_and_no_name_changes(toy: Any) -> None:
    model, before, names = plain(toy)
    said: list[str] = []
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert compile_checked(model, toy.batch(0, 2), said.append, "eager") is True
    assert torch.equal(torch.rand(3), expected)  # the check draws nothing of the run
    assert "are compiled (eager), equal" in said[0]
    assert model.encoder._compiled_call_impl is not None
    assert model.decoder.L_level._compiled_call_impl is not None
    assert list(model.state_dict()) == names
    for a, b in zip(before, probe_pass(model, toy.batch(0, 2)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_the_real_compiler(toy: Any) -> None:
    """Training follows the plain run, compiled or (where no C++ compiler is to be had, audibly) not."""
    said: list[str] = []
    config = toy.config()
    rows = []
    for compiled in (False, True):
        torch._dynamo.reset()
        state = toy.state(config)
        if compiled:
            used = compile_checked(state.model.model, toy.batch(0, 2), said.append)
            assert used == ("are compiled (inductor)" in said[0]), said
            assert used or shutil.which("c++") is None, said
        rows.append([train_batch_encoder(config, state, toy.batch(i), 6)["train/lm_loss"] for i in range(4)])
    assert rows[0] == pytest.approx(rows[1], rel=1e-3)


@pytest.mark.slow
def test_the_layer_that_is_not_finite_is_found_in_a_compiled_model(toy: Any, tmp_path: Path) -> None:
    torch._dynamo.reset()
    config = toy.config()
    state = toy.state(config)
    state.model.decoder.L_level.compile(backend="eager")
    train_batch_encoder(config, state, toy.batch(0), 6)
    with torch.no_grad():
        next(state.model.decoder.L_level.parameters()).fill_(3e38)
    with pytest.raises(NonFiniteError) as caught, dumping(config, state, toy.batch(1), tmp_path):
        train_batch_encoder(config, state, toy.batch(1), 6)
    assert "first not finite: the output of model.decoder.L_level." in str(caught.value)

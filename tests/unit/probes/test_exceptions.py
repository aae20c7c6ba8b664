"""Declared exceptions: cost nothing when off, are recorded and replayed under audit, and excuse nothing else.

B batch · D features.
"""

import pytest
import torch
from torch import nn

from etrm import declared
from etrm.declared import listening, no_gradient, straight_through, truncate
from etrm.errors import ProbeError
from etrm.probes.exceptions import DeclaredLog, Tape
from etrm.probes.gradient_audit import gradient_audit
from etrm.probes.graph_breaks import observe

pytestmark = pytest.mark.fast


def test_off_they_are_the_plain_torch_calls():
    x = torch.randn(3, requires_grad=True)
    cut = truncate(x, "carry")
    assert not cut.requires_grad
    assert cut.data_ptr() == x.data_ptr()
    with no_gradient("block"):
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad
    torch.testing.assert_close(straight_through(x.round(), x, "round"), x.round(), atol=1e-6, rtol=0)


def test_the_previous_listener_returns_even_after_an_error():
    outer, inner = DeclaredLog(), DeclaredLog()
    with listening(outer):
        with pytest.raises(RuntimeError, match="planned"), listening(inner), no_gradient("block"):
            raise RuntimeError("planned")
        assert declared._listener is outer
    assert declared._listener is None
    assert inner.blocks == []


def test_a_log_names_each_exception_with_its_line():
    log = DeclaredLog()
    with listening(log):
        for _ in range(3):
            truncate(torch.zeros(2, 5), "carry")
    (entry,) = log.seen.values()
    assert (entry.name, entry.count, entry.shape) == ("carry", 3, (2, 5))
    assert entry.place.file == __file__
    assert entry.place.source == 'truncate(torch.zeros(2, 5), "carry")'


def test_a_tape_replays_what_it_recorded_and_notices_another_path():
    tape = Tape()
    with tape.recording():
        truncate(torch.tensor([1.0]), "a")
        truncate(torch.tensor([2.0]), "b")
    with tape.replaying():
        assert truncate(torch.tensor([9.0]), "a").item() == 1.0
        assert truncate(torch.tensor([9.0]), "b").item() == 2.0
    with pytest.raises(ProbeError, match="reference met 'a'"), tape.replaying():
        truncate(torch.tensor([9.0]), "b")
    with pytest.raises(ProbeError, match="1 of 2"), tape.replaying():
        truncate(torch.tensor([9.0]), "a")
    with pytest.raises(ProbeError, match="more often"), tape.replaying():
        for name in "aba":
            truncate(torch.tensor([9.0]), name)


class Recursive(nn.Module):
    """Two H cycles, the first without gradient; `declare` says whether the model says so."""

    def __init__(self, declare: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.cell, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 1)
        self.declare = declare

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.encoder(x)  # (B, 6)
        z = torch.zeros_like(h)
        if self.declare:
            with no_gradient("h_cycles"):
                z = torch.tanh(self.cell(z + h))
            z = truncate(z, "h_cycles")
        else:
            with torch.no_grad():
                z = torch.tanh(self.cell(z + h))
        z = torch.tanh(self.cell(z + h))
        return self.head(straight_through(torch.round(z * 4) / 4, z, "grid")).square().mean()


@pytest.mark.parametrize("declare", [True, False])
def test_truncated_recursion_agrees_with_finite_differences_only_when_declared(declare):
    model, x = Recursive(declare), torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    report = gradient_audit(lambda: model(x), model)
    assert report.ok is declare
    assert report.status_of("encoder.weight") == ("ok" if declare else "scaled")
    assert {item.name for item in report.declared} == ({"h_cycles", "grid"} if declare else {"grid"})
    breaks = observe(model, lambda: model(x))
    assert breaks.ok is declare
    assert {item.declared for item in breaks.expected} == ({"h_cycles", "grid"} if declare else {"grid"})
    assert [item.severity for item in breaks.findings] == ([] if declare else ["weakened"])


def test_declaring_does_not_excuse_the_only_path():
    encoder, head = nn.Linear(4, 6), nn.Linear(6, 1)
    model, x = nn.ModuleList([encoder, head]), torch.randn(5, 4)
    report = observe(model, lambda: head(truncate(encoder(x), "context")).square().mean())
    (finding,) = report.findings
    assert (finding.severity, finding.declared) == ("cut", "context")
    assert finding.parameters == ("0.weight", "0.bias")

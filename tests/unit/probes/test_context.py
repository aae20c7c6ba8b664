"""The context report fails on another shape, dtype, scale or set of tokens, and on nothing that the bundle itself has.

B batch · T context tokens · D hidden.
"""

import pytest
import torch

from etrm.errors import ProbeError
from etrm.models.bundle import available, load_bundle
from etrm.models.encoders import EncoderSpec
from etrm.models.trm import table_context
from etrm.probes.context import context_report

pytestmark = pytest.mark.fast
T, D = 4, 8
MEAN, STD = torch.randn(T, D, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 1.0, 2.0, 0.0])
MEAN[3] = 0  # the decoder's own contexts never use the last token
SPEC = EncoderSpec(9, 12, T, D, MEAN, STD)


def own(batch=16):
    noise = torch.randn(batch, T, D, generator=torch.Generator().manual_seed(1))
    return MEAN + STD[:, None] * noise


def wrong(report):
    return [c.name for c in report.checks if c.ok is False]


def test_the_decoders_own_contexts_pass():
    report = context_report(own(), SPEC, 16)
    assert report.ok, str(report)
    assert report.ratios[3] is None
    assert all(0.8 < r < 1.25 for r in report.ratios[:3])


@pytest.mark.parametrize("name", available())
def test_the_embedded_tables_pass_their_own_bundle(name):
    bundle = load_bundle(name)
    report = context_report(table_context(bundle.table, bundle.structure), bundle.spec())
    assert report.ok, str(report)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda c: c[:, :3], "shape"),
        (lambda c: c[0], "shape"),
        (lambda c: c[:0], "shape"),
        (lambda c: c[:5], "shape"),
        (lambda c: {"context": c}, "shape"),
        (lambda c: c.long(), "dtype"),
        (lambda c: c.to("meta"), "dtype"),
        (lambda c: torch.where(c > 2, torch.nan, c), "finite"),
        (lambda c: 30 * c, "scale"),
        (lambda c: c / 30, "scale"),
        (lambda c: torch.cat((c[:, :3], torch.ones(16, 1, D)), 1), "active_tokens"),
    ],
)
def test_each_departure_is_named(change, name):
    report = context_report(change(own()), SPEC, 16)
    assert wrong(report) == [name], str(report)
    assert report.contract_ok is (name in ("scale", "active_tokens"))
    assert len(report.checks) == 5
    assert f"WRONG     {name}" in str(report)


def test_a_silent_token_is_named():
    context = own()
    context[:, 1] = 0
    report = context_report(context, SPEC)
    assert wrong(report) == ["scale", "active_tokens"]
    assert "tokens [1] are silent" in str(report)


def test_half_precision_and_a_gradient_do_not_matter():
    assert context_report(own().bfloat16().requires_grad_(), SPEC).ok
    assert context_report(1.5 * own(), SPEC).ok


def test_statistics_that_say_nothing_are_refused():
    zero = EncoderSpec(9, 12, T, D, torch.zeros(T, D), torch.zeros(T))
    with pytest.raises(ProbeError, match="all zero"):
        context_report(own(), zero)

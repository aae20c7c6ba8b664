"""The finite-difference audit: it names cut, scaled and invented gradients, and leaves no trace of its float64 pass.

B batch · T tokens · D features.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etrm.errors import ProbeError
from etrm.probes.gradient_audit import gradient_audit

pytestmark = pytest.mark.fast


class Times(torch.autograd.Function):
    """Forward 2 h; backward says it were `factor` h."""

    @staticmethod
    def forward(ctx, h, factor):
        ctx.factor = factor
        return h * 2

    @staticmethod
    def backward(ctx, g):
        return g * ctx.factor, None


KINDS = {
    "ok": lambda h: torch.tanh(h),
    "cut": lambda h: h.detach(),
    "invented": lambda h: h - h.detach() + 1.0,
    "doubled": lambda h: Times.apply(h, 4.0),
    "reversed": lambda h: Times.apply(h, -2.0),
    "partly cut": lambda h: h + 0.5 * h.detach(),
}


class Model(nn.Module):
    def __init__(self, kind: str = "ok") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.head = nn.Linear(3, 4), nn.Linear(4, 1)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        return self.head(KINDS[self.kind](self.encoder(x))).square().mean()


X = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(3))  # (B, T, 3)


@pytest.mark.parametrize(
    ("kind", "status", "ratio"),
    [
        ("ok", "ok", 1.0),
        ("cut", "cut", 0.0),
        ("invented", "invented", None),
        ("doubled", "scaled", 2.0),
        ("reversed", "scaled", -1.0),
        ("partly cut", "scaled", 2 / 3),
    ],
)
def test_each_relation_is_named(kind, status, ratio):
    model = Model(kind)
    report = gradient_audit(lambda: model(X), model)
    by_name = {entry.name: entry for entry in report.entries}
    for name in ("encoder.weight", "encoder.bias"):
        assert by_name[name].status == status
        assert by_name[name].ratio == (None if ratio is None else pytest.approx(ratio, rel=1e-3))
    assert report.status_of("head.weight") == "ok"
    assert {entry.name.split(".")[0] for entry in report.failures} == (set() if kind == "ok" else {"encoder"})


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_loss_scale_does_not_matter(scale):
    for kind in ("ok", "cut", "doubled"):
        model = Model(kind)
        report = gradient_audit(lambda model=model: scale * model(X), model)
        assert report.status_of("encoder.weight") == {"ok": "ok", "cut": "cut", "doubled": "scaled"}[kind]


class WithContext(nn.Module):
    """A decoder that loses the gradient of one token of one sample's context (B, T, D)."""

    def __init__(self, answer: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.head = nn.Linear(3, 4), nn.Linear(4, 1)
        self.answer = answer
        self.encoder.register_forward_hook(self._wrap)

    def _wrap(self, _module, _inputs, output):
        answers = {"tensor": output, "tuple": (output, None), "object": SimpleNamespace(context=output, losses={})}
        return answers[self.answer]

    def forward(self, x: Tensor) -> Tensor:
        answer = self.encoder(x)
        c = {"tensor": lambda: answer, "tuple": lambda: answer[0], "object": lambda: answer.context}[self.answer]()
        mask = torch.zeros(2, 5, 1, dtype=torch.bool)
        mask[1, 3] = True
        return self.head(torch.where(mask, c.detach(), c)).square().sum()


@pytest.mark.parametrize("answer", ["tensor", "tuple", "object"])
def test_the_context_is_audited_by_sample_and_token(answer):
    model = WithContext(answer)
    report = gradient_audit(lambda: model(X), model, context_module=model.encoder, directions=1)
    context = {entry.name: entry.status for entry in report.entries if entry.name.startswith("context")}
    assert len(context) == 10
    assert [name for name, status in context.items() if status != "ok"] == ["context[1, 3]"]
    assert context["context[1, 3]"] == "cut"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_model_is_bitwise_as_before_in_any_dtype(dtype):
    model = Model().to(dtype)
    model.register_buffer("count", torch.zeros(1, dtype=dtype))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    storages = {name: value.data_ptr() for name, value in model.named_parameters()}
    model.encoder.weight.grad = torch.ones_like(model.encoder.weight)
    state = torch.get_rng_state()

    def loss():
        model.count.add_(1)
        return model(F.dropout(X.to(dtype), 0.5)).float()

    assert gradient_audit(loss, model).ok
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() is torch.float32
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert {name: value.data_ptr() for name, value in model.named_parameters()} == storages
    assert torch.equal(model.encoder.weight.grad, torch.ones_like(model.encoder.weight))
    assert model.encoder.bias.grad is None


def test_a_loss_fn_that_calls_backward_itself_is_fine():
    model = Model("cut")

    def loss():
        value = model(X)
        value.backward()
        return value

    assert gradient_audit(loss, model).status_of("encoder.weight") == "cut"
    assert all(value.grad is None for value in model.parameters())


def test_skips_carry_their_reason_and_must_name_parameters():
    model = Model("cut")
    skip = {"encoder.weight": "pretrained", "encoder.bias": "pretrained"}
    report = gradient_audit(lambda: model(X), model, skip=skip)
    assert report.ok
    assert str(report.entries[0]) == "skipped    encoder.weight (pretrained)"
    with pytest.raises(ProbeError, match=r"'encoder\.wieght'"):
        gradient_audit(lambda: model(X), model, skip={"encoder.wieght": "typo"})


def test_what_cannot_be_audited_says_why():
    model, calls = Model(), []

    def drifting():
        calls.append(0)
        return model(X) + 0.1 * len(calls)

    def picky():
        if model.encoder(X).dtype != torch.float32:
            raise RuntimeError("expected dtype float32")

    with pytest.raises(ProbeError, match="from the same weights"):
        gradient_audit(drifting, model)
    with pytest.raises(ProbeError, match="never called context_module"):
        gradient_audit(lambda: model(X), model, context_module=nn.Linear(1, 1))
    with pytest.raises(ProbeError, match="cannot run in float64"):
        gradient_audit(picky, model)
    with pytest.raises(ProbeError, match="was not audited"):
        gradient_audit(lambda: model(X), model).status_of("nothing")

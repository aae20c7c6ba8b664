"""The encoder contract, held against every encoder of the registry, and the door for a user's own.

A new encoder is tested by being registered. A parameter that may go without gradient must be declared here, by name.

Legend: B batch, K demonstrations, S canvas cells, T context tokens, D decoder size, H encoder size.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from etrm.config.schema import EncoderConfig
from etrm.data.grids import PAD
from etrm.errors import EncoderContractError
from etrm.models.encoders import REGISTRY, EncoderSpec, MatchStatistics, build_encoder, encode, masked_mean, register
from etrm.models.trm import Structure, TRMDecoder
from etrm.training.losses import step_loss
from tests.encoder_samples import CLOSE, ENCODERS, SMALL, SPEC, D, K, S, T, V, context, demos, encoder

pytestmark = pytest.mark.fast

ALL_SIZES = {"hidden_size", "num_heads", "layers", "set_layers"}
UNREAD_SIZES = {  # encoder -> sizes of the config that it leaves alone, as its file says
    "lpn": ALL_SIZES,
    "lpn_var": ALL_SIZES,
    "lpn_standard": {"set_layers"},
    "lpn_variational": {"set_layers"},
}
WITHOUT_GRADIENT: dict[str, set[str]] = {}  # encoder -> parameters that lm_loss may leave alone, such as a zero gate
SLOW = ("lpn", "lpn_var", "trm_style")
every_encoder = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.thorough if name in SLOW else ()) for name in ENCODERS]
)


def test_the_registry_holds_ours_and_the_reference() -> None:
    assert {"aligned", "correspondence", "standard"} <= set(REGISTRY)
    assert len(set(map(id, REGISTRY.values()))) == len(REGISTRY), "fault 7: two names for one factory"
    inputs, labels, mask = demos()
    inputs[:, :, -1] = PAD  # some differ only in what they make of it
    outputs = [context(encoder(name), (inputs, labels, mask)) for name in sorted(REGISTRY)]
    assert all(not torch.allclose(a, b) for i, a in enumerate(outputs) for b in outputs[:i])


@every_encoder
def test_shape_type_and_determinism_in_eval(name: str) -> None:
    net = encoder(name).eval()
    first = context(net, demos())
    assert first.shape == (3, T, D) and first.dtype == torch.float32
    assert torch.equal(first, context(net, demos()))


@every_encoder
def test_trainable_tensors_are_fp32(name: str) -> None:
    """Fault 32: a bf16 parameter cannot follow small updates."""
    assert {p.dtype for p in encoder(name).parameters()} == {torch.float32}


@every_encoder
@settings(deadline=None, derandomize=True, max_examples=6)
@given(counts=st.lists(st.integers(0, K), min_size=2, max_size=3), extra=st.integers(1, 2), seed=st.integers(0, 99))
def test_padded_slots_and_what_stands_in_them_change_nothing(
    name: str, counts: list[int], extra: int, seed: int
) -> None:
    """Also for a filler sample without demonstrations, whose slots are all padded."""
    net, (inputs, labels, mask) = encoder(name).eval(), demos(tuple(counts), seed)
    expected = context(net, (inputs, labels, mask))
    wide = torch.cat((mask, torch.zeros(len(counts), extra, dtype=torch.bool)), dim=1)
    g = torch.Generator().manual_seed(seed)
    rubbish = [torch.randint(0, V, (*wide.shape, S), generator=g) for _ in range(2)]
    filled = [
        torch.where(wide.unsqueeze(-1), nn.functional.pad(grids, (0, 0, 0, extra)), noise)
        for grids, noise in zip((inputs, labels), rubbish, strict=True)
    ]
    torch.testing.assert_close(context(net, (filled[0], filled[1], wide)), expected, **CLOSE)


@every_encoder
def test_a_hole_between_two_demonstrations_changes_nothing(name: str) -> None:
    net, (inputs, labels, mask) = encoder(name).eval(), demos((2, 2))
    order = torch.tensor([0, 2, 1])
    padded = [nn.functional.pad(grids, (0, 0, 0, 1))[:, order] for grids in (inputs, labels)]
    holed = nn.functional.pad(mask, (0, 1))[:, order]
    torch.testing.assert_close(
        context(net, (padded[0], padded[1], holed)), context(net, (inputs, labels, mask)), **CLOSE
    )


@every_encoder
@pytest.mark.parametrize("order", [[1, 0, 2], [2, 1, 0], [1, 2, 0]])
def test_the_order_of_demonstrations_changes_nothing(name: str, order: list[int]) -> None:
    net, (inputs, labels, mask) = encoder(name).eval(), demos((3, 2, 1))
    turned = (inputs[:, order], labels[:, order], mask[:, order])
    torch.testing.assert_close(context(net, turned), context(net, (inputs, labels, mask)), **CLOSE)


@every_encoder
def test_showing_every_demonstration_twice_changes_nothing(name: str) -> None:
    net, d = encoder(name).eval(), demos((3, 1, 2))
    inputs, labels, mask = (torch.cat((t, t), dim=1) for t in d)
    torch.testing.assert_close(context(net, (inputs, labels, mask)), context(net, d), **CLOSE)


@every_encoder
def test_a_sample_depends_on_its_own_demonstrations_and_on_both_grids_of_each(name: str) -> None:
    net, (inputs, labels, mask) = encoder(name).eval(), demos((3, 3))
    base = context(net, (inputs, labels, mask))
    other_input, other_label = inputs.clone(), labels.clone()
    other_input[0, 2] = (other_input[0, 2] - 1) % 10 + 2
    other_label[0, 1] = (other_label[0, 1] - 1) % 10 + 2
    swapped = context(net, (labels, inputs, mask))
    for changed in (context(net, (other_input, labels, mask)), context(net, (inputs, other_label, mask))):
        assert not torch.allclose(changed[0], base[0], **CLOSE)
        torch.testing.assert_close(changed[1], base[1], **CLOSE)
    assert not torch.allclose(swapped, base, **CLOSE), "input and output are told apart"


@every_encoder
@pytest.mark.parametrize("counts", [(0, 0), (0, 2), (1, 1), (1, K)])
def test_forward_and_backward_are_finite_for_any_number_of_demonstrations(name: str, counts: tuple[int, ...]) -> None:
    """Fault 38: a softmax over nothing. A filler row has no demonstrations at all."""
    net = encoder(name)
    answer = context(net, demos(counts))
    answer.square().sum().backward()
    assert torch.isfinite(answer).all()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in net.parameters())


@every_encoder
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_parameter_gets_a_gradient_from_the_lm_loss_through_a_frozen_decoder(name: str, dtype: str) -> None:
    """Fault 1 and its kin, from the task loss alone."""
    net = encoder(name)
    torch.manual_seed(1)
    decoder = TRMDecoder(Structure(V, S, T, D, 2, 4.0, 1, 2, 2, "rope", False, 10000.0, 1e-5, dtype, 4))
    decoder.requires_grad_(False)
    d = demos((3, 2, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
        given_context = encode(net, SPEC, *d)
    inputs = torch.randint(2, V, (3, S))
    _, logits, halt = decoder(decoder.fresh_latents(3), inputs, given_context.context)
    step_loss(logits, halt, torch.randint(2, V, (3, S)), "stablemax").lm.sum().backward()
    without = {n for n, p in net.named_parameters() if p.grad is None or not float(p.grad.abs().sum()) > 0}
    assert without == WITHOUT_GRADIENT.get(name, set())


@every_encoder
@pytest.mark.parametrize(
    ("field", "value"), [("hidden_size", 32), ("layers", 2), ("set_layers", 2), ("num_heads", 4), ("layers", 0)]
)
def test_every_size_of_the_config_changes_the_network(name: str, field: str, value: int) -> None:
    """Fault 12: a field that is accepted and ignored."""
    torch.manual_seed(0)
    nets = [encoder(name).eval(), encoder(name, **{field: value}).eval()]
    sizes = [sum(p.numel() for p in net.parameters()) for net in nets]
    same = sizes[0] == sizes[1] and torch.allclose(context(nets[0], demos()), context(nets[1], demos()), **CLOSE)
    assert same == (field in UNREAD_SIZES.get(name, set()))


def test_matched_tokens_start_at_the_decoders_own_mean_and_move_in_units_of_its_deviation() -> None:
    match = MatchStatistics(SPEC)
    assert torch.equal(match(torch.zeros(1, T, D))[0], SPEC.context_mean)
    moved = match(torch.ones(1, T, D))[0] - SPEC.context_mean
    torch.testing.assert_close(moved, SPEC.context_std.unsqueeze(-1).expand(T, D), **CLOSE)


def test_an_unused_token_of_the_decoder_stays_exactly_at_its_mean() -> None:
    """Fault 22: sixteen dense tokens where the decoder was trained with one."""
    silent = EncoderSpec(S, V, T, D, torch.zeros(T, D), torch.tensor([1.0, 0.0]))
    tokens = MatchStatistics(silent)(torch.randn(3, T, D))
    assert tokens[:, 0].any() and not tokens[:, 1].any()


def test_masked_mean_of_nothing_is_zero_and_of_something_ignores_the_rest() -> None:
    x = torch.tensor([[[1.0], [3.0], [99.0]], [[7.0], [8.0], [9.0]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_mean(x, mask, dim=1).tolist() == [[2.0], [0.0]]


USER_FILE = '''
"""A user's encoder."""
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.shape = (spec.context_tokens, spec.hidden_size)
        self.weight = nn.Parameter(torch.ones(*self.shape))

    def forward(self, demo_inputs, demo_labels, demo_mask):
        return self.weight.expand(len(demo_inputs), *self.shape)

def make(spec):
    return Mine(spec)

def half(spec):
    return Mine(spec).half()

def number(spec):
    return 3

LIST = [1]
'''


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine_for_etrm.py"
    path.write_text(USER_FILE)
    return path


def from_user(name: str) -> nn.Module:
    return build_encoder(EncoderConfig(name, **SMALL), SPEC)


def test_a_users_factory_loads_from_a_file_and_from_a_module(user_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(user_file.parent)
    try:
        for name in (f"{user_file}:make", "mine_for_etrm:make"):
            assert context(from_user(name), demos()).shape == (3, T, D)
    finally:
        sys.modules.pop("mine_for_etrm", None)


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("absent", "no callable 'absent'"),
        ("LIST", "no callable 'LIST'"),
        ("number", "int, expected a torch.nn.Module"),
        ("half", "must be float32: weight is torch.float16"),
    ],
)
def test_a_users_factory_that_gives_no_usable_module_is_refused(user_file: Path, attribute: str, message: str) -> None:
    with pytest.raises(EncoderContractError, match=message):
        from_user(f"{user_file}:{attribute}")


def test_a_missing_file_module_or_name_is_refused_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(EncoderContractError, match="does not exist"):
        from_user(f"{tmp_path / 'absent.py'}:make")
    with pytest.raises(EncoderContractError, match=r"no module 'absent_for_etrm\.deep'"):
        from_user("absent_for_etrm.deep:make")
    with pytest.raises(EncoderContractError, match=r"no encoder 'aligne'; there are aligned, .*standard"):
        from_user("aligne")


def test_an_import_that_fails_inside_a_users_module_is_not_taken_for_a_missing_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imports_for_etrm.py").write_text("import absent_dependency_for_etrm\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="absent_dependency_for_etrm"):
        from_user("imports_for_etrm:make")


def test_a_name_can_be_registered_once() -> None:
    with pytest.raises(EncoderContractError, match="aligned"):
        register("aligned")(lambda spec, config: nn.Identity())


class Answers(nn.Module):
    """An encoder that returns what it was built with."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> Any:
        return self.answer


GOOD = torch.ones(3, T, D)
BAD_ANSWERS: dict[str, tuple[Any, str]] = {
    "too few tokens": (torch.ones(3, T - 1, D), r"\(3, 1, 16\), expected \(B, T, D\) = \(3, 2, 16\)"),
    "one context for all": (torch.ones(1, T, D), r"\(1, 2, 16\)"),
    "integers": (torch.ones(3, T, D, dtype=torch.int64), "int64"),
    "a NaN": (torch.cat((GOOD[:2], torch.full((1, T, D), torch.nan))), "not finite in 1 of 3"),
    "an infinity": (GOOD / 0, "not finite in 3 of 3"),
    "a tuple": ((GOOD, {}), "tuple"),
    "nothing": (None, "NoneType"),
    "an array": (SimpleNamespace(context=GOOD.numpy(), losses={}), "SimpleNamespace"),
    "a loss that is no tensor": (SimpleNamespace(context=GOOD, losses={"kl": 1.0}), "scalar"),
    "a loss a sample": (SimpleNamespace(context=GOOD, losses={"kl": torch.ones(3)}), "scalar"),
}


@pytest.mark.parametrize("what", BAD_ANSWERS)
def test_an_answer_outside_the_contract_is_refused(what: str) -> None:
    answer, message = BAD_ANSWERS[what]
    with pytest.raises(EncoderContractError, match=message):
        encode(Answers(answer), SPEC, *demos())


def test_an_answer_may_be_a_tensor_or_carry_losses_or_not() -> None:
    kl = torch.tensor(2.0)
    for answer, losses in (
        (GOOD, {}),
        (SimpleNamespace(context=GOOD), {}),
        (SimpleNamespace(context=GOOD, losses={"kl": kl}), {"kl": kl}),
    ):
        encoded = encode(Answers(answer), SPEC, *demos())
        assert encoded.context is GOOD and encoded.losses == losses

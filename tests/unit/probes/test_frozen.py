"""Frozen means bitwise: every way in which a frozen module has moved or could move is found and named."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from etrm.errors import ProbeError
from etrm.probes.frozen import digest, snapshot

pytestmark = pytest.mark.fast


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)
        self.register_buffer("start", torch.randn(3), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, x):
        return self.norm(self.inner(x + self.start))


X = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


def words(differences):
    return sorted((item.what, item.name) for item in differences)


def test_an_untouched_module_has_no_differences():
    decoder = Decoder()
    held = snapshot(decoder, golden=lambda: decoder(X))
    decoder(X)
    assert held.check(decoder, [torch.optim.SGD([torch.zeros(1)])]) == []
    assert held.sha256 == snapshot(decoder).sha256
    assert held.check(copy.deepcopy(decoder)) == []


def test_weight_decay_moves_a_parameter_without_any_gradient():
    decoder = Decoder().requires_grad_(True)
    held = snapshot(decoder)
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=0.1, weight_decay=0.5)
    for value in decoder.parameters():
        value.grad = torch.zeros_like(value)
    optimiser.step()
    found = held.check(decoder, [optimiser])
    moved = next(item for item in found if (item.what, item.name) == ("value", "inner.weight"))
    assert "12 of 12 entries differ, by at most" in moved.detail
    assert ("optimiser", "inner.weight") in words(found)
    assert ("requires_grad", "norm.bias") in words(found)


def test_running_statistics_are_buffers_and_count():
    decoder = Decoder().train()
    held = snapshot(decoder)
    decoder(X)
    assert words(held.check(decoder)) == [
        ("value", "norm.num_batches_tracked"),
        ("value", "norm.running_mean"),
        ("value", "norm.running_var"),
    ]


def test_non_persistent_buffers_modes_and_structure():
    decoder = Decoder()
    held = snapshot(decoder)
    decoder.start[0] += 1
    decoder.norm.train()
    decoder.extra = nn.Parameter(torch.zeros(2), requires_grad=False)
    decoder.inner.bias = None
    assert words(held.check(decoder)) == [
        ("added", "extra"),
        ("missing", "inner.bias"),
        ("mode", "norm"),
        ("value", "start"),
    ]
    assert words(held.check(decoder, modes=False)) == [
        ("added", "extra"),
        ("missing", "inner.bias"),
        ("value", "start"),
    ]


def test_another_dtype_or_shape_is_named_as_such():
    decoder = Decoder()
    held = snapshot(decoder)
    decoder.inner.bfloat16()
    assert {item.what for item in held.check(decoder)} == {"shape"}


def test_the_function_may_change_with_equal_weights():
    decoder, cycles = Decoder(), [2]

    def golden():
        value = X
        for _ in range(cycles[0]):
            value = decoder(value)[:, :3]
        return value

    held = snapshot(decoder, golden=golden)
    cycles[0] = 3
    (found,) = held.check(decoder)
    assert found.what == "output"


def test_golden_outputs_leave_random_state_and_buffers_alone():
    decoder = Decoder().train()
    state, mean = torch.get_rng_state(), decoder.norm.running_mean.clone()
    held = snapshot(decoder, golden=lambda: [decoder(X), nn.functional.dropout(X)])
    assert held.check(decoder) == []
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(decoder.norm.running_mean, mean)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool]),
    size=st.integers(1, 5),
    byte=st.integers(0, 39),
    bit=st.integers(0, 7),
)
def test_every_single_bit_counts(dtype, size, byte, bit):
    value = torch.zeros(size, dtype=dtype)
    before = digest(value)
    raw = value.view(torch.uint8)
    raw[byte % len(raw)] ^= 1 if dtype is torch.bool else 1 << bit
    assert digest(value) != before
    assert digest(torch.zeros(size, dtype=dtype)) == before
    assert digest(torch.zeros((size, 1), dtype=dtype)) != before


def test_bad_input_says_why():
    with pytest.raises(ProbeError, match="no parameters"):
        snapshot(nn.ReLU())
    with pytest.raises(ProbeError, match="must return a tensor"):
        snapshot(Decoder(), golden=lambda: ["text"])

"""The decoder's loading door, structure and gradient truncation: what a sceptic tries after parity holds.

Legend: B batch, S canvas cells, T context tokens, D hidden.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from etrm.errors import CheckpointError
from etrm.models.trm import (
    Latents,
    Structure,
    TRMDecoder,
    from_official,
    load_decoder_tensors,
    split_official,
    structure_from_official,
    table_context,
)

pytestmark = pytest.mark.fast

TINY = Structure(12, 4, 2, 16, 2, 4.0, 1, 3, 2, "rope", False, 10000.0, 1e-5, "float32", 4)
OFFICIAL: dict[str, Any] = {
    "vocab_size": 12,
    "seq_len": 4,
    "puzzle_emb_len": 2,
    "puzzle_emb_ndim": 16,
    "hidden_size": 16,
    "num_heads": 2,
    "expansion": 4,
    "L_layers": 1,
    "H_cycles": 3,
    "L_cycles": 2,
    "pos_encodings": "rope",
    "forward_dtype": "float32",
    "halt_max_steps": 4,
}
FREE_OF_WEIGHTS = {"h_cycles": 2, "l_cycles": 3, "rope_theta": 100.0, "rms_norm_eps": 0.1, "num_heads": 4}
CHANGES_SHAPES = {
    "vocab_size": 13,
    "seq_len": 9,
    "context_tokens": 3,
    "hidden_size": 32,
    "expansion": 40.0,
    "layers": 2,
}
PREFIXES = (
    "",
    "model.",
    "inner.",
    "model.inner.",
    "_orig_mod.model.inner.",
    "module.model.inner.",
    "model._orig_mod.inner.",
    "module._orig_mod.model.inner.",
    "_orig_mod.module.model.inner._orig_mod.",
)


def seeded(structure: Structure, seed: int = 0) -> TRMDecoder:
    torch.manual_seed(seed)
    decoder = TRMDecoder(structure)
    with torch.no_grad():
        decoder.q_head.weight.normal_()  # zero at first, which would hide it from gradients
    return decoder


def query(structure: Structure, batch: int = 2) -> tuple[Tensor, Tensor]:
    """inputs (B, S) and context (B, T, D), the same for every call."""
    g = torch.Generator().manual_seed(3)
    inputs = torch.randint(0, structure.vocab_size, (batch, structure.seq_len), generator=g)
    return inputs, torch.randn(batch, structure.context_tokens, structure.hidden_size, generator=g)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_wrapper_prefix_loads_the_same_decoder_and_table(prefix: str) -> None:
    source = seeded(TINY)
    state = {prefix + n: t for n, t in source.state_dict().items()} | {f"{prefix}puzzle_emb.weights": torch.ones(3, 16)}
    decoder, table = from_official(state, OFFICIAL)
    assert table is not None and torch.equal(table, torch.ones(3, 16))
    loaded = decoder.state_dict()
    assert all(torch.equal(loaded[n], t) for n, t in source.state_dict().items())


@pytest.mark.parametrize("name", ["lm_head.weight", "puzzle_emb.weights"])
def test_two_names_for_one_tensor_are_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=name):
        split_official({f"model.inner.{name}": torch.zeros(1), f"_orig_mod.model.inner.{name}": torch.ones(1)})


def broken_states() -> dict[str, tuple[dict[str, Tensor], str]]:
    """State dicts with one fault each, and what the message must name."""
    whole = seeded(TINY, seed=1).state_dict()
    lacks = {n: t for n, t in whole.items() if n != "lm_head.weight"}
    return {
        "missing": (lacks, "missing lm_head.weight"),
        "missing buffer": ({n: t for n, t in whole.items() if n != "H_init"}, "missing H_init"),
        "unexpected": (
            whole | {"L_level.layers.1.mlp.down_proj.weight": torch.zeros(1)},
            r"unexpected L_level.layers.1",
        ),
        "an encoder's": (whole | {"encoder.out.weight": torch.zeros(1)}, "unexpected encoder.out.weight"),
        "misshapen": (whole | {"q_head.weight": torch.zeros(2, 17)}, r"q_head.weight is \(2, 17\), expected \(2, 16\)"),
        "renamed": (lacks | {"head.weight": torch.zeros(12, 16)}, "missing lm_head.weight; unexpected head.weight"),
    }


@pytest.mark.parametrize("fault", broken_states())
def test_a_state_dict_that_does_not_fit_is_refused_and_changes_nothing(fault: str) -> None:
    state, message = broken_states()[fault]
    decoder = seeded(TINY)
    before = {n: t.clone() for n, t in decoder.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_decoder_tensors(decoder, state, "a file")
    assert all(torch.equal(before[n], t) for n, t in decoder.state_dict().items())


def test_loading_changes_every_tensor_in_place_so_that_optimisers_stay_valid() -> None:
    decoder, other = seeded(TINY), seeded(TINY, seed=1)
    with torch.no_grad():
        other.q_head.bias.fill_(-4.0)
    ids = {n: id(p) for n, p in decoder.named_parameters()}
    changed = {n for n, t in decoder.state_dict().items() if not torch.equal(t, other.state_dict()[n])}
    assert changed == set(decoder.state_dict())
    load_decoder_tensors(decoder, other.state_dict(), "a file")
    assert all(torch.equal(t, other.state_dict()[n]) for n, t in decoder.state_dict().items())
    assert {n: id(p) for n, p in decoder.named_parameters()} == ids


@pytest.mark.parametrize("key", ["hidden_size", "L_cycles", "halt_max_steps", "pos_encodings"])
def test_a_config_without_a_key_is_refused_by_name(key: str) -> None:
    with pytest.raises(CheckpointError, match=key):
        structure_from_official({k: v for k, v in OFFICIAL.items() if k != key})


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("forward_dtype", "float16", "forward_dtype"),
        ("pos_encodings", "sinus", "pos_encodings"),
        ("L_cycles", 0, "l_cycles"),
        ("num_heads", 3, "heads"),
        ("hidden_size", "wide", "wrong type"),
        ("rms_norm_eps", -1.0, "rms_norm_eps"),
    ],
)
def test_a_value_that_no_decoder_can_have_is_refused_by_name(key: str, value: object, named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        structure_from_official(OFFICIAL | {key: value})


def test_token_count_follows_from_the_table_width_when_the_config_says_zero() -> None:
    assert structure_from_official(OFFICIAL | {"puzzle_emb_len": 0, "puzzle_emb_ndim": 33}).context_tokens == 3


@pytest.mark.parametrize(("name", "value"), FREE_OF_WEIGHTS.items())
def test_every_structure_field_outside_the_weights_changes_the_function(name: str, value: float) -> None:
    """Same weights, another field: the state dict fits and the logits differ. Nothing may be accepted and ignored."""
    mine, theirs = seeded(TINY), seeded(replace(TINY, **{name: value}))
    load_decoder_tensors(theirs, mine.state_dict(), "the same weights")
    inputs, context = query(TINY)
    (_, logits, _), (_, others, _) = (d(d.fresh_latents(2), inputs, context) for d in (mine, theirs))
    assert not torch.allclose(logits, others, atol=1e-4)
    assert [d.split(":")[0] for d in TINY.differences(theirs.structure)] == [name]


@pytest.mark.parametrize(("name", "value"), [*CHANGES_SHAPES.items(), ("mlp_t", True), ("pos_encodings", "learned")])
def test_every_structure_field_inside_the_weights_changes_their_names_or_shapes(name: str, value: Any) -> None:
    other = replace(TINY, **{name: value})
    if name in ("seq_len", "context_tokens"):  # rope has no weights for positions
        mine, theirs = (
            TRMDecoder(replace(TINY, pos_encodings="learned")),
            TRMDecoder(replace(other, pos_encodings="learned")),
        )
    else:
        mine, theirs = TRMDecoder(TINY), TRMDecoder(other)
    shapes = [{n: t.shape for n, t in d.state_dict().items()} for d in (mine, theirs)]
    assert shapes[0] != shapes[1]


def test_the_two_position_kinds_without_weights_differ_and_so_do_the_dtypes() -> None:
    rope, bare, low = seeded(TINY), TRMDecoder(replace(TINY, pos_encodings="none")), None
    load_decoder_tensors(bare, rope.state_dict(), "the same weights")
    low = TRMDecoder(replace(TINY, forward_dtype="bfloat16"))
    load_decoder_tensors(low, rope.state_dict(), "the same weights")
    inputs, context = query(TINY)
    logits = [d(d.fresh_latents(2), inputs, context)[1] for d in (rope, bare, low)]
    assert not torch.allclose(logits[0], logits[1], atol=1e-4)
    assert logits[2].dtype == torch.bfloat16 and all(p.dtype == torch.float32 for p in low.parameters())


def test_gradient_flows_through_the_last_h_cycle_only() -> None:
    """Weight gradients equal those of one H cycle from the carried states, so earlier cycles contribute nothing."""
    decoder = seeded(TINY)
    inputs, context = query(TINY)
    context.requires_grad_()
    decoder(decoder.fresh_latents(2), inputs, context)[1].square().sum().backward()
    whole = {n: p.grad.clone() for n, p in decoder.named_parameters() if p.grad is not None}
    from_context = context.grad
    assert from_context is not None and float(from_context.abs().sum()) > 0

    with torch.no_grad():
        latents = decoder.fresh_latents(2)
        x = decoder.embed(inputs, context)
        assert decoder.rotary is not None
        for _ in range(TINY.h_cycles - 1):
            latents = decoder.cycle(latents, x, decoder.rotary())
    decoder.zero_grad()
    one = seeded(replace(TINY, h_cycles=1))
    fresh = context.detach().clone().requires_grad_()
    one(latents, inputs, fresh)[1].square().sum().backward()
    for n, p in one.named_parameters():
        if n in whole:
            torch.testing.assert_close(p.grad, whole[n], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fresh.grad, from_context, rtol=1e-4, atol=1e-5)


def test_the_carry_has_no_history_and_a_trainable_start_state_would_get_nothing_from_it() -> None:
    decoder = seeded(TINY)
    inputs, context = query(TINY)
    start = Latents(*(t.clone().requires_grad_() for t in decoder.fresh_latents(2)))
    latents, logits, halt = decoder(start, inputs, context)
    assert not latents.z_h.requires_grad and not latents.z_l.requires_grad
    assert logits.requires_grad and halt.requires_grad
    (logits.sum() + halt.sum()).backward()
    assert start.z_h.grad is None and start.z_l.grad is None


def test_reset_latents_starts_the_reset_slots_and_keeps_the_others_bitwise() -> None:
    decoder = seeded(TINY)
    carried = Latents(torch.randn(3, 6, 16), torch.randn(3, 6, 16))
    reset = decoder.reset_latents(torch.tensor([True, False, True]), carried)
    fresh = decoder.fresh_latents(3)
    for new, old, start in zip(reset, carried, fresh, strict=True):
        assert torch.equal(new[[0, 2]], start[[0, 2]]) and torch.equal(new[1], old[1])


def test_a_new_decoder_starts_pessimistic_about_halting() -> None:
    decoder = TRMDecoder(TINY)
    inputs, context = query(TINY)
    assert torch.equal(decoder(decoder.fresh_latents(2), inputs, context)[2], torch.full((2,), -5.0))


@pytest.mark.parametrize("width", [16, 20, 32])
def test_a_table_row_fills_the_first_numbers_of_the_context_and_zeros_the_rest(width: int) -> None:
    rows = torch.randn(3, width)
    context = table_context(rows, TINY)
    assert context.shape == (3, 2, 16)
    flat = context.flatten(1)
    assert torch.equal(flat[:, :width], rows) and not flat[:, width:].any()


def test_a_table_row_wider_than_the_context_is_refused() -> None:
    with pytest.raises(CheckpointError, match="33"):
        table_context(torch.zeros(1, 33), TINY)

"""`standard` computes real demonstrations only, and `standard_cells` real cells only: the plain form agrees.

Legend: B batch, K demonstrations, S canvas cells, H encoder size, P demonstrations that are shown.
"""

import pytest
import torch
from torch import Tensor, nn

from etrm.config.schema import EncoderConfig
from etrm.data.grids import PAD
from etrm.models.encoders import EncoderSpec, build_encoder, encode, masked_mean
from etrm.models.encoders.standard import EPS, Standard
from etrm.models.layers import Block, embedding_scale, rms_norm, rotate

pytestmark = pytest.mark.fast

S, V, T, D = 36, 12, 2, 32
SPEC = EncoderSpec(S, V, T, D, torch.zeros(T, D), torch.ones(T))
NAMES = ("standard", "standard_cells")


def encoder(name: str) -> Standard:
    torch.manual_seed(0)
    net = build_encoder(EncoderConfig(name, hidden_size=32, num_heads=2, layers=2, set_layers=1), SPEC)
    assert isinstance(net, Standard)
    return net


def demos(shown: tuple[int, ...] = (3, 1, 2), seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Grids of several sizes at the top left of a 6x6 canvas, PAD around them: (B, K, S), (B, K, S), (B, K)."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(shown)).unsqueeze(0) < torch.tensor(shown).unsqueeze(1)
    grids = []
    for _ in range(2):
        grid = torch.randint(1, V, (*mask.shape, 6, 6), generator=g)
        sizes = torch.randint(1, 7, (*mask.shape, 2), generator=g)
        place = torch.arange(6)
        inside = (place.view(6, 1) < sizes[..., :1, None]) & (place < sizes[..., 1:, None])
        grids.append((grid * inside * mask[..., None, None]).flatten(2))
    return grids[0], grids[1], mask


def masked_block(block: Block, x: Tensor, cos_sin: tuple[Tensor, Tensor], hidden: Tensor) -> Tensor:
    """The block with its attention written out over all positions. x (P, 2S, H), hidden (P, 2S) bool."""
    attention = block.self_attn
    qkv = attention.qkv_proj(x).unflatten(-1, (3, attention.heads, attention.head_size))
    q, k, v = (
        t.transpose(1, 2) for t in (rotate(qkv[:, :, 0], *cos_sin), rotate(qkv[:, :, 1], *cos_sin), qkv[:, :, 2])
    )
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(hidden[:, None, None], -torch.inf)
    mixed = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
    x = rms_norm(x + attention.o_proj(mixed), EPS)
    return rms_norm(x + block.mlp(x), EPS)


def plain(net: Standard, inputs: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Every slot and cell of the canvas computed, as published; PAD keys masked only where the encoder says so."""
    batch, count, _ = inputs.shape
    pair = torch.cat((net.embed_input(inputs), net.embed_output(labels)), dim=2).flatten(0, 1)  # (B*K, 2S, H)
    real = torch.cat((inputs, labels), dim=2).flatten(0, 1) != PAD
    x = embedding_scale(net.size) * pair
    for block in net.blocks:
        assert isinstance(block, Block)
        # An empty slot attends to its PAD: it is left out below, and nothing else than PAD is there.
        nothing = ~real.any(dim=1, keepdim=True)
        x = masked_block(block, x, net.rotary(), torch.zeros_like(real) if net.attend_pad else ~(real | nothing))
    read = net.out(masked_mean(x, real, dim=1)).view(batch, count, -1)
    return rms_norm(net.to_context(net.set(torch.where(mask.unsqueeze(-1), read, 0.0), mask)), EPS)


def gradients(net: nn.Module, context: Tensor) -> dict[str, Tensor]:
    net.zero_grad()
    weight = torch.linspace(-1, 1, context.numel()).view_as(context)
    (context.float() * weight).sum().backward()
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", NAMES)
def test_context_and_gradients_equal_the_padded_forms(name: str) -> None:
    net, given = encoder(name), demos()
    ours, theirs = encode(net, SPEC, *given).context, plain(net, *given)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    mine, plains = gradients(net, ours), gradients(net, theirs)
    assert set(mine) == set(plains) == {n for n, _ in net.named_parameters()}
    for n in mine:
        torch.testing.assert_close(mine[n], plains[n], rtol=1e-3, atol=1e-4, msg=lambda m, n=n: f"{n}: {m}")


@pytest.mark.parametrize("name", NAMES)
def test_in_bf16_the_context_is_that_of_the_padded_form_to_bf16s_rounding(name: str) -> None:
    net, given = encoder(name).eval(), demos()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        low = encode(net, SPEC, *given).context.float()
    with torch.no_grad():
        exact = plain(net, *given)
    assert float((low - exact).norm() / exact.norm()) < 0.02


@pytest.mark.parametrize("name", NAMES)
def test_what_stands_outside_is_never_computed(name: str) -> None:
    net, (inputs, labels, mask) = encoder(name), demos()
    tokens: list[int] = []
    block = net.blocks[0]
    assert isinstance(block, Block)
    block.register_forward_pre_hook(lambda module, args: tokens.append(args[0].shape[0] * args[0].shape[1]))
    net(inputs, labels, mask)
    real = int(((inputs != PAD) & mask.unsqueeze(-1)).sum() + ((labels != PAD) & mask.unsqueeze(-1)).sum())
    assert tokens == [real if name == "standard_cells" else int(mask.sum()) * 2 * S]


@pytest.mark.parametrize("name", NAMES)
def test_queries_of_one_task_share_its_demonstrations(name: str) -> None:
    net, (inputs, labels, mask) = encoder(name), demos((2, 3))
    expected = encode(net, SPEC, inputs, labels, mask).context
    seen: list[int] = []
    net.out.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    twice = [t[[0, 1, 0, 1]] for t in (inputs, labels, mask)]
    contexts = encode(net, SPEC, *twice).context
    assert seen == [5]
    torch.testing.assert_close(contexts, expected[[0, 1, 0, 1]], rtol=1e-4, atol=1e-5)


def test_a_larger_canvas_changes_the_published_one_and_not_the_other() -> None:
    """PAD rows that nobody draws on: what the published encoder makes of them is the difference between the two."""
    given = demos()
    contexts = {}
    for name in NAMES:
        net = encoder(name)
        moved = [torch.cat((g, torch.zeros_like(g)[..., :6]), dim=-1) for g in given[:2]]  # S = 42: one more row
        torch.manual_seed(0)
        wide = build_encoder(
            EncoderConfig(name, hidden_size=32, num_heads=2, layers=2, set_layers=1),
            EncoderSpec(42, V, T, D, torch.zeros(T, D), torch.ones(T)),
        )
        assert isinstance(wide, Standard)
        with torch.no_grad():  # output cells stand 6 places later on the larger canvas; attention reads distances
            for angles, own in zip(wide.rotary(), net.rotary(), strict=True):
                angles[42:78] = own[36:]
            contexts[name] = net(*given), wide(moved[0], moved[1], given[2])
    torch.testing.assert_close(*contexts["standard_cells"], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(*contexts["standard"], atol=1e-2)

"""Tiny encoders of the registry and random demonstrations for them, shared by the encoder tests.

Legend: B batch, K demonstrations, S canvas cells, V vocabulary, T context tokens, D decoder size.
"""

import torch
from torch import Tensor, nn

from etrm.config.schema import EncoderConfig
from etrm.models.encoders import REGISTRY, EncoderSpec, build_encoder, encode

S, V, T, D, K = 4, 12, 2, 16, 3
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
SPEC = EncoderSpec(S, V, T, D, torch.randn(T, D, generator=torch.Generator().manual_seed(5)), torch.tensor([0.5, 2.0]))
SMALL = {"hidden_size": 16, "num_heads": 2, "layers": 1, "set_layers": 1}
Demos = tuple[Tensor, Tensor, Tensor]

build_encoder(EncoderConfig("aligned", **SMALL), SPEC)  # the registry fills on first use
ENCODERS = tuple(sorted(REGISTRY))


def encoder(name: str, **changes: int) -> nn.Module:
    torch.manual_seed(0)
    net = build_encoder(EncoderConfig(name, **(SMALL | changes)), SPEC)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))  # off any special start, such as a zero-initialised gate
    return net


def demos(counts: tuple[int, ...] = (3, 1, 2), seed: int = 0) -> Demos:
    """Random demonstrations, `counts[b]` of them in sample b, padded to the largest with PAD."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(1, *counts)).unsqueeze(0) < torch.tensor(counts).unsqueeze(1)  # (B, K)
    shape = (*mask.shape, S)
    grids = [torch.randint(1, V, shape, generator=g) * mask.unsqueeze(-1) for _ in range(2)]
    return grids[0], grids[1], mask


def context(net: nn.Module, d: Demos) -> Tensor:
    return encode(net, SPEC, *d).context

"""Encoders behind one registry: a factory takes an EncoderSpec (and, for ours, an EncoderConfig) and returns a module.

The contract, for ours and for a user's own: `forward(demo_inputs (B,K,S) int, demo_labels (B,K,S) int, demo_mask (B,K)
bool)` returns a context (B,T,D), or an object with `.context` and `.losses` (a dict of scalar tensors added to the
loss).
"""

import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from etrm.config.schema import EncoderConfig
from etrm.errors import EncoderContractError
from etrm.models.layers import CastedLinear


@dataclass(frozen=True, eq=False)
class EncoderSpec:
    """What a decoder asks of its context: sizes, and the statistics of the contexts it was trained with."""

    seq_len: int  # S
    vocab_size: int  # V
    context_tokens: int  # T
    hidden_size: int  # D
    context_mean: Tensor  # (T, D) fp32
    context_std: Tensor  # (T,) fp32


@dataclass(frozen=True, eq=False)
class Encoded:
    """An encoder's answer in full: the context (B, T, D) and extra losses by name (scalars)."""

    context: Tensor
    losses: dict[str, Tensor]


Factory = Callable[[EncoderSpec, EncoderConfig], nn.Module]
REGISTRY: dict[str, Factory] = {}
FIXED_SIZE = frozenset({"lpn", "lpn_var"})  # keep their published size and read none of the config


def register(name: str) -> Callable[[Factory], Factory]:
    """Enter a factory into the registry under `name`; EncoderContractError if the name is taken."""

    def enter(factory: Factory) -> Factory:
        if name in REGISTRY:
            raise EncoderContractError(f"two encoders are named {name!r}: {REGISTRY[name]} and {factory}")
        REGISTRY[name] = factory
        return factory

    return enter


def build_encoder(config: EncoderConfig, spec: EncoderSpec) -> nn.Module:
    """The encoder that the config names: one of the registry, or `path_or_module:factory` with `factory(spec)`.

    Raises EncoderContractError if there is none, if it is not a torch module, or if a trainable tensor is not fp32.
    """
    from etrm.models.encoders import (  # noqa: F401  (they register themselves)
        aligned,
        cell_reader,
        correspondence,
        hybrid,
        latent_program,
        recurrent,
        relations,
        standard,
    )

    if ":" in config.name:
        encoder = load_factory(config.name)(spec)
    elif config.name in REGISTRY:
        encoder = REGISTRY[config.name](spec, config)
    else:
        known = ", ".join(sorted(REGISTRY))
        raise EncoderContractError(f"no encoder {config.name!r}; there are {known}, or give path_or_module:factory")
    if not isinstance(encoder, nn.Module):
        raise EncoderContractError(f"{config.name} returned a {type(encoder).__name__}, expected a torch.nn.Module")
    rough = [f"{n} is {p.dtype}" for n, p in encoder.named_parameters() if p.requires_grad and p.dtype != torch.float32]
    if rough:
        raise EncoderContractError(f"trainable tensors of {config.name} must be float32: {', '.join(rough)}")
    return encoder


def load_factory(name: str) -> Callable[[EncoderSpec], nn.Module]:
    """The factory behind `path/to/file.py:factory` or `package.module:factory`; EncoderContractError says what is
    missing.
    """
    place, _, attribute = name.rpartition(":")
    if place.endswith(".py"):
        path = Path(place).resolve()
        if not path.is_file():
            raise EncoderContractError(f"{path} does not exist; --encoder expects path_or_module:factory")
        unique = f"etrm_encoder_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
        found = importlib.util.spec_from_file_location(unique, path)
        assert found is not None and found.loader is not None
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{place}.".startswith(f"{error.name}."):
                raise  # the module is there, something that it imports is not
            raise EncoderContractError(f"no module {place!r} for --encoder {name!r}; is it on PYTHONPATH?") from error
    factory: Any = getattr(module, attribute, None)
    if not callable(factory):
        raise EncoderContractError(f"{place} has no callable {attribute!r}; write a function {attribute}(spec) there")
    return factory


def encode(
    encoder: nn.Module, spec: EncoderSpec, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor
) -> Encoded:
    """Run an encoder and hold it to the contract. demo_inputs and demo_labels (B, K, S) int, demo_mask (B, K) bool.

    Raises EncoderContractError on another shape, an integer or a non-finite context.
    """
    answer = encoder(demo_inputs, demo_labels, demo_mask)
    context = answer if isinstance(answer, Tensor) else getattr(answer, "context", None)
    losses = getattr(answer, "losses", {})
    if not isinstance(context, Tensor):
        raise EncoderContractError(
            f"the encoder returned a {type(answer).__name__}, expected a tensor (B, T, D) or an object with .context"
        )
    if not isinstance(losses, Mapping) or not all(isinstance(v, Tensor) and v.dim() == 0 for v in losses.values()):
        raise EncoderContractError("the encoder's .losses must map names to scalar tensors")
    encoded = Encoded(context, dict(losses))
    expected = (demo_inputs.shape[0], spec.context_tokens, spec.hidden_size)
    if tuple(encoded.context.shape) != expected:
        raise EncoderContractError(
            f"the encoder's context is {tuple(encoded.context.shape)}, expected (B, T, D) = {expected}"
        )
    if not encoded.context.is_floating_point():
        raise EncoderContractError(f"the encoder's context is {encoded.context.dtype}, expected a floating type")
    if not bool(torch.isfinite(encoded.context).all()):
        bad = int((~torch.isfinite(encoded.context)).flatten(1).any(dim=1).sum())
        raise EncoderContractError(f"the encoder's context is not finite in {bad} of {expected[0]} samples")
    return encoded


class MatchStatistics(nn.Module):
    """Centre and scale raw tokens to the decoder's own contexts: mean + std * x. (B, T, D) -> (B, T, D) fp32.

    Not normalised: a random context of full size hurts more than the mean one, so an encoder that must answer at full
    size first learns to answer a constant. Started small, it only ever grows where that helps.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.register_buffer("mean", spec.context_mean.clone(), persistent=False)
        self.register_buffer("std", spec.context_std.clone().unsqueeze(-1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.mean + self.std * x.float()


START = 0.1  # of the table's deviation: how far the first contexts stand from its mean


def start_small(layer: nn.Linear | CastedLinear) -> None:
    """Scale a layer's initial weight so that MatchStatistics begins near the mean context."""
    with torch.no_grad():
        layer.weight.mul_(START)


def masked_mean(x: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Mean of x over `dim` where mask is set; mask has x's shape without the last axis. All-masked rows give 0."""
    weight = mask.unsqueeze(-1).to(x.dtype)
    return (x * weight).sum(dim) / weight.sum(dim).clamp(min=1)

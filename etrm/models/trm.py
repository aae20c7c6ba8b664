"""The TRM decoder: two latent states refined by one shared block stack, read out as a grid and a halt logit.

Notable: gradient flows through the last H cycle only, the carry is cut after every ACT step, and L_cycles and H_cycles
are not in the state dict (so weights alone never tell whether a decoder is the one that was trained; see bundle.py).
Maths: arXiv 2510.04871, section 4; tensor names as in the public checkpoint, without its `model.inner.` prefix.

Legend: B batch, S canvas cells, T context tokens, L = T + S positions, D hidden, V vocabulary.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from etrm.declared import no_gradient, truncate
from etrm.errors import CheckpointError
from etrm.models.layers import (
    Attention,
    Block,
    CastedEmbedding,
    CastedLinear,
    RotaryEmbedding,
    at_least_fp32,
    embedding_scale,
    trunc_normal_,
)

PositionKind = Literal["rope", "learned", "none"]
WRAPPERS = re.compile(r"((_orig_mod|module|model|inner)\.)+")
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class Structure:
    """Everything beside its weights that decides what a decoder computes. Sizes in counts, theta and eps unitless."""

    vocab_size: int
    seq_len: int
    context_tokens: int
    hidden_size: int
    num_heads: int
    expansion: float
    layers: int
    h_cycles: int
    l_cycles: int
    pos_encodings: PositionKind
    mlp_t: bool
    rope_theta: float
    rms_norm_eps: float
    forward_dtype: str
    halt_max_steps: int

    def __post_init__(self) -> None:
        """CheckpointError naming a field that no decoder can have."""
        for f in fields(self):
            value = getattr(self, f.name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if f.type is int and not (whole and value >= (0 if f.name == "context_tokens" else 1)):
                raise CheckpointError(f"the decoder's {f.name} is {value!r}, expected a positive whole number")
            if f.type is float and not ((whole or isinstance(value, float)) and value > 0):
                raise CheckpointError(f"the decoder's {f.name} is {value!r}, expected a positive number")
        for name, known in (("pos_encodings", get_args(PositionKind)), ("forward_dtype", tuple(DTYPES))):
            if getattr(self, name) not in known:
                raise CheckpointError(f"the decoder's {name} is {getattr(self, name)!r}, expected one of {known}")
        if self.hidden_size % self.num_heads:
            raise CheckpointError(f"{self.num_heads} heads do not divide the decoder's hidden_size {self.hidden_size}")

    def differences(self, other: "Structure") -> list[str]:
        """Name each field in which two structures differ, as `field: this, other`."""
        pairs = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return [f"{name}: {mine!r}, {theirs!r}" for name, mine, theirs in pairs if mine != theirs]


def structure_from_official(config: Mapping[str, Any]) -> Structure:
    """Read a structure from the public implementation's config (its own key names).

    Raises CheckpointError if a key is missing or its value is no such number. `puzzle_emb_len` 0 means as many tokens
    as `puzzle_emb_ndim` fills.
    """
    try:
        hidden = int(config["hidden_size"])
        tokens = int(config.get("puzzle_emb_len", 16)) or -(int(config["puzzle_emb_ndim"]) // -hidden)
        return Structure(
            vocab_size=int(config["vocab_size"]),
            seq_len=int(config["seq_len"]),
            context_tokens=tokens,
            hidden_size=hidden,
            num_heads=int(config["num_heads"]),
            expansion=float(config["expansion"]),
            layers=int(config["L_layers"]),
            h_cycles=int(config["H_cycles"]),
            l_cycles=int(config["L_cycles"]),
            pos_encodings=config["pos_encodings"],
            mlp_t=bool(config.get("mlp_t", False)),
            rope_theta=float(config.get("rope_theta", 10000.0)),
            rms_norm_eps=float(config.get("rms_norm_eps", 1e-5)),
            forward_dtype=str(config.get("forward_dtype", "bfloat16")),
            halt_max_steps=int(config["halt_max_steps"]),
        )
    except KeyError as missing:
        raise CheckpointError(f"the decoder's config lacks {missing}; it has {', '.join(sorted(config))}") from missing
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the decoder's config holds a value of the wrong type: {error}") from error


class Latents(NamedTuple):
    """The decoder's two states, (B, L, D) each, without gradient history between ACT steps."""

    z_h: Tensor
    z_l: Tensor


class BlockStack(nn.Module):
    """The shared function f: adds its input injection, then applies the blocks. (B, L, D), (B, L, D) -> (B, L, D)."""

    def __init__(self, structure: Structure) -> None:
        super().__init__()
        s = structure
        positions = s.seq_len + s.context_tokens
        self.layers = nn.ModuleList(
            Block(s.hidden_size, s.num_heads, s.expansion, s.rms_norm_eps, positions, s.mlp_t) for _ in range(s.layers)
        )

    def forward(self, state: Tensor, injection: Tensor, cos_sin: tuple[Tensor, Tensor] | None) -> Tensor:
        state = state + injection
        for layer in self.layers:
            state = layer(state, cos_sin)
        return state


class TRMDecoder(nn.Module):
    """One ACT step of TRM. `forward(latents, inputs (B,S) int, context (B,T,D))` -> (latents, logits (B,S,V), halt
    (B,)).
    """

    H_init: Tensor
    L_init: Tensor

    def __init__(self, structure: Structure) -> None:
        super().__init__()
        self.structure = s = structure
        self.dtype = DTYPES[s.forward_dtype]
        positions = s.seq_len + s.context_tokens
        std = 1.0 / embedding_scale(s.hidden_size)
        self.embed_tokens = CastedEmbedding(s.vocab_size, s.hidden_size, std, self.dtype)
        if s.pos_encodings == "learned":
            self.embed_pos = CastedEmbedding(positions, s.hidden_size, std, self.dtype)
        self.rotary = None
        if s.pos_encodings == "rope":
            head_size = s.hidden_size // s.num_heads
            self.rotary = RotaryEmbedding(head_size, positions, s.rope_theta, at_least_fp32(self.dtype))
        self.L_level = BlockStack(s)
        self.lm_head = CastedLinear(s.hidden_size, s.vocab_size)
        self.q_head = CastedLinear(s.hidden_size, 2, bias=True)
        self.register_buffer("H_init", trunc_normal_(torch.empty(s.hidden_size), std=1.0).to(self.dtype))
        self.register_buffer("L_init", trunc_normal_(torch.empty(s.hidden_size), std=1.0).to(self.dtype))
        with torch.no_grad():
            # Almost never halting at first lets every early update see the full depth.
            self.q_head.weight.zero_()
            assert self.q_head.bias is not None
            self.q_head.bias.fill_(-5.0)

    def fresh_latents(self, batch: int) -> Latents:
        """The two fixed start states, broadcast over batch and positions: (B, L, D) each."""
        shape = (batch, self.structure.seq_len + self.structure.context_tokens, self.structure.hidden_size)
        return Latents(self.H_init.expand(shape), self.L_init.expand(shape))

    def reset_latents(self, reset: Tensor, latents: Latents) -> Latents:
        """Start states where `reset` (B,) bool is set, the carried ones elsewhere."""
        where = reset.view(-1, 1, 1)
        return Latents(torch.where(where, self.H_init, latents.z_h), torch.where(where, self.L_init, latents.z_l))

    def embed(self, inputs: Tensor, context: Tensor) -> Tensor:
        """Context tokens before grid tokens, positions added if learned, all times sqrt(D): (B, L, D)."""
        sequence = torch.cat((context.to(self.dtype), self.embed_tokens(inputs)), dim=1)  # (B, L, D)
        if self.structure.pos_encodings == "learned":
            sequence = 0.707106781 * (sequence + self.embed_pos.embedding_weight.to(self.dtype))
        return embedding_scale(self.structure.hidden_size) * sequence

    def cycle(self, latents: Latents, x: Tensor, cos_sin: tuple[Tensor, Tensor] | None) -> Latents:
        """One H cycle: l_cycles updates of z_L, then one of z_H. All (B, L, D)."""
        z_h, z_l = latents
        for _ in range(self.structure.l_cycles):
            z_l = self.L_level(z_l, z_h + x, cos_sin)
        return Latents(self.L_level(z_h, z_l, cos_sin), z_l)

    def forward(self, latents: Latents, inputs: Tensor, context: Tensor) -> tuple[Latents, Tensor, Tensor]:
        cos_sin = self.rotary() if self.rotary is not None else None
        x = self.embed(inputs, context)
        if self.structure.h_cycles > 1:
            with no_gradient("h_cycles"):
                for _ in range(self.structure.h_cycles - 1):
                    latents = self.cycle(latents, x, cos_sin)
            latents = Latents(truncate(latents.z_h, "h_cycles"), truncate(latents.z_l, "h_cycles"))
        latents = self.cycle(latents, x, cos_sin)
        logits = self.lm_head(latents.z_h[:, self.structure.context_tokens :])  # (B, S, V)
        halt = self.q_head(latents.z_h[:, 0])[:, 0].to(at_least_fp32(self.dtype))  # (B,)
        return Latents(truncate(latents.z_h, "carry"), truncate(latents.z_l, "carry")), logits, halt


def split_official(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor | None]:
    """Strip the wrappers' prefixes and part the puzzle table from the decoder's tensors.

    Returns (decoder tensors under our names, table (rows, width) or None). Raises CheckpointError on two names for one
    tensor.
    """
    decoder: dict[str, Tensor] = {}
    table: Tensor | None = None
    for name, tensor in state.items():
        wrapped = WRAPPERS.match(name)
        bare = name[wrapped.end() :] if wrapped else name
        if bare == "puzzle_emb.weights" and table is None:
            table = tensor
        elif bare in decoder or bare == "puzzle_emb.weights":
            raise CheckpointError(
                f"two tensors of the checkpoint are both {bare!r} once prefixes are removed; one is {name!r}"
            )
        else:
            decoder[bare] = tensor
    return decoder, table


def decoder_faults(decoder: TRMDecoder, tensors: Mapping[str, Tensor]) -> list[str]:
    """Each missing, unexpected or misshapen tensor in words; shapes alone are looked at, so meta tensors will do."""
    own = decoder.state_dict()
    faults = [f"missing {name}" for name in own if name not in tensors]
    faults += [f"unexpected {name}" for name in tensors if name not in own]
    faults += [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    return faults


def load_decoder_tensors(decoder: TRMDecoder, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy tensors into the decoder in place after the key set and every shape were checked.

    Raises CheckpointError naming each missing, unexpected or misshapen tensor; then nothing has been changed.
    """
    if faults := decoder_faults(decoder, tensors):
        raise CheckpointError(f"{where} does not fit the decoder: {'; '.join(faults)}")
    own = decoder.state_dict()
    decoder.load_state_dict({name: tensors[name].to(own[name].dtype) for name in own}, strict=True)


def from_official(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[TRMDecoder, Tensor | None]:
    """Build the decoder of an official state dict and config; the one door for official weights.

    Returns (decoder, puzzle table (rows, width) fp32 or None). Raises CheckpointError if keys, shapes or config do not
    fit.
    """
    tensors, table = split_official(state)
    decoder = TRMDecoder(structure_from_official(config))
    load_decoder_tensors(decoder, tensors, "the official state dict")
    for module in decoder.modules():
        if isinstance(module, Attention):
            module.fused = True
    return decoder, table


def table_context(rows: Tensor, structure: Structure) -> Tensor:
    """Puzzle-table rows (B, W) as context (B, T, D): zero-padded to T x D where a row fills fewer tokens, as in TRM."""
    width = structure.context_tokens * structure.hidden_size
    if rows.shape[-1] > width:
        raise CheckpointError(f"a table row holds {rows.shape[-1]} numbers, more than the context's {width}")
    padded = torch.nn.functional.pad(rows, (0, width - rows.shape[-1]))
    return padded.reshape(len(rows), structure.context_tokens, structure.hidden_size)

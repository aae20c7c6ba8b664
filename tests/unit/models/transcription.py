"""A second TRM decoder, written down plainly from the description of the published model and from nothing in etrm/.

No modules, no fused kernels: one function a sentence of the description, loops over heads and cycles, official names
and config keys. In bfloat16 the casts stand where the description puts them: activations in bf16, fp32 parameters cast
on use, RMSNorm and RoPE in fp32.

Legend: B batch, L positions (context then cells), D hidden, E head size.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class PlainTRM:
    """`step(z_h, z_l, inputs (B, S), rows (B, W))` -> (z_h, z_l, logits (B, S, V), halt (B,)): one ACT step."""

    def __init__(self, state: Mapping[str, Tensor], config: Mapping[str, Any], dtype: torch.dtype) -> None:
        self.state = state
        self.w = {name.split("inner.", 1)[-1]: t for name, t in state.items()}
        self.c, self.dtype = config, dtype
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32
        size = config["hidden_size"]
        self.tokens = config["puzzle_emb_len"] or math.ceil(config["puzzle_emb_ndim"] / size)
        self.scale = math.sqrt(size)

    def weight(self, name: str) -> Tensor:
        return self.w[name].to(self.dtype)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return torch.einsum("...i,oi->...o", x, self.weight(name))

    def norm(self, x: Tensor) -> Tensor:
        x = x.to(self.wide)
        mean = (x * x).sum(-1, keepdim=True) / x.shape[-1]
        return (x / torch.sqrt(mean + self.c.get("rms_norm_eps", 1e-5))).to(self.dtype)

    def swiglu(self, x: Tensor, name: str) -> Tensor:
        both = self.linear(x, f"{name}.gate_up_proj.weight")
        half = both.shape[-1] // 2
        gate, up = both[..., :half], both[..., half:]
        return self.linear(gate * torch.sigmoid(gate) * up, f"{name}.down_proj.weight")

    def turned(self, x: Tensor) -> Tensor:
        """RoPE on one head's (B, L, E): pairs (i, i + E/2) turn by position x theta^(-2i/E)."""
        if self.c["pos_encodings"] != "rope":
            return x
        half, x = x.shape[-1] // 2, x.to(self.wide)
        speed = self.c.get("rope_theta", 10000.0) ** (-2 * torch.arange(half, dtype=self.wide) / x.shape[-1])
        angle = torch.arange(x.shape[1], dtype=self.wide)[:, None] * speed  # (L, E/2)
        a, b = x[..., :half], x[..., half:]
        both = (a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin())
        return torch.cat(both, dim=-1).to(self.dtype)

    def attention(self, x: Tensor, name: str) -> Tensor:
        size, heads = self.c["hidden_size"], self.c["num_heads"]
        each = size // heads
        qkv = self.linear(x, f"{name}.qkv_proj.weight")  # (B, L, 3D)
        mixed = []
        for h in range(heads):
            q, k, v = (qkv[..., part * size + h * each : part * size + (h + 1) * each] for part in range(3))
            scores = torch.einsum("ble,bme->blm", self.turned(q), self.turned(k)) / math.sqrt(each)
            shares = torch.exp(scores - scores.amax(-1, keepdim=True))
            mixed.append(torch.einsum("blm,bme->ble", shares / shares.sum(-1, keepdim=True), v))
        return self.linear(torch.cat(mixed, dim=-1), f"{name}.o_proj.weight")

    def f(self, state: Tensor, injection: Tensor) -> Tensor:
        x = state + injection
        for i in range(self.c["L_layers"]):
            name = f"L_level.layers.{i}"
            if self.c.get("mlp_t", False):
                flipped = x.transpose(1, 2)
                x = self.norm(flipped + self.swiglu(flipped, f"{name}.mlp_t")).transpose(1, 2)
            else:
                x = self.norm(x + self.attention(x, f"{name}.self_attn"))
            x = self.norm(x + self.swiglu(x, f"{name}.mlp"))
        return x

    def start(self, batch: int, positions: int) -> tuple[Tensor, Tensor]:
        shape = (batch, positions, self.c["hidden_size"])
        return self.weight("H_init").expand(shape), self.weight("L_init").expand(shape)

    def embedded(self, inputs: Tensor, rows: Tensor) -> Tensor:
        cells = self.weight("embed_tokens.embedding_weight")[inputs]
        size = self.c["hidden_size"]
        context = torch.zeros(len(inputs), self.tokens * size, dtype=self.dtype)
        context[:, : rows.shape[1]] = rows.to(self.dtype)
        x = torch.cat((context.view(len(inputs), self.tokens, size), cells), dim=1)
        if self.c["pos_encodings"] == "learned":
            x = 0.707106781 * (x + self.weight("embed_pos.embedding_weight"))
        return self.scale * x

    def cycle(self, z_h: Tensor, z_l: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        for _ in range(self.c["L_cycles"]):
            z_l = self.f(z_l, z_h + x)
        return self.f(z_h, z_l), z_l

    def early(self, z_h: Tensor, z_l: Tensor, inputs: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """All H cycles but the last: those that no gradient goes through."""
        for _ in range(self.c["H_cycles"] - 1):
            z_h, z_l = self.cycle(z_h, z_l, self.embedded(inputs, rows))
        return z_h, z_l

    def last(self, z_h: Tensor, z_l: Tensor, inputs: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        z_h, z_l = self.cycle(z_h, z_l, self.embedded(inputs, rows))
        logits = self.linear(z_h[:, self.tokens :], "lm_head.weight")
        halt = self.linear(z_h[:, 0], "q_head.weight") + self.weight("q_head.bias")
        return z_h, z_l, logits, halt[:, 0]

    def step(self, z_h: Tensor, z_l: Tensor, inputs: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.last(*self.early(z_h, z_l, inputs, rows), inputs, rows)

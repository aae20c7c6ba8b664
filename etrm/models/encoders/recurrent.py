"""The reference's recurrent encoders, `recurrent_standard` and `trm_style`, with the detach that froze them mended.

A state of T tokens starts at a fixed buffer, is updated from the demonstrations once a step and moves a tenth of the
way each time. As published the state was detached BEFORE it was handed on as context, so no gradient ever reached
these encoders (two of the published runs report an untrained one). Here the context is handed on before the carry is
cut: every step still starts from a carry without history, and the last step has a gradient.

Our encoders have no carry between ACT steps, so the published loop of STEPS updates runs inside one forward call, all
but the last without gradient. The earlier steps are named truncations (etrm.declared), which probes can tell from a
forgotten detach. `set_layers` are the layers of the update: cross-attention in recurrent_standard (published with 1),
of the shared block in trm_style (2). The map to the decoder's size is ours; outputs are not normalised.

Legend: B batch, K demonstrations, T context tokens, D decoder size, H encoder size.
"""

import torch
from torch import Tensor, nn

from etrm.config.schema import EncoderConfig
from etrm.declared import no_gradient, truncate
from etrm.models.encoders import EncoderSpec, masked_mean, register
from etrm.models.encoders.grid_encoders import TwoRuns
from etrm.models.encoders.set_encoders import EPS, CrossAttention
from etrm.models.layers import Block, CastedLinear

STEPS = 16  # ACT steps of the published evaluation
KEPT = 0.9  # share of the old state in a step
H_CYCLES, L_CYCLES = 3, 1  # of trm_style, as in the published final run (its default was 3 x 4)


class RecurrentStandard(nn.Module):
    """See the file's top: one cross-attention over the demonstrations' vectors a step."""

    start: Tensor

    def __init__(self, spec: EncoderSpec, config: EncoderConfig) -> None:
        super().__init__()
        size, heads = config.hidden_size, config.num_heads
        self.grid = TwoRuns(spec.seq_len, spec.vocab_size, size, heads, config.layers)
        self.update = CrossAttention(size, heads, config.set_layers)
        self.register_buffer("start", torch.randn(spec.context_tokens, size))
        self.to_context = CastedLinear(size, spec.hidden_size)

    def step(self, state: Tensor, demos: Tensor, mask: Tensor) -> Tensor:
        """The state after one step. (B, T, H), (B, K, H), (B, K) -> (B, T, H)."""
        return KEPT * state + (1.0 - KEPT) * self.update(state, demos, mask)

    def forward(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> Tensor:
        demos = self.grid(demo_inputs, demo_labels, demo_mask)  # (B, K, H)
        state = self.start.expand(len(demos), -1, -1)
        with no_gradient("encoder_carry"):
            for _ in range(STEPS - 1):
                state = self.step(state, demos, demo_mask)
        state = self.step(truncate(state, "encoder_carry"), demos, demo_mask)
        return self.to_context(state).float()  # (B, T, D)


class TRMStyle(nn.Module):
    """See the file's top: two states refined by one shared block stack around the demonstrations' mean."""

    start_h: Tensor
    start_l: Tensor

    def __init__(self, spec: EncoderSpec, config: EncoderConfig) -> None:
        super().__init__()
        size, heads = config.hidden_size, config.num_heads
        self.grid = TwoRuns(spec.seq_len, spec.vocab_size, size, heads, config.layers)
        self.blocks = nn.ModuleList(
            Block(size, heads, 4.0, EPS, spec.context_tokens, mlp_t=False) for _ in range(config.set_layers)
        )
        for name in ("start_h", "start_l"):
            self.register_buffer(name, torch.randn(spec.context_tokens, size))
        self.to_context = CastedLinear(size, spec.hidden_size)

    def mix(self, x: Tensor) -> Tensor:
        """The shared block stack. (B, T, H) -> (B, T, H)."""
        for block in self.blocks:
            x = block(x, None)
        return x

    def step(self, z_h: Tensor, z_l: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both states after one step. (B, T, H) each, x (B, 1, H)."""
        new_h, new_l = z_h, z_l
        for _ in range(H_CYCLES):
            for _ in range(L_CYCLES):
                new_l = self.mix(new_l + new_h + x)
            new_h = self.mix(new_h + new_l)
        return KEPT * z_h + (1.0 - KEPT) * new_h, KEPT * z_l + (1.0 - KEPT) * new_l

    def forward(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> Tensor:
        demos = self.grid(demo_inputs, demo_labels, demo_mask)  # (B, K, H)
        x = masked_mean(demos, demo_mask, dim=1).unsqueeze(1)  # (B, 1, H)
        z_h, z_l = (z.expand(len(demos), -1, -1) for z in (self.start_h, self.start_l))
        with no_gradient("encoder_carry"):
            for _ in range(STEPS - 1):
                z_h, z_l = self.step(z_h, z_l, x)
        z_h, _ = self.step(truncate(z_h, "encoder_carry"), truncate(z_l, "encoder_carry"), x)
        return self.to_context(z_h).float()  # (B, T, D)


@register("recurrent_standard")
def recurrent_standard(spec: EncoderSpec, config: EncoderConfig) -> nn.Module:
    """The reference's recurrent encoder at the config's size, mended."""
    return RecurrentStandard(spec, config)


@register("trm_style")
def trm_style(spec: EncoderSpec, config: EncoderConfig) -> nn.Module:
    """The reference's iterative encoder at the config's size, mended."""
    return TRMStyle(spec, config)

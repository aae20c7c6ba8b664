"""Parity with the official TRM implementation, held to numbers it produced (tests/unit/data_golden/trm_*.safetensors).

Each file holds a tiny model's official state dict, a batch, a few ACT steps in eval mode from a fresh carry, the carry
after them, and one more step with a backward pass of the total loss (stablemax summed over the batch + 0.5 x halt BCE).

Legend: B batch, S canvas cells, T context tokens, V vocabulary.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from etrm.models.trm import Latents, TRMDecoder, from_official, table_context
from etrm.training.losses import step_loss

pytestmark = pytest.mark.fast

GOLDEN = Path(__file__).resolve().parents[1] / "data_golden"
PREFIX = "model.inner."
FP32 = {"rtol": 1e-4, "atol": 1e-5}
BF16 = {"rtol": 2e-2, "atol": 2e-2}
FILES = {
    "trm_rope_fp32": FP32,
    "trm_mlp_t_fp32": FP32,
    "trm_learned_fp32": FP32,
    "trm_rope_bf16": BF16,
}


@dataclass(frozen=True, eq=False)
class Golden:
    """One golden file: its tensors by name, the config and the number of eval steps."""

    tensors: dict[str, Tensor]
    config: dict[str, object]
    steps: int

    def state(self) -> dict[str, Tensor]:
        return {name.removeprefix("state."): t for name, t in self.tensors.items() if name.startswith("state.")}


@cache
def golden(name: str) -> Golden:
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        meta = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (safe_open is no mapping)
    return Golden(tensors, json.loads(meta["config"]), int(meta["steps"]))


def loaded(name: str) -> tuple[TRMDecoder, Tensor, Golden]:
    g = golden(name)
    decoder, table = from_official(g.state(), g.config)
    assert table is not None
    return decoder, table, g


def replay(decoder: TRMDecoder, table: Tensor, g: Golden, steps: int) -> tuple[Latents, list[tuple[Tensor, Tensor]]]:
    """The carry after `steps` ACT steps from a fresh one, and (logits (B, S, V), halt (B,)) of each."""
    inputs = g.tensors["batch.inputs"]
    context = table_context(table[g.tensors["batch.puzzle_identifiers"]], decoder.structure)  # (B, T, D)
    latents, seen = decoder.fresh_latents(len(inputs)), []
    for _ in range(steps):
        latents, logits, halt = decoder(latents, inputs, context)
        seen.append((logits, halt))
    return latents, seen


def assert_close(value: Tensor, expected: Tensor, what: str, tolerance: dict[str, float]) -> None:
    torch.testing.assert_close(
        value.detach().float().squeeze(), expected.float().squeeze(), **tolerance, msg=lambda m: f"{what}: {m}"
    )


@pytest.mark.parametrize("name", FILES)
def test_each_eval_step_has_the_official_logits_halt_logits_and_losses(name: str) -> None:
    decoder, table, g = loaded(name)
    _, seen = replay(decoder.eval(), table, g, g.steps)
    for step, (logits, halt) in enumerate(seen):
        losses = step_loss(logits, halt, g.tensors["batch.labels"], "stablemax")
        lm = losses.lm.sum()
        values = {"logits": logits, "q_halt_logits": halt, "lm_loss": lm, "loss": lm + 0.5 * losses.halt.sum()}
        for key, value in values.items():
            assert_close(value, g.tensors[f"step{step}.{key}"], f"{name} step{step}.{key}", FILES[name])


@pytest.mark.parametrize("name", FILES)
def test_the_carry_after_the_steps_is_the_official_one(name: str) -> None:
    decoder, table, g = loaded(name)
    latents, _ = replay(decoder.eval(), table, g, g.steps)
    assert not latents.z_h.requires_grad and not latents.z_l.requires_grad
    assert_close(latents.z_h, g.tensors["final.z_H"], f"{name} z_H", FILES[name])
    assert_close(latents.z_l, g.tensors["final.z_L"], f"{name} z_L", FILES[name])


@pytest.mark.parametrize("name", FILES)
def test_a_backward_pass_has_the_official_gradients(name: str) -> None:
    """Norms of every parameter and the heads' gradients whole; the key sets must match, so none is silently absent."""
    decoder, table, g = loaded(name)
    _, seen = replay(decoder.train(), table, g, g.steps + 1)
    losses = step_loss(*seen[-1], g.tensors["batch.labels"], "stablemax")
    loss = losses.lm.sum() + 0.5 * losses.halt.sum()
    loss.backward()
    assert_close(loss, g.tensors["grad_step.loss"], f"{name} loss", FILES[name])
    named = dict(decoder.named_parameters())
    norms = {k.removeprefix(f"grad_norm.{PREFIX}"): t for k, t in g.tensors.items() if k.startswith("grad_norm.")}
    assert set(norms) == set(named)
    for key, expected in norms.items():
        grad = named[key].grad
        assert grad is not None, key
        assert_close(grad.norm(), expected, f"{name} |grad {key}|", FILES[name])
    whole = {k.removeprefix(f"grad.{PREFIX}"): t for k, t in g.tensors.items() if k.startswith("grad.")}
    assert set(whole) == {"lm_head.weight", "q_head.weight", "q_head.bias"}
    for key, expected in whole.items():
        grad = named[key].grad
        assert grad is not None, key
        assert_close(grad, expected, f"{name} grad {key}", FILES[name])


@pytest.mark.parametrize("name", FILES)
def test_the_state_dict_has_the_official_names_and_types(name: str) -> None:
    decoder, table, g = loaded(name)
    official = {k.removeprefix(PREFIX): t for k, t in g.state().items()}
    rows = official.pop("puzzle_emb.weights")
    assert torch.equal(table, rows)
    own = decoder.state_dict()
    assert {k: (t.shape, t.dtype) for k, t in own.items()} == {k: (t.shape, t.dtype) for k, t in official.items()}
    assert all(torch.equal(own[k], official[k]) for k in official)
    assert all(p.dtype == torch.float32 for p in decoder.parameters())


@pytest.mark.parametrize(
    ("key", "value"), [("L_cycles", 6), ("H_cycles", 2), ("rope_theta", 100.0), ("rms_norm_eps", 0.1)]
)
def test_what_is_not_in_the_weights_changes_the_logits(key: str, value: float) -> None:
    """Right weights under another structure are another function: exactly what the weights-only comparison misses."""
    g = golden("trm_rope_fp32")
    decoder, table = from_official(g.state(), g.config | {key: value})
    assert table is not None
    _, seen = replay(decoder, table, g, 1)
    assert (seen[0][0] - g.tensors["step0.logits"]).abs().max() > 1e-2

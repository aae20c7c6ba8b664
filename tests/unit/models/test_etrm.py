"""The ACT carry and its semantics: who keeps which episode, who gets which gradient, and when a slot halts.

Legend: B batch, K demonstrations, S canvas cells, T context tokens, D hidden.
"""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from etrm.data.episodes import Batch
from etrm.data.grids import PAD
from etrm.errors import DataError
from etrm.models.encoders import EncoderSpec
from etrm.models.etrm import ETRM, Carry, Episodes, TableTRM, act_step, decode, fresh_carry
from etrm.models.trm import Structure, TRMDecoder
from etrm.training.losses import step_loss

pytestmark = pytest.mark.fast

S, T, D, V = 4, 2, 16, 12
STRUCTURE = Structure(V, S, T, D, 2, 4.0, 1, 2, 2, "rope", False, 10000.0, 1e-5, "float32", 4)


class SumEncoder(nn.Module):
    """A context that depends on every demonstration; counts its calls and the batch sizes it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(V, D)
        self.out = nn.Linear(D, T * D)
        self.seen: list[int] = []

    def forward(self, demo_inputs: Tensor, demo_labels: Tensor, demo_mask: Tensor) -> Tensor:
        self.seen.append(len(demo_inputs))
        cells = (self.embed(demo_inputs) + 2 * self.embed(demo_labels)).mean(dim=2)  # (B, K, D)
        return self.out((cells * demo_mask.unsqueeze(-1)).sum(dim=1)).view(-1, T, D)


def episodes(seed: int, batch: int = 3, demos: int = 2) -> Episodes:
    rng = np.random.default_rng(seed)
    grids = rng.integers(2, V, size=(batch, 2 * demos + 2, S))
    arrays = Batch(
        grids[:, 0],
        grids[:, 1],
        grids[:, 2 : 2 + demos],
        grids[:, 2 + demos :],
        np.ones((batch, demos), dtype=bool),
        np.arange(batch),
        np.arange(batch),
    )
    return Episodes.of(arrays, torch.device("cpu"))


def model(structure: Structure = STRUCTURE, halt_bias: float = -5.0) -> ETRM:
    torch.manual_seed(0)
    spec = EncoderSpec(S, V, T, D, torch.zeros(T, D), torch.ones(T))
    decoder = TRMDecoder(structure)
    with torch.no_grad():
        assert decoder.q_head.bias is not None
        decoder.q_head.bias.fill_(halt_bias)
    return ETRM(SumEncoder(), decoder, spec)


def same(mine: Episodes, theirs: Episodes, slots: list[int]) -> bool:
    return all(torch.equal(getattr(mine, f.name)[slots], getattr(theirs, f.name)[slots]) for f in fields(Episodes))


def halting(carry: Carry, *halted: bool) -> Carry:
    return replace(carry, halted=torch.tensor(halted))


def test_at_first_every_slot_takes_the_first_batch_and_starts_from_the_fixed_states() -> None:
    net, first = model(), episodes(0)
    carry = fresh_carry(net.decoder, episodes(9))
    assert carry.halted.all()
    carry, out = act_step(net, carry, first, 0.0, None)
    assert same(carry.episodes, first, [0, 1, 2]) and carry.steps.tolist() == [1, 1, 1]
    expected = net.decoder(net.decoder.fresh_latents(3), first.inputs, net.context(first).context)[1]
    assert torch.equal(out.logits, expected)


def test_a_halted_slot_takes_the_whole_new_episode_and_the_others_keep_theirs() -> None:
    net, first, second = model(), episodes(0), episodes(1)
    carry, _ = act_step(net, fresh_carry(net.decoder, first), first, 0.0, None)
    kept = carry.latents
    carry, out = act_step(net, halting(carry, False, True, False), second, 0.0, None)
    assert same(out.episodes, first, [0, 2]) and same(out.episodes, second, [1])
    assert carry.steps.tolist() == [2, 1, 2]
    # The restarted slot computes as in a fresh batch, the others go on from their own states.
    alone = act_step(net, fresh_carry(net.decoder, second), second, 0.0, None)[1]
    torch.testing.assert_close(out.logits[1], alone.logits[1])
    onward = net.decoder(kept, first.inputs, net.context(first).context)[1]
    torch.testing.assert_close(out.logits[[0, 2]], onward[[0, 2]])


def test_with_nothing_halted_a_second_batch_changes_neither_loss_nor_context() -> None:
    """Fault 23: a loss that reads the new batch's labels, or a context of the new batch's demonstrations."""
    net, first = model(), episodes(0)
    carry, _ = act_step(net, fresh_carry(net.decoder, first), first, 0.0, None)
    carry = halting(carry, False, False, False)
    outs = [act_step(net, carry, new, 0.0, None)[1] for new in (first, episodes(1), episodes(2, demos=5))]
    losses = [step_loss(o.logits, o.halt, o.episodes.labels, "stablemax") for o in outs]
    for out, loss in zip(outs[1:], losses[1:], strict=True):
        assert torch.equal(loss.lm, losses[0].lm) and torch.equal(loss.halt, losses[0].halt)
        assert torch.equal(out.encoded.context, outs[0].encoded.context)


def test_batches_with_another_number_of_demonstrations_are_padded_with_masked_slots_only() -> None:
    net, few, many = model(), episodes(0, demos=1), episodes(1, demos=4)
    carry, _ = act_step(net, fresh_carry(net.decoder, few), few, 0.0, None)
    carry, out = act_step(net, halting(carry, True, False, False), many, 0.0, None)
    mixed = out.episodes
    assert mixed.demo_mask.tolist() == [[True] * 4, [True] + [False] * 3, [True] + [False] * 3]
    assert (mixed.demo_inputs[1:, 1:] == PAD).all() and (mixed.demo_labels[1:, 1:] == PAD).all()
    # Once the long episode is gone, K is that of the batch again.
    carry, out = act_step(net, halting(carry, True, False, False), few, 0.0, None)
    assert out.episodes.demo_mask.shape == (3, 1) and same(out.episodes, few, [0, 1, 2])


def test_trimming_keeps_every_used_slot_and_at_least_one() -> None:
    e = episodes(0, demos=3)
    holes = replace(e, demo_mask=torch.tensor([[True, False, False], [False, True, False], [False, False, False]]))
    assert holes.trimmed().demo_mask.tolist() == [[True, False], [False, True], [False, False]]
    assert replace(e, demo_mask=torch.zeros(3, 3, dtype=torch.bool)).trimmed().demo_inputs.shape == (3, 1, S)


def test_a_batch_of_another_size_is_refused_even_where_torch_would_repeat_it() -> None:
    net, first = model(), episodes(0)
    with pytest.raises(DataError, match=r"\(1, 4\)"):
        act_step(net, fresh_carry(net.decoder, first), episodes(1, batch=1), 0.0, None)


@pytest.mark.parametrize(("bias", "steps"), [(-5.0, 4), (5.0, 1)])
def test_without_exploration_a_sample_halts_when_it_wants_or_at_the_last_step(bias: float, steps: int) -> None:
    net, batch = model(halt_bias=bias), episodes(0)
    carry = fresh_carry(net.decoder, batch)
    for step in range(1, steps + 1):
        carry, out = act_step(net, carry, batch, 0.0, None)
        assert out.halted.tolist() == [step == steps] * 3 and torch.equal(out.halted, carry.halted)
    carry, _ = act_step(net, carry, batch, 0.0, None)
    assert carry.steps.tolist() == [1, 1, 1]


def test_exploration_forces_a_random_minimum_of_two_to_the_last_step_on_its_share_of_samples() -> None:
    net = model(halt_bias=5.0)
    batch, generator = episodes(0, batch=64), torch.Generator().manual_seed(0)
    counts = {p: self_halting_steps(net, batch, p, generator) for p in (0.0, 0.5, 1.0)}
    assert counts[0.0] == [64, 0, 0, 0]
    assert 20 < counts[0.5][0] < 44
    # With probability 1 the minimum is drawn anew at each step, so every sample makes at least two and at most four.
    assert counts[1.0][0] == 0 and sum(counts[1.0]) == 64 and all(c > 0 for c in counts[1.0][1:])


def self_halting_steps(net: ETRM, batch: Episodes, exploration: float, generator: torch.Generator) -> list[int]:
    """How many samples halted first after 1, 2, 3 and 4 steps."""
    carry, done, counts = fresh_carry(net.decoder, batch), torch.zeros(len(batch.inputs), dtype=torch.bool), []
    for _ in range(STRUCTURE.halt_max_steps):
        carry, out = act_step(net, carry, batch, exploration, generator)
        counts.append(int((out.halted & ~done).sum()))
        done |= out.halted
    return counts


def test_exploration_depends_on_its_generator_alone() -> None:
    net, batch = model(halt_bias=5.0), episodes(0, batch=32)
    drawn = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        generator = torch.Generator().manual_seed(7)
        drawn.append(act_step(net, fresh_carry(net.decoder, batch), batch, 0.5, generator)[1].halted)
    assert torch.equal(*drawn)


def test_the_encoder_is_called_at_every_step_on_the_whole_batch() -> None:
    """Faults 2 and 3: a cached context, or an encoder that is called for halted slots only."""
    net, batch = model(), episodes(0)
    carry = fresh_carry(net.decoder, batch)
    steps = STRUCTURE.halt_max_steps + 2
    for _ in range(steps):
        carry, _ = act_step(net, carry, batch, 0.0, None)
    assert isinstance(net.encoder, SumEncoder) and net.encoder.seen == [3] * steps


def test_each_samples_own_loss_reaches_the_encoder_at_every_one_of_many_consecutive_steps() -> None:
    net = model()
    net.decoder.requires_grad_(False)
    carry = fresh_carry(net.decoder, episodes(0))
    parameters = list(net.encoder.parameters())
    for step in range(STRUCTURE.halt_max_steps + 2):
        carry, out = act_step(net, carry, episodes(step), 0.0, None)
        lm = step_loss(out.logits, out.halt, out.episodes.labels, "stablemax").lm
        for sample in range(3):
            grads = torch.autograd.grad(lm[sample], parameters, retain_graph=True)
            assert all(float(g.abs().sum()) > 0 for g in grads), f"sample {sample} at step {step}"
        (tokens,) = torch.autograd.grad(lm.sum(), [out.encoded.context], retain_graph=True)
        assert (tokens.abs().sum(dim=-1) > 0).all(), f"a context token without gradient at step {step}"
    held = (*carry.latents, carry.steps, carry.halted, *(getattr(carry.episodes, f.name) for f in fields(Episodes)))
    assert not any(t.requires_grad for t in held)


def test_evaluation_always_runs_all_steps_from_a_fresh_carry() -> None:
    net, batch = model(halt_bias=5.0), episodes(0)
    context = net.context(batch).context.detach()
    latents = net.decoder.fresh_latents(3)
    for _ in range(STRUCTURE.halt_max_steps):
        latents, logits, halt = net.decoder(latents, batch.inputs, context)
    tokens, confidence = decode(net.decoder, batch.inputs, context)
    assert torch.equal(tokens, logits.argmax(dim=-1)) and torch.equal(confidence, halt)


def test_the_puzzle_table_gives_each_episode_its_row_and_refuses_a_task_without_one() -> None:
    table = TableTRM(TRMDecoder(STRUCTURE), rows=3)
    assert not table.puzzle_emb.weights.any(), "TRM starts from zero rows"
    with torch.no_grad():
        table.puzzle_emb.weights.copy_(torch.arange(3.0).unsqueeze(1).expand(3, T * D))
    batch = replace(episodes(0), row=torch.tensor([2, 0, 1]))
    assert table.context(batch).context[:, 0, 0].tolist() == [2.0, 0.0, 1.0]
    with pytest.raises(DataError, match="no row"):
        table.context(replace(batch, row=torch.tensor([2, -1, 1])))


def test_a_low_precision_decoder_takes_an_fp32_context_and_still_trains_the_encoder() -> None:
    net, batch = model(replace(STRUCTURE, forward_dtype="bfloat16")), episodes(0)
    _, out = act_step(net, fresh_carry(net.decoder, batch), batch, 0.0, None)
    step_loss(out.logits, out.halt, out.episodes.labels, "stablemax").lm.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.encoder.parameters())

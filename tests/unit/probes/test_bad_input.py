"""What `diagnose` makes of an encoder that is frozen, wrapped, elsewhere or in half precision: works or says why not.

The same for `observe` on any model stands in test_graph_breaks.py, for the audit in test_gradient_audit.py.
"""

import dataclasses
import gc
import weakref

import pytest
import torch
from torch import nn

from etrm.config.schema import EncoderConfig, LossConfig
from etrm.errors import ProbeError
from etrm.models.encoders import Encoded, EncoderSpec, build_encoder
from etrm.models.etrm import ETRM, Episodes, TableTRM
from etrm.models.trm import Structure, TRMDecoder
from etrm.probes.diagnosis import diagnose
from etrm.probes.gradient_audit import gradient_audit
from etrm.training.update import LossHead

pytestmark = pytest.mark.fast
D, T = 16, 2
STRUCTURE = Structure(12, 9, T, D, 2, 1.0, 1, 2, 1, "learned", False, 10000.0, 1e-5, "float32", 2)
LOSS = LossConfig("lm", "softmax", 0.5, 0.0)


def episodes(batch=3):
    generator = torch.Generator().manual_seed(0)

    def grid(*shape):
        return torch.randint(2, 12, shape, generator=generator)

    rows = torch.arange(batch)
    mask = torch.ones(batch, 2, dtype=torch.bool)
    return Episodes(grid(batch, 9), grid(batch, 9), grid(batch, 2, 9), grid(batch, 2, 9), mask, rows, rows)


def head_of(dtype="float32", change=None):
    torch.manual_seed(0)
    decoder = TRMDecoder(dataclasses.replace(STRUCTURE, forward_dtype=dtype)).requires_grad_(False)
    spec = EncoderSpec(9, 12, T, D, torch.randn(T, D) * 0.1, torch.ones(T))
    head = LossHead(ETRM(build_encoder(EncoderConfig("correspondence", D, 1, 1, 1), spec), decoder, spec), LOSS)
    head.train()
    decoder.eval()
    if change is not None:
        whole = head.model.context
        head.model.context = lambda given: Encoded(change(whole(given).context), {})
    return head


def test_a_model_without_an_encoder_or_parameters_is_refused_in_one_sentence():
    with pytest.raises(ProbeError, match="TableTRM has no module named encoder"):
        diagnose(LossHead(TableTRM(TRMDecoder(STRUCTURE), 3), LOSS), episodes())
    head = head_of()
    head.model.encoder = nn.Identity()
    with pytest.raises(ProbeError, match="Identity has no parameters"):
        diagnose(head, episodes())


def test_an_encoder_on_a_device_without_numbers_is_refused_in_one_sentence():
    head = head_of()
    head.model.encoder.to("meta")
    with pytest.raises(ProbeError, match="on the meta device"):
        diagnose(head, episodes())


def test_a_frozen_encoder_is_blocked():
    head = head_of()
    head.model.encoder.requires_grad_(False)
    found = diagnose(head, episodes())
    assert found.state == "blocked"
    assert "requires_grad=False" in found.detail


def test_a_part_that_is_frozen_on_purpose_is_declared():
    head = head_of()
    head.model.encoder.read.requires_grad_(False)
    assert diagnose(head, episodes(), audit=False).state == "partial"
    head.model.encoder.declared_frozen = ("read.*",)
    assert diagnose(head, episodes(), audit=False).ok


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_a_decoder_in_another_precision_is_diagnosed(dtype):
    assert str(diagnose(head_of(dtype), episodes()).relation) == "true"
    cut = diagnose(head_of(dtype, lambda c: c.detach()), episodes())
    assert (cut.state, cut.relation) == ("blocked", "cut")
    assert "c.detach()" in cut.place


@pytest.mark.thorough
def test_a_distributed_wrapper_around_the_encoder_is_looked_through(lone_group):
    head = head_of(change=lambda c: torch.cat((c[:1], c[1:].detach())))
    head.model.encoder = nn.parallel.DistributedDataParallel(head.model.encoder)
    found = diagnose(head, episodes())
    assert (found.state, found.coverages[0].lost_samples) == ("partial", (1, 2)), found
    assert "c[1:].detach()" in found.place
    assert not any(name.startswith("module.") for name in found.gradient.parameters)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_encoder_is_looked_through():
    head = head_of()
    head.model.encoder = torch.compile(head.model.encoder, backend="eager")
    found = diagnose(head, episodes())
    assert (found.state, found.relation) == ("intact", "true"), found


def test_a_loss_that_is_no_scalar_is_refused_in_one_sentence():
    model = nn.Linear(2, 3)
    with pytest.raises(ProbeError, match=r"shape \(4, 3\); reduce it"):
        gradient_audit(lambda: model(torch.ones(4, 2)), model)


@pytest.mark.thorough
def test_memory_returns_to_its_level_and_nothing_stays():
    head, given = head_of(change=lambda c: torch.cat((c[:1], c[1:].detach()))), episodes()
    contexts = []
    head.model.encoder.register_forward_hook(lambda m, a, out: contexts.append(weakref.ref(out)))

    def tensors():
        gc.collect()
        return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())

    diagnose(head, given)
    gc.collect()
    gc.freeze()  # what stands by now cannot grow: counting only what is new is a matter of milliseconds
    try:
        before = tensors()
        found = diagnose(head, given)
        assert found.state == "partial"
        # A report holds one norm a sample and a token for each step, and no tensor of the model's.
        held = sum(1 + (c.token_norms is not None) + 1 for c in found.coverages)
        assert tensors() - before <= held
    finally:
        gc.unfreeze()
    assert all(ref() is None for ref in contexts)

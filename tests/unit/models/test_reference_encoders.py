"""What the reference published of its encoders: sizes, output scale, sampling, KL, and the mended recurrent ones."""

import pytest
import torch
from torch import Tensor, nn

from etrm.config.schema import EncoderConfig
from etrm.declared import listening
from etrm.models.encoders import REGISTRY, EncoderSpec, encode
from etrm.models.layers import swiglu_width
from tests.encoder_samples import CLOSE, ENCODERS, SPEC, T, context, demos, encoder

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("name", ["standard", "hybrid_standard"])
def test_these_encoders_have_unit_rms_tokens_as_published(name: str) -> None:
    rms = context(encoder(name), demos()).square().mean(dim=-1).sqrt()
    torch.testing.assert_close(rms, torch.ones(3, T), rtol=1e-3, atol=1e-3)


# name -> layers, set layers, parameters at 512 wide with 8 heads, of which the map to the decoder's size is ours
PUBLISHED = {
    "standard": (2, 1, 10_506_240, 512 * 512),  # 10.51 M
    "hybrid_standard": (4, 1, 17_060_352, 512 * 512),  # 17.06 M
    "hybrid_variational": (4, 1, 21_778_944, 0),  # 21.78 M
    "lpn_standard": (8, 1, 31_470_080, 0),  # 31.5 M
    "lpn_variational": (6, 1, 25_178_624, 0),  # 25.2 M
    "lpn": (2, 1, 1_451_392, 0),  # 1.45 M
    "lpn_var": (2, 1, 673_152, 0),  # 0.673 M
    "recurrent_standard": (2, 1, 10_498_048, 512 * 512),  # 10.5 M
    "trm_style": (2, 2, 13_905_920, 512 * 512),  # 13.9 M
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_references_encoders_have_the_published_size_at_the_published_width(name: str) -> None:
    layers, set_layers, published, ours = PUBLISHED[name]
    spec = EncoderSpec(900, 12, 16, 512, torch.zeros(16, 512), torch.ones(16))
    with torch.device("meta"):
        net = REGISTRY[name](spec, EncoderConfig(name, 512, 8, layers, set_layers))
    assert sum(p.numel() for p in net.parameters()) - ours == published
    assert swiglu_width(512, 4.0) == 1536


VARIATIONAL = ["hybrid_variational", "lpn_var", "lpn_variational"]


@pytest.mark.parametrize("name", ENCODERS)
def test_only_variational_encoders_sample_and_only_in_training(name: str) -> None:
    net = encoder(name).train()
    torch.manual_seed(0)
    first, second = context(net, demos()), context(net, demos())
    assert torch.equal(first, second) != (name in VARIATIONAL)
    losses = encode(net, SPEC, *demos()).losses
    assert set(losses) == ({"kl"} if name in VARIATIONAL else set())
    assert all(v.item() > 0 and v.requires_grad for v in losses.values())


@pytest.mark.parametrize("name", VARIATIONAL)
def test_the_kl_term_does_not_depend_on_the_batch_size_nor_on_padding(name: str) -> None:
    """Fault 35: a batch mean added to a batch sum changes its weight with the batch."""
    net, d = encoder(name).eval(), demos((3, 1, 2))
    once = encode(net, SPEC, *d).losses["kl"]
    twice = encode(net, SPEC, *(torch.cat((t, t)) for t in d)).losses["kl"]
    padded = encode(net, SPEC, *(nn.functional.pad(t, (0, 0, 0, 2)) for t in d[:2]), nn.functional.pad(d[2], (0, 2)))
    torch.testing.assert_close(twice, once)
    torch.testing.assert_close(padded.losses["kl"], once, **CLOSE)


@pytest.mark.parametrize("name", ["recurrent_standard", "trm_style"])
def test_a_recurrent_encoder_hands_on_its_context_before_the_carry_is_cut(name: str) -> None:
    """As published it was cut first, and no gradient ever reached the encoder; the cuts that remain are declared."""
    cuts: list[str] = []

    class Listening:
        def truncated(self, value: Tensor, name: str) -> Tensor:
            cuts.append(name)
            return value.detach()

        def enter_block(self, name: str) -> None:
            cuts.append(name)

        def leave_block(self, name: str) -> None:
            pass

    net = encoder(name)
    with listening(Listening()):
        answer = context(net, demos())
    answer.square().sum().backward()
    assert set(cuts) == {"encoder_carry"}
    assert all(p.grad is not None and bool(p.grad.any()) for p in net.parameters())

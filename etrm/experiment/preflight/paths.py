"""Is it one system, in training and in evaluation, and does what is handed on arrive?

Training and evaluation reach encoder and decoder on different paths (gradients on or off, train or eval mode, arrays
made into tensors, contexts handed over). What both paths compute from the same thing must be the same, and what a spec
or a config says of the encoder must be what the bundle's table and the built module say.

Legend: N queries, T context tokens, D hidden.
"""

import copy
from dataclasses import fields, replace

import numpy as np
import torch
from torch import Tensor

from etrm.config.schema import EncoderConfig, RunConfig
from etrm.data.episodes import Batch
from etrm.errors import EtrmError
from etrm.evaluation.controls import answer, contexts_of
from etrm.experiment.arms import Arm
from etrm.experiment.checks import Check, check
from etrm.experiment.second_reading import direct_contexts, read, tensors
from etrm.models.bundle import Bundle, context_statistics
from etrm.models.encoders import FIXED_SIZE, build_encoder, encode
from etrm.models.etrm import ETRM, Episodes

ASKED = 12
FEW = 5  # queries in a batch: three batches, the last one smaller
CLOSE = {torch.bfloat16: 0.1}  # of halt logits and nats; fp32 paths repeat within 1e-4
LOOSE = 2e-3


def path_checks(config: RunConfig, arm: Arm, bundle: Bundle, model: ETRM, untrained: ETRM) -> list[Check]:
    """`paths_agree` and `encoder_as_asked`."""
    batch = arm.rungs[0].batch.take(np.linspace(0, len(arm.rungs[0].batch) - 1, ASKED).astype(int))
    faults = []
    given, arrived = tensors(batch), Episodes.of(batch, torch.device("cpu"))
    changed = [f.name for f in fields(Episodes) if not torch.equal(getattr(given, f.name), getattr(arrived, f.name))]
    if changed:
        faults.append(f"{', '.join(changed)} arrive changed at the model")
    else:
        faults += _handed_over(model, arrived)
        faults += _one_decoder(config, bundle, model, batch)
    asked = [*_spec(bundle, model), *_size(config, bundle, model), *_apart(model, untrained)]
    said = "training and evaluation compute the same from the same episodes"
    return [
        check("paths_agree", not faults, "; ".join(faults[:3]) or said),
        check("encoder_as_asked", not asked, "; ".join(asked[:3]) or "built at the config's size for this decoder"),
    ]


def _gap(one: Tensor, two: Tensor) -> float:
    return float((one.detach().float() - two.detach().float()).abs().max())


def _handed_over(model: ETRM, episodes: Episodes) -> list[str]:
    """What lies between the encoder's answer and the decoder is the same in training and in evaluation."""
    changed = {}
    modes = {m: m.training for m in model.modules()}
    encoder = model.encoder
    for word, mode in (("training", True), ("evaluation", False)):
        held = copy.deepcopy(encoder.state_dict())  # an encoder may keep statistics of what it reads
        model.train(mode)
        model.decoder.eval()
        random = torch.get_rng_state()
        with torch.set_grad_enabled(mode), torch.autocast("cpu", dtype=torch.bfloat16, enabled=model.autocast):
            own = encode(encoder, model.spec, episodes.demo_inputs, episodes.demo_labels, episodes.demo_mask)
        encoder.load_state_dict(held)
        torch.set_rng_state(random)
        with torch.set_grad_enabled(mode):
            handed = model.context(episodes)
        encoder.load_state_dict(held)
        torch.set_rng_state(random)
        size = float(own.context.detach().abs().max())
        changed[word] = not _gap(own.context, handed.context) <= 1e-4 * size + 1e-6
    for m, mode in modes.items():
        m.training = mode
    odd = [word for word, other in changed.items() if other]
    if len(odd) != 1:
        return []
    return [f"only in {odd[0]} the decoder is handed another context than the encoder's answer"]


def _one_decoder(config: RunConfig, bundle: Bundle, model: ETRM, batch: Batch) -> list[str]:
    """Evaluation answers as the decoder does where training runs it, over all ACT steps."""
    kind, size = config.loss.cross_entropy, config.evaluation.batch_size
    contexts = contexts_of(model, batch, size)
    contexts = contexts + model.spec.context_std.view(1, -1, 1) * torch.randn(
        contexts.shape, generator=torch.Generator().manual_seed(5)
    )
    direct = direct_contexts(model, batch, size)
    mine = read(model.decoder, bundle.structure.halt_max_steps, batch, contexts, kind, size)
    allowed = CLOSE.get(model.decoder.dtype, LOOSE)
    faults = []
    for part in dict.fromkeys((size, FEW)):
        told = answer(model.decoder, batch, contexts, part, kind)
        halts, losses = (float(np.abs(a - b).max()) for a, b in ((told.halt, mine.halt), (told.loss, mine.loss)))
        halts_too = halts <= allowed * max(1.0, float(np.abs(mine.halt).max()))
        if not (halts_too and losses <= allowed * (1 + mine.loss.max())):
            faults.append(f"in batches of {part} evaluation and training differ by {losses:.2g} nats")
    again = contexts_of(model, batch, size)
    if not _gap(again, direct) <= 1e-4 * float(direct.abs().max()) + 1e-6:
        faults.append("evaluation answers under another context than the model's own")
    return faults


def _spec(bundle: Bundle, model: ETRM) -> list[str]:
    """What encoders are told of the decoder's own contexts is what its table says."""
    mean, std = context_statistics(bundle.table, bundle.structure)
    spec = model.spec
    scale = float(std.max()) or 1.0
    off = max(_gap(spec.context_mean, mean), _gap(spec.context_std, std)) / scale
    return [f"the encoder's spec is {off:.2g} deviations from the decoder's own table"] if not off <= 0.01 else []


def _size(config: RunConfig, bundle: Bundle, model: ETRM) -> list[str]:
    """An encoder of the registry has the size that the config says: at another one it has other parameters."""
    asked: EncoderConfig = config.encoder
    if ":" in asked.name or asked.name in FIXED_SIZE:
        return []
    random = torch.get_rng_state()
    try:
        wider = build_encoder(replace(asked, hidden_size=2 * asked.hidden_size), bundle.spec())
    except EtrmError as error:
        return [f"the encoder cannot be built at twice its hidden size: {error}"]
    finally:
        torch.set_rng_state(random)
    own, other = (sum(p.numel() for p in e.parameters()) for e in (model.encoder, wider))
    if type(wider) is type(model.encoder) and own == other:
        return [f"the encoder has {own} parameters whatever encoder.hidden_size is"]
    return []


def _apart(model: ETRM, untrained: ETRM) -> list[str]:
    """The untrained encoder that stands as a null shares nothing with the one that is trained."""
    held = {p.data_ptr() for p in model.encoder.parameters()}
    shared = sum(p.data_ptr() in held for p in untrained.encoder.parameters())
    return [f"{shared} tensors of the untrained encoder are those that are trained"] if shared else []

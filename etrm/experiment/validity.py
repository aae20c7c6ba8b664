"""The validity checks that a run makes on its own objects: the decoder before, during and after training.

Notable: `bundle_whole`, `golden_logits` and `structure` are measured on the decoder inside the model that is about to
be trained, not taken over from the load: whatever altered it in between must show.
"""

from collections.abc import Sequence
from dataclasses import asdict

import torch

from etrm.config.schema import RunConfig
from etrm.evaluation.controls import Answers, answer, own_rows
from etrm.experiment.arms import Arm
from etrm.experiment.checks import Check, check
from etrm.models.bundle import Bundle, digest, golden_gap
from etrm.models.trm import TRMDecoder, decoder_faults
from etrm.probes.frozen import FrozenSnapshot

COMPETENT = 0.5  # of its own training tasks' fresh queries; below it a decoder shows nothing about encoders
COMPETENT_ARC = 0.02  # of its tasks' held-out queries: above what any null answers


def decoder_checks(decoder: TRMDecoder, bundle: Bundle) -> list[Check]:
    """Is this very decoder, now, the one that the bundle describes?"""
    count = len(decoder.state_dict())
    faults = decoder_faults(decoder, decoder.state_dict()) + decoder_faults(
        TRMDecoder(bundle.structure), decoder.state_dict()
    )
    differs = decoder.structure.differences(bundle.structure)
    described = {"structure": asdict(bundle.structure), "provenance": asdict(bundle.provenance)}
    if bundle.described and digest(described) != bundle.described:
        # A decoder at its fixed point answers alike with more cycles, so logits alone would let it pass.
        differs.append("structure or provenance are not those that the weights were saved with")
    s = decoder.structure
    compared = None if faults or differs else golden_gap(bundle, decoder)
    said = "not compared: tensors or structure are others"
    if compared is not None:
        said = f"largest difference {compared[0]:.3g} to the stored logits, allowed {compared[1]:g}"
    return [
        check("bundle_whole", not faults, "; ".join(faults[:3]) or f"{count} of {count} tensors, {bundle.sha256[:12]}"),
        check("golden_logits", None if compared is None else compared[0] <= compared[1], said),
        check("structure", not differs, "; ".join(differs) or f"H {s.h_cycles}, L {s.l_cycles}, as trained"),
    ]


def positive_control(config: RunConfig, arm: Arm, bundle: Bundle) -> Answers:
    """The decoder with its own table rows: on fresh queries (rules) or on the tasks' held-out queries (ARC)."""
    batch = arm.rungs[0].batch
    contexts = own_rows(bundle.decoder, bundle.table, batch)
    return answer(bundle.decoder, batch, contexts, config.evaluation.batch_size, config.loss.cross_entropy)


def competence(positive: Answers, arm: Arm) -> Check:
    """A decoder that cannot answer with its own contexts shows nothing about an encoder's."""
    k, n = int(positive.exact.sum()), len(positive.exact)
    need = COMPETENT_ARC if arm.name == "arc" else COMPETENT
    return check("decoder_competent", k >= need * n, f"{k} of {n} exact with its own contexts, {need:.0%} needed")


def frozen_checks(
    frozen: FrozenSnapshot, decoder: TRMDecoder, optimisers: Sequence[torch.optim.Optimizer], during: Sequence[str]
) -> list[Check]:
    """Did the decoder move (now or, by `during`, at some evaluation), and does an optimiser hold one of its tensors?"""
    differences = [str(d) for d in frozen.check(decoder, list(optimisers), modes=False)]
    held = [d for d in differences if "optimiser" in d]
    moved = [d for d in differences if "optimiser" not in d] + list(during)
    total = len(decoder.state_dict())
    return [
        check("decoder_unchanged", not moved, "; ".join(moved[:3]) or f"{total} of {total} tensors bitwise equal"),
        check("decoder_not_optimised", not held, "; ".join(held[:3]) or "no optimiser holds a decoder tensor"),
    ]

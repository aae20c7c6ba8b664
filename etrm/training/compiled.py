"""torch.compile as a choice that is checked: the compiled model must give the numbers of the plain one, else it is
dropped and that is said.

Notable: what is compiled is the encoder and the decoder's block stack, in place, so that parameter names and declared
truncations stay as they are. Both are run once forward and backward on a few episodes before training.

Legend: B batch, S canvas cells, T context tokens, D hidden.
"""

import subprocess
from collections.abc import Callable

import torch
from torch import Tensor, nn

from etrm.models.etrm import ETRM, Episodes

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float64: 1e-6}  # relative, of logits and gradients


def compile_checked(model: ETRM, probe: Episodes, say: Callable[[str], None], backend: str = "inductor") -> bool:
    """Compile in place and compare with the plain model on `probe`; returns whether the model is compiled now.

    Where the compiler fails or its numbers differ, the model is left plain and `say` is told why.
    """
    places: tuple[nn.Module, ...] = (model.encoder, model.decoder.L_level)
    plain = probe_pass(model, probe)
    for module in places:
        module.compile(backend=backend)
    try:
        found = probe_pass(model, probe)
    except (RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
        _restore(places)
        told = (str(error).strip().splitlines() or [""])[0][:200]
        say(f"compile: torch.compile failed ({type(error).__name__}: {told}); the run goes on without it")
        return False
    worst = max(_gap(a, b) for a, b in zip(plain, found, strict=True))
    allowed = TOLERANCE[torch.bfloat16 if model.autocast else model.decoder.dtype]
    if not worst <= allowed:
        _restore(places)
        say(
            f"compile: the compiled model's logits or gradients differ by {worst:.2g} of their size (allowed "
            f"{allowed:g}); the run goes on without it"
        )
        return False
    say(f"compile: encoder and decoder blocks are compiled ({backend}), equal to the plain ones within {worst:.1g}")
    return True


def probe_pass(model: ETRM, probe: Episodes) -> list[Tensor]:
    """Logits (B, S, V) of one ACT step and the gradient of their mean square in each trained encoder parameter."""
    trained = [p for p in model.encoder.parameters() if p.requires_grad]
    with torch.random.fork_rng(devices=[]):
        context = model.context(probe).context
        latents = model.decoder.fresh_latents(len(probe.inputs))
        _, logits, _ = model.decoder(latents, probe.inputs, context)
        grads = torch.autograd.grad(logits.float().square().mean(), trained, allow_unused=True)
    whole = torch.cat([g.float().flatten() for g in grads if g is not None])
    return [logits.detach().float(), whole]


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / a.norm().clamp(min=1e-12))


def _restore(places: tuple[nn.Module, ...]) -> None:
    for module in places:
        module._compiled_call_impl = None  # what nn.Module.compile sets; torch has no call that undoes it
    torch._dynamo.reset()

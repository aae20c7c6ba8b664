"""Which samples train the model, and where the gradient of one that does not stops.

A mean over the batch hides this: with 2 % of the samples training an encoder its gradient is still non-zero. B batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from etrm.errors import ProbeError
from etrm.probes.break_report import BreakReport
from etrm.probes.gradients import Coverage, coverage
from etrm.probes.graph_breaks import observe
from etrm.probes.subject import Rerun, Subject, watchable


def observe_samples(model: Subject, losses_fn: Callable[[], Tensor]) -> tuple[Coverage, BreakReport | None]:
    """Coverage of one batch, and the observed pass of its first lost sample, None when no sample is lost.

    Args:
        model: the module that should train, or its parameters by name.
        losses_fn: runs the forward pass and returns one loss a sample, shape (B,).

    Raises:
        ProbeError: losses_fn does not return a vector of floating losses, or nothing can be observed.
    """
    with watchable(model), Rerun(model) as rerun, torch.enable_grad():
        losses = rerun.run(losses_fn)
        if not isinstance(losses, Tensor) or losses.ndim != 1:
            shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ProbeError(f"losses_fn must return one loss a sample, shape (B,); got {shape}. Use reduction='none'.")
        cover = coverage(losses, model)
    if not cover.lost_samples:
        return cover, None
    first = cover.lost_samples[0]
    return cover, observe(model, lambda: losses_fn()[first], batch_size=len(cover.sample_norms))

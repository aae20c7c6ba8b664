"""Probes: what happened to the gradient in one step, on any torch model.

`observe` (graph_breaks) names the line that cuts it, `gradient_audit` compares autograd with finite differences,
`coverage` and `classify` (gradients) say which samples, tokens and parameters train, `snapshot` (frozen) that a
module did not move; `diagnose` (diagnosis) puts them together for an encoder in front of a decoder, and
`context_report` (context) compares a context with the decoder's own. Names are loaded on
first use, so importing this package does not import torch.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "observe": "graph_breaks",
    "BreakReport": "break_report",
    "Finding": "break_report",
    "AuditReport": "gradient_audit",
    "ContextReport": "context",
    "context_report": "context",
    "Diagnosis": "diagnosis",
    "diagnose": "diagnosis",
    "gradients_of": "gradients",
    "gradient_norms": "gradients",
    "weights_of": "gradients",
    "update_ratios": "gradients",
    "coverage": "gradients",
    "coverage_over_steps": "gradients",
    "classify": "gradients",
    "Coverage": "gradients",
    "GradientState": "gradients",
    "snapshot": "frozen",
    "FrozenSnapshot": "frozen",
    "Difference": "frozen",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'etrm.probes' has no attribute '{name}'")
    return getattr(import_module(f"etrm.probes.{home}"), name)

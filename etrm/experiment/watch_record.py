"""A gradient watch as the verdict's evidence and as JSON for run.json."""

from typing import Any

from etrm.experiment.evidence import GradientEvidence
from etrm.experiment.watch import GradientWatch


def gradient_evidence(watch: GradientWatch) -> GradientEvidence:
    """State, first place and detail of a watch; a parameter that loses its gradient later makes it partial."""
    state = watch.state
    places = [
        *state.parameters[:1],
        *[f"sample {i}" for i in state.samples[:1]],
        *[f"token {t}" for t in state.tokens[:1]],
    ]
    missing = watch.missing()
    detail = str(state).replace("\n", ";")
    if missing and state.state == "intact":
        return GradientEvidence("partial", watch.place or f"{missing[0][1]} at update {missing[0][0]}", detail)
    return GradientEvidence(state.state, watch.place or (places[0] if places else ""), detail)


def watch_json(watch: GradientWatch) -> dict[str, Any]:
    """Everything a watch saw, in JSON's own types."""
    return {
        "state": watch.state.state,
        "elasticity": watch.state.elasticity,
        "late": watch.late(),
        "missing": [list(m) for m in watch.missing()],
        "lost_samples": [list(c.lost_samples) for c in watch.coverages],
        "lost_tokens": [[list(t) for t in c.lost_tokens] for c in watch.coverages],
        "encoder_calls": watch.encoder_calls,
        "updates": watch.updates,
        "finite": watch.finite,
        "place": watch.place,
        "relation": watch.relation,
        "norms": [dict(n) for n in watch.norms],
    }

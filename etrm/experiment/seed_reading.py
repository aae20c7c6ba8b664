"""The published plan's literal reading of each metric, beside ours.

The plan (frozen-decoder experiment, 2026-01-21) named three scenarios by single numbers: A gradient norm 0.3 to 1,
loss falls, token std 0.05 -> 0.15, pass@1 5 to 10 %; B gradient norm < 0.001 and a flat loss; C like A with about 0 %
pass@1; "useful" from 2 %, chance 1/400. Notable: it leaves gaps (a norm of 0.1, a pass@1 of 3 %), which here read
"the plan does not say". Metrics carry the seed's names; the value at the start of the run has the same name with the
suffix `/first`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from etrm.experiment.evidence import USEFUL, plain_json
from etrm.experiment.reading import percent

SILENT = "the plan does not say"
CHANCE = 1 / 400
OUR_NORM = (
    "one norm cannot show a path for every parameter, sample and token; after clipping it says 'at least the clip'"
)
OUR_LOSS = "a constant context lowers it too; it counts only below the constant-context and mismatched controls"
OUR_STD = "spread within one context, grows with any scaling; between-task over total variance tells collapse"
OUR_SCORE = "counts over tasks with an interval, against measured nulls; 1/400 is nobody's chance level"


@dataclass(frozen=True)
class SeedRow:
    """One metric, read twice. `value` None: not measured."""

    metric: str
    value: float | None
    seed_says: str
    we_say: str

    def to_json(self) -> dict[str, Any]:
        """As a dict of JSON's own types."""
        row: dict[str, Any] = plain_json(asdict(self))
        return row


def seed_reading(metrics: Mapping[str, float | None]) -> list[SeedRow]:
    """Rows in the plan's order, the last one its overall scenario. A metric that is absent reads 'not measured'."""
    norm, loss, first = (_value(metrics, key) for key in ("grad/encoder_norm", "train/lm_loss", "train/lm_loss/first"))
    std, std_first, score = (
        _value(metrics, key) for key in ("train/encoder_token_std", "train/encoder_token_std/first", "ARC/pass@1")
    )
    return [
        SeedRow("grad/encoder_norm", norm, _norm_says(norm),
                OUR_NORM),
        SeedRow("train/lm_loss", loss, _loss_says(first, loss),
                OUR_LOSS),
        SeedRow("train/encoder_token_std", std, _std_says(std_first, std),
                OUR_STD),
        SeedRow("ARC/pass@1", score, _score_says(score),
                OUR_SCORE),
        SeedRow("scenario", None, seed_scenario(metrics), "decided by the five questions, not by these numbers"),
    ]  # fmt: skip


def seed_scenario(metrics: Mapping[str, float | None]) -> str:
    """The plan's scenario 'A', 'B' or 'C' by its own numbers, else SILENT."""
    norm, loss, first, score = (
        _value(metrics, key) for key in ("grad/encoder_norm", "train/lm_loss", "train/lm_loss/first", "ARC/pass@1")
    )
    falls = loss is not None and first is not None and loss < first
    if norm is not None and norm < 0.001 and not falls:
        return "B"
    if norm is None or norm < 0.3 or norm > 1.0 or not falls or score is None:
        return SILENT
    return "A" if score >= 0.05 else "C" if score <= CHANCE else SILENT


def _value(metrics: Mapping[str, float | None], key: str) -> float | None:
    """None also for NaN: no threshold holds for it."""
    value = metrics.get(key)
    return None if value is None or math.isnan(value) else value


def _norm_says(norm: float | None) -> str:
    if norm is None:
        return "not measured"
    return (
        "A or C: healthy (0.3 to 1)" if 0.3 <= norm <= 1.0 else "B: no gradient (< 0.001)" if norm < 0.001 else SILENT
    )


def _loss_says(first: float | None, last: float | None) -> str:
    if first is None or last is None:
        return "not measured at both ends"
    return (
        f"A or C: it falls from {first:.3g} to {last:.3g}" if last < first else f"B: flat ({first:.3g} to {last:.3g})"
    )


def _std_says(first: float | None, last: float | None) -> str:
    if last is None:
        return "not measured"
    if last >= 0.15 and (first is None or first < last):
        return "A or C: the contexts differ (0.05 -> 0.15)"
    return "collapsed (below 0.05)" if last < 0.05 else SILENT


def _score_says(score: float | None) -> str:
    if score is None:
        return "not measured"
    useful = f"; useful (at least {percent(USEFUL)})" if score >= USEFUL else ""
    if score >= 0.05:
        return f"A: {percent(score)} (5 to 10 %){useful}"
    return (
        f"C: {percent(score)}, at or below 'chance' 1/400" if score <= CHANCE else f"{SILENT}: {percent(score)}{useful}"
    )

"""The validity checks: what each is about, what its failure means, from which question on it is needed, what to run.

Notable: `ok=None` is "could not be evaluated", which never counts as passed. A check that this table does not know is
read in the strictest way: needed from the start, and its failure makes the run invalid.
"""

from dataclasses import dataclass
from typing import Literal

from etrm.errors import EvaluationError

Hypothesis = Literal["H1", "H2", "H3", "H4", "H5", "H6", "H7"]


@dataclass(frozen=True)
class Check:
    """One validity check. `ok=None` means that it could not be evaluated."""

    name: str
    ok: bool | None
    detail: str
    remedy: str
    hypothesis: Hypothesis


@dataclass(frozen=True)
class CheckRule:
    """`stage` "outcome": a run stopped early at its gradient has not reached it, and does not need it for B."""

    hypothesis: Hypothesis
    on_failure: Literal["INVALID", "UNDECIDED"]
    stage: Literal["start", "outcome"]
    says: str
    remedy: str


BUNDLE = "etrm/assets/cal-1"
VERIFY = f"python scripts/verify_decoder_loading.py --trm-checkpoint {BUNDLE} --etrm-checkpoint {BUNDLE}"
INSPECT = f"python scripts/inspect_checkpoint.py {BUNDLE}"
CERTIFY = "pytest -m 'frozen_decoder and calibration' --slow"
SWEEP = "pytest -m sweep -k h4"
GATE = "pytest -m frozen_decoder -k"
PLAN = (
    "python -m etrm.evaluation.plan --effect 0.05 --null 0 --threshold 0.02 --queries-per-task 4 --seconds-per-query 1"
)

CHECK_RULES: dict[str, CheckRule] = {
    "certificate": CheckRule("H6", "INVALID", "outcome", "the instrument has its certificate", CERTIFY),
    "bundle_whole": CheckRule("H1", "INVALID", "start", "the decoder bundle loads whole", VERIFY),
    "golden_logits": CheckRule("H1", "INVALID", "start", "the decoder reproduces its golden logits", VERIFY),
    "structure": CheckRule("H1", "INVALID", "start", "the decoder's structure (cycles, layers) is as trained", VERIFY),
    "decoder_unchanged": CheckRule("H1", "INVALID", "start", "the decoder is bitwise unchanged", f"{GATE} h1"),
    "decoder_not_optimised": CheckRule("H1", "INVALID", "start", "no decoder tensor is optimised", f"{GATE} h1"),
    "decoder_competent": CheckRule("H1", "INVALID", "start", "the decoder is competent with its own contexts", VERIFY),
    "provenance": CheckRule("H5", "INVALID", "start", "the decoder's training tasks are known", INSPECT),
    "disjoint": CheckRule("H5", "INVALID", "start", "train and test are disjoint by canonical hash", f"{GATE} h5"),
    "episodes_true": CheckRule("H5", "INVALID", "start", "every drawn episode follows its own task", f"{GATE} h5"),
    "episodes_fresh": CheckRule("H5", "INVALID", "start", "draws are distinct, even and repeatable", f"{GATE} h5"),
    "rungs_true": CheckRule("H5", "INVALID", "start", "every rung asks what it claims to ask", f"{GATE} h5"),
    "paths_agree": CheckRule("H6", "INVALID", "start", "training and evaluation run one system", f"{GATE} h6"),
    "encoder_as_asked": CheckRule("H7", "INVALID", "start", "the encoder is what the config asks for", f"{GATE} h7"),
    "encoder_pure": CheckRule(
        "H3", "INVALID", "start", "the context is of the sample's own demonstrations", f"{GATE} h3"
    ),
    "trainable_fp32": CheckRule("H4", "INVALID", "start", "every trainable tensor is fp32", f"{GATE} h4"),
    "evaluator_true": CheckRule("H6", "INVALID", "start", "the evaluator counts what was answered", f"{GATE} h6"),
    "context_contract": CheckRule("H3", "INVALID", "start", "the context is finite and (B, T, D)", f"{GATE} h3"),
    "finite": CheckRule("H4", "INVALID", "start", "losses and gradients are finite", f"{GATE} h4"),
    "optimiser_complete": CheckRule("H4", "INVALID", "outcome", "the optimisers hold the encoder, whole", f"{GATE} h4"),
    "update_true": CheckRule("H4", "INVALID", "outcome", "an update does what the config says", f"{GATE} h4"),
    "step_size": CheckRule("H4", "UNDECIDED", "outcome", "the base rate fits the weights", SWEEP),
    "average_settled": CheckRule("H4", "UNDECIDED", "outcome", "averaged weights have left their start", SWEEP),
    "gradient_kept": CheckRule(
        "H2", "INVALID", "outcome", "every sample still reaches the encoder later on", f"{GATE} h2"
    ),
    "steps_true": CheckRule("H4", "INVALID", "outcome", "every step of the run is the config's", f"{GATE} h4"),
    "draws_true": CheckRule("H5", "INVALID", "outcome", "training drew its tasks truly and evenly", f"{GATE} h5"),
    "outcome_true": CheckRule("H6", "INVALID", "outcome", "the outcome is that of the trained encoder", f"{GATE} h6"),
    "weights_continuous": CheckRule("H4", "INVALID", "outcome", "only the optimiser moves the encoder", f"{GATE} h4"),
    "budget": CheckRule("H4", "INVALID", "outcome", "the executed budget is the planned one", "make experiment"),
    "schedule": CheckRule("H4", "UNDECIDED", "outcome", "the learning rate had its base long enough", SWEEP),
    "queries_evaluated": CheckRule("H6", "INVALID", "outcome", "every query was evaluated once", f"{GATE} h6"),
    "enough_tasks": CheckRule("H6", "UNDECIDED", "outcome", "there are enough tasks to decide", PLAN),
}


def check(name: str, ok: bool | None, detail: str, remedy: str = "") -> Check:
    """A check with its rule's hypothesis and (if none is given) remedy. Raises EvaluationError for an unknown name."""
    if name not in CHECK_RULES:
        raise EvaluationError(f"validity check {name!r} is not known; expected one of {', '.join(CHECK_RULES)}")
    rule = CHECK_RULES[name]
    return Check(name, ok, detail, remedy or rule.remedy, rule.hypothesis)


def failure_of(c: Check) -> str:
    """Scenario that `ok=False` leads to."""
    return CHECK_RULES[c.name].on_failure if c.name in CHECK_RULES else "INVALID"


def needed_from_start(c: Check) -> bool:
    """Is it needed even by a run that is stopped at its gradient?"""
    return CHECK_RULES[c.name].stage == "start" if c.name in CHECK_RULES else True


def sentence(c: Check) -> str:
    """'does not hold: the decoder is bitwise unchanged (layers.0 moved)'."""
    word = {True: "holds", False: "does not hold", None: "could not be evaluated"}[c.ok]
    return f"{word}: {CHECK_RULES[c.name].says if c.name in CHECK_RULES else c.name} ({c.detail})"

"""The words that panel, CI summary and report share: what a scenario means, what the five questions ask, who a null is.

Notable: one place, so that a person who reads the panel finds the same words in the browser.
"""

from dataclasses import dataclass

from etrm.experiment.verdict import QUESTIONS, Verdict

MEANING = {
    "A": "yes: the encoder drives the frozen decoder on tasks it has never seen",
    "B": "broken: the loss does not reach the whole encoder, so it cannot learn",
    "C": "no: the encoder trains, but what it learnt does not carry over to unseen tasks",
    "INVALID": "no answer: the experiment itself is not in order, its numbers mean nothing",
    "UNDECIDED": "no answer yet: the evidence cannot tell",
}
HEADLINE = {
    "A": "It learns",
    "B": "It is stuck",
    "C": "It trains, but does not transfer",
    "INVALID": "The experiment is not in order",
    "UNDECIDED": "It cannot be told yet",
}
COLOUR = {"A": "green", "B": "red", "C": "yellow", "INVALID": "magenta", "UNDECIDED": "cyan"}
DEPTH = {
    "seen_task": "tasks it trained on, new queries",
    "unseen_composition": "rules never shown to it",
    "unseen_augmentation": "trained tasks, turned or recoloured anew",
    "unseen_task": "tasks never shown to it",
}
NULL_NAMES = {
    "mismatched": "demonstrations of another task",
    "constant_context": "the best constant context",
    "permuted_outputs": "demonstration outputs swapped",
    "zero_context": "a context of zeros",
    "untrained_encoder": "an untrained encoder",
    "copy_input": "copying the input",
    "best_dihedral": "the best turn or mirror",
}
ASKED = {
    1: ("valid?", "Is the experiment in order?"),
    2: ("gradient?", "Does the loss reach the whole encoder?"),
    3: ("learns?", "Does the loss fall, further than without demonstrations?"),
    4: ("fits?", "Does it solve the tasks it was trained on?"),
    5: ("transfers?", "Does it solve tasks it has never seen?"),
}
SIGN = {"yes": "✓", "no": "✗", "open": "?", "unasked": "·"}


@dataclass(frozen=True)
class Question:
    """One of the five. `state`: yes, no, open (it decided: cannot be told) or unasked."""

    number: int
    short: str
    asks: str
    state: str


def questions(verdict: Verdict) -> list[Question]:
    """The five questions; those before the deciding one were answered well."""
    decided = {"A": "yes", "B": "no", "C": "no", "INVALID": "no", "UNDECIDED": "open"}[verdict.scenario]
    states = {n: "yes" if n < verdict.question else "unasked" for n in QUESTIONS} | {verdict.question: decided}
    return [Question(n, *ASKED[n], states[n]) for n in QUESTIONS]

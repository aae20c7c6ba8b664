"""Everything the verdict may look at for one arm, as frozen dataclasses that survive a JSON round trip.

Notable: "not measured" is always `None` or an absent rung, never 0 or True: "failed" stays apart from "nobody
looked". Counts stay counts (k of n); rates are computed where they are shown. Intervals and p-values come from
outside (resampled by task, corrected over rungs), so this file needs neither torch nor scipy.

Words: rung = one set of queries with its own nulls; null = the same measurement with the information removed;
oracle = a context optimised directly through the frozen decoder. Rates and p-values are in [0, 1], losses in nats.
"""

import dataclasses
import functools
import json
import math
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from etrm.errors import EvaluationError
from etrm.experiment.checks import Check, Hypothesis

ArmName = Literal["calibration", "micro", "arc"]
GradientState = Literal["intact", "partial", "vanishing", "blocked"]
Scalar = str | int | float | bool | None

USEFUL = 0.02  # the published plan's own threshold for a "useful" pass@1
ALPHA = 0.05
MAX_WARMUP_SHARE = 0.20  # of the updates; a longer warm-up leaves the base rate too little of the run

# the arm's rungs in the order in which they get harder; the last is the one the scenario rests on
RUNGS: dict[str, tuple[str, ...]] = {
    "calibration": ("seen_task", "unseen_composition"),
    "micro": ("seen_task", "unseen_composition"),
    "arc": ("seen_task", "unseen_augmentation", "unseen_task"),
}
# without these two no A can be told from a decoder that ignores its context
MINIMAL_NULLS = ("mismatched", "constant_context")
ALL_NULLS = (*MINIMAL_NULLS, "permuted_outputs", "zero_context", "untrained_encoder", "copy_input", "best_dihedral")


@dataclass(frozen=True)
class GradientEvidence:
    """`state=None`: not measured. `place`: the first parameter, sample, token or step without one ('' if intact)."""

    state: GradientState | None
    place: str
    detail: str


@dataclass(frozen=True)
class LossEvidence:
    """`lm` losses on a fixed probe set and, paired by task, against the controls. p-values are one-sided.

    `plateaued`: the loss on validation tasks no longer improved when the budget ended. `constant_sufficed`:
    the learned constant context trained long enough that more of it would not reach `own_loss` (outcome.py says how).
    """

    probe_start: float | None
    probe_end: float | None
    p_decrease: float | None
    own_loss: float | None
    constant_context_loss: float | None
    p_below_constant: float | None
    mismatched_loss: float | None
    p_below_mismatched: float | None
    plateaued: bool | None
    constant_sufficed: bool | None


@dataclass(frozen=True)
class Score:
    """k of n queries exact over `tasks` tasks; `ci95` of the rate, resampled by task."""

    k: int
    n: int
    tasks: int
    ci95: tuple[float, float]


@dataclass(frozen=True)
class NullEvidence:
    """The same queries, information removed. p: one-sided, paired by task. `lift_ci95`: of own rate minus null's."""

    k: int
    n: int
    p: float | None
    lift_ci95: tuple[float, float] | None = None


@dataclass(frozen=True)
class SearchEvidence:
    """A rung's queries after test-time search: updates and wall seconds a query, mean loss on the demonstrations."""

    score: Score
    updates: int
    seconds_per_query: float
    loss_before: float
    loss_after: float


@dataclass(frozen=True)
class RungEvidence:
    """One rung. `decoder_known`: was the decoder trained on these demonstrations? `tasks_needed`: would decide.

    `searched`: the same queries after test-time search on their demonstrations; reported, and decides nothing.
    """

    name: str
    score: Score
    nulls: dict[str, NullEvidence]
    decoder_known: bool | None
    chance_nominal: float | None = None  # the seed's 1 / number of tasks
    tasks_needed: int | None = None
    searched: SearchEvidence | None = None


@dataclass(frozen=True)
class OracleEvidence:
    """Contexts optimised through the frozen decoder: `solved` of `score.tasks` tasks, with `restarts` starts each."""

    solved: int
    score: Score
    restarts: int


@dataclass(frozen=True)
class Finding:
    """One more value for or against a hypothesis: healthy where low <= value <= high (None: no bound)."""

    name: str
    value: float
    low: float | None
    high: float | None
    hypothesis: Hypothesis
    detail: str

    @property
    def healthy(self) -> bool:
        """False also for NaN."""
        return (
            (self.low is None or self.value >= self.low)
            and (self.high is None or self.value <= self.high)
            and self.value == self.value
        )


@dataclass(frozen=True)
class Budget:
    """Updates and distinct episodes, planned and executed. `early_stop`: why it was ended on purpose ('' if not)."""

    planned_updates: int
    executed_updates: int
    planned_episodes: int
    distinct_episodes: int
    warmup_share: float
    lr_reached_base: bool
    early_stop: str = ""


@dataclass(frozen=True)
class Certificate:
    """The instrument's own proof on this machine and commit: healthy gave A, planted faults gave B, C and INVALID."""

    date: str
    commit: str
    says: str


@dataclass(frozen=True)
class Evidence:
    """What one arm of one experiment measured. A run refused before training has `loss`, `budget` None and no rungs."""

    arm: ArmName
    encoder: str
    user_encoder: bool
    objective: str
    seeds: int
    validity: tuple[Check, ...]
    gradient: GradientEvidence
    loss: LossEvidence | None
    rungs: tuple[RungEvidence, ...]
    oracle_many: OracleEvidence | None  # many labelled pairs: does some context exist?
    oracle_demos: OracleEvidence | None  # demonstrations only, leave-one-out: do this many pairs suffice?
    positive_control: Score | None  # the decoder with its own table rows
    findings: tuple[Finding, ...]
    budget: Budget | None
    certificate: Certificate | None
    required_nulls: tuple[str, ...]
    provenance: dict[str, Scalar]
    metrics: dict[str, float | None]

    def __post_init__(self) -> None:
        """Refuse evidence that contradicts itself before anyone judges it."""
        if self.arm not in RUNGS:
            raise EvaluationError(f"evidence: arm {self.arm!r} is not known; expected one of {', '.join(RUNGS)}")
        names = [rung.name for rung in self.rungs]
        unknown = sorted(set(names) - set(RUNGS[self.arm]))
        if unknown or len(names) != len(set(names)):
            raise EvaluationError(
                f"evidence: arm {self.arm!r} has rungs {names}; expected each of {', '.join(RUNGS[self.arm])} at most "
                "once"
            )
        checks = [c.name for c in self.validity]
        if len(checks) != len(set(checks)):
            raise EvaluationError(f"evidence: arm {self.arm!r} reports a validity check twice: {sorted(checks)}")
        for rung in self.rungs:
            _check_score(rung.score, f"evidence: rung {rung.name}")
            if rung.searched is not None:
                _check_score(rung.searched.score, f"evidence: rung {rung.name} with search")
            for name, null in rung.nulls.items():
                if not 0 <= null.k <= null.n:
                    raise EvaluationError(f"evidence: rung {rung.name}, null {name}: {null.k} of {null.n} is no count")

    def rung(self, name: str) -> RungEvidence | None:
        """The rung of that name that has at least one query, else None."""
        return next((r for r in self.rungs if r.name == name and r.score.n > 0), None)

    @property
    def headline(self) -> str:
        """Name of the rung that the scenario rests on."""
        return RUNGS[self.arm][-1]

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON's own types; NaN and infinities become the strings 'nan', 'inf', '-inf'."""
        plain: dict[str, Any] = plain_json(dataclasses.asdict(self))
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Evidence":
        """The inverse of `to_json`. Raises EvaluationError with the path of an unknown, missing or mistyped field."""
        built: Evidence = _build(cls, data, "evidence")
        return built

    def dumps(self) -> str:
        """`to_json` as text, keys in field order."""
        return json.dumps(self.to_json(), indent=1, allow_nan=False)


def refused(arm: ArmName, encoder: str, user_encoder: bool, checks: tuple[Check, ...], detail: str) -> Evidence:
    """Evidence of a run that was refused before its first update: nothing was trained, nothing was evaluated."""
    return Evidence(
        arm=arm, encoder=encoder, user_encoder=user_encoder, objective="lm", seeds=0, validity=checks,
        gradient=GradientEvidence(None, "", detail), loss=None, rungs=(), oracle_many=None, oracle_demos=None,
        positive_control=None, findings=(), budget=None, certificate=None, required_nulls=ALL_NULLS,
        provenance={}, metrics={},
    )  # fmt: skip


def plain_json(value: Any) -> Any:
    """Tuples to lists, non-finite floats to strings; everything else unchanged."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): plain_json(item) for key, item in value.items()}
    return [plain_json(item) for item in value] if isinstance(value, list | tuple) else value


def _check_score(score: Score, where: str) -> None:
    low, high = score.ci95
    if not 0 <= score.k <= score.n or not 0 <= score.tasks <= score.n:
        raise EvaluationError(f"{where}: {score.k} of {score.n} queries over {score.tasks} tasks is no count")
    if not 0.0 <= low <= high <= 1.0:
        raise EvaluationError(f"{where}: ci95 [{low}, {high}] is no interval of a rate in [0, 1]")


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    """Resolving annotations is slow, and each class is built many times."""
    return typing.get_type_hints(kind)


def _build(kind: Any, data: Any, where: str) -> Any:
    """`data` as an instance of the annotation `kind`; errors name `where`."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _build_union(args, data, where)
    if origin is Literal:
        return data if data in args else _wrong(where, f"one of {', '.join(map(str, args))}", data)
    if origin is tuple:
        kinds = [args[0]] * len(data) if isinstance(data, list) and args[-1] is Ellipsis else list(args)
        if not isinstance(data, list) or len(data) != len(kinds):
            _wrong(where, f"a list of {len(kinds)}", data)
        return tuple(_build(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(kinds, data, strict=True)))
    if not (origin is dict or dataclasses.is_dataclass(kind)):
        return _build_scalar(kind, data, where)
    if not isinstance(data, Mapping):
        _wrong(where, "an object", data)
    if origin is dict:
        return {key: _build(args[1], item, f"{where}.{_shown(key)}") for key, item in data.items()}
    hints = _hints(kind)
    needed = {f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING}
    for problem, names in (("unknown", set(data) - set(hints)), ("missing", needed - set(data))):
        if names:
            raise EvaluationError(
                f"{where}: {problem} field {', '.join(map(_shown, sorted(names)))}; "
                f"{kind.__name__} has {', '.join(hints)}"
            )
    return kind(**{key: _build(hints[key], item, f"{where}.{key}") for key, item in data.items()})


def _build_union(kinds: tuple[Any, ...], data: Any, where: str) -> Any:
    """None or the first member that fits; the last member's error is the one shown."""
    if data is None and type(None) in kinds:
        return None
    members = [k for k in kinds if k is not type(None)]
    if len(members) > 1:  # the scalar union of provenance
        return (
            data if isinstance(data, str | int | float | bool) else _wrong(where, "a text, number or truth value", data)
        )
    return _build(members[0], data, where)


def _build_scalar(kind: Any, data: Any, where: str) -> Any:
    if kind is float and isinstance(data, str) and data in ("nan", "inf", "-inf"):
        return float(data)
    if kind is float and type(data) in (int, float) and abs(data) <= sys.float_info.max:
        return float(data)
    return data if type(data) is kind else _wrong(where, f"a value of type {kind.__name__}", data)


def _shown(key: str) -> str:
    return key if key.isprintable() else repr(key)


def _wrong(where: str, expected: str, got: Any) -> typing.NoReturn:
    raise EvaluationError(f"{where}: expected {expected}, got {got!r:.200}")

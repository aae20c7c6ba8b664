"""The schema of verdict.json, version 1, as a checker written by hand.

Notable: further keys are allowed, so that later versions may add; a missing or mistyped key is an error that names
its path. The schema is documented for people in docs/verdict.md.
"""

from collections.abc import Callable, Mapping
from typing import Any

from etrm.errors import EvaluationError
from etrm.experiment.evidence import RUNGS

SCHEMA = 1
SCENARIOS = ("A", "B", "C", "INVALID", "UNDECIDED")
GRADIENTS = ("intact", "partial", "vanishing", "blocked", None)  # None: not measured
HYPOTHESES = ("H1", "H2", "H3", "H4", "H5", "H6", "H7")

Checker = Callable[[Any, str], None]


def validate_json(document: Any) -> None:
    """Return if `document` is a verdict of schema 1; else raise EvaluationError with path, expected and found value."""
    root = _mapping(document, "verdict")
    _field(root, "schema", "verdict", _one_of((SCHEMA,)))
    arms = _mapping(_get(root, "arms", "verdict"), "verdict.arms")
    if not arms:
        _fail("verdict.arms", "at least one arm", "none")
    for arm, body in arms.items():
        _one_of(tuple(RUNGS))(arm, "verdict.arms: the arm's name")
        _check_arm(_mapping(body, f"verdict.arms.{arm}"), f"verdict.arms.{arm}", RUNGS[arm])


def _check_arm(arm: Mapping[str, Any], where: str, rungs: tuple[str, ...]) -> None:
    _field(arm, "scenario", where, _one_of(SCENARIOS))
    _field(arm, "reasons", where, _texts)
    if not arm["reasons"]:
        _fail(f"{where}.reasons", "at least one reason", "none")
    _field(arm, "gradient", where, _one_of(GRADIENTS))
    measured = _mapping(_get(arm, "rungs", where), f"{where}.rungs")
    if set(measured) != set(rungs):
        _fail(f"{where}.rungs", " and ".join(rungs), ", ".join(sorted(measured)))
    for name in rungs:
        _check_rung(_mapping(measured[name], f"{where}.rungs.{name}"), f"{where}.rungs.{name}")
    metrics = _mapping(_get(arm, "metrics", where), f"{where}.metrics")
    for name, value in metrics.items():
        if value not in ("nan", "inf", "-inf", None):
            _number(value, f"{where}.metrics.{name}")
    hypotheses = _mapping(_get(arm, "hypotheses", where), f"{where}.hypotheses")
    for name, body in hypotheses.items():
        _one_of(HYPOTHESES)(name, f"{where}.hypotheses: the hypothesis")
        inner = _mapping(body, f"{where}.hypotheses.{name}")
        _field(inner, "status", f"{where}.hypotheses.{name}", _one_of(("supported", "refuted", "open")))
        _field(inner, "evidence", f"{where}.hypotheses.{name}", _texts)
    _mapping(_get(arm, "budget", where), f"{where}.budget")


def _check_rung(rung: Mapping[str, Any], where: str) -> None:
    for name in ("k", "n", "tasks"):
        _field(rung, name, where, _count)
    if rung["k"] > rung["n"]:
        _fail(f"{where}.k", f"at most n = {rung['n']}", rung["k"])
    interval = _get(rung, "ci95", where)
    if not isinstance(interval, list) or len(interval) != 2:
        _fail(f"{where}.ci95", "a list of two numbers", interval)
    for bound in interval:
        _number(bound, f"{where}.ci95")
    if not 0 <= interval[0] <= interval[1] <= 1:
        _fail(f"{where}.ci95", "0 <= low <= high <= 1", interval)
    null = _mapping(_get(rung, "null", where), f"{where}.null")
    for name in ("k", "n"):
        _field(null, name, f"{where}.null", _count)
    if null["k"] > null["n"]:
        _fail(f"{where}.null.k", f"at most n = {null['n']}", null["k"])


def _fail(where: str, expected: str, got: Any) -> None:
    raise EvaluationError(f"{where}: expected {expected}, got {got!r:.200}; the schema is described in docs/verdict.md")


def _get(body: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in body:
        _fail(where, f"a field {key!r}", ", ".join(map(str, body)) or "no field")
    return body[key]


def _field(body: Mapping[str, Any], key: str, where: str, checker: Checker) -> None:
    checker(_get(body, key, where), f"{where}.{key}")


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        _fail(where, "an object", value)
    result: Mapping[str, Any] = value
    return result


def _one_of(allowed: tuple[Any, ...]) -> Checker:
    def checker(value: Any, where: str) -> None:
        if isinstance(value, bool) or value not in allowed:
            _fail(where, f"one of {', '.join(map(str, allowed))}", value)

    return checker


def _count(value: Any, where: str) -> None:
    if type(value) is not int or value < 0:
        _fail(where, "a count (integer, 0 or more)", value)


def _number(value: Any, where: str) -> None:
    if type(value) not in (int, float):
        _fail(where, "a number", value)


def _texts(value: Any, where: str) -> None:
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        _fail(where, "a list of non-empty texts", value)

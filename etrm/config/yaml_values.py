"""YAML as plain values: a small, strict reading of one file or one command-line scalar.

Notable: PyYAML follows YAML 1.1, which reads `3e-4` and `1e5` as strings, `on` and `no` as booleans, `12:30:45` and
`010` as other integers. Here the scalars are those of YAML 1.2's core schema without octal and hex; tags, anchors,
aliases, duplicate keys and non-finite numbers are refused with file and line.
"""

import math
import re
from pathlib import Path
from typing import Any

import yaml

from etrm.errors import ConfigError

Value = None | bool | int | float | str | list["Value"] | dict[str, "Value"]

_NULL = ("", "~", "null", "Null", "NULL")
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)([eE][-+]?[0-9]+)?")
_NON_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_MAX_DEPTH = 32


def read_yaml(path: Path) -> dict[str, Value]:
    """The mapping in a YAML file. ConfigError (file and line) if it is not one, or holds what is refused here."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read it ({error}); make it a readable UTF-8 YAML file") from error
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        raise ConfigError(
            f"{path}: the file is {describe(value)}, expected a mapping of keys to values; write 'key: value'"
        )
    return value


def parse_yaml(text: str, where: str) -> Value:
    """The value of one YAML document, with the scalars of this module; `where` (file or command line) names it in
    errors.
    """
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            _refuse_indirection(event, where)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        summary = " ".join(str(error).split())
        raise ConfigError(f"{where}: not valid YAML ({summary}); correct it there") from error
    return None if node is None else _value_of(node, where, 0)


def describe(value: Value) -> str:
    """A value in words for a message: its kind, and itself where short."""
    if value is None:
        return "empty (null)"
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"{type(value).__name__} {value!r:.60}"


def _refuse_indirection(event: yaml.Event, where: str) -> None:
    place = f"{where}, line {_line(event.start_mark)}"
    if isinstance(event, yaml.AliasEvent):
        raise ConfigError(f"{place}: alias '*{event.anchor}' is refused; write the value out, or use defaults:")
    if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
        if event.anchor is not None:
            raise ConfigError(f"{place}: anchor '&{event.anchor}' is refused; write the value out, or use defaults:")
        if event.tag is not None:
            raise ConfigError(f"{place}: YAML tag '{event.tag}' is refused; write a plain value")


def _line(mark: Any) -> int:  # PyYAML's stubs leave a mark optional and of two classes
    return int(mark.line) + 1


def _value_of(node: yaml.Node, where: str, depth: int) -> Value:
    place = f"{where}, line {_line(node.start_mark)}"
    if depth > _MAX_DEPTH:
        raise ConfigError(f"{place}: nested deeper than {_MAX_DEPTH} levels; flatten it")
    if isinstance(node, yaml.ScalarNode):
        return node.value if node.style else _scalar(node.value, place)  # style is set for quoted and block scalars
    if isinstance(node, yaml.SequenceNode):
        return [_value_of(item, where, depth + 1) for item in node.value]
    found: dict[str, Value] = {}
    for key_node, value_node in node.value:
        key_place = f"{where}, line {_line(key_node.start_mark)}"
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
        if not isinstance(key, str) or not key.isidentifier():
            raise ConfigError(f"{key_place}: key {key!r} is refused; use a name of letters, digits and underscores")
        if key in found:
            raise ConfigError(f"{key_place}: duplicate key '{key}'; keep one of them")
        found[key] = _value_of(value_node, where, depth + 1)
    return found


def _scalar(text: str, place: str) -> Value:
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text) and len(text) < 40:  # longer digits are no number of ours, and int() is quadratic
        return int(text)
    if _FLOAT.fullmatch(text) and not text.lstrip("+-").isdigit():
        value = float(text)
        if not math.isfinite(value):
            raise ConfigError(f"{place}: {text} is too large for a float; write a finite number")
        return value
    if _NON_FINITE.fullmatch(text):
        raise ConfigError(f"{place}: {text} is refused; write a finite number")
    return text

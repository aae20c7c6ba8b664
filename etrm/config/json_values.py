"""JSON files read strictly: duplicate keys, NaN, infinities, depths and numbers that Python alone accepts are refused.

Notable: Python's reader keeps the last of two equal keys, takes `NaN`, and ends in errors of three other kinds for a
file that is nested too deep or holds too long a number; here each is the caller's typed error, which names it.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from etrm.errors import EtrmError

LARGEST = 64 * 2**20  # bytes; no file of ours that is text comes near


def read_json(path: Path, error: type[EtrmError], remedy: str, finite: bool = True) -> Any:
    """The document in the file `path`. Raises `error`, naming file, place and `remedy`, for what is refused."""
    return parse_json(read_text(path, error, remedy), str(path), error, remedy, finite)


def read_text(path: Path, error: type[EtrmError], remedy: str) -> str:
    """The file as UTF-8 text (a byte order mark is dropped). Raises `error` if it is absent, too large or no text."""
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise error(f"{path}: is {size} bytes, expected at most {LARGEST}; {remedy}")
        return path.read_text(encoding="utf-8-sig")
    except OSError as problem:
        raise error(f"{path} cannot be read ({problem.strerror}); {remedy}") from problem
    except UnicodeDecodeError as problem:
        raise error(f"{path} cannot be read, it is not UTF-8 text (byte {problem.start}); {remedy}") from problem


def parse_json(text: str, where: str, error: type[EtrmError], remedy: str, finite: bool) -> Any:
    """The document in `text`; `where` names it. `finite` refuses NaN and infinities, also those by way of 1e999."""

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(items)
        if len(found) != len(items):
            names = [key for key, _ in items]
            twice = sorted({key for key in names if names.count(key) > 1})
            raise error(f"{where}: duplicate key(s) {twice!r:.100}; keep one of each")
        return found

    try:
        return json.loads(
            text, object_pairs_hook=pairs, parse_constant=_number(where, error, finite),
            parse_float=_number(where, error, finite),
        )  # fmt: skip
    except (ValueError, RecursionError) as problem:
        raise error(f"{where} cannot be read, it is not valid JSON ({problem}); {remedy}") from problem


def _number(where: str, error: type[EtrmError], finite: bool) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if finite and not math.isfinite(value):
            raise error(f"{where}: {text:.40} is not JSON; write a finite number")
        return value

    return number

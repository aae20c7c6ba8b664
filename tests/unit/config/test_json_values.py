"""JSON files read strictly: what is taken, and the exact sentence with which each kind of damage is refused."""

import math
from pathlib import Path

import pytest

from etrm.config import json_values
from etrm.config.json_values import parse_json, read_json, read_text
from etrm.errors import EtrmError, EvaluationError

pytestmark = pytest.mark.fast

REMEDY = "write it again"


def refused(text: str, finite: bool = True) -> str:
    with pytest.raises(EvaluationError) as caught:
        parse_json(text, "a.json", EvaluationError, REMEDY, finite)
    return str(caught.value)


def test_a_document_is_read_with_its_types() -> None:
    text = '{"a": [1, 2.5, 1e3, true, null, "x"], "b": {"a": {}}}'
    found = parse_json(text, "a.json", EvaluationError, REMEDY, finite=True)
    assert found == {"a": [1, 2.5, 1000.0, True, None, "x"], "b": {"a": {}}}
    assert [type(item) for item in found["a"][:3]] == [int, float, float]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"b": 1, "a": 2, "b": 3, "a": 4, "c": 5}', "a.json: duplicate key(s) ['a', 'b']; keep one of each"),
        ('[{"x": {"a": 1, "a": 1}}]', "a.json: duplicate key(s) ['a']; keep one of each"),
        ("[NaN]", "a.json: NaN is not JSON; write a finite number"),
        ("[-Infinity]", "a.json: -Infinity is not JSON; write a finite number"),
        ("[1e999]", "a.json: 1e999 is not JSON; write a finite number"),
        (f"[{'9' * 400}.0]", f"a.json: {'9' * 40} is not JSON; write a finite number"),
        ("{", "a.json cannot be read, it is not valid JSON (Expecting property name enclosed in double quotes: line 1 "
              "column 2 (char 1)); write it again"),
    ],
)  # fmt: skip
def test_what_json_or_we_do_not_allow_is_refused_by_name(text: str, message: str) -> None:
    assert refused(text) == message


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000])
def test_depths_and_numbers_beyond_python_are_the_callers_error(text: str) -> None:
    message = refused(text)
    assert message.startswith("a.json cannot be read, it is not valid JSON (") and message.endswith("); write it again")


def test_numbers_that_are_not_finite_are_read_where_the_caller_allows_them(tmp_path: Path) -> None:
    text = "[NaN, Infinity, -1e999, 1.5]"
    path = tmp_path / "a.json"
    path.write_text(text)
    for found in (
        parse_json(text, "a.json", EvaluationError, REMEDY, finite=False),
        read_json(path, EvaluationError, REMEDY, finite=False),
    ):
        assert math.isnan(found[0]) and found[1:] == [math.inf, -math.inf, 1.5]
    with pytest.raises(EvaluationError) as caught:
        read_json(path, EvaluationError, REMEDY)
    assert str(caught.value) == f"{path}: NaN is not JSON; write a finite number"


def test_a_file_is_read_with_or_without_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for mark in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(mark + '{"ä": 1}'.encode())
        assert read_json(path, EvaluationError, REMEDY) == {"ä": 1}
        assert read_text(path, EvaluationError, REMEDY) == '{"ä": 1}'


def test_a_file_that_is_absent_no_text_or_too_large_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent, binary, large, damaged = (tmp_path / name for name in ("absent", "binary", "large", "damaged"))
    binary.write_bytes(b"ab\xff")
    large.write_text("[1, 2, 3]")
    damaged.write_text("[")
    monkeypatch.setattr(json_values, "LARGEST", 8)
    sentences = {
        absent: f"{absent} cannot be read (No such file or directory); write it again",
        binary: f"{binary} cannot be read, it is not UTF-8 text (byte 2); write it again",
        large: f"{large}: is 9 bytes, expected at most 8; write it again",
        damaged: f"{damaged} cannot be read, it is not valid JSON (Expecting value: line 1 column 2 (char 1)); "
        "write it again",
    }
    for path, sentence in sentences.items():
        with pytest.raises(EtrmError) as caught:
            read_json(path, EvaluationError, REMEDY)
        assert type(caught.value) is EvaluationError and str(caught.value) == sentence
    large.write_text("[1, 2 ]")
    assert read_json(large, EvaluationError, REMEDY) == [1, 2]
    large.write_text("[1, 22 ]")  # the largest size is still taken
    assert read_json(large, EvaluationError, REMEDY) == [1, 22]

"""How the fuzzers damage files: bytes, text, JSON and YAML."""

import json
import random
from pathlib import Path
from typing import Any

ODD = ("NaN", "Infinity", "-Infinity", "1e999", "-0", "true", "null", '""', "[]", "{}", "10", "-1", "1.5", "9" * 400)
ODD_YAML = ("!!python/object/apply:os.system [x]", "&a 1", "*a", "!!binary aGk=", ".nan", "1e999", "{a: 1, a: 2}", "?")


def damage_bytes(path: Path, draw: random.Random) -> None:
    """Cut, flip, repeat, splice or overwrite bytes."""
    data = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        at = draw.randrange(len(data) + 1) if data else 0
        match draw.randrange(6):
            case 0:
                del data[at:]
            case 1 if data:
                data[at % len(data)] ^= 1 << draw.randrange(8)
            case 2:
                data[at:at] = data[at : at + draw.randrange(1, 64)]
            case 3:
                del data[at : at + draw.randrange(1, 64)]
            case 4:
                data[at : at + 8] = draw.choice((b"\xff" * 8, b"\0" * 8, draw.randbytes(8)))
            case 5:
                data[:8] = draw.choice((b"\xff\xff\xff\xff\xff\xff\xff\x7f", draw.randbytes(8)))  # a header's length
    path.write_bytes(bytes(data))


def damage_text(path: Path, draw: random.Random, odd: tuple[str, ...] = ODD) -> None:
    """Damage of bytes, or one token replaced by an odd one, or a line doubled."""
    if draw.random() < 0.4:
        return damage_bytes(path, draw)
    text = path.read_text()
    for _ in range(draw.choice((1, 1, 3))):
        at = draw.randrange(len(text))
        match draw.randrange(4):
            case 0:
                stops = [i for i, c in enumerate(text) if c in "[]{},: \n"]
                start = draw.choice(stops)
                end = next((i for i in stops if i > start), len(text))
                text = text[: start + 1] + draw.choice(odd) + text[end:]
            case 1:
                lines = text.splitlines(keepends=True)
                lines.insert(draw.randrange(len(lines) + 1), draw.choice(lines))
                text = "".join(lines)
            case 2:
                text = (
                    text[:at]
                    + draw.choice(
                        (
                            "[" * 5000,
                            "{" * 99,
                            '"',
                            "\\",
                            "\0",
                            "\ud83d".encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
                            "\n- ",
                            "é",
                        )
                    )
                    + text[at:]
                )
            case 3:
                text = text[:at] + draw.choice(odd) + text[at:]
    path.write_text(text)
    return None


def damage_json(path: Path, draw: random.Random) -> None:
    """Damage of text, or one value of the document replaced, dropped, doubled or moved."""
    if draw.random() < 0.4:
        return damage_text(path, draw)
    document = json.loads(path.read_text())
    for _ in range(draw.choice((1, 1, 2, 4))):
        change(document, draw)
    path.write_text(json.dumps(document))
    return None


def change(document: Any, draw: random.Random) -> None:
    """One random change somewhere inside nested dicts and lists."""
    while isinstance(document, dict | list) and document:
        key = draw.choice(list(document)) if isinstance(document, dict) else draw.randrange(len(document))
        if isinstance(document[key], dict | list) and document[key] and draw.random() < 0.75:
            document = document[key]
            continue
        match draw.randrange(5):
            case 0:
                del document[key]
            case 1 if isinstance(document, dict):
                document[draw.choice(("x", "", "__class__", "../../x", key))] = document[key]
            case 1:
                document.insert(key, document[key])
            case _:
                document[key] = draw.choice(
                    (
                        None,
                        True,
                        -1,
                        10,
                        1.5,
                        2**70,
                        10**400,
                        float("nan"),
                        "",
                        "../x",
                        [],
                        {},
                        [[0]],
                        "A",
                        31 * [31 * [0]],
                    )
                )
        return


def damage_yaml(path: Path, draw: random.Random) -> None:
    damage_text(path, draw, (*ODD, *ODD_YAML))

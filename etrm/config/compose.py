"""Compose YAML files and command-line overrides into one frozen, typed config. It knows no key: dataclasses are the
schema.

A file may list others under `defaults:` (paths under the config root without suffix; `key: path` mounts one under that
key). They merge in order, later wins, and the file's own keys win over them all. Overrides `key.sub=value` come last.

Notable: there is no silent default. Every field of the schema must be written in some file, even where the dataclass
has a default, every key must be known, and every error names the dotted key, the file it came from and the nearest
valid key.
"""

import dataclasses
import difflib
import hashlib
import json
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from etrm.config.yaml_values import Value, describe, parse_yaml, read_yaml
from etrm.errors import ConfigError

COMMAND_LINE = "command line"

Config = TypeVar("Config")


@dataclass(frozen=True)
class Composed:
    """Untyped values, nested by key; where each dotted key was last written (a path or "command line"); the file asked
    for.
    """

    values: dict[str, Value]
    origins: dict[str, str]
    file: str

    def origin(self, key: str) -> str:
        """The file that wrote `key`, or the section around it, or else the file asked for."""
        while key not in self.origins and "." in key:
            key = key.rpartition(".")[0]
        return self.origins.get(key, self.file)


def load(cls: type[Config], name: str, overrides: Sequence[str] = (), root: Path | None = None) -> Config:
    """Compose `root/name.yaml` with overrides and build the frozen dataclass `cls`. ConfigError says what to correct
    where.
    """
    return build(cls, compose(name, overrides, root))


def shipped_root() -> Path:
    """The configs that came with this package: `config/` of a checkout, else the copy inside an installed wheel."""
    package = Path(__file__).resolve().parent
    places = (package.parents[1] / "config", package / "files")
    for place in places:
        if (place / "run_base.yaml").is_file():
            return place
    raise ConfigError(f"no config folder at {places[0]} or {places[1]}; run in the repository root or pass root=")


def default_root() -> Path:
    """`config/` in the working directory, else the shipped one; ConfigError if there is neither."""
    own = Path.cwd() / "config"
    return own if own.is_dir() else shipped_root()


def _root_of(name: str) -> Path:
    """The default root; the shipped one where another project's config/ would hide the file asked for."""
    own = default_root()
    if not (own / f"{name}.yaml").is_file() and (shipped_root() / f"{name}.yaml").is_file():
        return shipped_root()
    return own


def compose(name: str, overrides: Sequence[str] = (), root: Path | None = None) -> Composed:
    """Merge `root/name.yaml`, its defaults and the overrides, without a schema. ConfigError for cycles and unknown
    keys.
    """
    root = _root_of(name) if root is None else Path(root)
    values: dict[str, Value] = {}
    origins: dict[str, str] = {}
    file = str(_path_of(name, root, "the command line"))
    _merge_file(name, root, (), values, origins, "", "the command line")
    composed = Composed(values, origins, file)
    for override in overrides:
        _override(composed, override)
    return composed


def _path_of(name: str, root: Path, asker: str) -> Path:
    path = root / f"{name}.yaml"
    if name and not Path(name).is_absolute() and ".." not in Path(name).parts and path.is_file():
        return path
    have = sorted(found.relative_to(root).with_suffix("").as_posix() for found in root.rglob("*.yaml"))
    shown = ", ".join(have) or "none"
    raise ConfigError(
        f"no config '{name}' under {root} (asked for by {asker}); give a path without .yaml{_nearest(name, have)}. "
        f"There are: {shown}"
    )


def _merge_file(
    name: str,
    root: Path,
    stack: tuple[str, ...],
    values: dict[str, Value],
    origins: dict[str, str],
    at: str,
    asker: str,
) -> None:
    """Merge a file and its defaults into `values`; `at` is the dotted section it is mounted under."""
    if name in stack:
        raise ConfigError(f"{asker}: defaults form a cycle: {' -> '.join((*stack, name))}; remove one of the links")
    path = _path_of(name, root, asker)
    own = read_yaml(path)
    for key, other in _defaults_of(own.pop("defaults", []), str(path)):
        target = values
        if key is not None:
            _merge({key: {}}, values, origins, str(_path_of(other, root, str(path))), at)  # the section is of that file
            target = typing.cast(dict[str, Value], values[key])
        _merge_file(other, root, (*stack, name), target, origins, f"{at}{key}." if key else at, str(path))
    _merge(own, values, origins, str(path), at)


def _defaults_of(listed: Value, file: str) -> Iterable[tuple[str | None, str]]:
    if not isinstance(listed, list):
        raise ConfigError(
            f"{file}: defaults is {describe(listed)}, expected a list such as [arch/small, 'arch: arch/small']"
        )
    for item in listed:
        if isinstance(item, str):
            yield None, item
        elif isinstance(item, dict) and len(item) == 1 and all(isinstance(other, str) for other in item.values()):
            ((key, other),) = item.items()
            yield key, typing.cast(str, other)
        else:
            raise ConfigError(f"{file}: defaults has {describe(item)}, expected a path or one 'key: path'")


def _merge(new: Mapping[str, Value], values: dict[str, Value], origins: dict[str, str], file: str, at: str) -> None:
    for key, value in new.items():
        dotted = at + key
        if isinstance(value, dict):
            section = values.get(key)
            if not isinstance(section, dict):
                values[key] = section = {}
            origins[dotted] = file
            _merge(value, section, origins, file, f"{dotted}.")
        else:
            _set(values, origins, key, value, dotted, file)


def _set(values: dict[str, Value], origins: dict[str, str], key: str, value: Value, dotted: str, origin: str) -> None:
    for old in [o for o in origins if o.startswith(f"{dotted}.")]:
        del origins[old]  # the section that was here is replaced as a whole
    values[key] = value
    origins[dotted] = origin


def _override(composed: Composed, text: str) -> None:
    dotted, equals, raw = text.partition("=")
    if not equals or not dotted.strip():
        raise ConfigError(f"{COMMAND_LINE}: override '{text}' is refused; write key.sub=value")
    dotted = dotted.strip()
    *sections, last = dotted.split(".")
    place: Value = composed.values
    for section in sections:
        place = place.get(section) if isinstance(place, dict) else None
    if not isinstance(place, dict) or last not in place:
        known = [key for key in composed.origins if not isinstance(_at(composed.values, key), dict)]
        raise ConfigError(
            f"{COMMAND_LINE}: unknown key '{dotted}', not written by {composed.file} or its defaults"
            f"{_nearest(dotted, known)}"
        )
    value = parse_yaml(raw, f"{COMMAND_LINE}, override '{text}'")
    for offending in (place[last], value):
        if isinstance(offending, dict) and value is not None:
            raise ConfigError(
                f"{COMMAND_LINE}: '{dotted}' is a section; override its keys one by one: {dotted}.key=value"
            )
    _set(place, composed.origins, last, value, dotted, COMMAND_LINE)


def _at(values: Value, dotted: str) -> Value:
    """The value of a key that some file wrote, so that every part before the last is a section."""
    for part in dotted.split("."):
        values = typing.cast(dict[str, Value], values)[part]
    return values


def _nearest(key: str, valid: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    if not near:  # a right last part in the wrong section is near too
        near = [other for other in valid if other.rpartition(".")[2] == key.rpartition(".")[2]][:1]
    return f"; nearest valid: '{near[0]}'" if near else ""


def build(cls: type[Config], composed: Composed) -> Config:
    """The frozen dataclass `cls` from composed values, checked recursively.

    Fields may be int, float (an int will do), bool, str, tuple[T, ...], tuple of fixed types, Literal, `X | None` and
    frozen dataclasses. ConfigError for a missing or unknown key, a wrong type or a non-finite float, naming key, file
    and remedy.
    """
    return typing.cast(Config, _section(cls, composed.values, "", composed))


def _section(cls: type, value: Value, key: str, composed: Composed) -> object:
    if not (dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        raise ConfigError(f"schema {cls.__name__} is not a frozen dataclass; declare it @dataclass(frozen=True)")
    if not isinstance(value, dict):
        raise _wrong(key, value, f"a section ({cls.__name__})", composed)
    prefix = f"{key}." if key else ""
    names = [field.name for field in dataclasses.fields(cls)]
    for given in value:
        if given not in names:
            raise ConfigError(
                f"{composed.origin(prefix + given)}: unknown key '{prefix}{given}'"
                f"{_nearest(prefix + given, [prefix + name for name in names])}. "
                f"{cls.__name__} has: {', '.join(names)}"
            )
    for name in names:
        if name not in value:
            raise ConfigError(
                f"{composed.origin(key)}: key '{prefix}{name}' is missing; "
                f"write '{name}: ...' in that file or in one of its defaults"
            )
    hints = typing.get_type_hints(cls)
    typed = {name: _typed(hints[name], value[name], prefix + name, composed) for name in names}
    try:
        return cls(**typed)
    except ConfigError as error:  # out of range: the section knows its field, but not the file
        field = next((name for name in names if f".{name} is " in str(error)), None)
        origin = composed.origin(key if field is None else prefix + field)
        raise ConfigError(f"{origin}: {error}; correct it there") from error


def _typed(kind: Any, value: Value, key: str, composed: Composed) -> object:
    """Check one value against one type; the key may end in an index, `sizes[2]`."""
    if dataclasses.is_dataclass(kind):
        return _section(typing.cast(type, kind), value, key, composed)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        rest = [arg for arg in args if arg is not type(None)]
        if len(rest) == 1 and len(args) == 2:
            return None if value is None else _typed(rest[0], value, key, composed)
    elif origin is Literal:
        if any(type(value) is type(arg) and value == arg for arg in args):
            return value
        choices = [str(arg) for arg in args]
        raise _wrong(key, value, f"one of {', '.join(map(repr, args))}{_nearest(str(value), choices)}", composed)
    elif origin is tuple:
        return _tuple(args, value, key, composed)
    elif kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
            return float(value)  # (isfinite is an error for an int that no float holds)
        raise _wrong(key, value, "a finite float", composed)
    elif kind in (int, bool, str):
        if type(value) is kind:
            return value
        raise _wrong(key, value, kind.__name__, composed)
    raise ConfigError(f"schema field '{key}' has type {kind}, which configs cannot hold; see etrm.config.compose.build")


def _tuple(args: tuple[Any, ...], value: Value, key: str, composed: Composed) -> object:
    if not isinstance(value, list):
        raise _wrong(key, value, "a list", composed)
    if len(args) == 2 and args[1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(args) != len(value):
        raise _wrong(key, value, f"a list of exactly {len(args)}", composed)
    return tuple(
        _typed(arg, item, f"{key}[{i}]", composed) for i, (arg, item) in enumerate(zip(args, value, strict=True))
    )


def _wrong(key: str, value: Value, expected: str, composed: Composed) -> ConfigError:
    origin = composed.origin(key.partition("[")[0])
    return ConfigError(f"{origin}: '{key}' is {describe(value)}, expected {expected}; correct it there")


def to_dict(config: object) -> dict[str, Any]:
    """The config as nested dicts of plain values, tuples as lists, fit for YAML or JSON."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise ConfigError(f"to_dict takes a config dataclass, not {config!r:.60}; build one with load(cls, name)")
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return to_dict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def config_hash(config: object) -> str:
    """sha256 hex of the canonical JSON of `to_dict(config)`: keys sorted, no spaces; equal configs hash equally."""
    plain = to_dict(config)
    try:
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{type(config).__name__} cannot be hashed ({error}); build it with load(cls, name)"
        ) from error
    return hashlib.sha256(text.encode()).hexdigest()

"""Composing configs: merge order, strict YAML scalars, typed building, overrides, and messages that say what to
correct.
"""

import dataclasses
import hashlib
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etrm.config.compose import Composed, build, compose, config_hash, default_root, load, shipped_root, to_dict
from etrm.errors import ConfigError

pytestmark = pytest.mark.fast


@dataclass(frozen=True)
class Arch:
    hidden: int
    kind: Literal["small", "large", 3]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Toy:
    arch: Arch
    lr: float
    name: str
    ema: bool
    limit: int | None
    span: tuple[int, float]
    extra: Arch | None = None


ARCH = "hidden: 8\nkind: small\nsizes: [1, 2]\n"
MAIN = "defaults: [arch: arch/small, base]\nlr: 3e-4\nname: toy\n"
BASE = "lr: 1\nema: true\nlimit: null\nspan: [2, 1e5]\nextra: null\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, {"arch/small": ARCH, "base": BASE, "cfg_toy": MAIN})
    return tmp_path


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class One:
    value: int | None


def test_files_compose_into_a_typed_frozen_config(root):
    config = load(Toy, "cfg_toy", root=root)
    assert config == Toy(Arch(8, "small", (1, 2)), 3e-4, "toy", True, None, (2, 1e5), None)
    assert type(config.lr) is float
    assert type(config.span[1]) is float
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.lr = 1.0


def test_origins_name_the_file_that_wrote_each_key(root):
    composed = compose("cfg_toy", ["ema=false"], root)
    assert composed.origins["lr"] == str(root / "cfg_toy.yaml")
    assert composed.origins["span"] == str(root / "base.yaml")
    assert composed.origins["arch.hidden"] == str(root / "arch/small.yaml")
    assert composed.origins["ema"] == "command line"


def test_a_key_that_nobody_wrote_has_the_origin_of_the_section_around_it() -> None:
    composed = Composed({}, {"a": "outer.yaml", "a.b": "inner.yaml"}, "asked.yaml")
    keys = ("a.b.c.d", "a.b.c", "a.c.d", "a", "b", "b.c.d")
    assert [composed.origin(key).removesuffix(".yaml") for key in keys] == [
        "inner", "inner", "outer", "outer", "asked", "asked",
    ]  # fmt: skip


def test_later_defaults_win_and_the_files_own_keys_win_over_them(root):
    write(root, {"a": "x: 1\ny: 1\nz: 1", "b": "y: 2\nz: 2", "c": "z: 3\ndefaults: [a, b]"})
    assert compose("c", root=root).values == {"x": 1, "y": 2, "z": 3}


def test_sections_merge_key_by_key_and_mounts_nest(root):
    write(
        root,
        {"inner": "s: {p: 1, q: 1}", "outer": "defaults: [m: inner]\nm: {s: {q: 2}}", "top": "defaults: [n: outer]"},
    )
    composed = compose("top", root=root)
    assert composed.values == {"n": {"m": {"s": {"p": 1, "q": 2}}}}
    assert composed.origins["n.m.s.p"] == str(root / "inner.yaml")
    assert composed.origins["n.m.s.q"] == str(root / "outer.yaml")


def test_a_file_may_come_in_twice_but_not_in_a_circle(root):
    write(root, {"l": "defaults: [base]", "r": "defaults: [base]", "d": "defaults: [l, r]"})
    assert compose("d", root=root).values["lr"] == 1
    write(root, {"p": "defaults: [q]", "q": "defaults: [x: p]"})
    with pytest.raises(ConfigError, match=r"q.yaml: defaults form a cycle: p -> q -> p"):
        compose("p", root=root)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1e5", 1e5),
        ("-2.5E+3", -2500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("0", 0),
        ("-12", -12),
        ("10_000", 10000),
        ("true", True),
        ("False", False),
        ("null", None),
        ("", None),
        ("~", None),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("y", "y"),
        ("12:30:45", "12:30:45"),
        ("010", "010"),
        ("0x10", "0x10"),
        ("1_0.5", "1_0.5"),
        ("2024-01-01", "2024-01-01"),
        ("nan", "nan"),
        ("\u0663e\u0661", "\u0663e\u0661"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("''", ""),
        ("[1, 2.0, a]", [1, 2.0, "a"]),
        ("[]", []),
    ],
)
def test_scalars_mean_what_they_say_in_files_and_overrides(tmp_path, text, value):
    write(tmp_path, {"one": f"value: {text}\n", "none": "value: null\n"})
    for found in (compose("one", root=tmp_path), compose("none", [f"value={text}"], tmp_path)):
        assert found.values["value"] == value
        assert type(found.values["value"]) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "line 2: duplicate key 'a'"),
        ("s:\n  a: 1\n  a: 2", "line 3: duplicate key 'a'"),
        ("a: !!str 1", "line 1: YAML tag"),
        ("a: !!python/object:os.system x", "line 1: YAML tag"),
        ("a: ! 1", "YAML tag '!'"),
        ("a: &x 1", "anchor '&x'"),
        ("a: &x [1]\nb: *x", "anchor '&x'"),
        ("a: *x", r"alias '\*x'"),
        ("<<: {a: 1}", "key '<<' is refused"),
        ("a.b: 1", r"key 'a\.b' is refused"),
        ("1: 1", "key '1' is refused"),
        ("? [a]\n: 1", "key None is refused"),
        ("a: .nan", ".nan is refused; write a finite number"),
        ("a: -.inf", "-.inf is refused; write a finite number"),
        ("a: 1e999", "1e999 is too large"),
        ("a: [", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("a: \t\x00", "not valid YAML"),
        ("", r"the file is empty \(null\), expected a mapping"),
        ("- a", "the file is a list of 1, expected a mapping"),
        ("a: " + "[" * 50 + "]" * 50, "nested deeper than 32"),
        ("defaults: base", "defaults is str 'base', expected a list"),
        ("defaults: [3]", "defaults has int 3, expected a path or one 'key: path'"),
        ("defaults: [{a: x, b: y}]", "defaults has a section"),
        ("defaults: [a: 3]", "defaults has a section"),
    ],
)
def test_malformed_files_are_refused_by_name(tmp_path, text, message):
    write(tmp_path, {"bad": text})
    with pytest.raises(ConfigError, match=message) as caught:
        compose("bad", root=tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "bad.yaml"))


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "bad.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match=r"bad.yaml: cannot read it"):
        compose("bad", root=tmp_path)


@pytest.mark.parametrize("name", ["cfg_toi", "cfg_toy.yaml", "../cfg_toy", "", "arch"])
def test_a_missing_file_lists_those_that_exist(root, name):
    with pytest.raises(ConfigError, match=rf"no config '{name}'.*There are: arch/small, base, cfg_toy$"):
        compose(name, root=root)


def test_a_missing_file_names_the_nearest_and_who_asked(root):
    with pytest.raises(ConfigError, match=r"asked for by the command line.*nearest valid: 'cfg_toy'"):
        compose("cfg_toi", root=root)
    write(root, {"x": "defaults: [arch/smal]"})
    with pytest.raises(ConfigError, match=r"asked for by .*x\.yaml.*nearest valid: 'arch/small'"):
        compose("x", root=root)


def test_a_section_of_a_missing_file_names_who_asked_for_it(root):
    write(root, {"x": "defaults: [arch: arch/smal]"})
    with pytest.raises(ConfigError) as caught:
        compose("x", root=root)
    assert str(caught.value) == (
        f"no config 'arch/smal' under {root} (asked for by {root / 'x.yaml'}); give a path without .yaml; "
        "nearest valid: 'arch/small'. There are: arch/small, base, cfg_toy, x"
    )


def test_a_file_above_the_root_is_refused_though_it_exists(root):
    write(root, {"inside/one": "value: 1", "outside": "value: 2"})
    with pytest.raises(ConfigError, match=r"no config '\.\./outside'.* There are: one$"):
        compose("../outside", root=root / "inside")
    (root / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"There are: none$"):
        compose("one", root=root / "empty")


@dataclass(frozen=True)
class Ranged:
    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low < 0:
            raise ConfigError(f"Ranged.low is {self.low}, expected 0 or more")
        if self.low > self.high:
            raise ConfigError("Ranged: low lies above high")


@dataclass(frozen=True)
class Outer:
    span: Ranged


def test_a_value_out_of_range_is_refused_with_the_file_that_wrote_it(root):
    """A rule over several fields names no field; it is shown with the file of the section."""
    write(root, {"inner": "low: 1\nhigh: 2", "top": "defaults: [span: inner]\nspan: {low: -5}"})
    with pytest.raises(ConfigError) as caught:
        load(Outer, "top", root=root)
    assert str(caught.value) == f"{root / 'top.yaml'}: Ranged.low is -5, expected 0 or more; correct it there"
    with pytest.raises(ConfigError, match=r"^command line: Ranged\.low is -6, expected"):
        load(Outer, "top", ["span.low=-6"], root)
    with pytest.raises(ConfigError) as caught:
        load(Outer, "top", ["span.low=3"], root)
    assert str(caught.value) == f"{root / 'top.yaml'}: Ranged: low lies above high; correct it there"


@pytest.mark.parametrize(("open_", "close"), [("[", "]"), ("{a: ", "}")])
def test_files_nest_32_deep_and_no_deeper(tmp_path, open_, close):
    for levels in (31, 32):
        write(tmp_path, {f"deep{levels}": f"a: {open_ * levels}1{close * levels}"})
    compose("deep31", root=tmp_path)  # with the file's own level, 32
    with pytest.raises(ConfigError, match=r"deep32\.yaml, line 1: nested deeper than 32 levels; flatten it$"):
        compose("deep32", root=tmp_path)


@pytest.mark.parametrize("text", ["-010", "+010", "9" * 40, "-" + "9" * 60])
def test_digits_that_are_no_number_of_ours_stay_text(tmp_path, text):
    write(tmp_path, {"one": f"value: {text}"})
    assert compose("one", root=tmp_path).values["value"] == text


def test_integers_of_39_digits_are_exact(tmp_path):
    write(tmp_path, {"one": f"value: {'9' * 39}"})
    assert compose("one", root=tmp_path).values["value"] == 10**39 - 1


def test_what_the_yaml_reader_says_is_one_line_with_the_place(tmp_path):
    write(tmp_path, {"bad": "a: [1,\nb: 2"})
    with pytest.raises(ConfigError) as caught:
        compose("bad", root=tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'bad.yaml'}: not valid YAML (while parsing a flow sequence in ")
    assert "line 1, column 4: " in message and "\n" not in message and message.endswith("); correct it there")


def test_an_absolute_path_is_refused(root):
    with pytest.raises(ConfigError, match="no config"):
        compose(str(root / "cfg_toy"), root=root)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("cfg_toy", MAIN + "lrr: 1", r"cfg_toy\.yaml: unknown key 'lrr'; nearest valid: 'lr'\. Toy has: arch, lr"),
        ("arch/small", ARCH + "hiden: 1", r"small\.yaml: unknown key 'arch\.hiden'; nearest valid: 'arch\.hidden'"),
        ("base", BASE.replace("ema: true\n", ""), r"cfg_toy\.yaml: key 'ema' is missing"),
        ("base", BASE.replace("ema", "emma"), r"base\.yaml: unknown key 'emma'; nearest valid: 'ema'"),
        ("base", BASE.replace("extra: null\n", ""), r"key 'extra' is missing"),  # a dataclass default is no value
        ("arch/small", "hidden: 8\nkind: small", r"small\.yaml: key 'arch\.sizes' is missing"),
        ("cfg_toy", MAIN + "ema: 1", r"cfg_toy\.yaml: 'ema' is int 1, expected bool"),
        ("cfg_toy", MAIN + "ema: on", r"'ema' is str 'on', expected bool"),
        ("cfg_toy", MAIN.replace("toy", "3"), "'name' is int 3, expected str"),
        ("cfg_toy", MAIN.replace("3e-4", "true"), "'lr' is bool True, expected a finite float"),
        ("cfg_toy", MAIN.replace("3e-4", "nan"), "'lr' is str 'nan', expected a finite float"),
        ("cfg_toy", MAIN + "limit: 1.0", r"'limit' is float 1\.0, expected int"),
        ("cfg_toy", MAIN + "limit: true", "'limit' is bool True, expected int"),
        ("cfg_toy", MAIN + "arch: 3", r"cfg_toy\.yaml: 'arch' is int 3, expected a section \(Arch\)"),
        ("cfg_toy", MAIN + "extra: {hidden: 1}", r"cfg_toy\.yaml: key 'extra\.kind' is missing"),
        ("base", BASE.replace("extra: null", "extra: {hidden: 1}"), r"base\.yaml: key 'extra\.kind' is missing"),
        ("cfg_toy", MAIN + "name: {a: 1}", "duplicate key 'name'"),
        ("base", BASE + "name: {a: 1}", None),  # replaced as a whole by the file's own scalar
        ("arch/small", ARCH.replace("[1, 2]", "[1, x]"), r"small\.yaml: 'arch\.sizes\[1\]' is str 'x', expected int"),
        ("arch/small", ARCH.replace("[1, 2]", "1"), r"'arch\.sizes' is int 1, expected a list"),
        ("base", BASE.replace("[2, 1e5]", "[2]"), r"'span' is a list of 1, expected a list of exactly 2"),
        (
            "arch/small",
            ARCH.replace("small", "smal"),
            "expected one of 'small', 'large', 3; nearest valid: 'small'; correct it there$",
        ),
        ("arch/small", ARCH.replace("small", "3"), None),
        ("arch/small", ARCH.replace("small", "3.0"), "'arch.kind' is float 3.0, expected one of"),
    ],
)
def test_wrong_keys_and_types_are_refused_by_key_and_file(root, file, text, message):
    write(root, {file: text})
    if message is None:
        assert isinstance(load(Toy, "cfg_toy", root=root), Toy)
    else:
        with pytest.raises(ConfigError, match=message):
            load(Toy, "cfg_toy", root=root)


def test_overrides_apply_in_order(root):
    config = load(Toy, "cfg_toy", ["lr=1", "arch.hidden=16", "lr=2e-3", "arch.sizes=[4, 5, 6]", "name='7'"], root)
    assert (config.lr, config.arch.hidden, config.arch.sizes, config.name) == (2e-3, 16, (4, 5, 6), "7")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("arch.hiden=1", "command line: unknown key 'arch.hiden'.*nearest valid: 'arch.hidden'"),
        ("hidden=1", "unknown key 'hidden'.*nearest valid: 'arch.hidden'"),
        ("lr.x=1", "unknown key 'lr.x'"),
        ("lr.x.y=1", "unknown key 'lr.x.y'"),
        ("lr", "override 'lr' is refused; write key.sub=value"),
        ("=3", "override '=3' is refused"),
        ("arch=3", "'arch' is a section; override its keys one by one"),
        ("lr={a: 1}", "'lr' is a section"),
        ("lr=abc", "command line: 'lr' is str 'abc', expected a finite float"),
        ("lr=.nan", "command line, override 'lr=.nan', line 1: .nan is refused"),
        ("lr=1e400", "too large"),
        ("lr=[", "command line, override .*not valid YAML"),
        ("lr=&a 1", "anchor"),
        ("ema=yes", "command line: 'ema' is str 'yes', expected bool"),
        ("arch.sizes=[1, a]", r"command line: 'arch.sizes\[1\]' is str 'a', expected int"),
    ],
)
def test_wrong_overrides_are_refused_as_the_command_line(root, override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(Toy, "cfg_toy", [override], root)
    assert "command line" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("archh", "arch.hidden"),  # the section 'arch' itself is no key to write
        ("limbos", "limit"),
        ("optimiser.of.the.decoder.lr", "lr"),  # far, but the last part is right
        ("zzzzzzzzzzzzzzzz.tau", "optim.inner.tau"),
        ("qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq", None),
    ],
)
def test_an_unknown_override_names_the_nearest_key_that_holds_a_value(root, key, nearest):
    write(root, {"wide": "defaults: [cfg_toy]\noptim: {inner: {rho: 1, tau: 1}}\nother: {tau: 1}"})
    with pytest.raises(ConfigError) as caught:
        compose("wide", [f"{key}=1"], root)
    assert str(caught.value) == (
        f"command line: unknown key '{key}', not written by {root / 'wide.yaml'} or its defaults"
        + (f"; nearest valid: '{nearest}'" if nearest else "")
    )


def test_an_override_ends_its_key_at_the_first_equals_sign(root):
    assert compose("cfg_toy", ["name=a=b"], root).values["name"] == "a=b"


def test_an_optional_section_can_be_emptied_by_override(root):
    write(root, {"cfg_toy": MAIN + "extra: {hidden: 1, kind: large, sizes: []}"})
    assert load(Toy, "cfg_toy", root=root).extra == Arch(1, "large", ())
    assert load(Toy, "cfg_toy", ["extra=null"], root).extra is None


@dataclass
class Melted:
    value: int


@dataclass(frozen=True)
class Odd:
    value: int | str


@pytest.mark.parametrize(
    ("schema", "message"), [(Melted, "Melted is not a frozen"), (int, "int is not"), (Odd, "cannot hold")]
)
def test_schemas_that_cannot_be_held_are_refused(tmp_path, schema, message):
    write(tmp_path, {"one": "value: 1"})
    with pytest.raises(ConfigError, match=message):
        build(schema, compose("one", root=tmp_path))


def test_the_root_is_config_in_the_working_directory_first(tmp_path, monkeypatch):
    write(tmp_path / "config", {"one": "value: 7"})
    monkeypatch.chdir(tmp_path)
    assert default_root() == tmp_path / "config"
    assert load(One, "one") == One(7)


def test_the_config_folder_of_another_project_does_not_hide_the_shipped_files(tmp_path, monkeypatch):
    write(tmp_path / "config", {"theirs": "value: 7"})
    monkeypatch.chdir(tmp_path)
    assert compose("cfg_micro").values["bundle"] == "micro"
    assert load(One, "theirs") == One(7)
    with pytest.raises(ConfigError, match=r"no config 'nowhere' under .*theirs"):
        compose("nowhere")


def test_the_wheel_puts_the_configs_where_they_are_looked_for(tmp_path, monkeypatch):
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    target = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]["config"]
    installed = tmp_path / "site-packages"
    (installed / target).mkdir(parents=True)
    (installed / target / "run_base.yaml").write_text("")
    monkeypatch.setattr("etrm.config.compose.__file__", str(installed / "etrm" / "config" / "compose.py"))
    assert shipped_root() == installed / target


def test_a_checkout_uses_its_own_config_folder_and_none_further_up(tmp_path, monkeypatch):
    for place in (tmp_path, tmp_path / "checkout"):
        write(place / "config", {"run_base": ""})
    monkeypatch.setattr("etrm.config.compose.__file__", str(tmp_path / "checkout/etrm/config/compose.py"))
    assert shipped_root() == tmp_path / "checkout/config"


def test_without_a_config_folder_the_error_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("etrm.config.compose.__file__", str(tmp_path / "a" / "b" / "c.py"))
    with pytest.raises(ConfigError, match=r"no config folder at .*config or .*files; run in the repository root"):
        default_root()


words = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8) | st.sampled_from(
    ["on", "no", "1e5", "3e-4", "null", "true", "12:30:45", "", "~", "010", "a: b", "# x", "&a", "*a", "!t"]
)
archs = st.builds(
    Arch, st.integers(-(10**9), 10**9), st.sampled_from(["small", "large", 3]), st.lists(st.integers(0, 9)).map(tuple)
)
finite = st.floats(allow_nan=False, allow_infinity=False)
toys = st.builds(
    Toy,
    archs,
    finite,
    words,
    st.booleans(),
    st.none() | st.integers(0, 99),
    st.tuples(st.integers(0, 9), finite),
    st.none() | archs,
)


@pytest.mark.thorough
@settings(deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=toys)
def test_round_trip_through_a_file(tmp_path, config):
    (tmp_path / "again.yaml").write_text(json.dumps(to_dict(config)), encoding="utf-8")  # JSON is YAML
    again = load(Toy, "again", root=tmp_path)
    assert again == config
    assert config_hash(again) == config_hash(config)


def test_the_hash_is_of_values_not_of_how_they_were_written(root):
    hashed = config_hash(load(Toy, "cfg_toy", root=root))
    assert hashed == config_hash(load(Toy, "cfg_toy", ["lr=0.0003", "limit=null"], root))
    assert hashed != config_hash(load(Toy, "cfg_toy", ["lr=0.00031"], root))
    canonical = (
        '{"arch":{"hidden":8,"kind":"small","sizes":[1,2]},"ema":true,"extra":null,"limit":null,'
        '"lr":0.0003,"name":"toy","span":[2,100000.0]}'
    )
    assert hashed == hashlib.sha256(canonical.encode()).hexdigest()


def test_a_config_made_by_hand_with_nan_has_no_hash():
    with pytest.raises(ConfigError, match="Toy cannot be hashed"):
        config_hash(Toy(Arch(1, "small", ()), float("nan"), "", True, None, (1, 1.0)))


def test_to_dict_takes_configs_only():
    with pytest.raises(ConfigError, match="to_dict takes a config dataclass"):
        to_dict({"a": 1})

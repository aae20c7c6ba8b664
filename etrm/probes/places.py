"""Where in the user's source something happened: file, line, source line, function, module path.

Frames of torch, of the standard library and of these probes are skipped, so that the line shown is the line a
person would edit. Source is read through `linecache` and `ast`; nothing is executed.
"""

import ast
import inspect
import linecache
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn

_TORCH_ROOT = str(Path(torch.__file__).parent)
_PROBES_ROOT = str(Path(__file__).parent)
_STDLIB_ROOT = str(Path(inspect.__file__).parent)
_DECLARED = str(Path(__file__).parent.parent / "declared.py")
_skip_cache: dict[CodeType, bool] = {}


@dataclass(frozen=True)
class Place:
    """One line of source: absolute file, line counted from 1, and the function or class it stands in."""

    file: str
    line: int
    function: str

    @property
    def source(self) -> str:
        """The code on that line."""
        return linecache.getline(self.file, self.line).strip()

    @property
    def short(self) -> str:
        """`path/file.py:LINE  code`, the path relative to the working directory where it lies inside."""
        path, here = Path(self.file), Path.cwd()
        shown = path.relative_to(here) if path.is_relative_to(here) else path
        return f"{shown}:{self.line}  {self.source}"

    def __str__(self) -> str:
        return f'File "{self.file}", line {self.line}, in {self.function}\n    {self.source}'


def is_foreign(code: CodeType) -> bool:
    """Whether `code` belongs to torch, to the standard library or to the probes themselves."""
    known = _skip_cache.get(code)
    if known is None:
        name = code.co_filename
        known = name.startswith((_TORCH_ROOT, _PROBES_ROOT)) or name == _DECLARED or name.startswith("<frozen")
        known = known or (name.startswith(_STDLIB_ROOT) and "site-packages" not in name)
        _skip_cache[code] = known
    return known


def user_frame(depth: int = 1) -> FrameType | None:
    """The innermost frame of the user's own code, seen from `depth` frames above the caller."""
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None and is_foreign(frame.f_code):
        frame = frame.f_back
    return frame


def place_of(frame: FrameType | None) -> Place:
    """The place a frame stands at."""
    if frame is None:
        return Place("<unknown>", 0, "<unknown>")
    return Place(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_qualname)


def decorated_place(depth: int = 1) -> Place | None:
    """The `@torch.no_grad()`-like decorator nearest above the caller, when one is on the stack."""
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None:
        if frame.f_code.co_name == "decorate_context" and frame.f_code.co_filename.startswith(_TORCH_ROOT):
            inner = frame.f_locals.get("func")
            if inner is not None:
                return function_place(inner)
        frame = frame.f_back
    return None


def block_entry(depth: int = 1) -> tuple[Place, bool]:
    """Where a gradient mode is entered (`with` line, call or decorator), and whether torch itself does so."""
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "decorate_context" and is_foreign(code):
            inner = frame.f_locals.get("func")
            if inner is not None:
                place = function_place(inner)
                return place, place.file.startswith(_TORCH_ROOT)
        mode = code.co_filename.endswith(("grad_mode.py", "_contextlib.py", "overrides.py"))
        if not mode and not code.co_filename.startswith((_PROBES_ROOT, _STDLIB_ROOT)) and code.co_filename != _DECLARED:
            own = code.co_filename.startswith(_TORCH_ROOT)
            return place_of(user_frame(depth + 1)), own
        frame = frame.f_back
    return place_of(None), False


def in_function_forward(depth: int = 1) -> FrameType | None:
    """The user's frame that called `CustomFunction.apply`, when the caller runs inside such a forward pass."""
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "apply" and code.co_filename.endswith("function.py") and is_foreign(code):
            while frame is not None and is_foreign(frame.f_code):
                frame = frame.f_back
            return frame
        frame = frame.f_back
    return None


def module_path(names: Mapping[int, str], depth: int = 1) -> str:
    """The path of the innermost nn.Module whose method is on the stack; its class name when it is outside the model."""
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None:
        owner = frame.f_locals.get("self") if frame.f_code.co_varnames[:1] == ("self",) else None
        if isinstance(owner, nn.Module):
            return names.get(id(owner), type(owner).__name__)
        frame = frame.f_back
    return ""


def function_place(function: Callable[..., Any]) -> Place:
    """Where a function, a decorated one included, or a callable object is written."""
    raw = inspect.unwrap(function)
    raw = getattr(raw, "func", raw)
    code = getattr(raw, "__code__", None) or getattr(type(raw).__call__, "__code__", None)
    if not isinstance(code, CodeType):
        return Place("<builtin>", 0, repr(function))
    return Place(code.co_filename, code.co_firstlineno, code.co_qualname)


@lru_cache(maxsize=256)
def _tree(file: str) -> ast.Module | None:
    """The syntax tree of a source file, or None where it cannot be read or parsed."""
    text = "".join(linecache.getlines(file))
    try:
        return ast.parse(text) if text else None
    except SyntaxError:
        return None


def with_place(words: tuple[str, ...], depth: int = 1) -> Place | None:
    """The innermost `with` statement on the stack whose items mention one of `words`."""
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None:
        tree = None if is_foreign(frame.f_code) else _tree(frame.f_code.co_filename)
        best: ast.With | None = None
        for node in ast.walk(tree) if tree is not None else ():
            if isinstance(node, ast.With) and node.lineno <= frame.f_lineno <= (node.end_lineno or node.lineno):
                text = " ".join(ast.unparse(item.context_expr) for item in node.items)
                if any(word in text for word in words) and (best is None or node.lineno > best.lineno):
                    best = node
        if best is not None:
            return Place(frame.f_code.co_filename, best.lineno, frame.f_code.co_qualname)
        frame = frame.f_back
    return None


def _class_nodes(kind: type) -> Iterator[tuple[str, ast.ClassDef]]:
    """The class statements of `kind` and of its bases that are user code, most derived first."""
    for base in kind.__mro__:
        codes = [getattr(value, "__code__", None) for value in vars(base).values()]
        file = next((code.co_filename for code in codes if isinstance(code, CodeType)), None)
        if file is None or file.startswith(_TORCH_ROOT):
            continue
        tree = _tree(file)
        for node in ast.walk(tree) if tree is not None else ():
            if isinstance(node, ast.ClassDef) and node.name == base.__name__:
                yield file, node


def attribute_place(owner: object, name: str) -> Place | None:
    """The line in the class of `owner` that assigns `self.<name>` or registers it, else None."""
    for file, node in _class_nodes(type(owner)):
        for inner in ast.walk(node):
            targets: list[ast.expr] = []
            if isinstance(inner, ast.Assign):
                targets = inner.targets
            elif isinstance(inner, ast.AnnAssign | ast.AugAssign):
                targets = [inner.target]
            elif isinstance(inner, ast.Call) and name in [getattr(item, "value", None) for item in inner.args[:1]]:
                return Place(file, inner.lineno, node.name)  # register_parameter("name", ...), add_module("name", ...)
            for leaf in (leaf for target in targets for leaf in ast.walk(target)):
                if isinstance(leaf, ast.Attribute) and leaf.attr == name and isinstance(leaf.value, ast.Name):
                    return Place(file, leaf.lineno, node.name)
    return None


def freezing_place(owners: list[object], attribute: str) -> Place | None:
    """The line in the classes of `owners` that turns requires_grad off, preferring one that names `attribute`."""
    found: list[tuple[bool, Place]] = []
    for owner in owners:
        for file, node in _class_nodes(type(owner)):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Call | ast.Assign):
                    text = ast.unparse(inner).replace(" ", "")
                    if "requires_grad_(False)" in text or "requires_grad=False" in text:
                        found.append((attribute in text, Place(file, inner.lineno, node.name)))
    found.sort(key=lambda item: not item[0])
    return found[0][1] if found else None


def call_place(name: str, files: Iterable[str]) -> Place | None:
    """The first line in `files` that calls something named `name`, such as an optimiser class."""
    for file in files:
        tree = _tree(file)
        for node in ast.walk(tree) if tree is not None else ():
            if isinstance(node, ast.Call) and ast.unparse(node.func).rsplit(".", 1)[-1] == name:
                return Place(file, node.lineno, name)
    return None


def earlier_call(names: tuple[str, ...], depth: int = 1) -> Place | None:
    """The nearest earlier line, in the functions on the stack, that calls something of these names."""
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None:
        code = frame.f_code
        tree = None if is_foreign(code) else _tree(code.co_filename)
        lines = [
            node.lineno
            for node in (ast.walk(tree) if tree is not None else ())
            if isinstance(node, ast.Call) and code.co_firstlineno < node.lineno <= frame.f_lineno
            if ast.unparse(node.func).rsplit(".", 1)[-1] in names
        ]
        if lines:
            return Place(code.co_filename, max(lines), code.co_qualname)
        frame = frame.f_back
    return None


def later_call(names: tuple[str, ...], start: Place) -> Place | None:
    """The first line from `start` on, within the function that it stands in, that calls something of these names."""
    tree = _tree(start.file)
    inside = [
        node
        for node in (ast.walk(tree) if tree is not None else ())
        if isinstance(node, ast.FunctionDef) and node.lineno <= start.line <= (node.end_lineno or 0)
    ]
    lines = [
        node.lineno
        for node in (ast.walk(inside[-1]) if inside else ())
        if isinstance(node, ast.Call) and node.lineno >= start.line
        if ast.unparse(node.func).rsplit(".", 1)[-1] in names
    ]
    return Place(start.file, min(lines), start.function) if lines else None


def call_in_pass(name: str, files: Iterable[str]) -> Place | None:
    """The first call of `name` in `files` that stands in a `forward`, else in any function but `__init__`."""
    found: list[tuple[bool, Place]] = []
    for file in files:
        tree = _tree(file)
        for function in ast.walk(tree) if tree is not None else ():
            if isinstance(function, ast.FunctionDef) and function.name != "__init__":
                for node in ast.walk(function):
                    if isinstance(node, ast.Call) and ast.unparse(node.func).rsplit(".", 1)[-1] == name:
                        found.append((function.name != "forward", Place(file, node.lineno, function.name)))
    return min(found, key=lambda item: item[0])[1] if found else None


def files_near(file: str) -> list[str]:
    """Source files of loaded modules that are nobody's installed package, those nearest to `file` first."""
    home = Path(file).parent.parts
    found: set[str] = set()
    for module in list(sys.modules.values()):
        source: str = getattr(module, "__file__", None) or ""
        users = source.endswith(".py") and "site-packages" not in source
        if users and not source.startswith((_TORCH_ROOT, _PROBES_ROOT, _STDLIB_ROOT)):
            found.add(source)

    def shared(source: str) -> int:
        return sum(1 for a, b in zip(Path(source).parts, home, strict=False) if a == b)

    return sorted(found, key=lambda source: (-shared(source), source))


def returning_place(function: Callable[..., Any]) -> Place:
    """The `return` statement of a function that mentions None or a constant, else its first line."""
    start = function_place(function)
    tree = _tree(start.file)
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.FunctionDef) and node.lineno <= start.line + 1 <= (node.end_lineno or 0) + 1:
            if node.name != start.function.rsplit(".", 1)[-1]:
                continue
            for inner in ast.walk(node):
                if isinstance(inner, ast.Return):
                    return Place(start.file, inner.lineno, start.function)
    return start

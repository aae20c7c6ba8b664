"""The bank's part on the ETRM itself: breaks planted in copies of its own sources, for every registered encoder.

A cell copies `etrm/models` and `etrm/training` into a package of its own, edits one place and marks the line with
`# BREAK`, so that the truth about file and line is in the file. Sites: the encoder's output and `__init__`, the inside
of one of its blocks, the context on its way to the decoder, the decoder, the loss, the optimiser, and an encoder file
of a user's. Encoders come from the registry, so a new one is covered without a change here.

Legend: B batch, T context tokens, D hidden; h is a context or block output (B, T, D).
"""

import ast
import importlib
import importlib.util
import inspect
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

import etrm.models.encoders as shipped
import etrm.training
from etrm.config.schema import EncoderConfig, LossConfig
from etrm.models.bundle import available  # noqa: F401  (imports every encoder's dependencies once)
from etrm.models.trm import Structure
from etrm.probes.diagnosis import Diagnosis, diagnose

SIZE = 32
STRUCTURE = Structure(12, 9, 2, SIZE, 2, 4.0, 1, 2, 2, "learned", False, 10000.0, 1e-5, "float32", 2)
LOSS = LossConfig("lm", "softmax", 0.5, 0.0)
EXPECTED = {"carry", "h_cycles", "halting_target", "halting_decision"}
MAY_DECLARE = EXPECTED | {"running_statistics", "encoder_carry"}  # what an encoder itself may truncate, by name
TOP = f"""
import copy
import functools
import warnings
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
D = {SIZE}
"""
TASK = """
import copy
import torch


def optimiser_of(model):
    optimiser = torch.optim.AdamW(model.encoder.parameters(), lr=1e-3)
    {make}
    return optimiser
"""
USER = """
from {package}.models.encoders import REGISTRY, build_encoder
from etrm.config.schema import EncoderConfig
{head}
{top}


class Inner(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.encoder = build_encoder(EncoderConfig("{encoder}", D, 2, 1, 1), spec)

    def forward(self, *x):
        h = self.encoder(*x)
        return getattr(h, "context", h)


class Mine(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.inner = Inner(spec)
        self.out = nn.Linear(D, D)
        {init}

    def forward(self, demo_inputs, demo_labels, demo_mask):
        x = (demo_inputs, demo_labels, demo_mask)
        h = self.inner(*x)
        h = h + 0.5 * torch.tanh(self.out(h))
        {site}
        return h


def make(spec):
    return Mine(spec)
"""


def encoders() -> tuple[str, ...]:
    """Names of every registered encoder."""
    folder = Path(shipped.__file__).parent
    for file in sorted(folder.glob("*.py")):
        if file.stem != "__init__":
            importlib.import_module(f"{shipped.__name__}.{file.stem}")
    return tuple(sorted(shipped.REGISTRY))


@dataclass(frozen=True)
class EtrmPlant:
    """Source text for one site. `where` is output, block, init, act, user, task, or a file with an `old` line in it."""

    where: str
    site: str = ""
    old: str = ""
    init: str = ""
    top: str = ""


def _indented(text: str, spaces: int) -> str:
    body = textwrap.dedent(text).strip("\n")
    return textwrap.indent(body, " " * spaces)


def _copy_sources(package: Path) -> None:
    """Models and training as a package of their own, importing each other and nothing of the original's models."""
    for part in (Path(shipped.__file__).parents[1], Path(etrm.training.__file__).parent):
        for file in part.rglob("*.py"):
            target = package / part.name / file.relative_to(part)
            target.parent.mkdir(parents=True, exist_ok=True)
            text = file.read_text()
            for name in ("models", "training"):
                text = text.replace(f"etrm.{name}", f"{package.name}.{name}")
            target.write_text(text)
    (package / "__init__.py").write_text("")


def _method(tree: ast.Module, kind: str, name: str) -> ast.FunctionDef:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == kind:
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and inner.name == name:
                    return inner
    raise AssertionError(f"class {kind} has no {name}")


def _edit_return(file: Path, kind: str, plant: EtrmPlant, guard: bool) -> None:
    """`return EXPR` at the end of `kind.forward` becomes h = EXPR, the plant, return h (in Encoded where EXPR is)."""
    text = file.read_text()
    end = _method(ast.parse(text), kind, "forward").body[-1]
    assert isinstance(end, ast.Return) and end.value is not None
    lines = text.splitlines()
    answer, back = end.value, "h"
    if isinstance(answer, ast.Call) and isinstance(answer.func, ast.Name) and answer.func.id == "Encoded":
        answer, losses = answer.args
        back = f"Encoded(h, {ast.get_source_segment(text, losses)})"
    value = ast.get_source_segment(text, answer)
    assert value is not None
    site = textwrap.dedent(plant.site).strip("\n")
    if guard:  # the decoder is made of the same blocks, and is in eval mode
        site = "if self.training:\n" + textwrap.indent(site, "    ")
    body = f"h = {value}\n{site}\nreturn {back}"
    lines[end.lineno - 1 : end.end_lineno] = textwrap.indent(body, " " * end.col_offset).splitlines()
    at = next(k for k, line in enumerate(lines) if line.startswith("class "))
    while at and lines[at - 1].startswith("@"):
        at -= 1
    lines[at:at] = (TOP + plant.top).splitlines()
    file.write_text("\n".join(lines) + "\n")


def _edit_init(file: Path, kind: str, plant: EtrmPlant) -> None:
    """The plant at the end of `kind.__init__`, and its site before the return of forward."""
    if plant.site:
        _edit_return(file, kind, plant, False)
    lines = file.read_text().splitlines()
    last = _method(ast.parse("\n".join(lines)), kind, "__init__").body[-1]
    lines[last.end_lineno : last.end_lineno] = _indented(plant.init, last.col_offset).splitlines()
    if not plant.site:
        at = next(k for k, line in enumerate(lines) if line.startswith("class "))
        lines[at:at] = (TOP + plant.top).splitlines()
    file.write_text("\n".join(lines) + "\n")


def _own_file(package: Path, kind: type) -> Path:
    """Where a class of the original lies in the copy."""
    source = Path(inspect.getsourcefile(kind) or "")
    return package / "models" / source.relative_to(Path(shipped.__file__).parents[1])


def _block_class(encoder: nn.Module) -> type:
    """The class of a block inside the encoder: the last in its lists of modules that returns one tensor."""
    inside = [child for m in encoder.modules() if isinstance(m, nn.ModuleList) for child in m]
    inside += [m for m in encoder.modules() if m is not encoder]
    for child in inside:
        if type(child).__module__.startswith("etrm.models") and "forward" in vars(type(child)):
            return type(child)
    raise AssertionError(f"{type(encoder).__name__} has no block of its own")


@dataclass
class EtrmCase:
    """A planted ETRM ready to be diagnosed."""

    head: Any
    episodes: Any
    optimisers: list[Any]
    files: list[Path]
    package: str

    def forget(self) -> None:
        """Take the copy out of the interpreter again."""
        for name in [n for n in sys.modules if n == self.package or n.startswith(f"{self.package}.")]:
            del sys.modules[name]


def _original(encoder: str) -> nn.Module:
    torch.manual_seed(0)
    zero = torch.zeros(STRUCTURE.context_tokens, SIZE)
    spec = shipped.EncoderSpec(9, 12, STRUCTURE.context_tokens, SIZE, zero, torch.ones(STRUCTURE.context_tokens))
    return shipped.REGISTRY[encoder](spec, EncoderConfig(encoder, SIZE, 2, 1, 1))


def _edit(package: Path, encoder: str, plant: EtrmPlant) -> None:
    if plant.where in ("output", "init"):
        # An encoder that extends another inherits its forward: the plant goes where that is written.
        kind = next(k for k in type(_original(encoder)).__mro__ if "forward" in vars(k))
        file = _own_file(package, kind)
        if plant.where == "output":
            _edit_return(file, kind.__name__, plant, False)
        else:
            _edit_init(file, kind.__name__, plant)
    elif plant.where == "block":
        kind = _block_class(_original(encoder))
        _edit_return(_own_file(package, kind), kind.__name__, plant, True)
    elif plant.where not in ("task", "user", ""):
        file = package / plant.where
        lines = file.read_text().splitlines()
        at = next(k for k, line in enumerate(lines) if line.startswith(plant.old))
        pad = len(lines[at]) - len(lines[at].lstrip())
        lines[at : at + 1] = _indented(plant.site, pad).splitlines()
        if plant.top:
            first = next(
                k for k, line in enumerate(lines) if line.startswith("@dataclass") or line.startswith("class ")
            )
            lines[first:first] = plant.top.splitlines()
        file.write_text("\n".join(lines) + "\n")


def write_etrm(encoder: str, plant: EtrmPlant, package: Path) -> list[Path]:
    """Write the copy with one plant; returns the files that may hold the marked line."""
    _copy_sources(package)
    _edit(package, encoder, plant)
    make = plant.site if plant.where == "task" else "pass"
    (package / "task.py").write_text(TASK.replace("{make}", _indented(make, 4).strip()))
    if plant.where == "user":
        text = USER.replace("{package}", package.name).replace("{encoder}", encoder).replace("{head}", TOP)
        text = text.replace("{top}", textwrap.dedent(plant.top)).replace(
            "{init}", _indented(plant.init, 8).strip() or "pass"
        )
        text = text.replace("{site}", _indented(plant.site, 8).strip() or "pass")
        (package / "user_encoder.py").write_text(text)
    return sorted(package.rglob("*.py"))


def load_etrm(encoder: str, package: Path, seed: int, user: bool) -> EtrmCase:
    """Import the copy and build a loss head with the encoder in front of a small frozen decoder."""
    found = importlib.util.spec_from_file_location(
        package.name, package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert found is not None and found.loader is not None
    root = importlib.util.module_from_spec(found)
    sys.modules[package.name] = root
    found.loader.exec_module(root)

    def part(name: str) -> ModuleType:
        return importlib.import_module(f"{package.name}.{name}")

    encoders_part, trm, whole = part("models.encoders"), part("models.trm"), part("models.etrm")
    torch.manual_seed(seed)
    tokens = STRUCTURE.context_tokens
    spec = encoders_part.EncoderSpec(9, 12, tokens, SIZE, torch.randn(tokens, SIZE) * 0.1, torch.rand(tokens) + 0.5)
    decoder = trm.TRMDecoder(trm.Structure(*(getattr(STRUCTURE, f) for f in STRUCTURE.__dataclass_fields__)))
    decoder.requires_grad_(False)
    if user:
        built = part("user_encoder").make(spec)
    else:
        built = encoders_part.build_encoder(EncoderConfig(encoder, SIZE, 2, 1, 1), spec)
    model = whole.ETRM(built, decoder, spec)
    head = part("training.update").LossHead(model, LOSS)
    head.train()
    decoder.eval()
    generator = torch.Generator().manual_seed(seed)

    def grid(*shape: int) -> torch.Tensor:
        return torch.randint(2, 12, shape, generator=generator)

    mask = torch.tensor([[True, True], [True, False], [True, True], [True, True]])
    rows = torch.arange(4)
    episodes = whole.Episodes(grid(4, 9), grid(4, 9), grid(4, 2, 9), grid(4, 2, 9), mask, rows, rows)
    return EtrmCase(head, episodes, [part("task").optimiser_of(model)], sorted(package.rglob("*.py")), package.name)


def marked_line(files: list[Path]) -> tuple[str, int]:
    """File and line of the planted break, from its marker."""
    found = [
        (str(file), k)
        for file in files
        for k, line in enumerate(file.read_text().splitlines(), 1)
        if line.endswith("# BREAK")
    ]
    assert len(found) == 1, f"{len(found)} marked lines: {found}"
    return found[0]


def diagnose_etrm(encoder: str, plant: EtrmPlant, package: Path, seed: int = 0, audit: bool = False) -> Diagnosis:
    """Plant, build, diagnose, forget."""
    write_etrm(encoder, plant, package)
    case = load_etrm(encoder, package, seed, plant.where == "user")
    try:
        return diagnose(case.head, case.episodes, optimisers=case.optimisers, audit=audit)
    finally:
        case.forget()


@dataclass(frozen=True)
class EtrmCell:
    """The outcome of one kind with one encoder."""

    kind: str
    model: str
    detected: bool
    located: bool
    first: str


def run_etrm_cell(kind: str, plant: EtrmPlant, encoder: str, folder: Path) -> EtrmCell:
    """Plant, diagnose, compare the place with the marked line."""
    name = f"planted_{encoder}_{abs(hash(kind)) % 10**8}"
    found = diagnose_etrm(encoder, plant, folder / name)
    file, line = marked_line(sorted((folder / name).rglob("*.py")))
    located = found.place.split("  ")[0] == f"{file}:{line}"
    return EtrmCell(kind, f"etrm {encoder}", not found.ok, located, str(found))


def healthy_diagnoses(encoder: str, folder: Path, seeds: int, audit: bool = False) -> list[Diagnosis]:
    """The unplanted ETRM over many seeds."""
    package = folder / f"healthy_{encoder}"
    write_etrm(encoder, EtrmPlant(""), package)
    found = []
    for seed in range(seeds):
        case = load_etrm(encoder, package, seed, False)
        found.append(diagnose(case.head, case.episodes, optimisers=case.optimisers, audit=audit))
        case.forget()
    return found


def false_report(found: Diagnosis) -> bool:
    """Whether anything but the declared places was reported for a healthy ETRM."""
    assert found.breaks is not None
    declared = {item.declared for item in found.breaks.expected}
    clean = found.ok and found.breaks.ok and not found.breaks.lost and not found.breaks.transient
    return not clean or not declared >= EXPECTED or bool(declared - MAY_DECLARE)

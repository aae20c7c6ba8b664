"""The bank of gradient breaks: kinds, models, and one cell = one kind planted in one model.

A plant is source text. Each model's source has a site in `forward` where `h` is the encoder's output, and others in
the class, at the top of the file and where the model is put to work; the planted line ends in `# BREAK`, so the truth
about file and line is in the file itself. B batch · T tokens · D hidden size; h is (B, T, D), (B, D) in the MLP.
"""

import importlib.util
import textwrap
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from etrm.probes.break_report import BreakReport
from etrm.probes.graph_breaks import observe
from etrm.probes.samples import observe_samples

_HEAD = """
import copy
import functools
import warnings
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from etrm.declared import no_gradient, straight_through, truncate
D = 8
{top}
"""

_TAIL = """
def make(seed):
    torch.manual_seed(seed)
    model = Model()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    {make}
    return model, Task(model, seed), optimiser


class Task:
    def __init__(self, model, seed):
        generator = torch.Generator().manual_seed(seed)
        self.model = model
        self.x = torch.randint(0, 5, (4, 3), generator=generator)
        self.y = torch.randint(0, 5, (4,), generator=generator)

    def losses(self):
        return self.model(self.x, self.y)

    def __call__(self):
        losses = self.losses()
        metric = losses.detach().mean().item() + losses.argmax().item()
        assert metric == metric
        loss = losses.mean()
        {loss}
        return loss
"""

_MLP = """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Embedding(5, D), nn.Flatten(), nn.Linear(3 * D, D), nn.Tanh(), nn.Linear(D, D))
        self.body = nn.Linear(D, D)
        self.head = nn.Linear(D, 5)
        {init}

    def forward(self, x, y):
        h = self.encoder(x)
        {site}
        logits = self.head(F.gelu(self.body(h)))
        return F.cross_entropy(logits, y, reduction="none")
"""

_TRANSFORMER = """
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(D), nn.MultiheadAttention(D, 2, batch_first=True)
        self.up, self.down = nn.Linear(D, 16), nn.Linear(16, D)

    def forward(self, h):
        n = self.norm(h)
        h = h + self.attention(n, n, n, need_weights=False)[0]
        return h + self.down(F.gelu(self.up(h)))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.block = nn.Embedding(5, D), Block()
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        return self.block(self.drop(self.table(x)))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = Encoder()
        self.body = Block()
        self.head = nn.Linear(D, 5)
        {init}

    def forward(self, x, y):
        h = self.encoder(x)
        {site}
        logits = self.head(self.body(h).mean(1))
        return F.cross_entropy(logits, y, reduction="none")
"""

_RECURSIVE = """
class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.out = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, z):
        return F.rms_norm(z + self.out(F.silu(self.mix(z))), (D,))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Embedding(5, D), nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D))
        self.body = Cell()
        self.head, self.halt = nn.Linear(D, 5), nn.Linear(D, 1)
        self.register_buffer("start", torch.randn(D))
        {init}

    def cycle(self, z_h, z_l, h):
        for _ in range(2):
            z_l = self.body(z_l + z_h + h)
        return self.body(z_h + z_l), z_l

    def step(self, z_h, z_l, h, y):
        with no_gradient("h_cycles"):
            for _ in range(2):
                z_h, z_l = self.cycle(z_h, z_l, h)
        z_h, z_l = self.cycle(truncate(z_h, "h_cycles"), truncate(z_l, "h_cycles"), h)
        logits = self.head(z_h.mean(1))
        stop = self.halt(z_h.mean(1)).squeeze(1)
        target = truncate((logits.argmax(-1) == y).float(), "halting target")
        losses = F.cross_entropy(logits, y, reduction="none")
        losses = losses + 0.5 * F.binary_cross_entropy_with_logits(stop, target, reduction="none")
        return losses, truncate(z_h, "carry"), truncate(z_l, "carry"), stop > 0

    def forward(self, x, y):
        h = self.encoder(x)
        {site}
        z_h = z_l = self.start.expand(h.shape)
        losses, z_h, z_l, halted = self.step(z_h, z_l, h, y)
        z_h = torch.where(halted[:, None, None], self.start, z_h)
        more, _, _, _ = self.step(z_h, z_l, h, y)
        return losses + more
"""

MODELS = {"mlp": _MLP, "transformer": _TRANSFORMER, "recursive": _RECURSIVE}
EXPECTED = {"mlp": set(), "transformer": set(), "recursive": {"h_cycles", "carry", "halting target"}}


@dataclass(frozen=True)
class Plant:
    """Source text for the sites of one kind of break; exactly one line of it ends in `# BREAK`."""

    site: str = ""
    init: str = ""
    top: str = ""
    make: str = ""
    loss: str = ""


def _function(backward: str) -> str:
    return f"""
class Stop(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        return h * 1.0

    @staticmethod
    def backward(ctx, g):
        {backward}  # BREAK
"""


_QUIET = 'with warnings.catch_warnings():\n    warnings.simplefilter("ignore")\n    '
_EXTRA = "self.extra = nn.Linear(D, D)"
_HOOK = "register_full_backward_pre_hook(lambda m, g: tuple(v * 0 for v in g))"

PLANTS: dict[str, Plant] = {
    "detach": Plant("h = h.detach()  # BREAK"),
    "detach_": Plant("h = h.clone()\nh.detach_()  # BREAK"),
    "data": Plant("h = h.data  # BREAK"),
    "data, then scaled in place": Plant("h = h * 1.0\nh.data.mul_(0.5)  # BREAK"),
    "detach one branch of a residual": Plant("h = h + 0.5 * h.detach()  # BREAK"),
    "detach some samples": Plant("h = torch.cat([h[:1], h[1:].detach()])  # BREAK"),
    "detach some tokens": Plant("h = torch.cat([h[..., :3], h[..., 3:].detach()], -1)  # BREAK"),
    "detach where halted": Plant("""
        mask = (torch.arange(len(h)) % 2 == 0).reshape(-1, *[1] * (h.ndim - 1))
        h = torch.where(mask, h, h.detach())  # BREAK"""),
    "smoothing with a detached copy": Plant("h = 0.9 * h.detach() + 0.1 * h.detach()  # BREAK"),
    "item": Plant("h = torch.ones_like(h) * h.abs().mean().item()  # BREAK"),
    "float()": Plant("scale = float(h.mean())  # BREAK\nh = torch.ones_like(h) * (1 + scale)"),
    "tolist": Plant("rows = h.tolist()  # BREAK\nh = torch.tensor(rows)"),
    "numpy": Plant("h = torch.from_numpy(np.tanh(h.detach().numpy()))  # BREAK"),
    "numpy, shared memory": Plant("h = torch.from_numpy(h.data.numpy())  # BREAK"),
    "np.asarray": Plant("rows = np.asarray(h.detach()) * 2  # BREAK\nh = torch.as_tensor(rows)"),
    "torch.tensor": Plant(_QUIET + "h = torch.tensor(h)  # BREAK"),
    "new leaf": Plant("h = torch.tensor(h.tolist(), requires_grad=True)  # BREAK"),
    "nn.Parameter(h)": Plant("h = nn.Parameter(h)  # BREAK"),
    "no_grad block": Plant("with torch.no_grad():  # BREAK\n    h = h * 2\n    h = h + 1"),
    "no_grad around the encoder": Plant("with torch.no_grad():  # BREAK\n    h = self.encoder(x)"),
    "no_grad decorator": Plant("h = settle(h)", top="@torch.no_grad()  # BREAK\ndef settle(h):\n    return h * 2"),
    "set_grad_enabled(False)": Plant("with torch.set_grad_enabled(False):  # BREAK\n    h = torch.tanh(h)"),
    "inference_mode": Plant("with torch.inference_mode():  # BREAK\n    h = h * 2\nh = h.clone()"),
    "inference_mode decorator": Plant(
        "h = settle(h).clone()", top="@torch.inference_mode()  # BREAK\ndef settle(h):\n    return h * 2"
    ),
    "argmax": Plant("h = F.one_hot(h.argmax(-1), D).float()  # BREAK"),
    "argsort": Plant("h = h.argsort(-1).float()  # BREAK"),
    "integer cast": Plant("h = (h * 8).long() / 8  # BREAK"),
    "comparison": Plant("h = (h > 0).float()  # BREAK"),
    "round": Plant("h = torch.round(h * 8) / 8  # BREAK"),
    "sign": Plant("h = h.sign()  # BREAK"),
    "write into a buffer under no_grad": Plant("""
        held = torch.zeros_like(h)
        with torch.no_grad():  # BREAK
            held.copy_(h)
        h = held"""),
    "write through .data": Plant("held = torch.zeros_like(h)\nheld.data.copy_(h)  # BREAK\nh = held"),
    "write one sample without history": Plant("held = h.clone()\nheld[0] = held[0].detach()  # BREAK\nh = held"),
    "overwrite under no_grad": Plant("h = h * 1.0\nwith torch.no_grad():\n    h.tanh_()  # BREAK"),
    "inner gradient without create_graph": Plant(
        "slope = torch.autograd.grad(h.square().sum(), h, retain_graph=True)[0]  # BREAK\nh = h - 0.1 * slope"
    ),
    "deepcopy of the encoder": Plant("h = copy.deepcopy(self.encoder)(x)  # BREAK"),
    "weight.data": Plant(
        "h = h + F.linear(h, self.extra.weight.data)  # BREAK", init="self.extra = nn.Linear(D, D, False)"
    ),
    "state_dict weight": Plant(
        'h = h + F.linear(h, self.extra.state_dict()["weight"])  # BREAK', init="self.extra = nn.Linear(D, D, False)"
    ),
    "functional call on detached weights": Plant(
        "held = {n: p.detach() for n, p in self.encoder.named_parameters()}  # BREAK\n"
        "h = torch.func.functional_call(self.encoder, held, (x,))"
    ),
    "parameter never used": Plant(init=_EXTRA + "  # BREAK"),
    "result never used": Plant("spare = self.extra(h)  # BREAK", init=_EXTRA),
    "module in a python list": Plant("h = self.layers[0](h)", init="self.layers = [nn.Linear(D, D)]  # BREAK"),
    "module in a dict": Plant('h = self.layers["a"](h)', init='self.layers = {"a": nn.Linear(D, D)}  # BREAK'),
    "module in a closure": Plant(
        "h = self.layer(h)", init="inner = nn.Linear(D, D)\nself.layer = lambda value: inner(value)  # BREAK"
    ),
    "tensor that is no parameter": Plant(
        "h = h * self.gain", init="self.gain = torch.ones(D, requires_grad=True)  # BREAK"
    ),
    "requires_grad_(False) forgotten": Plant(init="self.encoder.requires_grad_(False)  # BREAK"),
    "one weight frozen": Plant(init="self.body.requires_grad_(True)\nself.head.weight.requires_grad = False  # BREAK"),
    "optimiser of a copy": Plant(
        make="optimiser = torch.optim.Adam(copy.deepcopy(model).parameters(), lr=0.1)  # BREAK"
    ),
    "optimiser without the encoder": Plant(make="optimiser = torch.optim.Adam(model.body.parameters())  # BREAK"),
    "weights loaded with assign": Plant(make="""
        optimiser = torch.optim.Adam(model.parameters(), lr=0.1)  # BREAK
        model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)"""),
    "Function returns None": Plant("h = Stop.apply(h)", top=_function("return None")),
    "Function returns zeros": Plant("h = Stop.apply(h)", top=_function("return torch.zeros_like(g)")),
    "tensor hook zeroes": Plant("h.register_hook(lambda g: g * 0)  # BREAK"),
    "parameter hook zeroes": Plant(init="self.head.weight.register_hook(lambda g: torch.zeros_like(g))  # BREAK"),
    "module hook zeroes": Plant(init=f"self.encoder.{_HOOK}  # BREAK"),
    "times zero": Plant("h = h * 0.0  # BREAK"),
    "where never": Plant("h = torch.where(torch.zeros_like(h).bool(), h, torch.ones_like(h))  # BREAK"),
    "everything masked": Plant("h = h.masked_fill(torch.ones_like(h).bool(), 0.5)  # BREAK"),
    "clamp saturated": Plant("h = h.clamp(50.0, 60.0)  # BREAK"),
    "sigmoid saturated": Plant("h = torch.sigmoid(1e4 + h)  # BREAK"),
    "backward(inputs)": Plant(loss="loss.backward(inputs=list(self.model.head.parameters()))  # BREAK"),
    "loss detached": Plant(loss="loss = loss.detach().requires_grad_()  # BREAK"),
    "context cached for most samples": Plant("""
        fresh = (torch.arange(len(h)) == 0).reshape(-1, *[1] * (h.ndim - 1))
        h = torch.where(fresh, h, torch.ones_like(h))  # BREAK"""),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """The outcome of one kind in one model."""

    kind: str
    model: str
    detected: bool
    located: bool
    first: str


def _indented(text: str, spaces: int) -> str:
    body = textwrap.dedent(text).strip("\n")
    return textwrap.indent(body, " " * spaces).strip() or "pass"


def write_model(model: str, plant: Plant, path: Path) -> Path:
    """Write the source of one model with one plant."""
    body = MODELS[model].replace("{init}", _indented(plant.init, 8)).replace("{site}", _indented(plant.site, 8))
    tail = _TAIL.replace("{make}", _indented(plant.make, 4)).replace("{loss}", _indented(plant.loss, 8))
    path.write_text(_HEAD.replace("{top}", plant.top) + body + tail)
    return path


def load(path: Path) -> ModuleType:
    """Import a written model."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def planted_line(path: Path) -> int:
    """The line of the break, from its marker."""
    lines = [k for k, line in enumerate(path.read_text().splitlines(), 1) if line.endswith("# BREAK")]
    assert len(lines) == 1, f"{path} has {len(lines)} marked lines"
    return lines[0]


def observe_cell(path: Path, seed: int) -> BreakReport:
    """What a user would do: observe the step; when that is clean, ask sample by sample."""
    model, task, optimiser = load(path).make(seed)
    report = observe(model, task, optimisers=[optimiser])
    if report.ok:
        _, by_sample = observe_samples(model.encoder, task.losses)
        report = by_sample or report
    return report


def run_cell(kind: str, model: str, folder: Path, seed: int = 0) -> Cell:
    """Plant, observe, compare the first finding with the marked line."""
    path = write_model(model, PLANTS[kind], folder / f"{model}_{list(PLANTS).index(kind)}.py")
    report = observe_cell(path, seed)
    place = report.findings[0].place if report.findings else None
    located = place is not None and (place.file, place.line) == (str(path), planted_line(path))
    first = str(report.findings[0]) if report.findings else "nothing found"
    return Cell(kind, model, bool(report.findings), located, first)


def run_bank(folder: Path) -> list[Cell]:
    """Every kind in every model."""
    torch.set_num_threads(1)
    return [run_cell(kind, model, folder) for kind in PLANTS for model in MODELS]


def healthy_reports(model: str, folder: Path, seeds: int) -> list[BreakReport]:
    """The unplanted model over many seeds."""
    path = write_model(model, Plant(), folder / f"{model}_healthy.py")
    module = load(path)
    reports = []
    for seed in range(seeds):
        built, task, optimiser = module.make(seed)
        reports.append(observe(built, task, optimisers=[optimiser]))
    return reports

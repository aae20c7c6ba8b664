"""Did a module that must not change change? Bitwise, and by more than its weights.

A frozen decoder can be moved by weight decay, by buffers (running statistics, EMA), by an optimiser that still holds
it, by a load that replaces tensors, or behave differently because a train/eval flag turned. `snapshot` digests every
parameter and buffer (sha256 over dtype, shape and bytes), keeps the flags and, optionally, a golden output; `check`
names each tensor that differs and by how much. Notable: non-persistent buffers are covered, which a state dict is
not.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from etrm.errors import ProbeError
from etrm.probes.subject import Rerun, named_parameters, unwrap

Golden = Callable[[], Tensor | Sequence[Tensor]]


@dataclass(frozen=True)
class Difference:
    """One way in which the module is not what it was. `what` is one of value, shape, missing, added, replaced,
    requires_grad,
    mode, optimiser, output."""

    name: str
    what: str
    detail: str

    def __str__(self) -> str:
        return f"{self.what}: {self.name}: {self.detail}"


def digest(value: Tensor) -> str:
    """sha256 (hex) of a tensor's dtype, shape and bytes, on any device and in any dtype."""
    flat = value.detach().cpu().contiguous().reshape(-1)
    raw = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return hashlib.sha256(f"{value.dtype}{tuple(value.shape)}".encode() + raw).hexdigest()


def _tensors(module: nn.Module) -> dict[str, tuple[str, Tensor]]:
    """Every parameter and buffer by name with its kind; shared tensors appear under each of their names."""
    found: dict[str, tuple[str, Tensor]] = {}
    found.update({name: ("parameter", value) for name, value in module.named_parameters(remove_duplicate=False)})
    found.update({name: ("buffer", value) for name, value in module.named_buffers(remove_duplicate=False)})
    return found


def _golden_output(golden: Golden, module: nn.Module) -> list[Tensor]:
    """The golden output as CPU tensors, computed without gradient and without touching random state or buffers."""
    with Rerun(module) as rerun, torch.no_grad():
        value = rerun.run(golden)
    tensors = [value] if isinstance(value, Tensor) else list(value)
    if not tensors or not all(isinstance(item, Tensor) for item in tensors):
        raise ProbeError("golden() must return a tensor or a non-empty sequence of tensors.")
    return [item.detach().cpu().clone() for item in tensors]


def _distance(old: Tensor, new: Tensor) -> str:
    """How far two tensors of one shape are apart, in words."""
    if old.dtype == torch.bool or not (old.is_floating_point() or old.is_complex()):
        changed = int((old != new).sum())
        return f"{changed} of {old.numel()} entries differ"
    gap = (old.double() - new.double()).abs() if not old.is_complex() else (old - new).abs()
    changed = int((old != new).sum())
    return f"{changed} of {old.numel()} entries differ, by at most {float(gap.max()):.3g}"


@dataclass
class FrozenSnapshot:
    """The state of a module at one moment; see `snapshot`."""

    digests: dict[str, str]
    kinds: dict[str, str]
    values: dict[str, Tensor]
    requires_grad: dict[str, bool]
    modes: dict[str, bool]
    golden: Golden | None = None
    output: list[Tensor] = field(default_factory=list)

    @property
    def sha256(self) -> str:
        """One digest of all names and tensors."""
        joined = "\n".join(f"{name} {self.digests[name]}" for name in sorted(self.digests))
        return hashlib.sha256(joined.encode()).hexdigest()

    def check(
        self, module: nn.Module, optimisers: Iterable[Any] = (), *, flags: bool = True, modes: bool = True
    ) -> list[Difference]:
        """What differs now, bitwise; empty means frozen.

        Args:
            module: the module the snapshot was taken of, or one that must equal it.
            optimisers: torch optimisers (anything with `param_groups`); none may hold a tensor of the module.
            flags: also require that no parameter requires gradient.
            modes: also require the train/eval flags of the snapshot.
        """
        module = unwrap(module)
        found: list[Difference] = []
        now = _tensors(module)
        for name in self.digests:
            if name not in now:
                found.append(Difference(name, "missing", f"this {self.kinds[name]} is gone"))
        for name, (kind, value) in now.items():
            found.extend(self._check_tensor(name, kind, value))
            if flags and kind == "parameter" and value.requires_grad:
                was = "and did before" if self.requires_grad.get(name) else "since the snapshot"
                found.append(Difference(name, "requires_grad", f"the parameter requires gradient, {was}"))
        found.extend(_in_optimisers(now, optimisers))
        if modes:
            for name, child in module.named_modules():
                if name in self.modes and self.modes[name] != child.training:
                    words = {True: "train", False: "eval"}
                    detail = f"was in {words[self.modes[name]]} mode, is in {words[child.training]} mode"
                    found.append(Difference(name or type(module).__name__, "mode", detail))
        found.extend(self._check_output(module))
        return found

    def _check_tensor(self, name: str, kind: str, value: Tensor) -> list[Difference]:
        """Compare one tensor with its digest."""
        if name not in self.digests:
            return [Difference(name, "added", f"this {kind} was not there, shape {tuple(value.shape)}")]
        if digest(value) == self.digests[name]:
            return []
        old = self.values.get(name)
        if old is None:
            return [Difference(name, "value", f"this {kind} has another sha256")]
        if old.shape != value.shape or old.dtype != value.dtype:
            detail = f"{tuple(old.shape)} {old.dtype} became {tuple(value.shape)} {value.dtype}"
            return [Difference(name, "shape", detail)]
        return [Difference(name, "value", f"{kind}: {_distance(old, value.detach().cpu())}")]

    def _check_output(self, module: nn.Module) -> list[Difference]:
        """Compare the golden output bitwise."""
        if self.golden is None:
            return []
        found = []
        now = _golden_output(self.golden, module)
        if len(now) != len(self.output):
            return [Difference("golden output", "output", f"{len(self.output)} tensors became {len(now)}")]
        for index, (old, new) in enumerate(zip(self.output, now, strict=True)):
            if old.shape != new.shape or old.dtype != new.dtype:
                found.append(
                    Difference(f"golden output {index}", "output", f"{tuple(old.shape)} became {tuple(new.shape)}")
                )
            elif digest(old) != digest(new):
                found.append(Difference(f"golden output {index}", "output", _distance(old, new)))
        return found


def _in_optimisers(now: dict[str, tuple[str, Tensor]], optimisers: Iterable[Any]) -> list[Difference]:
    """Tensors of the module that some optimiser would step."""
    found = []
    for place, optimiser in enumerate(optimisers):
        held = {id(value) for group in optimiser.param_groups for value in group["params"]}
        for name, (_, value) in now.items():
            if id(value) in held:
                what = f"optimiser {place} ({type(optimiser).__name__}) holds it and may move it, weight decay included"
                found.append(Difference(name, "optimiser", what))
    return found


def snapshot(module: nn.Module, *, golden: Golden | None = None, keep_values: bool = True) -> FrozenSnapshot:
    """Remember a module bitwise.

    Args:
        module: any module; compile and DDP wrappers are looked through.
        golden: optional; runs the module on a fixed input and returns its output(s), compared bitwise by `check`.
        keep_values: keep CPU copies, so that `check` can say by how much a tensor moved.

    Raises:
        ProbeError: the module has neither parameters nor buffers.
    """
    module = unwrap(module)
    tensors = _tensors(module)
    if not tensors:
        named_parameters(module)  # raises, naming the module
    return FrozenSnapshot(
        digests={name: digest(value) for name, (_, value) in tensors.items()},
        kinds={name: kind for name, (kind, _) in tensors.items()},
        values={name: value.detach().cpu().clone() for name, (_, value) in tensors.items()} if keep_values else {},
        requires_grad={name: value.requires_grad for name, (_, value) in tensors.items()},
        modes={name: child.training for name, child in module.named_modules()},
        golden=golden,
        output=_golden_output(golden, module) if golden is not None else [],
    )

"""What an observed pass is reported as: findings like tracebacks, what was declared, and what was harmless.

Severities. `cut`: some parameter, sample or token has no path left. `weakened`: the loss depends on the value, every
part still has another path, so the gradient is wrong rather than missing. `expected`: declared in code with
etrm.declared. `transient`: the gradient is zero because an all-zero weight, which itself trains, multiplies it; it
opens after one update. `harmless`: the loss does not depend on the value, or the operation has no derivative and
nothing lost its path by it. Only cut and weakened are findings.
"""

from dataclasses import dataclass, field
from typing import Literal

from etrm.probes.places import Place

Severity = Literal["cut", "weakened", "expected", "transient", "harmless"]


def _list(items: tuple[object, ...], most: int = 6) -> str:
    """A short listing: runs of integers as ranges, long lists cut with their length."""
    if len(items) > 2 and all(isinstance(item, int) for item in items):
        numbers = [item for item in items if isinstance(item, int)]
        if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
            return f"{numbers[0]}-{numbers[-1]}"
    text = ", ".join(str(item) for item in items[:most])
    return text if len(items) <= most else f"{text}, … ({len(items)} in all)"


@dataclass(frozen=True)
class Finding:
    """One place and what it does to the gradient."""

    kind: str
    severity: Severity
    place: Place | None
    module: str = ""
    shape: tuple[int, ...] = ()
    dtype: str = ""
    count: int = 1
    parameters: tuple[str, ...] = ()
    samples: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    declared: str | None = None
    note: str = ""

    def __str__(self) -> str:
        lines = [f"  {self.place}" if self.place is not None else "  (no line of source is known)"]
        what = f"{self.severity}: {self.kind}"
        what += f" declared as '{self.declared}'" if self.declared else ""
        what += f" on a {self.shape} {self.dtype} tensor".replace("  ", " ") if self.shape or self.dtype else ""
        what += f" in module '{self.module}'" if self.module else ""
        what += f", {self.count} times" if self.count > 1 else ""
        lines.append(what)
        if self.parameters:
            lines.append(f"    parameters without gradient: {_list(self.parameters)}")
        if self.samples:
            lines.append(f"    samples that lost their path: {_list(self.samples)}")
        if self.tokens:
            lines.append(f"    positions (dimension 1) that lost their path: {_list(self.tokens)}")
        if self.note:
            lines.append(f"    {self.note}")
        return "\n".join(lines)


@dataclass
class BreakReport:
    """Everything `observe` saw. `norms` holds each watched parameter's gradient norm, None where none came."""

    loss: float
    norms: dict[str, float | None]
    findings: list[Finding] = field(default_factory=list)
    expected: list[Finding] = field(default_factory=list)
    transient: list[Finding] = field(default_factory=list)
    harmless: list[Finding] = field(default_factory=list)
    forward_passes: int = 1

    @property
    def ok(self) -> bool:
        """Nothing was cut or weakened."""
        return not self.findings

    @property
    def lost(self) -> tuple[str, ...]:
        """Parameters whose gradient is missing or exactly zero."""
        return tuple(name for name, norm in self.norms.items() if not norm)

    def add(self, finding: Finding) -> None:
        """File a finding under its severity."""
        lists = {"expected": self.expected, "transient": self.transient, "harmless": self.harmless}
        lists.get(finding.severity, self.findings).append(finding)

    def layers(self) -> dict[str, float]:
        """Gradient norm by module path."""
        squares: dict[str, float] = {}
        for name, norm in self.norms.items():
            layer = name.rpartition(".")[0]
            squares[layer] = squares.get(layer, 0.0) + (norm or 0.0) ** 2
        return {layer: value**0.5 for layer, value in squares.items()}

    def table(self) -> str:
        """The per-layer gradient norms as text."""
        rows = self.layers()
        width = max((len(name) for name in rows), default=0)
        return "\n".join(f"{name or '(root)':<{max(width, 6)}}  {norm:10.4g}" for name, norm in rows.items())

    def text(self, *, show_harmless: bool = False) -> str:
        """The report, findings first, each printed like a traceback."""
        if self.findings:
            parts = [f"Gradient breaks (most recent loss {self.loss:.6g}):"]
        else:
            parts = [f"No gradient break (loss {self.loss:.6g})."]
        parts.extend(str(item) for item in [*self.findings, *self.transient, *self.expected])
        if show_harmless:
            parts.extend(str(item) for item in self.harmless)
        elif self.harmless:
            parts.append(f"{len(self.harmless)} harmless places not shown")
        return "\n".join(parts)

    def __str__(self) -> str:
        return self.text()

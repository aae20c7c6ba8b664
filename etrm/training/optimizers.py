"""Optimisers in plain torch: Muon, AdamATan2 (scale-invariant Adam) and the puzzle table's sign-SGD; AdamW is torch's.

Muon: a matrix moves along its momentum with all singular values brought near 1 (Jordan et al., 2024,
kellerjordan.github.io/posts/muon), at the size of an Adam step where its rank is full (Liu et al., arXiv 2502.16982);
what is no matrix moves as under AdamW. Unlike there, embeddings and heads are matrices too: it won (LOG.md).
torch.optim.Muon takes matrices only and rounds to bf16 on the way, which is slow on most CPUs and a hundredth of a step
off; this one rounds nothing.
AdamATan2: step = lr * atan2(m_hat, sqrt(v_hat)), after Everett et al., arXiv 2407.05872; no epsilon, so scaling the
loss changes nothing, and decay is decoupled. A parameter whose gradient is None is left alone; one whose gradient is
exactly zero still decays, which is why "weights moved" never proves that a gradient arrived.
"""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from etrm.config.schema import OptimConfig
from etrm.errors import ConfigError

QUINTIC = (3.4445, -4.7750, 2.0315)  # a s + b s^3 + c s^5 five times: a singular value s of 0.003 to 1 ends near 1
ROUNDS = 5
ADAM_SIZE = 0.2  # root mean square of an Adam step, in units of the rate
TINY = 1e-7


def orthogonalised(matrix: Tensor) -> Tensor:
    """The matrix with its singular values brought near 1 (0.7 to 1.2), by Newton-Schulz: (R, C) fp32 -> (R, C)."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.t()
    x = wide / wide.norm().clamp(min=TINY)
    a, b, c = QUINTIC
    for _ in range(ROUNDS):
        gram = x @ x.t()
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide is matrix else x.t()


class _Momentum(torch.optim.Optimizer):
    """The walk that Muon and AdamATan2 share: moments by parameter, in its dtype, decoupled decay, a step along `push`.

    Closures are not supported.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        **options: Any,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, **options})

    def push(self, gradient: Tensor, state: dict[str, Any], betas: tuple[float, float]) -> Tensor:
        """Takes the gradient into the parameter's moments; the direction of its step, in units of the rate."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        if closure is not None:
            raise ConfigError(f"{type(self).__name__} takes no closure; call step() after backward()")
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                state["step"] = state.get("step", 0) + 1
                push = self.push(-p.grad if group.get("maximize") else p.grad, state, group["betas"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(push, alpha=-group["lr"])


def _mean(gradient: Tensor, state: dict[str, Any], beta: float) -> Tensor:
    """The first moment, this gradient in it."""
    if "mean" not in state:
        state["mean"] = torch.zeros_like(gradient)
    return cast(Tensor, state["mean"].lerp_(gradient, 1 - beta))


def _adam(gradient: Tensor, state: dict[str, Any], betas: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """First moment and root of the second, without their bias."""
    mean = _mean(gradient, state, betas[0])
    if "square" not in state:
        state["square"] = torch.zeros_like(gradient)
    square = state["square"].mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    steps = state["step"]
    return mean / (1 - betas[0] ** steps), (square / (1 - betas[1] ** steps)).sqrt_()


class Muon(_Momentum):
    """Orthogonalised momentum for matrices, Adam for all else; a matrix has no second moment. beta1 is both rules'
    momentum.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        super().__init__(params, lr, betas, weight_decay, maximize=False)

    def push(self, gradient: Tensor, state: dict[str, Any], betas: tuple[float, float]) -> Tensor:
        """See the file's top."""
        if gradient.dim() == 2:
            ahead = gradient.lerp(_mean(gradient, state, betas[0]), betas[0])  # Nesterov's
            return orthogonalised(ahead).mul_(ADAM_SIZE * max(gradient.shape) ** 0.5)
        mean, root = _adam(gradient, state, betas)
        return mean / root.add_(1e-8)


class AdamATan2(_Momentum):
    """Adam with atan2 in place of division."""

    def push(self, gradient: Tensor, state: dict[str, Any], betas: tuple[float, float]) -> Tensor:
        """See the file's top."""
        return torch.atan2(*_adam(gradient, state, betas))


class SignSGD(torch.optim.Optimizer):
    """TRM's rule for the puzzle table: rows with a gradient move by lr * sign(g), with decoupled decay; other rows
    stay.
    """

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of the rows (first axis) that a batch touched."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                touched = p.grad.flatten(1).ne(0).any(dim=1).view(-1, *[1] * (p.dim() - 1))
                moved = p * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * p.grad.sign()
                p.copy_(torch.where(touched, moved, p))


def moments_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> frozenset[str]:
    """Names of what the optimiser keeps of a parameter that it has moved."""
    if isinstance(optimizer, torch.optim.AdamW):
        return frozenset({"step", "exp_avg", "exp_avg_sq"})
    if isinstance(optimizer, Muon) and parameter.dim() == 2:
        return frozenset({"step", "mean"})
    return frozenset({"step", "mean", "square"} if isinstance(optimizer, _Momentum) else ())


def make_optimizer(config: OptimConfig, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """The config's optimiser over the trainable ones of `parameters`; ConfigError if none is trainable."""
    trainable = [p for p in parameters if p.requires_grad]
    if not trainable:
        raise ConfigError("no trainable parameter for the optimiser; is everything frozen?")
    betas = (config.beta1, config.beta2)
    if config.name == "muon":
        return Muon(trainable, lr, betas, config.weight_decay)
    if config.name == "adam_atan2":
        return AdamATan2(trainable, lr, betas, config.weight_decay)
    return torch.optim.AdamW(trainable, lr=lr, betas=betas, weight_decay=config.weight_decay)

"""Rate, options and step of an optimiser, written a second time from the config, for whoever checks what was done."""

import math
from typing import Any

import torch
from torch import Tensor

from etrm.config.schema import OptimConfig


def rate_of(optim: OptimConfig, number: int, total: int) -> float:
    """Warm-up, constant, cosine: the learning rate of update `number` (from 0) of `total`."""
    rate = optim.lr * (min(1.0, (number + 1) / optim.warmup_updates) if optim.warmup_updates else 1.0)
    cooling, left = optim.cooldown_share * total, total - number
    if cooling > 0 and left <= cooling:
        cosine = 0.5 * (1 + math.cos(math.pi * (1 - left / cooling)))
        rate *= optim.min_ratio + (1 - optim.min_ratio) * cosine
    return rate


def option_faults(optim: OptimConfig, groups: list[dict[str, Any]]) -> list[str]:
    """Options of an optimiser's groups that are not the config's; the rate is the schedule's business."""
    meant = {"betas": (optim.beta1, optim.beta2), "weight_decay": optim.weight_decay, "maximize": False}
    meant |= {"amsgrad": False}
    return [
        f"the optimiser's {name} is {group[name]}, the config's {value}"
        for group in groups
        for name, value in meant.items()
        if name in group and (tuple(group[name]) if name == "betas" else group[name]) != value
    ]


def push_of(optim: OptimConfig, gradient: Tensor, mean: Tensor, square: Tensor, steps: int) -> Tensor:
    """Where a step goes, in units of the rate and without decay, from moments that hold the gradient already.

    All of one shape and dtype, which the result has too.
    """
    if optim.name == "muon" and gradient.dim() == 2:
        return _polar((1 - optim.beta1) * gradient + optim.beta1 * mean)
    unbiased = mean / (1 - optim.beta1**steps)
    root = (square / (1 - optim.beta2**steps)).sqrt()
    return torch.atan2(unbiased, root) if optim.name == "adam_atan2" else unbiased / (root + 1e-8)


def _polar(momentum: Tensor) -> Tensor:
    """Muon's direction: every singular value s becomes f(f(f(f(f(s))))), f(s) = 3.4445 s - 4.775 s^3 + 2.0315 s^5, of
    the matrix at norm 1; then the size of an Adam step, 0.2 a weight. (R, C) -> (R, C)
    """
    turned = momentum.shape[0] < momentum.shape[1]
    tall = momentum.t() if turned else momentum
    x = tall / max(float(tall.norm()), 1e-7)
    one = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    for _ in range(5):
        inner = x.t() @ x  # the smaller of both products
        x = x @ (3.4445 * one + inner @ (2.0315 * inner - 4.775 * one))
    return 0.2 * max(momentum.shape) ** 0.5 * (x.t() if turned else x)

"""Rate and options of an optimiser, written a second time from the config, for whoever checks what training did."""

import math
from typing import Any

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

"""Learning-rate schedule: linear warm-up, constant, then a cosine to `min_ratio` over the last share of the updates.

With `cooldown_share` 1 it is the usual warm-up + cosine; with 0 it is TRM's (constant after warm-up).
"""

import math

from etrm.config.schema import OptimConfig
from etrm.errors import ConfigError

WARMUP_LIMIT = 0.2


def learning_rate_factor(update: int, updates: int, optim: OptimConfig) -> float:
    """Factor of the base rate for update number `update` (from 0) of `updates`; in (0, 1]."""
    warm = min(1.0, (update + 1) / optim.warmup_updates) if optim.warmup_updates else 1.0
    cooling = optim.cooldown_share * updates
    left = updates - update
    if cooling <= 0 or left > cooling:
        return warm
    progress = 1.0 - left / cooling
    return warm * (optim.min_ratio + (1 - optim.min_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))


def check_schedule(updates: int, optim: OptimConfig) -> None:
    """ConfigError if warm-up takes more than a fifth of the run: then the base rate is hardly used."""
    if optim.warmup_updates > WARMUP_LIMIT * updates:
        share, most = optim.warmup_updates / updates, int(WARMUP_LIMIT * updates)
        raise ConfigError(
            f"optim.warmup_updates {optim.warmup_updates} is {share:.0%} of {updates} updates, "
            f"at most {WARMUP_LIMIT:.0%} is allowed; set optim.warmup_updates={most}{' or less' * (most > 0)}"
        )

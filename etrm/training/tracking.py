"""Trackers: copies of metrics.jsonl's lines for Weights & Biases and TensorBoard, under the same names.

Notable: the files on disk stay the record; a tracker is an extra package and an error where it is asked for and not
installed. Weights & Biases obeys its own environment variables (WANDB_MODE=offline writes to the run's folder alone).
"""

import hashlib
import importlib.util
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etrm.errors import ConfigError


class Trackers:
    """`tracker(step, metrics)` mirrors one line to each; `close()` ends them. ConfigError for a missing package."""

    def __init__(
        self, names: str, project: str, run: str, config: Mapping[str, Any], folder: Path, resume_step: int
    ) -> None:
        listed = [] if names == "none" else names.split("+")
        for name in listed:
            check_installed(name)
        self.wandb: Any = None
        self.board: Any = None
        if "wandb" in listed:
            import wandb

            os.environ.setdefault("WANDB_SILENT", "true")
            # The id is the folder's, so that a resumed run goes on there and one of the same name elsewhere does not.
            own = f"{run}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]}"
            self.wandb = wandb.init(
                project=project, name=run, id=own, resume="allow", dir=str(folder), config=dict(config)
            )
        if "tensorboard" in listed:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1)

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Mirror one line; NaN (nothing to measure) is left out."""
        values = {name: value for name, value in metrics.items() if not math.isnan(value)}
        if self.wandb is not None:
            self.wandb.log(values, step=step)
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and end."""
        if self.wandb is not None:
            self.wandb.finish()
        if self.board is not None:
            self.board.close()


def check_installed(name: str) -> None:
    """ConfigError with the command that installs a tracker's package, where it is not there."""
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        raise ConfigError(
            f"trackers names {name}, which is not installed; run: pip install -e '.[{name}]', or set trackers=none"
        )

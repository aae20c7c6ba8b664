"""One rank of tests/unit/training/test_distributed.py: `python -m tests.unit.training.ranks_worker FOLDER KEY=VALUE …`.

Trains the toy run (20 updates), writes what it saw as JSON to FOLDER/rank_R.json. `plant=NAME` plants one bug of
ranks, so that the tests can be seen to fail.
"""

import errno
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

from etrm.models.encoders import Encoded
from etrm.training import distributed, update
from etrm.training.distributed import Ranks, digest, finish, start
from etrm.training.loop import fit
from tests.unit.training.conftest import Toy


def plant(name: str, rank: int) -> None:
    """Make one known mistake of data-parallel training, or let the disk of rank 0 be full."""
    if name == "no_reduce":
        Ranks.reduce_gradients = lambda self, parameters: None  # type: ignore[method-assign]
    elif name == "mean":
        real = Ranks.reduce_gradients

        def averaged(self: Ranks, parameters) -> None:
            listed = list(parameters)
            real(self, listed)
            for p in listed:
                if p.grad is not None:
                    p.grad.div_(self.size)

        Ranks.reduce_gradients = averaged  # type: ignore[method-assign]
    elif name == "same_data":
        Ranks.part = lambda self, count: slice(0, count // self.size)  # type: ignore[method-assign]
    elif name == "clip_first":
        clip = distributed.Ranks.reduce_gradients

        def clipped(self: Ranks, parameters) -> None:
            listed = [p for p in parameters if p.grad is not None]
            torch.nn.utils.clip_grad_norm_(listed, 1e-3)
            clip(self, listed)

        Ranks.reduce_gradients = clipped  # type: ignore[method-assign]
    elif name == "full" and rank == 0:

        def full(handle: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        os.fsync = full


def main() -> int:
    """Train and write."""
    folder = Path(sys.argv[1])
    options = dict(word.split("=") for word in sys.argv[2:])
    torch.set_num_threads(1)
    ranks = start(torch.device("cpu"))
    plant(options.get("plant", ""), ranks.rank)
    toy = Toy()
    config = toy.config(
        budget={"updates": 20, "batch_size": 12, "log_every": 1, "checkpoint_every": int(options.get("every", 10))},
        optim={"clip_norm": 0.05, "lr": 1e-3},
        loss={"objective": options.get("objective", "lm"), "table_share": 0.5},
    )
    state = toy.state(config, halt_bias=0.0)
    if options.get("objective") == "lm+table":
        state.teacher = torch.randn(12, 32, generator=torch.Generator().manual_seed(0))
        toy.source.rows = np.where(np.arange(12) % 3 == 0, -1, np.arange(12))
    if options.get("losses") == "yes":
        encoder = state.model.model.encoder
        plain = encoder.forward

        def forward(*demos):
            context = plain(*demos)
            return Encoded(context, {"size": context.square().mean()})

        encoder.forward = forward
    if options.get("weights") == "other" and ranks.rank:
        with torch.no_grad():
            next(iter(state.model.model.encoder.parameters())).add_(1e-6)
    if options.get("noise") == "yes":  # a dropout whose draws differ in number between ranks
        encoder = state.model.model.encoder
        still = encoder.forward

        def noisy(*demos):
            return still(*demos) + 0.1 * torch.rand(1 + ranks.rank)[-1]

        encoder.forward = noisy
    if options.get("nan") == str(ranks.rank):
        state.model.decoder.lm_head.register_forward_hook(lambda module, inputs, output: output * torch.nan)
    seen: list[str] = []
    real = update.train_batch_encoder

    def watched(config, state, batch, size, rank, world):
        seen.extend(digest(row) for row in batch.inputs)
        return real(config, state, batch, size, rank, world)

    import etrm.training.loop as loop

    loop.train_batch_encoder = watched
    rng = np.random.default_rng(0)
    stop = int(options["stop"]) if "stop" in options else None
    fit(
        config, state, toy.source, rng, torch.device("cpu"), folder / "metrics.jsonl", folder / "steps",
        stop_after=stop, ranks=ranks,
    )  # fmt: skip
    weights = {n: digest(p) for n, p in state.model.named_parameters()}
    found = {"seen": seen, "weights": weights, "entered": state.episodes_entered, "pid": os.getpid()}
    (folder / f"rank_{ranks.rank}.json").write_text(json.dumps(found))
    finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())

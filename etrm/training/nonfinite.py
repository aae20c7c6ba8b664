"""What an update that met a NaN or an infinity leaves: a file that repeats it in one command.

`python -m etrm.training.nonfinite FILE` builds the model of the file's config, puts weights, batch, carry and
generators back, and gives the same update again. Exit status: 0 where it fails as it did, 1 where it does not, 2 where
the file cannot be used. Notable: nothing is recorded before a failure but three small generator states and the buffers;
an update writes weights and carry last, so both are still those that failed.
"""

import argparse
import pickle
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from etrm.config.compose import Composed, build, to_dict
from etrm.config.schema import PretrainConfig, RunConfig
from etrm.errors import CheckpointError, EncoderContractError, EtrmError, NonFiniteError
from etrm.models.etrm import ETRM, Carry, Episodes, TableTRM
from etrm.models.official import resolve_bundle
from etrm.models.trm import Latents, TRMDecoder
from etrm.training.checkpoint import read_checkpoint, write_atomically
from etrm.training.distributed import ALONE, Ranks
from etrm.training.run import build_head
from etrm.training.update import LossHead, TrainState, train_batch_encoder

PARTS = ("step", "total_steps", "seed", "says", "layer", "config", "model", "trainable", "batch", "carry", "generators")
Config = RunConfig | PretrainConfig


@dataclass(frozen=True, eq=False)
class Before:
    """What an update moves before it can fail: the generators and the model's buffers."""

    act_generator: Tensor
    torch_generator: Tensor
    buffers: Mapping[str, Tensor]

    @classmethod
    def of(cls, state: TrainState) -> "Before":
        """Remember them."""
        buffers = {name: value.clone() for name, value in state.model.named_buffers()}
        return cls(state.generator.get_state(), torch.get_rng_state(), buffers)

    @torch.no_grad()
    def put_back(self, state: TrainState) -> None:
        """As they were before the update."""
        state.generator.set_state(self.act_generator)
        torch.set_rng_state(self.torch_generator)
        for name, value in state.model.named_buffers():
            value.copy_(self.buffers[name])


@contextmanager
def dumping(config: Config, state: TrainState, batch: Episodes, folder: Path, ranks: Ranks = ALONE) -> Iterator[None]:
    """Around one update: if it meets a number that is not finite, write the file and name it, and the layer, in the
    error, which is raised again. Of several ranks each whose own slots fail writes a file of these.
    """
    before = Before.of(state)
    try:
        yield
    except (NonFiniteError, EncoderContractError) as error:
        before.put_back(state)
        layer = first_layer(config, state, batch)
        before.put_back(state)
        if layer is None:  # another breach of the encoder's contract
            raise
        whose = f"_rank_{ranks.rank}" if ranks.size > 1 else ""
        path = folder / f"nonfinite_update_{state.step}{whose}.pt"
        write_dump(path, config, state, batch, before, str(error), layer)
        raise type(error)(
            f"{error}; first not finite: {layer}; repeat it with: python -m etrm.training.nonfinite {path}"
        ) from error


def write_dump(
    path: Path, config: Config, state: TrainState, batch: Episodes, before: Before, says: str, layer: str
) -> None:
    """Everything that the update read, as one file. CheckpointError where it cannot be written."""
    carry = state.carry
    payload = {
        "step": state.step,
        "total_steps": state.total_steps,
        "seed": config.system.seed,
        "says": says,
        "layer": layer,
        "config": to_dict(config),
        "model": state.model.state_dict(),
        "trainable": [n for n, p in state.model.named_parameters() if p.requires_grad],
        "batch": {f.name: getattr(batch, f.name) for f in fields(Episodes)},
        "carry": None
        if carry is None
        else {"latents": list(carry.latents), "steps": carry.steps, "halted": carry.halted}
        | {"episodes": {f.name: getattr(carry.episodes, f.name) for f in fields(Episodes)}},
        "generators": {"act": before.act_generator, "torch": before.torch_generator},
        "teacher": state.teacher,
    }
    write_atomically(path, payload)


def first_layer(config: Config, state: TrainState, batch: Episodes) -> str | None:
    """The first module whose output, else the first parameter whose gradient, is not finite; None where all are."""
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if not found and any(not bool(torch.isfinite(t).all()) for t in _tensors(output)):
                found.append(f"the output of {name}")

        return hook

    broken = [n for n, p in state.model.named_parameters() if not bool(torch.isfinite(p).all())]
    if broken:
        return f"the weight {broken[0]}"
    state.model.zero_grad(set_to_none=True)  # what is there may be another rank's
    handles = [module.register_forward_hook(look(name)) for name, module in state.model.named_modules() if name]
    trial = TrainState(
        state.model, {}, None, state.total_steps, state.step, state.carry, state.generator, state.teacher
    )
    try:
        with torch.compiler.set_stance("force_eager"):  # a compiled module would not call the hooks
            train_batch_encoder(config, trial, batch, config.budget.batch_size)
    except (NonFiniteError, EncoderContractError):
        if not found:
            found += [
                f"the gradient of {n}"
                for n, p in state.model.named_parameters()
                if p.grad is not None and not bool(torch.isfinite(p.grad).all())
            ]
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        for name in value.__dataclass_fields__:
            yield from _tensors(getattr(value, name))


def replay(path: Path) -> tuple[str, str | None]:
    """What the file's update said, and what the same update says now (None: it went through).

    CheckpointError if the file is no such dump or does not fit the model of its config.
    """
    payload = read_checkpoint(path)
    if missing := set(PARTS) - set(payload):
        raise CheckpointError(f"{path} is no dump of an update, it lacks {sorted(missing)}; give nonfinite_update_N.pt")
    try:
        config, state, batch = _restored(path, payload)
    except (TypeError, ValueError, KeyError, RuntimeError, AttributeError, IndexError, pickle.PickleError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} does not fit the model of its config: {reason}; use the same version") from error
    torch.set_rng_state(payload["generators"]["torch"])
    try:
        train_batch_encoder(config, state, batch, config.budget.batch_size)
    except (NonFiniteError, EncoderContractError) as error:
        return str(payload["says"]), str(error)
    return str(payload["says"]), None


def _restored(path: Path, payload: Mapping[str, Any]) -> tuple[Config, TrainState, Episodes]:
    values, batch = payload["config"], Episodes(**payload["batch"])
    kind: type[Config] = PretrainConfig if "arch" in values else RunConfig
    own = {f.name: values[f.name] for f in fields(kind)}  # a run may hold keys of its own beside these
    config = build(kind, Composed(own, {}, str(path)))
    if isinstance(config, PretrainConfig):
        from etrm.training.pretrain import make_structure

        structure = make_structure(config.arch, round(batch.inputs.shape[1] ** 0.5))
        rows = payload["model"]["model.puzzle_emb.weights"].shape[0]
        model = LossHead(TableTRM(TRMDecoder(structure), rows, config.table.noise), config.loss)
    else:
        model = build_head(config, resolve_bundle(config.bundle), torch.device("cpu"))
        if values.get("precision", "auto") != "auto":  # a key of the pretraining command
            cast(ETRM, model.model).autocast = values["precision"] == "bfloat16"
    model.load_state_dict(payload["model"], strict=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in payload["trainable"])
    state = TrainState(model, {}, None, payload["total_steps"], payload["step"], teacher=payload.get("teacher"))
    state.generator.set_state(payload["generators"]["act"])
    if isinstance(model.model, TableTRM):
        model.model.generator = state.generator
    carried = payload["carry"]
    if carried is not None:
        episodes = Episodes(**carried["episodes"])
        state.carry = Carry(Latents(*carried["latents"]), carried["steps"], carried["halted"], episodes)
    return config, state, batch


def main(arguments: list[str] | None = None) -> int:
    """Repeat the update of a dump and say whether it fails again."""
    parser = argparse.ArgumentParser(prog="python -m etrm.training.nonfinite", description=__doc__)
    parser.add_argument("file", type=Path)
    try:
        then, now = replay(parser.parse_args(arguments).file)
    except EtrmError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(f"then: {then}\nnow:  {now or 'the update went through'}")
    return 0 if now == then else 1


if __name__ == "__main__":
    sys.exit(main())

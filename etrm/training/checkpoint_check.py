"""Whether what a checkpoint holds fits the run that goes on from it, part by part, before anything is taken over.

Notable: a checksum tells that a file is as it was written, not that it was written by this run: names, shapes, types,
ranges of tokens and the states of the generators are compared with the run's own, so that a wrong file ends here in one
sentence and not somewhere in an update.

Legend: B batch, K demonstrations, S canvas cells, L positions, D hidden, V vocabulary, R table rows.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etrm.errors import CheckpointError
from etrm.models.etrm import Episodes
from etrm.training.optimizers import moments_of
from etrm.training.update import TrainState

SHOWN = 3
Trial = tuple[str, Callable[[], object]]


def brief(value: Any) -> str:
    """A value from a file in a message: one line, short."""
    return " ".join(repr(value).split())[:20]


def refuse_misfits(
    path: Path,
    payload: Mapping[str, Any],
    state: TrainState,
    rng: np.random.Generator,
    generators: Mapping[str, Any],
    batch_size: int,
) -> None:
    """CheckpointError naming the first parts of `payload` that do not fit `state`, `rng` and global `generators`."""
    faults = [*_counts(payload, state), *_weights(payload, state), *_optimizers(payload, state)]
    faults += [*_carry(payload, state, batch_size), *_generators(payload, rng, generators)]
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise CheckpointError(
            f"{path} does not fit this run: {'; '.join(faults[:SHOWN])}{more}; nothing was taken over, use an earlier "
            "step_N or choose another run name"
        )


def _counts(payload: Mapping[str, Any], state: TrainState) -> Iterator[str]:
    for name, most in (("step", state.total_steps), ("episodes_entered", None)):
        value = payload[name]
        if type(value) is not int or value < 0 or (most is not None and value > most):
            yield f"{name} is {brief(value)}, expected a count{'' if most is None else f' of at most {most}'}"


def _tensors(where: str, saved: object, own: Mapping[str, Tensor]) -> Iterator[str]:
    """Faults of a dict of named tensors; names and shapes of the model's are told apart elsewhere, in more words."""
    if not isinstance(saved, dict):
        yield f"{where} is a {type(saved).__name__}, expected named tensors"
        return
    yield from (f"{where}: {n!r:.80} is only in one of them" for n in sorted(map(str, set(saved) ^ set(own))))
    for name in own.keys() & saved.keys():
        yield from _tensor(f"{where}: {name}", saved[name], own[name])


def _tensor(where: str, value: object, own: Tensor) -> Iterator[str]:
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        yield f"{where} is no dense tensor"
    elif value.shape != own.shape:
        yield f"{where} is {tuple(value.shape)}, expected {tuple(own.shape)}"
    elif value.dtype != own.dtype:
        yield f"{where} is {value.dtype}, expected {own.dtype}"
    elif value.is_floating_point() and not bool(torch.isfinite(value).all()):
        yield f"{where} is not finite"


def _weights(payload: Mapping[str, Any], state: TrainState) -> Iterator[str]:
    own = state.model.state_dict()
    saved = payload["model"]
    if not isinstance(saved, dict) or not all(isinstance(t, Tensor) for t in saved.values()):
        yield "model is no dict of tensors"
    else:  # other names and shapes are `checkpoint.refuse_other_weights`'s to tell
        for name in own.keys() & saved.keys():
            if saved[name].shape == own[name].shape:
                yield from _tensor(f"model: {name}", saved[name], own[name])
    if state.ema is not None:
        yield from _tensors("ema", payload["ema"], state.ema.shadow)


def _optimizers(payload: Mapping[str, Any], state: TrainState) -> Iterator[str]:
    held = False
    for part, (optimizer, _) in state.optimizers.items():
        saved, own = payload["optimizers"][part], optimizer.state_dict()
        if not isinstance(saved, dict) or set(saved) != {"state", "param_groups"}:
            yield f"optimizer {part} is no state of an optimiser"
            continue
        yield from _groups(part, saved["param_groups"], own["param_groups"])
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        expected = [moments_of(optimizer, p) for p in parameters]
        held = held or bool(saved["state"]) or not any(expected)
        yield from _moments(part, saved["state"], parameters, expected)
    # One parameter may lack all, if it never had a gradient, or a part that has just joined; not every one of them.
    if payload["step"] != 0 and not held:
        yield "no optimiser holds a moment of any parameter"


def _groups(part: str, saved: object, own: list[dict[str, Any]]) -> Iterator[str]:
    if not isinstance(saved, list) or len(saved) != len(own) or not all(isinstance(g, dict) for g in saved):
        yield f"optimizer {part} has other groups of parameters"
        return
    for mine, theirs in zip(own, saved, strict=True):
        changed = sorted(map(str, set(mine) ^ set(theirs)))
        changed += [k for k in mine.keys() & theirs.keys() if k != "lr" and not same_plain(mine[k], theirs[k])]
        if changed:
            yield f"optimizer {part} has other settings ({', '.join(changed)}); is this another version of torch?"
        rate = theirs.get("lr")
        if type(rate) not in (int, float) or not 0 <= rate < float("inf"):
            yield f"optimizer {part} has the learning rate {brief(rate)}"


def same_plain(mine: object, theirs: object) -> bool:
    """Whether two nested plain values are equal with their types (1 is not True), a tuple equalling its list; a tensor,
    whose == would give a tensor, equals nothing.
    """
    one, other = (list(v) if isinstance(v, tuple) else v for v in (mine, theirs))
    if type(one) is not type(other) or isinstance(one, Tensor):
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_plain(v, other[k]) for k, v in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(same_plain(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def _moments(
    part: str, saved: object, parameters: list[torch.nn.Parameter], expected: list[frozenset[str]]
) -> Iterator[str]:
    if not isinstance(saved, dict) or not all(
        type(i) is int and 0 <= i < len(parameters) and isinstance(v, dict) for i, v in saved.items()
    ):
        yield f"optimizer {part} holds moments of parameters that it does not have"
        return
    for index, values in saved.items():
        if lacking := expected[index] - set(values):
            yield f"optimizer {part}: parameter {index} lacks {sorted(lacking)}"
        if more := set(values) - expected[index]:
            yield f"optimizer {part}: parameter {index} has {sorted(map(str, more))} besides"
        for name, value in values.items():
            where = f"optimizer {part}: {name!r:.30} of parameter {index}"
            if name == "step" and type(value) is int and value >= 0:
                continue
            yield from _tensor(where, value, torch.zeros(()) if name == "step" else parameters[index])


def _carry(payload: Mapping[str, Any], state: TrainState, size: int) -> Iterator[str]:
    carry = payload["carry"]
    if carry is None:
        if payload["step"] != 0:
            yield "carry is missing"
        return
    if not isinstance(carry, dict) or set(carry) != {"latents", "steps", "halted", "episodes"}:
        yield "carry lacks a part"
        return
    decoder = state.model.decoder
    own = decoder.fresh_latents(size)  # (B, L, D) each
    if not isinstance(carry["latents"], list) or len(carry["latents"]) != len(own):
        yield "carry has other latents"
    else:
        for name, value, mine in zip(("z_h", "z_l"), carry["latents"], own, strict=True):
            yield from _tensor(f"carry: {name}", value, mine)
    most = decoder.structure.halt_max_steps
    yield from _tensor("carry: halted", carry["halted"], torch.zeros(size, dtype=torch.bool))  # (B,)
    yield from _whole("carry: steps", carry["steps"], (size,), 0, most)
    episodes = carry["episodes"]
    names = [f.name for f in fields(Episodes)]
    if not isinstance(episodes, dict) or set(episodes) != set(names):
        yield f"carry: its episodes need {', '.join(names)}"
        return
    yield from _episodes(episodes, state, size)


def _episodes(episodes: Mapping[str, Any], state: TrainState, size: int) -> Iterator[str]:
    structure, mask = state.model.decoder.structure, episodes["demo_mask"]
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.dtype is not torch.bool or len(mask) != size:
        yield f"carry: demo_mask is no bool tensor of ({size}, demonstrations)"
        return
    cells, last = structure.seq_len, structure.vocab_size - 1
    table = state.teacher if state.teacher is not None else _table(state)
    rows = 2**62 if table is None else len(table) - 1
    shapes: dict[str, tuple[tuple[int, ...], int, int]] = {
        "inputs": ((size, cells), 0, last),
        "labels": ((size, cells), -100, last),
        "demo_inputs": ((size, mask.shape[1], cells), 0, last),
        "demo_labels": ((size, mask.shape[1], cells), 0, last),
        "task": ((size,), -1, 2**62),
        "row": ((size,), -1, rows),
    }
    for name, (shape, low, high) in shapes.items():
        yield from _whole(f"carry: {name}", episodes[name], shape, low, high)


def _table(state: TrainState) -> Tensor | None:
    found = [t for n, t in state.model.state_dict().items() if n.endswith("puzzle_emb.weights")]
    return found[0] if found else None


def _whole(where: str, value: object, shape: tuple[int, ...], low: int, high: int) -> Iterator[str]:
    faults = list(_tensor(where, value, torch.zeros(shape, dtype=torch.int64)))
    yield from faults
    if (
        not faults
        and isinstance(value, Tensor)
        and value.numel()
        and not low <= int(value.min()) <= int(value.max()) <= high
    ):
        yield f"{where} leaves {low}..{high}"


def _generators(payload: Mapping[str, Any], rng: np.random.Generator, own: Mapping[str, Any]) -> Iterator[str]:
    """Try each state on a generator of its own kind that nobody uses."""
    listed = payload["global_generators"]
    if not isinstance(listed, list) or not listed:
        yield "global_generators is no list with one entry a rank"
        return
    bits = type(rng.bit_generator)
    trials: list[Trial] = [
        ("act_generator", lambda: torch.Generator().set_state(payload["act_generator"])),
        ("data_generator", lambda: setattr(bits(), "state", _numbers(payload["data_generator"]))),
    ]
    yield from _tried(trials)
    for globals_ in listed:
        yield from _global_generators(globals_, own)


def _global_generators(globals_: Any, own: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(globals_, dict) or set(globals_) != set(own):
        yield f"global_generators needs {', '.join(own)}"
        return
    if not isinstance(globals_["cuda"], list) or len(globals_["cuda"]) != len(own["cuda"]):
        yield f"global_generators has other devices than the {len(own['cuda'])} here"
        return
    trials: list[Trial] = [
        ("torch", lambda: torch.Generator().set_state(globals_["torch"])),
        ("python", lambda: random.Random().setstate(globals_["python"])),
        ("numpy", lambda: np.random.RandomState().set_state(_numpy_state(globals_["numpy"]))),
    ]
    yield from _tried(trials)


def _tried(trials: list[Trial]) -> Iterator[str]:
    for name, trial in trials:
        try:
            trial()
        except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, OverflowError, IndexError) as error:
            yield f"the state of generator {name} is none ({(str(error) or type(error).__name__).splitlines()[0]:.60})"


def _numbers(state: Any) -> Any:
    """A generator's state as it is; TypeError where it holds anything but names and whole numbers."""
    for value in state.values():
        if isinstance(value, dict):
            _numbers(value)
        elif type(value) not in (int, str):
            raise TypeError(f"it holds a {type(value).__name__}")
    return state


def _numpy_state(saved: Any) -> dict[str, Any]:
    return saved | {"state": saved["state"] | {"key": np.asarray(saved["state"]["key"], dtype=np.uint32)}}

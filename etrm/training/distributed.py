"""Ranks: several processes that train one batch, as `torchrun --nproc-per-node N` starts them.

Notable: gradients are summed explicitly (one all-reduce of all of them, after the backward pass) instead of by torch's
DistributedDataParallel: the loss is a sum over the global batch, clipping and the logged norms must see the whole
gradient, the names that users print stay as they are, and a decoder that joins later needs no second wrapper. Rank r
holds slots r*b .. (r+1)*b of the global batch, so that N ranks together hold exactly the batch of one.

Legend: B this rank's slots, K demonstrations.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from etrm.errors import CheckpointError, ConfigError, EtrmError
from etrm.models.etrm import Carry, Episodes
from etrm.models.trm import Latents

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Process `rank` of `size`, number `local` on its machine. With size 1 every method is the identity."""

    rank: int = 0
    size: int = 1
    local: int = 0
    host: Any = None  # a gloo group for Python objects, where the default group is NCCL

    def __post_init__(self) -> None:
        """ConfigError for a rank that is none, or where torch's process group is missing or another."""
        if not 0 <= self.rank < self.size:
            raise ConfigError(f"rank {self.rank} of {self.size} ranks; expected 0 to {self.size - 1}, as torchrun sets")
        if self.size > 1 and not (dist.is_initialized() and dist.get_world_size() == self.size):
            raise ConfigError(f"{self.size} ranks without a process group; call etrm.training.distributed.start first")

    @property
    def main(self) -> bool:
        """Whether this is the rank that writes and prints."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """This rank's slots of a global batch. ConfigError if the ranks do not divide it."""
        if count % self.size:
            raise ConfigError(f"a batch of {count} is not divisible by {self.size} ranks")
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def total(self, value: Tensor) -> Tensor:
        """The sum over all ranks, detached; same shape, equal on every rank."""
        value = value.detach()
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each `.grad` by its sum over all ranks; a parameter that has one on no rank keeps None."""
        if self.size == 1:
            return
        listed = list(parameters)
        if not listed:
            return
        there = torch.tensor([p.grad is not None for p in listed], dtype=torch.int32, device=listed[0].device)
        kept = [p for p, ranks in zip(listed, self.total(there).tolist(), strict=True) if ranks]
        if not kept:
            return
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in kept])
        dist.all_reduce(flat)
        start = 0
        for p in kept:
            p.grad = flat[start : start + p.numel()].view_as(p)
            start += p.numel()

    def gather(self, value: Any) -> list[Any]:
        """On rank 0 every rank's value, in order of ranks; on the others an empty list."""
        if self.size == 1:
            return [value]
        found: list[Any] | None = [None] * self.size if self.main else None
        dist.gather_object(value, found, dst=0, group=self.host)
        return found or []

    def share(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.host)
        return box[0]

    def by_main(self, work: Callable[[], T]) -> T:
        """Rank 0's result of `work` on every rank; only rank 0 does it. What it raises on purpose, every rank raises.

        `work` must not talk to the other ranks, and what it returns is sent to them.
        """
        if self.size == 1:
            return work()
        result: T | None = None
        fault: EtrmError | None = None
        if self.main:
            try:
                result = work()
            except EtrmError as error:
                fault = error
        result, fault = self.share((result, fault))
        if fault is not None:
            raise fault
        return cast(T, result)

    def wait(self) -> None:
        """Go on when every rank has come here."""
        if self.size > 1:
            dist.barrier(group=self.host)

    def check_equal(self, tensors: Mapping[str, Tensor], when: str) -> None:
        """CheckpointError naming the first tensor that is not bitwise the same on every rank."""
        if self.size == 1:
            return
        own = {name: digest(t) for name, t in tensors.items()}
        theirs = self.share(own)
        other = next((name for name in own if theirs.get(name) != own[name]), "")
        found = [name for name in self.share(self.gather(other)) if name]
        if found:
            raise CheckpointError(f"{when}, {found[0]} differs between ranks; start them from the same seed and files")


ALONE = Ranks()


def digest(tensor: Tensor) -> str:
    """sha256 over a tensor's bytes."""
    flat = tensor.detach().contiguous().cpu().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()


def told_ranks(environment: Mapping[str, str]) -> tuple[int, int, int]:
    """(rank, size, local rank) as the launcher's environment says; (0, 1, 0) without one. ConfigError for no counts."""
    found = []
    for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        told = environment.get(name, default)
        if not told.isdigit() or (name == "WORLD_SIZE" and int(told) < 1):
            raise ConfigError(f"{name} is {told!r}, expected a count; start with python or with torchrun")
        found.append(int(told))
    return found[0], found[1], found[2]


def start(device: torch.device, environment: Mapping[str, str] = os.environ) -> Ranks:
    """Join the other ranks of the launcher's environment: NCCL on CUDA, gloo on the CPU. Call `finish` at the end."""
    rank, size, local = told_ranks(environment)
    if size == 1:
        return ALONE
    if device.type == "mps":
        raise ConfigError(
            f"{size} ranks on mps: torch has no way to sum their gradients; use one, or system.device=cpu"
        )
    if device.type == "cuda":
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    host = dist.new_group(backend="gloo") if device.type == "cuda" else None
    return Ranks(rank, size, local, host)


def finish() -> bool:
    """Leave the process group, where there is one, all ranks together; whether there was one."""
    if not dist.is_initialized():
        return False
    dist.barrier()  # a rank that leaves while another still talks to it can end either in C++'s terminate()
    dist.destroy_process_group()
    return True


def end_script() -> int:
    """The last call of a script that succeeded: `finish`, and exit status 0. A rank of several does not return.

    Now and then the teardown of torch's threads aborts a rank whose work is done and on disk; a launcher would report
    the whole run as failed.
    """
    if finish():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


def gather_carry(carry: Carry, ranks: Ranks) -> Carry | None:
    """The whole batch's carry, on the CPU, on rank 0; None on the others."""
    if ranks.size == 1:
        return carry
    cpu = torch.device("cpu")
    parts: list[Carry] = ranks.gather(carry_to(carry, cpu))
    if not parts:
        return None
    most = max(p.episodes.demo_mask.shape[1] for p in parts)
    padded = [p.episodes.padded(most) for p in parts]
    episodes = Episodes(*(torch.cat([getattr(e, f.name) for e in padded]) for f in fields(Episodes)))
    latents = Latents(*(torch.cat(states) for states in zip(*(p.latents for p in parts), strict=True)))
    return Carry(latents, torch.cat([p.steps for p in parts]), torch.cat([p.halted for p in parts]), episodes)


def carry_part(carry: Carry, part: slice) -> Carry:
    """The slots `part` of a carry."""
    episodes = Episodes(*(getattr(carry.episodes, f.name)[part] for f in fields(Episodes))).trimmed()
    return Carry(Latents(*(t[part] for t in carry.latents)), carry.steps[part], carry.halted[part], episodes)


def carry_to(carry: Carry, device: torch.device) -> Carry:
    """A carry on another device."""
    episodes = Episodes(*(getattr(carry.episodes, f.name).to(device) for f in fields(Episodes)))
    return Carry(
        Latents(*(t.to(device) for t in carry.latents)), carry.steps.to(device), carry.halted.to(device), episodes
    )

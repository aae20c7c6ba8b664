"""How the benchmarks measure: this machine's matrix peak, counted operations, peak memory, and both sides interleaved.

Notable: both sides of a ratio run in turn within one test, so that what else the machine does hits both; absolute
times are of the machine and of the hour. Operations are those of the function (torch's own count, attention as
its two products, four backward), never those that our implementation adds by computing a thing twice.
"""

import os
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from etrm.models.attention import runs_of

Work = Callable[[], object]


def seconds(work: Work) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@cache
def matrix_peak(dtype: torch.dtype) -> float:
    """FLOP/s of the best square product on this machine with the threads in use, by size and repetition."""
    best = 0.0
    for size in (1024, 2048, 4096):
        a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
        best = max(best, *(2 * size**3 / seconds(lambda: a @ b) for _ in range(4)))  # noqa: B023
    return best


def _plain(q: Tensor, k: Tensor, v: Tensor, *_: object, **__: object) -> Tensor:
    return (q @ k.transpose(-1, -2)).softmax(dim=-1) @ v


def _runs(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...] | None) -> Tensor:
    parts = [[t[:, :, run] for t in (q, k, v)] for run in runs_of(q.shape[2], lengths)]
    return torch.cat([_plain(*part) for part in parts], dim=2)


def operations(work: Work) -> int:
    """Floating-point operations of one call's matrix products, forward and backward; tensors may be on `meta`."""
    kernels = (
        patch("etrm.models.layers.tiled_attention", _runs),
        patch.object(F, "scaled_dot_product_attention", _plain),
    )
    with kernels[0], kernels[1], FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def _status(field: str) -> int:
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(field))
    return int(line.split()[1]) * 1024


@contextmanager
def peak_memory(found: dict[str, Any], name: str) -> Any:
    """Bytes by which resident memory rose at most inside the block, as found[name]; None where Linux cannot tell."""
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        found[name] = None
        yield
        return
    reset.write_text("5")  # forgets the peak so far
    before = _status("VmRSS")
    yield
    found[name] = _status("VmHWM") - before


def interleaved(benchmark: Any, ours: Work, baseline: Work | None, rounds: int, samples: int, flop: int = 0) -> None:
    """Time both in turn, `rounds` each after one warm-up; write what a reader needs into `extra_info`.

    `samples`: of one call. `speedup` is the ratio of medians; `flop` (of one of our calls) gives the share of the peak.
    """
    theirs: list[float] = []
    if baseline is not None:
        baseline()
    benchmark.pedantic(
        ours,
        setup=lambda: theirs.append(seconds(baseline)) if baseline is not None else None,
        rounds=rounds,
        warmup_rounds=1,
    )
    info, mine = benchmark.extra_info, benchmark.stats.stats.median
    info |= {"samples_per_second": samples / mine, "threads": torch.get_num_threads(), "load": os.getloadavg()[0]}
    info |= {f"matrix_peak_{n}": matrix_peak(d) for n, d in (("bf16", torch.bfloat16), ("fp32", torch.float32))}
    if theirs:
        other = statistics.median(theirs[1:])  # the first belongs to the warm-up
        info |= {"baseline_samples_per_second": samples / other, "speedup": other / mine}
    if flop:
        info |= {
            "gflop_per_sample": flop / samples / 1e9,
            "share_of_bf16_peak": flop / mine / matrix_peak(torch.bfloat16),
        }

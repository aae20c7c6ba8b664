"""Time and memory as each size grows, with fitted exponents: python scripts/growth.py [--hidden 128] [--plot FILE.svg]

One size is varied at a time around a middle: demonstrations 1 to 10, canvas 5x5 to 30x30 (grids fill it), batch, ACT
steps of an evaluation, and ARC tasks x augmentations of a source. Printed are processor time and the rise of resident
memory for each, and the exponent p of time ~ size^p fitted by least squares on logarithms over the upper half of the
sizes, where fixed costs no longer hide it. `--plot` draws them (matplotlib, the extra `docs`). Exit status: 0, or 1
where memory grows with the augmented tasks.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from etrm.config.schema import EncoderConfig  # noqa: E402  (the repository need not be installed)
from etrm.data.arc import load_arc  # noqa: E402
from etrm.data.arc_agi import ArcAgiSource  # noqa: E402
from etrm.models.encoders import EncoderSpec, build_encoder  # noqa: E402
from etrm.models.etrm import ETRM, decode  # noqa: E402
from etrm.models.trm import Structure, TRMDecoder  # noqa: E402
from tests.benchmarks.measures import peak_memory  # noqa: E402

MIDDLE = {"demos": 3, "canvas": 15, "batch": 2, "steps": 2}
SIZES = {
    "demos": (1, 2, 3, 5, 7, 10),
    "canvas": (5, 10, 15, 20, 25, 30),
    "batch": (1, 2, 4, 8, 16),
    "steps": (1, 2, 4, 8, 16),
}
TASKS = ((32, 1), (32, 1000), (400, 1), (400, 1000), (400, 2400))  # the last is 960,000 augmented tasks
FLAT = 16e6  # bytes that a larger number of augmentations may cost


def model_of(hidden: int, canvas: int, steps: int) -> ETRM:
    """The official network at another width and canvas, with the encoder over real cells."""
    torch.manual_seed(0)
    cells = canvas**2
    structure = Structure(12, cells, 16, hidden, 8, 4.0, 2, 3, 4, "rope", False, 1e4, 1e-5, "bfloat16", steps)
    spec = EncoderSpec(cells, 12, 16, hidden, torch.zeros(16, hidden), torch.ones(16))
    decoder = TRMDecoder(structure).requires_grad_(False)
    return ETRM(build_encoder(EncoderConfig("standard_cells", hidden, 8, 2, 1), spec), decoder, spec)


def measured(work: Callable[[], object]) -> tuple[float, float | None]:
    """Seconds of processor time (the least of three calls) and bytes by which resident memory rose."""
    found: dict[str, float | None] = {}
    work()
    with peak_memory(found, "bytes"):
        work()
    times = []
    for _ in range(3):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times), found["bytes"]


def pass_of(hidden: int, sizes: dict[str, int], training: bool) -> tuple[float, float | None]:
    """An update's forward and backward pass, or (not `training`) an answer over all ACT steps."""
    model = model_of(hidden, sizes["canvas"], sizes["steps"])
    shape = (sizes["batch"], sizes["demos"], sizes["canvas"] ** 2)
    demos, labels = torch.randint(1, 12, shape), torch.randint(1, 12, shape)
    mask = torch.ones(shape[:2], dtype=torch.bool)
    inputs = torch.randint(1, 12, (shape[0], shape[2]))

    def context() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model.encoder(demos, labels, mask)

    def train() -> None:
        decoder = model.decoder
        decoder(decoder.fresh_latents(shape[0]), inputs, context())[1].float().square().sum().backward()

    def answer() -> None:
        with torch.inference_mode():
            decode(model.decoder, inputs, context())

    return measured(train if training else answer)


def exponent(sizes: list[float], seconds: list[float]) -> float:
    """p of seconds ~ sizes^p over the upper half."""
    half = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[half:]), np.log(seconds[half:]), 1)[0])


Rows = list[tuple[float, float, float | None]]  # size, seconds, bytes


def table(name: str, hidden: int) -> Rows:
    """Measure and print one size's rows."""
    print(f"\n| {name} | ms | MB |\n| ---: | ---: | ---: |")
    rows: Rows = []
    for value in SIZES[name]:
        spent, risen = pass_of(hidden, MIDDLE | {name: value}, training=name != "steps")
        rows.append((value, spent, risen))
        print(f"| {value} | {spent * 1e3:.1f} | {'' if risen is None else f'{risen / 1e6:.0f}'} |", flush=True)
    values, seconds = [r[0] for r in rows], [r[1] for r in rows]
    print(f"\ntime ~ {name}^{exponent(values, seconds):.2f}")
    if name == "canvas":
        print(f"time ~ cells^{exponent([v * v for v in values], seconds):.2f}")
    return rows


def draw(found: dict[str, Rows], path: Path) -> None:
    """One panel a size, time over size on logarithmic axes, the fitted line over the sizes it was fitted on."""
    import matplotlib.pyplot as plt  # an extra, which the tables do not need

    figure, panels = plt.subplots(1, len(found), figsize=(3.2 * len(found), 3), squeeze=False, layout="constrained")
    for panel, (name, rows) in zip(panels[0], found.items(), strict=True):
        values, seconds = [r[0] for r in rows], [r[1] for r in rows]
        half, power = len(values) // 2, exponent(values, seconds)
        panel.loglog(values, [s * 1e3 for s in seconds], "o", label="measured")
        scale = np.exp(np.mean(np.log(seconds[half:]) - power * np.log(values[half:])))
        panel.loglog(values[half:], [scale * v**power * 1e3 for v in values[half:]], label=f"~ {name}^{power:.2f}")
        panel.set(xlabel=name, ylabel="ms" if panel is panels[0][0] else "")
        panel.legend()
    figure.savefig(path)


def tasks_table() -> bool:
    """Sampling from more and more augmented tasks; whether memory stays flat in their number."""
    print("\n| tasks | augmentations | augmented tasks | ms for 64 episodes | MB |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    risen: dict[tuple[int, int], float | None] = {}
    everything = load_arc(1, "training")
    for tasks, augmentations in TASKS:
        found: dict[str, float | None] = {}
        with peak_memory(found, "bytes"):
            source = ArcAgiSource(everything[:tasks], augmentations, True, 30, 10, False, 0)
            rng = np.random.default_rng(0)
            spent, _ = measured(lambda: source.sample(64, rng))  # noqa: B023
        risen[tasks, augmentations] = found["bytes"]
        shown = "" if found["bytes"] is None else f"{found['bytes'] / 1e6:.0f}"
        print(f"| {tasks} | {augmentations} | {tasks * augmentations} | {spent * 1e3:.1f} | {shown} |", flush=True)
    few, many = risen[400, 1], risen[400, 2400]
    return few is None or many is None or many - few < FLAT


def main() -> int:
    """Print every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=128, help="width; the official one is 512")
    parser.add_argument("--only", choices=[*SIZES, "tasks"])
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw time over each size")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found = {name: table(name, given.hidden) for name in SIZES if given.only in (None, name)}
    if given.plot is not None and found:
        draw(found, given.plot)
    flat = given.only not in (None, "tasks") or tasks_table()
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())

"""An invented run folder for the report's tests: curves, gradients, queries and contexts of any size. No numbers of it
were measured.
"""

import json
import math
from pathlib import Path

import numpy as np

from etrm.experiment.demo_evidence import demo_evidence
from etrm.experiment.evidence import ArmName


def write_run(
    folder: Path, scenario: str = "A", arm: ArmName = "calibration", updates: int = 60, shown: int = 8, side: int = 4
) -> Path:
    """Write all five files of a run with one log line an update and `shown` queries of side x side cells."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    (folder / "evidence.json").write_text(demo_evidence(scenario, arm).dumps())
    layers = [f"model.encoder.blocks.{i}.{part}.weight" for i in range(6) for part in ("attn", "mlp", "out")]
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, updates + 1):
            loss = 0.2 + 1.1 * math.exp(-4 * step / updates) + 0.02 * rng.normal()
            norms = {f"grad/layer/{n}": float(np.exp(rng.normal() - 3 + 0.1 * i)) for i, n in enumerate(layers)}
            file.write(json.dumps({"step": step, "train/lm_loss": loss, **norms}) + "\n")
    at = [updates * i // 4 for i in range(1, 5)]
    curve = [{"step": s, "probe/lm_loss": 0.2 + 1 / (1 + i), "validation/lm_loss": 0.4 + 1 / (1 + i)}
             for i, s in enumerate(at)]  # fmt: skip
    (folder / "run.json").write_text(json.dumps({"curve": curve, "minutes": {"training": 3.25}, "watch": {}}))
    rungs = ("seen_task", "unseen_composition" if arm != "arc" else "unseen_task")
    queries = []
    for i in range(shown):
        grids = rng.integers(0, 10, size=(8, side, side)).tolist()
        exact = i % 3 == 0
        queries.append(
            {
                "rung": rungs[i % 2], "task": f"task-{i % 7}", "demos": [grids[0:2], grids[2:4], grids[4:6]],
                "input": grids[6], "target": grids[7], "prediction": grids[7] if exact else grids[0], "exact": exact,
            }
        )  # fmt: skip
    (folder / "queries.json").write_text(json.dumps({"schema": 1, "queries": queries}))
    points = [
        {"of": of, "task": f"task-{t}", "x": float(np.cos(t) * size), "y": float(np.sin(t) * size)}
        for t in range(7)
        for of, size in (("encoder", 1.0), ("encoder", 1.1), ("table", 0.1))
    ]
    (folder / "contexts.json").write_text(
        json.dumps({"schema": 1, "explained": [0.6, 0.2], "offset": 1.5, "points": points})
    )
    return folder

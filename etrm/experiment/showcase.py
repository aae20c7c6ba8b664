"""What a report shows of a run beside its numbers: queries as grids, and a 2-D map of contexts. Two JSON files.

`queries.json`  {"schema": 1, "queries": [{"rung", "task", "demos": [[input, output], ...], "input", "target",
                "prediction", "exact"}]}, grids as lists of rows of 0..9; a prediction without a grid is [].
`contexts.json` {"schema": 1, "explained": [share of axis 1, of axis 2], "offset": number | null, "points":
                [{"of": "encoder" | "table", "task", "x", "y"}]}, each set about its own mean.
Notable: which queries are shown is decided by their place (a round over the tasks), never by the outcome. The axes are
the principal components of both sets together, each about its own mean and scaled to the same spread, so that neither
hides the other; how far the means lie apart is `offset`, in units of the table's own spread. Distances in two
dimensions may deceive, which is why the shares of variance are written too.

Legend: N queries, K demonstrations, S canvas cells, T context tokens, D hidden, W = T x D.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from etrm.config.schema import RunConfig
from etrm.data.episodes import Batch
from etrm.data.grids import IGNORE, PAD, crop
from etrm.evaluation.controls import answer, contexts_of, own_rows
from etrm.experiment.arms import Arm, Rung
from etrm.models.bundle import Bundle
from etrm.models.etrm import ETRM

SCHEMA = 1
SHOWN_QUERIES = 200
MAP_TASKS = 8  # as many as there are colours that colour-blind readers tell apart
MAP_CONTEXTS = 24  # contexts of each task on the map
Grid = list[list[int]]


def record_showcase(folder: Path, arm: Arm, model: ETRM, bundle: Bundle, config: RunConfig) -> tuple[Path, Path]:
    """Answer at most SHOWN_QUERIES queries of the arm's rungs, map the contexts, write both files; returns their paths.

    Call it once the encoder is trained. It changes neither model nor arm, and draws no random number.
    """
    share = SHOWN_QUERIES // len(arm.rungs)
    queries = [shown for rung in arm.rungs for shown in _queries(rung, share, model, bundle, config)]
    paths = folder / "queries.json", folder / "contexts.json"
    for path, content in zip(paths, ({"queries": queries}, _context_map(arm, model, bundle, config)), strict=True):
        path.write_text(json.dumps({"schema": SCHEMA, **content}, separators=(",", ":")) + "\n")
    return paths


def spread(task: np.ndarray, count: int) -> np.ndarray:
    """Indices of at most `count` episodes, in rounds over the tasks: each task's first, each task's second, …

    Where there are more tasks than `count`, those shown lie evenly over them. task (N,) int.
    """
    turn = np.zeros(len(task), dtype=np.int64)
    seen: dict[int, int] = {}
    for i, t in enumerate(task.tolist()):
        turn[i] = seen.get(t, 0)
        seen[t] = turn[i] + 1
    order = np.lexsort((np.arange(len(task)), turn))
    first = int((turn == 0).sum())
    if first > count:
        return order[np.linspace(0, first - 1, count).round().astype(np.int64)]
    return order[:count]


def _queries(rung: Rung, count: int, model: ETRM, bundle: Bundle, config: RunConfig) -> list[dict[str, Any]]:
    batch = rung.batch.take(spread(rung.batch.task, count))
    size, side = config.evaluation.batch_size, bundle.side
    found = answer(bundle.decoder, batch, contexts_of(model, batch, size), size, config.loss.cross_entropy)
    return [
        {
            "rung": rung.name,
            "task": rung.task_ids[int(batch.task[i])],
            "demos": [
                [_grid(batch.demo_inputs[i, k], side), _grid(batch.demo_labels[i, k], side)]
                for k in np.flatnonzero(batch.demo_mask[i])
            ],
            "input": _grid(batch.inputs[i], side),
            "target": _grid(batch.labels[i], side),
            "prediction": _grid(found.tokens[i], side),
            "exact": bool(found.exact[i]),
        }
        for i in range(len(batch))
    ]


def _grid(tokens: np.ndarray, side: int) -> Grid:
    """Tokens or labels (S,) as a grid of colours; [] where there is none."""
    grid: Grid = crop(np.where(tokens == IGNORE, PAD, tokens), side).tolist()
    return grid


def _context_map(arm: Arm, model: ETRM, bundle: Bundle, config: RunConfig) -> dict[str, Any]:
    """Encoder contexts (probe set and seen rung) of MAP_TASKS tasks, and the decoder's own rows of the same tasks."""
    parts = [_of_tasks(rung.batch, MAP_TASKS) for rung in (arm.probe, arm.rungs[0])]
    names = arm.probe.task_ids
    batch = Batch(*(np.concatenate(column) for column in zip(*map(_columns, _same_demos(parts)), strict=True)))
    batch = batch.take(spread(batch.task, MAP_TASKS * MAP_CONTEXTS))
    contexts = contexts_of(model, batch, config.evaluation.batch_size).numpy().reshape(len(batch), -1)  # (N, W)
    with_row = np.flatnonzero(batch.row >= 0)
    _, first = np.unique(batch.row[with_row], return_index=True)
    known = batch.take(with_row[first])
    rows = own_rows(bundle.decoder, bundle.table, known).float().numpy().reshape(len(known), -1)  # (R, W)
    sets = [x - x.mean(axis=0) for x in (contexts, rows) if len(x)]
    spreads = [float(np.sqrt((x**2).sum(axis=1).mean())) or 1.0 for x in sets]
    points, explained = principal_axes(np.concatenate([x / s for x, s in zip(sets, spreads, strict=True)]))
    points = points * np.repeat(spreads, [len(x) for x in sets])[:, None]
    gap = float(np.linalg.norm(contexts.mean(axis=0) - rows.mean(axis=0))) / spreads[1] if len(rows) else None
    owners = [("encoder", t) for t in batch.task] + [("table", t) for t in known.task]
    return {
        "explained": explained,
        "offset": None if gap is None else round(gap, 3),
        "points": [
            {"of": of, "task": names[int(t)], "x": round(float(x), 5), "y": round(float(y), 5)}
            for (of, t), (x, y) in zip(owners, points, strict=True)
        ],
    }


def _of_tasks(batch: Batch, count: int) -> Batch:
    """The episodes of `count` tasks that lie evenly over all of them."""
    tasks = np.unique(batch.task)
    chosen = tasks[np.unique(np.linspace(0, len(tasks) - 1, count).round().astype(np.int64))]
    return batch.take(np.flatnonzero(np.isin(batch.task, chosen)))


def _same_demos(parts: list[Batch]) -> list[Batch]:
    """The batches with K padded to the largest of them."""
    most = max(part.demo_mask.shape[1] for part in parts)
    padded = []
    for part in parts:
        extra = most - part.demo_mask.shape[1]
        inputs, labels = (
            np.pad(a, ((0, 0), (0, extra), (0, 0)), constant_values=PAD) for a in (part.demo_inputs, part.demo_labels)
        )
        mask = np.pad(part.demo_mask, ((0, 0), (0, extra)))
        padded.append(Batch(part.inputs, part.labels, inputs, labels, mask, part.task, part.row))
    return padded


def _columns(batch: Batch) -> list[np.ndarray]:
    return [getattr(batch, name) for name in Batch.__dataclass_fields__]


def principal_axes(vectors: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Coordinates of vectors (N, W) on their two largest principal components (N, 2), and each one's variance share.

    Constant vectors give zeros and shares of 0. Signs are fixed by the largest coordinate, so a repeat draws the same.
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    # The Gram matrix (N, N) is far smaller than the covariance (W, W), and gives the coordinates at once.
    values, basis = np.linalg.eigh(centred @ centred.T)
    values = np.clip(values[::-1], 0.0, None)
    size = min(2, len(values))
    total = values.sum()
    coordinates = np.zeros((len(vectors), 2))
    if total == 0.0:
        return coordinates, [0.0, 0.0]
    coordinates[:, :size] = basis[:, ::-1][:, :size] * np.sqrt(values[:size])
    largest = np.abs(coordinates).argmax(axis=0)
    coordinates *= np.where(coordinates[largest, [0, 1]] < 0, -1.0, 1.0)
    shares = [round(float(v / total), 4) for v in values[:size]] + [0.0] * (2 - size)
    return coordinates, shares

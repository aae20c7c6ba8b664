"""What a run keeps for its report: which queries, their grids as the decoder answered them, and the map of contexts."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etrm.config.compose import load
from etrm.config.schema import RunConfig
from etrm.data.grids import COLOUR0, crop
from etrm.evaluation.controls import answer, contexts_of
from etrm.experiment.arms import Arm, build_arm
from etrm.experiment.showcase import MAP_TASKS, SHOWN_QUERIES, principal_axes, record_showcase, spread
from etrm.models.bundle import Bundle, load_bundle
from etrm.models.encoders import build_encoder
from etrm.models.etrm import ETRM

pytestmark = pytest.mark.thorough
Written = tuple[dict[str, Any], dict[str, Any], Arm, ETRM, Bundle, RunConfig]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Both files of an untrained encoder on the micro bundle, read back."""
    config = load(RunConfig, "cfg_micro", ["evaluation.seen_queries=4", "evaluation.unseen_queries=8"])
    bundle = load_bundle("micro")
    arm = build_arm(config, bundle)
    torch.manual_seed(0)
    model = ETRM(build_encoder(config.encoder, bundle.spec()), bundle.decoder, bundle.spec())
    paths = record_showcase(tmp_path_factory.mktemp("run"), arm, model, bundle, config)
    assert [path.name for path in paths] == ["queries.json", "contexts.json"]
    queries, contexts = (json.loads(Path(path).read_text()) for path in paths)
    return queries, contexts, arm, model, bundle, config


def test_queries_are_the_decoders_own_answers(written: Written) -> None:
    document, _, arm, model, bundle, config = written
    assert document["schema"] == 1 and 0 < len(document["queries"]) <= SHOWN_QUERIES
    shown = Counter(query["rung"] for query in document["queries"])
    assert set(shown) == {rung.name for rung in arm.rungs}
    for rung in arm.rungs:
        batch = rung.batch.take(spread(rung.batch.task, SHOWN_QUERIES // 2))
        size = config.evaluation.batch_size
        found = answer(bundle.decoder, batch, contexts_of(model, batch, size), size, "softmax")
        own = [query for query in document["queries"] if query["rung"] == rung.name]
        assert len(own) == len(batch)
        for i, query in enumerate(own):
            assert query["task"] == rung.task_ids[batch.task[i]] and len(query["demos"]) == batch.demo_mask[i].sum()
            assert query["exact"] is bool(found.exact[i])
            side = bundle.side
            for key, tokens in (("input", batch.inputs[i]), ("target", batch.labels[i])):
                assert np.array_equal(np.array(query[key]), tokens.reshape(side, side) - COLOUR0)
            given = crop(found.tokens[i], side)
            assert np.array_equal(np.array(query["prediction"]).reshape(given.shape), given)
            last = np.array(query["demos"][-1][1])
            assert np.array_equal(last, batch.demo_labels[i, -1].reshape(side, side) - COLOUR0)


def test_context_map_holds_both_sets_of_the_same_tasks(written: Written) -> None:
    _, document, arm, *_ = written
    of = {name: {p["task"] for p in document["points"] if p["of"] == name} for name in ("encoder", "table")}
    assert of["encoder"] == of["table"] <= set(arm.probe.task_ids) and len(of["table"]) == MAP_TASKS
    assert 0.0 < document["explained"][1] <= document["explained"][0] <= 1.0
    rows = np.array([[p["x"], p["y"]] for p in document["points"] if p["of"] == "table"])
    own = np.array([[p["x"], p["y"]] for p in document["points"] if p["of"] == "encoder"])
    assert np.allclose([rows.mean(axis=0), own.mean(axis=0)], 0.0, atol=1e-4)  # each about its own mean
    assert rows.std() > 5 * own.std()  # an untrained encoder gives every task nearly the same context
    assert document["offset"] > 0.0


def test_nothing_of_the_model_moves(written: Written, tmp_path: Path) -> None:
    queries, contexts, arm, model, bundle, config = written
    modes = [module.training for module in model.modules()]
    again = record_showcase(tmp_path, arm, model, bundle, config)
    assert [json.loads(path.read_text()) for path in again] == [queries, contexts]
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize(
    ("task", "count", "expected"),
    [
        ([0, 0, 0, 1, 1, 1], 4, [0, 3, 1, 4]),
        ([0, 0, 1, 2, 2], 9, [0, 2, 3, 1, 4]),
        ([0, 1, 2, 3, 4, 4], 3, [0, 2, 4]),
    ],
)
def test_spread_takes_rounds_over_the_tasks(task: list[int], count: int, expected: list[int]) -> None:
    assert spread(np.array(task), count).tolist() == expected


def test_principal_axes_keep_distances_of_a_plane() -> None:
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(30, 2)) @ np.linalg.qr(rng.normal(size=(50, 2)))[0].T
    points, explained = principal_axes(plane)
    gaps = [np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (plane, points)]
    assert np.allclose(*gaps) and sum(explained) == pytest.approx(1.0, abs=1e-3)
    assert principal_axes(np.ones((5, 9)))[1] == [0.0, 0.0]


def test_arms_of_unequal_demonstrations_are_mapped(written: Written, tmp_path: Path) -> None:
    """ARC tasks show another number of demonstrations in the probe set than in the seen rung."""
    _, contexts, arm, model, bundle, config = written
    batch = arm.probe.batch
    fewer = replace(
        batch,
        demo_inputs=batch.demo_inputs[:, :2],
        demo_labels=batch.demo_labels[:, :2],
        demo_mask=batch.demo_mask[:, :2],
    )
    changed = replace(arm, probe=replace(arm.probe, batch=fewer))
    path = record_showcase(tmp_path, changed, model, bundle, config)[1]
    assert len(json.loads(path.read_text())["points"]) == len(contexts["points"])

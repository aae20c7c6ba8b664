"""The manifest tells everything that numbers depend on; a rerun checks it and gives the same bytes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from etrm.errors import CheckpointError, ConfigError
from etrm.experiment import rerun
from etrm.experiment.manifest import FACTS, MANIFEST, facts, read_manifest, write_manifest
from etrm.experiment.pretraining import INTERRUPTED, Pretraining, load_run
from etrm.models.bundle import load_bundle

pytestmark = pytest.mark.thorough
SMALL = [
    "bundle=micro",
    "data.benchmark=micro-2",
    "data.train_tasks=0",
    "data.augmentations=1",
    "data.max_demos=3",
    "data.colour_augmentation=false",
    "encoder.hidden_size=32",
    "encoder.num_heads=2",
    "encoder.layers=1",
    "budget.updates=6",
    "budget.epochs=0",
    "budget.batch_size=4",
    "budget.log_every=2",
    "budget.checkpoint_every=2",
    "optim.warmup_updates=1",
    "evaluation_tasks=2",
    "evaluation.seen_queries=1",
    "evaluation.unseen_queries=1",
    "evaluation.probe_queries=2",
    "system.device=cpu",
    "run=small",
]


def run(root: Path) -> Pretraining:
    config, claims = load_run("cfg_test_frozen_decoder", SMALL)
    return Pretraining(config, claims, root, lambda _: None)


def edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = run(tmp_path_factory.mktemp("first"))
    made.run()
    return made.folder


def test_the_manifest_of_a_run_holds_every_fact(folder: Path) -> None:
    manifest = read_manifest(folder / MANIFEST)
    assert set(manifest) == set(FACTS)
    assert manifest["threads"] == torch.get_num_threads()
    assert manifest["bundle"]["sha256"] == load_bundle("micro").sha256
    assert set(manifest["data_sha256"]) == {"arcagi_aa922be.json", "arcagi2_f3283f7.json"}


def test_a_rerun_gives_the_same_bytes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(folder / MANIFEST), "--into", str(tmp_path)]
    assert rerun.main([*arguments, "--check"]) == rerun.EQUAL
    assert rerun.main(arguments) == rerun.EQUAL
    assert "byte by byte" in capsys.readouterr().out
    assert rerun.main(arguments) == rerun.UNUSABLE  # nothing is written over


BOUND = 1e-3  # relative; 1 against 2 threads differed by 2e-5 at most over 200 updates of 64 episodes


def test_another_number_of_threads_moves_the_metrics_within_a_bound(folder: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    path = tmp_path / "one" / MANIFEST
    path.parent.mkdir()
    path.write_bytes((folder / MANIFEST).read_bytes())
    path.with_name("metrics.jsonl").write_bytes((folder / "metrics.jsonl").read_bytes())
    edited(path, threads=1 if before > 1 else 2)
    try:
        rerun.main([str(path), "--into", str(tmp_path / "again")])
    finally:
        torch.set_num_threads(before)
    ours, theirs = (
        [json.loads(line) for line in next(root.rglob("metrics.jsonl")).read_text().splitlines()]
        for root in (folder, tmp_path / "again")
    )
    assert [set(row) for row in ours] == [set(row) for row in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert other == pytest.approx(mine, rel=BOUND, abs=1e-6)


def test_a_rerun_notices_other_metrics(folder: Path, tmp_path: Path) -> None:
    for name in (MANIFEST, "metrics.jsonl"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    log = tmp_path / "metrics.jsonl"
    log.write_text(log.read_text().replace('"step": 2', '"step": 3', 1))
    assert rerun.main([str(tmp_path / MANIFEST), "--into", str(tmp_path / "again")]) == rerun.OTHER


@pytest.mark.parametrize(
    "change",
    [
        {"threads": 77, "told": None},
        {"sources_sha256": "0"},
        {"machine": "Other-1"},
        {"versions": {"torch": "1.0"}},
        {"bundle": {"name": "micro", "sha256": "0"}},
        {"data_sha256": {}},
    ],
    ids=str,
)
def test_each_fact_that_differs_is_told_and_nothing_is_repeated(
    folder: Path, tmp_path: Path, change: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / MANIFEST
    path.write_bytes((folder / MANIFEST).read_bytes())
    told = change.pop("told", next(iter(change)))
    edited(path, **change)
    code = rerun.main([str(path), "--check"])
    if told is None:  # the rerun takes the manifest's own threads
        assert code == rerun.EQUAL
    else:
        assert code == rerun.DIFFERS and f"differs: {told}" in capsys.readouterr().out


def test_git_alone_is_no_difference(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / MANIFEST
    path.write_bytes((folder / MANIFEST).read_bytes())
    edited(path, git={"commit": "0", "changed": True})
    assert rerun.main([str(path), "--check"]) == rerun.EQUAL


def test_a_run_that_goes_on_under_other_threads_says_so_once(folder: Path, tmp_path: Path) -> None:
    config, bundle = run(tmp_path).config, load_bundle("micro")
    assert write_manifest(tmp_path, config, bundle, 1) == []
    assert write_manifest(tmp_path, config, bundle, 1) == []
    for _ in range(2):
        assert write_manifest(tmp_path, config, bundle, 3) == ["threads was 1, is 3"]
    assert read_manifest(tmp_path / MANIFEST)["continued"] == [["threads was 1, is 3"]]
    assert read_manifest(tmp_path / MANIFEST)["threads"] == facts(config, bundle, 1)["threads"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "no manifest of format 1"),
        ('{"format": 1}', "kind is missing"),
        ('{"format": 1, "format": 1}', "duplicate key"),
        ("{", "not valid JSON"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match=told):
        read_manifest(tmp_path / MANIFEST)


def test_an_edited_config_is_refused_and_a_name_cannot_leave_the_folder(folder: Path, tmp_path: Path) -> None:
    import hashlib

    path = tmp_path / MANIFEST
    config = read_manifest(folder / MANIFEST)["config"] | {"run": "../../escaped"}
    path.write_bytes((folder / MANIFEST).read_bytes())
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    edited(path, config=config)
    with pytest.raises(CheckpointError, match="config_sha256"):
        read_manifest(path)
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    edited(path, config_sha256=hashlib.sha256(text.encode()).hexdigest())
    before = sorted(tmp_path.rglob("*"))
    assert rerun.main([str(path), "--into", str(tmp_path / "a" / "b"), "--anyway"]) == rerun.UNUSABLE
    assert sorted(tmp_path.rglob("*")) == before


def test_a_number_that_no_float_holds_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    config = read_manifest(folder / MANIFEST)["config"]
    config["optim"]["lr"] = 10**400
    with pytest.raises(ConfigError, match=r"optim\.lr.*expected a finite float"):
        rerun.config_of(tmp_path / MANIFEST, {"kind": "PretrainingConfig", "config": config})


def test_an_interrupt_leaves_a_partial_report_and_a_state_to_go_on_from(folder: Path, tmp_path: Path) -> None:
    made = run(tmp_path)
    real, calls = made.prepared.source.sample, []

    def interrupted(count: int, rng: Any) -> Any:
        calls.append(count)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(count, rng)

    made.prepared.source.sample = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        made.run()
    told = json.loads((made.folder / INTERRUPTED).read_text())
    assert (told["executed_updates"], told["planned_updates"], told["goes_on_from"]) == (3, 6, 2)
    assert told["last_line"]["step"] == 3  # an evaluation, after the last checkpoint
    again = run(tmp_path)
    again.run()
    assert not (made.folder / INTERRUPTED).exists()
    assert (made.folder / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()

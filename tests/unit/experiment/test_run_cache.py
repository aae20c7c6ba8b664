"""Finished runs: shared under their key, whole or absent, never produced twice at once."""

import json
import multiprocessing
from pathlib import Path

import pytest

from etrm.errors import CheckpointError, ConfigError
from etrm.experiment.run_cache import DONE, REQUIRED_PARTS, RunCache, encoder_hash, key_parts, run_key, sources_hash

pytestmark = pytest.mark.fast

PARTS = {name: f"{name}-1" for name in REQUIRED_PARTS}


class Producer:
    """Counts its calls; each call writes its number, so that a reader can tell which run it got."""

    def __init__(self):
        self.calls = 0

    def __call__(self, folder):
        self.calls += 1
        (folder / "metrics").mkdir()
        (folder / "metrics" / "loss.jsonl").write_text(f"{self.calls}\n")
        (folder / "weights").write_bytes(b"w" * 1000)


@pytest.fixture
def told():
    return []


@pytest.fixture
def cache(tmp_path, told):
    return RunCache(tmp_path / "cache", announce=told.append)


def test_second_request_reuses_the_first_run(cache, told):
    produce = Producer()
    first, second = cache.get_or_run(PARTS, produce), cache.get_or_run(PARTS, produce)
    assert (produce.calls, first.reused, second.reused) == (1, False, True)
    assert first.path == second.path
    assert (second.path / "metrics/loss.jsonl").read_text() == "1\n"
    assert "kept for the next session" in first.describe()
    assert second.age >= 0 and "reused finished run" in second.describe() and "--fresh" in second.describe()
    assert told == []


@pytest.mark.parametrize("part", REQUIRED_PARTS)
def test_every_part_changes_the_key_and_none_may_be_left_out(part, cache):
    produce = Producer()
    cache.get_or_run(PARTS, produce)
    cache.get_or_run(PARTS | {part: "other"}, produce)
    assert produce.calls == 2
    with pytest.raises(ConfigError, match=f"run key lacks {part}"):
        run_key({name: value for name, value in PARTS.items() if name != part})
    with pytest.raises(ConfigError, match=part):
        run_key(PARTS | {part: ""})


def test_key_ignores_the_order_of_its_parts_and_has_a_fixed_value():
    assert run_key(PARTS) == run_key(dict(reversed(PARTS.items())))
    # Golden: sha256 of json.dumps(parts, sort_keys=True), first 32 digits; a change orphans every finished run.
    assert run_key(PARTS) == "a9237dc83046cdde293bb30faf0b7919"


def test_fresh_runs_once_a_session_and_replaces_the_old_run(tmp_path, cache, told):
    produce = Producer()
    cache.get_or_run(PARTS, produce)
    session = RunCache(cache.root, announce=told.append)
    fresh = session.get_or_run(PARTS, produce, fresh=True)
    assert (produce.calls, fresh.reused) == (2, False)
    assert (fresh.path / "metrics/loss.jsonl").read_text() == "2\n"
    assert session.get_or_run(PARTS, produce, fresh=True).reused
    assert produce.calls == 2
    assert sorted(path.name for path in cache.root.iterdir()) == [run_key(PARTS), f"{run_key(PARTS)}.lock"]


def alter(entry):
    (entry / "weights").write_bytes(b"v" * 1000)


def shorten(entry):
    (entry / "weights").write_bytes(b"")


def remove(entry):
    (entry / "metrics/loss.jsonl").unlink()


def add(entry):
    (entry / "notes").write_text("x")


def link(entry):
    (entry / "notes").symlink_to(entry / "weights")


def truncate_done(entry):
    (entry / DONE).write_text((entry / DONE).read_text()[:40])


def remove_done(entry):
    (entry / DONE).unlink()


def forge_parts(entry):
    done = json.loads((entry / DONE).read_text())
    done["parts"]["seed"] = "another"
    (entry / DONE).write_text(json.dumps(done))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (alter, "weights was altered"),
        (shorten, "weights was altered"),
        (remove, "loss.jsonl is missing"),
        (add, "notes was added"),
        (link, "notes is a link"),
        (truncate_done, "cannot be read"),
        (remove_done, "cannot be read"),
        (forge_parts, "other key parts"),
    ],
)
def test_damaged_run_is_refused_with_its_reason_and_run_again(cache, told, damage, reason):
    produce = Producer()
    damage(cache.get_or_run(PARTS, produce).path)
    again = cache.get_or_run(PARTS, produce)
    assert (produce.calls, again.reused) == (2, False)
    assert len(told) == 1 and "refused and run again" in told[0] and reason in told[0]
    assert cache.get_or_run(PARTS, produce).reused


def test_run_that_raises_leaves_nothing_and_its_error_arrives(cache):
    def produce(folder):
        (folder / "half").write_text("half")
        raise CheckpointError("disk is full")

    with pytest.raises(CheckpointError, match="disk is full"):
        cache.get_or_run(PARTS, produce)
    assert [path.suffix for path in cache.root.iterdir()] == [".lock"]
    assert not cache.get_or_run(PARTS, Producer()).reused


def test_remains_of_a_killed_process_are_swept_and_never_taken_for_a_run(cache):
    cache.root.mkdir(parents=True)
    remains = cache.root / f".new-{run_key(PARTS)}-abc"
    remains.mkdir()
    (remains / "weights").write_text("half")
    assert not cache.get_or_run(PARTS, Producer()).reused
    assert not remains.exists()
    remains.mkdir()
    assert cache.get_or_run(PARTS, Producer()).reused
    assert not remains.exists()


def test_run_that_writes_nothing_or_a_link_is_refused(cache):
    with pytest.raises(CheckpointError, match="without writing a file"):
        cache.get_or_run(PARTS, lambda folder: None)
    with pytest.raises(CheckpointError, match="is a link"):
        cache.get_or_run(PARTS, lambda folder: (folder / "weights").symlink_to("elsewhere"))


def _race(root, started, release, results):
    """One session of the race: the producer holds until the other session is known to wait."""
    told = []

    def announce(text):
        told.append(text)
        release.set()

    def produce(folder):
        started.set()
        assert release.wait(20)
        (folder / "weights").write_text("w")

    run = RunCache(root, announce=announce).get_or_run(PARTS, produce)
    results.put((run.reused, told))


@pytest.mark.thorough
def test_two_processes_share_one_run(tmp_path):
    # spawn, not fork: torch's threads may be running in the parent
    context = multiprocessing.get_context("spawn")
    started, release, results = context.Event(), context.Event(), context.SimpleQueue()
    racers = [context.Process(target=_race, args=(tmp_path, started, release, results)) for _ in range(2)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(30)
    assert [racer.exitcode for racer in racers] == [0, 0]
    (first, first_told), (second, second_told) = sorted((results.get() for _ in racers), key=lambda found: found[0])
    assert (first, second) == (False, True)
    assert first_told == []
    assert len(second_told) == 1 and "waiting for run" in second_told[0] and "process " in second_told[0]


def test_cache_folder_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("ETRM_CACHE", str(tmp_path / "shared"))
    assert RunCache().root == tmp_path / "shared"
    monkeypatch.delenv("ETRM_CACHE")
    monkeypatch.chdir(tmp_path)
    assert RunCache().root == tmp_path / "runs" / "cache"


def test_sources_hash_sees_content_and_path(tmp_path):
    hashes = set()
    for folder, name, text in [("a", "x.py", "1"), ("b", "x.py", "2"), ("c", "y.py", "1"), ("d", "x.txt", "1")]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(text)
        hashes.add(sources_hash(tmp_path / folder))
    assert len(hashes) == 4
    (tmp_path / "e/deep").mkdir(parents=True)
    (tmp_path / "e/deep/x.py").write_text("1")
    assert sources_hash(tmp_path / "e") not in hashes


def test_encoder_hash_follows_the_file_and_those_beside_it(tmp_path, monkeypatch):
    source = tmp_path / "mine.py"
    source.write_text("def build(spec): ...")
    specification = f"{source}:build"
    first = encoder_hash(specification)
    monkeypatch.syspath_prepend(tmp_path)
    assert encoder_hash("mine:build").split("@")[1] == first.split("@")[1]
    (tmp_path / "layers.py").write_text("x = 1")
    beside = encoder_hash(specification)
    source.write_text("def build(spec): return 1")
    assert len({first, beside, encoder_hash(specification)}) == 3
    assert encoder_hash("aligned") == "aligned"
    for missing in (f"{tmp_path}/none.py:build", "no_such_module:build", "no_such.module:build"):
        with pytest.raises(ConfigError, match="--encoder"):
            encoder_hash(missing)


def test_key_parts_name_everything_and_notice_the_config():
    def parts(**changed):
        config = {"lr": 3e-4, "arm": {"k": 3}} | changed
        return key_parts(config, bundle="ab12", encoder="aligned", threads=2, seed=0)

    assert set(REQUIRED_PARTS) <= parts().keys()
    assert run_key(parts()) == run_key(parts())
    assert run_key(parts(arm={"k": 4})) != run_key(parts())
    with pytest.raises(ConfigError, match="JSON"):
        parts(path=Path("x"))
    with pytest.raises(ConfigError, match="JSON"):
        parts(lr=float("nan"))

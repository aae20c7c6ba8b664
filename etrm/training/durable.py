"""Files that a kill, a full disk or a second process cannot leave half written.

Notable: a file is written beside its place, synced, renamed, and its folder synced, so that every moment shows the old
file or the new one. What a killed process left beside it (`.NAME.PID.partial`) is swept by the next one that holds the
folder. The lock is `flock`'s and dies with its process. Unix only (`fcntl`).
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from etrm.errors import CheckpointError


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Put `data` at `path`, wholly or not at all. CheckpointError where the disk is full or does not let us."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        with suppress(OSError):  # its folder may be what is missing
            temporary.unlink(missing_ok=True)
        raise unwritten(path, error) from error


def append_line(path: Path, text: str) -> None:
    """Append one line. CheckpointError where the disk is full; what did arrive is cut off by the next resume."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
    except OSError as error:
        raise unwritten(path, error) from error


def sync(path: Path) -> None:
    """Ask the disk to keep what was written to a file or entered in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unwritten(path: Path, error: OSError) -> CheckpointError:
    """The error of a write that failed; everything that was whole before still is."""
    return CheckpointError(
        f"{path} was not written ({error.strerror or error}); earlier files are whole: make room on the disk and give "
        "the same command again"
    )


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the run folder against other processes, and sweep what a killed one left there.

    CheckpointError if another process holds it. The lock file lies beside the folder and stays: removing it would let
    two processes hold "the" lock on two inodes.
    """
    path = folder.with_name(f".{folder.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("a+")
    except OSError as error:
        raise unwritten(path, error) from error
    with opened as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise CheckpointError(
                f"{folder} is being written by {holder}; wait for it, or choose another run=NAME"
            ) from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()
        for leftover in folder.glob(".*.partial"):
            leftover.unlink()
        yield

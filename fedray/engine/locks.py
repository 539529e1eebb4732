"""One process at a time: who writes into a run folder, who searches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fedray.errors import BadInput
from fedray.track.run import RunFolder

LOCK_S = 10.0
"""Seconds to wait for a lock: a process that has just been killed may take a moment to be gone."""


@contextmanager
def locked(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock at `path`; with `wait` after any other process, however long that takes.

    Raises:
        BadInput: another process holds it, and so runs `what`.
    """
    lock = FileLock(path, mode=0o600)
    try:
        lock.acquire(timeout=-1 if wait else LOCK_S)
    except Timeout:
        raise BadInput(f"{what} is being run by another process; wait for it, or stop it") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def alone(folder: RunFolder, *, wait: bool = False) -> Iterator[None]:
    """Be the only process that writes into a run folder; `wait` as for `locked`.

    Raises:
        BadInput: another process does.
    """
    with locked(folder.path / ".lock", f"run {folder.run_id}", wait=wait):
        yield

"""The cache's housekeeping: who writes a file, who uses it, and which may go when it grows beyond a limit.

    <name>.lock   locked by the one process that computes the file
    <name>.used   locked, shared, by every process that uses it; its time is that of the last use

`shrink` removes what was used longest ago. Never what a running experiment uses: neither a file whose `.used` is locked
by any process, nor one used within the last hour (readers renew that time every few minutes), which covers machines
that do not see each other's locks. Where locks do not work at all, it is a week.

Whatever else lies in the cache's folder is counted too, since it fills the same disk, but stays: it is not ours to
remove. Data sets, which lie there unless $FEDRAY_DATA says otherwise, were downloaded and not computed: they are no
part of the cache.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, NamedTuple

ROOMS = {"features": (".arrow",), "backbones": (".safetensors",), "checks": (".json", ".parquet")}
"""Folders of the cache, and the endings of their files. Everything else in them belongs to one of these files."""
OTHER = "other"
"""The kind of what is in none of them."""

RECENT = 3600.0
"""Seconds after its last use in which a file stays, locked or not."""
UNLOCKED = 7 * 24 * 3600.0
"""The same, on file systems without locks."""
BEAT = 300.0
"""Seconds after which a reader renews the time of the last use."""
STALE = 600.0
"""Seconds without a sign of life after which a writer without a lock counts as killed."""

HANDLES = 256
"""Files whose locks a process holds, the latest ones; others are kept by the time of their last use."""

_HELD: OrderedDict[tuple[Path, int], int] = OrderedDict()
"""By note and its number on the disk: what this process has open. Locks belong to processes, and so does this."""

log = logging.getLogger("fedray")


def default_cache() -> Path:
    """``$FEDRAY_CACHE``, or ``~/.cache/fedray``."""
    return Path(os.environ.get("FEDRAY_CACHE") or Path.home() / ".cache" / "fedray")


def data_sets() -> Path:
    """Where data sets lie: ``$FEDRAY_DATA``, or ``~/.cache/fedray/data``."""
    said = os.environ.get("FEDRAY_DATA")
    return Path(said) if said else Path.home() / ".cache" / "fedray" / "data"


class Entry(NamedTuple):
    """A file of the cache with what belongs to it, or something else in its folder."""

    path: Path
    kind: str  # features, backbones, checks or other
    size: int  # bytes, with drafts and sidecars
    used: float  # seconds since 1970
    held: bool  # some process uses it now


def use(path: Path) -> None:
    """Note that this process uses a file, and keep it from being removed for as long as the process lives.

    Quietly does nothing where the folder can't be written: what can't be written can't be shrunk either.
    """
    note = path.with_suffix(".used")
    with suppress(OSError):
        while not _held(note):
            pass


def _held(note: Path) -> bool:
    """Touch the note and hold its lock for as long as this process lives; False if it was removed meanwhile."""
    try:
        handle = os.open(note, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:  # another user's: the lock can be shared all the same
        handle = os.open(note, os.O_RDONLY)
    key = note, os.fstat(handle).st_ino
    if _HELD.setdefault(key, handle) != handle:  # a number is not given anew while we hold the file
        os.close(handle)
    with suppress(PermissionError):
        os.utime(_HELD[key])
    with suppress(OSError):  # no locks here: the time of the last use must do
        fcntl.flock(_HELD[key], fcntl.LOCK_SH)
    if not os.fstat(_HELD[key]).st_nlink:
        os.close(_HELD.pop(key))
        return False
    _HELD.move_to_end(key)
    while len(_HELD) > HANDLES:
        os.close(_HELD.popitem(last=False)[1])
    return True


def beat(path: Path) -> None:
    """Renew the time of a file's last use, if it is some minutes old."""
    _beat(path, int(time.monotonic() // BEAT))


@lru_cache(maxsize=256)
def _beat(path: Path, window: int) -> None:
    with suppress(OSError):
        os.utime(path.with_suffix(".used"))


@contextmanager
def writing(path: Path) -> Iterator[Callable[[], None]]:
    """Be the only one that computes a file, on this machine and on all that share its file system; others wait.

    What a killed writer left goes. Yields a function to be called now and then as a sign of life: where there are no
    locks a mark stands in for one, and who gives no sign for `STALE` seconds has lost it.

    Raises:
        OSError: the folder can't be written.
    """
    with path.with_suffix(".lock").open("ab") as handle:
        if _locked(handle):
            _sweep(path, 0.0)
            yield lambda: None
        else:
            with _marked(path) as alive:
                yield alive


def _locked(handle: IO[bytes]) -> bool:
    """Wait for the lock; False where the file system has none."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL):
            raise
        return False
    return True


@contextmanager
def _marked(path: Path) -> Iterator[Callable[[], None]]:
    """A lock that is a file's existence."""
    mark = path.with_suffix(".writer")
    while True:
        try:
            mark.touch(exist_ok=False)
            break
        except FileExistsError:
            with suppress(FileNotFoundError):
                if time.time() - mark.stat().st_mtime > STALE:
                    log.warning("%s: its writer is gone, taking over", path)
                    mark.unlink()
                    continue
            time.sleep(0.2)
    _sweep(path, STALE)

    def alive() -> None:
        with suppress(FileNotFoundError):  # taken over: both write the same bytes, each to a draft of its own
            os.utime(mark)

    try:
        yield alive
    finally:
        mark.unlink(missing_ok=True)


def _sweep(path: Path, age: float) -> None:
    """Remove drafts of a file that nobody has written to for so many seconds."""
    for draft in path.parent.glob(f"{path.stem}*.tmp"):
        with suppress(FileNotFoundError):
            if time.time() - draft.lstat().st_mtime >= age:
                draft.unlink()


def usage(root: Path) -> list[Entry]:
    """What the cache holds, used longest ago first; also what killed writers left, and what is not ours."""
    found = _others(root)
    for kind, endings in ROOMS.items():
        parts: dict[str, list[Path]] = defaultdict(list)
        for file in (root / kind).iterdir() if (root / kind).is_dir() else ():
            parts[file.name.partition(".")[0]].append(file)
        for stem, files in parts.items():
            goal = next((file for file in files if file.suffix in endings), root / kind / f"{stem}{endings[0]}")
            found += [_entry(goal, kind, files)] if stem else []
    return sorted((entry for entry in found if entry.size), key=lambda entry: (entry.used, entry.path))


def _others(root: Path) -> list[Entry]:
    """What lies beside the rooms, a whole folder as one; data sets left out."""
    sets = {(root / "data").resolve(), data_sets().resolve()}
    if root.resolve() in sets or not root.is_dir():  # beside the rooms, there are data sets alone
        return []
    found = []
    for path in root.iterdir():
        if path.name not in ROOMS and path.resolve() not in sets:
            size, latest = _weighed(_files(path, sets))
            found.append(Entry(path, OTHER, size, latest, False))
    return found


def _files(path: Path, sets: set[Path]) -> Iterator[Path]:
    """A file, or all below a folder except in data sets; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        yield path
        return
    for folder, inner, names in os.walk(path):
        inner[:] = [name for name in inner if Path(folder, name).resolve() not in sets]
        yield from (Path(folder, name) for name in names)


def _weighed(files: Iterable[Path]) -> tuple[int, float]:
    """Bytes in all, and when the latest was written to."""
    size, latest = 0, 0.0
    for path in files:
        with suppress(OSError):
            stat = path.lstat()
            size, latest = size + stat.st_size, max(latest, stat.st_mtime)
    return size, latest


def _entry(path: Path, kind: str, parts: Sequence[Path]) -> Entry:
    size, latest = _weighed(parts)
    note = path.with_suffix(".used")
    with suppress(OSError):
        return Entry(path, kind, size, latest, note.exists() and not _removable(note))
    return Entry(path, kind, size, latest, True)  # a note that can't be opened for writing is another user's


def _removable(note: Path, then: Callable[[], None] = lambda: None) -> bool:
    """Whether no process uses the file of this note; if so, `then` is done while none can start to."""
    with note.open("ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # no locks here
            if time.time() - note.stat().st_mtime < UNLOCKED:
                return False
        if not os.fstat(handle.fileno()).st_nlink:  # somebody else was first
            return False
        then()
    return True


def shrink(root: Path, limit: int, *, recent: float = RECENT) -> list[Entry]:
    """Remove what was used longest ago until the cache has at most `limit` bytes; returns what went, and logs it.

    What is in use stays, and so does what is not ours, even if the limit is not met.

    Args:
        root: the cache, with a folder for each of `ROOMS`.
        limit: bytes to keep.
        recent: seconds in which a use counts as still going on.
    """
    entries, removed = usage(root), []
    total = sum(entry.size for entry in entries)
    for entry in entries:
        if total <= limit:
            break
        if entry.kind == OTHER or entry.held or time.time() - entry.used < recent:
            continue
        note = entry.path.with_suffix(".used")

        def remove(entry: Entry = entry) -> None:
            entry.path.unlink(missing_ok=True)  # first: without it the rest means nothing
            for part in entry.path.parent.glob(f"{entry.path.stem}.*"):
                part.unlink(missing_ok=True)

        with suppress(OSError):
            if _removable(note, remove):
                total -= entry.size
                removed.append(entry)
                log.info("%s: removed from the cache, %.1f MB", entry.path, entry.size / 1e6)
    return removed

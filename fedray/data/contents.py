"""What files hold, told by their SHA-256: read once, and from then on known by place, size and times.

    <notes>/<name>.parquet    path below one folder, size, mtime, ctime, SHA-256 of each file that was read

A file whose size and times are those of before counts as unchanged, as for git: who changes bytes, keeps the size and
sets back both times is not found out. A file changed within seconds of being read is not noted, for its times may not
tell another change. A note that is damaged or can't be written costs another reading, nothing else.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from fedray.data.cache import writing
from fedray.errors import Unavailable

THREADS = min(8, os.cpu_count() or 1)
"""That read: hashing works outside of Python's lock."""
BLOCK = 64
"""Files that a thread takes at a time."""
SETTLED = 2.0
"""Seconds since a file's last change before it is noted: longer than the coarsest clock of a file system ticks."""

Progress = Callable[[int, int], None]
T = TypeVar("T")

log = logging.getLogger("fedray")


class Note(NamedTuple):
    """Files below one folder as they were when they were read."""

    names: list[str]
    facts: NDArray[np.int64]  # (n, 3) size, mtime and ctime in nanoseconds
    hashes: NDArray[np.uint8]  # (n, 32)


NOTHING = Note([], np.zeros((0, 3), np.int64), np.zeros((0, 32), np.uint8))


def hashes(paths: Sequence[Path], notes: Path | None = None, progress: Progress | None = None) -> NDArray[np.uint8]:
    """SHA-256 of each file's content (n, 32).

    Args:
        paths: the files.
        notes: folder that keeps what was found; None reads every file.
        progress: told (files hashed, files to hash), only while files are read.

    Raises:
        Unavailable: a file is missing or can't be read.
    """
    if notes is None or not paths:
        return np.concatenate([NOTHING.hashes, *_each(paths, _hash, progress)])
    now = time.time_ns()
    facts = np.concatenate(list(_each(paths, _facts)))
    full = [str(path.absolute()) for path in paths]
    base = os.path.commonpath([*full, str(Path(full[0]).parent)])  # a folder, even if there is one file
    note = notes / f"{hashlib.sha256(os.fsencode(base)).hexdigest()[:32]}.parquet"
    names = [name[len(base.rstrip(os.sep)) + 1 :] for name in full]
    found, fresh = _compared(_recalled(note, logging.DEBUG), names, facts)
    if fresh.all():
        with suppress(OSError):
            os.utime(note)  # a cache removes what was used longest ago
        return found
    with _alone(note) as alive:
        known = _recalled(note)  # somebody else may have read the files in the meantime
        found, fresh = _compared(known, names, facts)
        todo = np.flatnonzero(~fresh)
        try:
            for block, read in zip(_blocks(todo), _each([paths[int(i)] for i in todo], _hash, progress), strict=True):
                found[block], fresh[block] = read, True
                alive()
        finally:  # what has been read stays known if the rest is not to be
            settled = fresh & (facts[:, 1:].max(1) < now - int(SETTLED * 1e9))
            if settled[todo].any():
                _remember(note, _merged(known, names, facts, found, np.flatnonzero(settled)))
    return found


def _facts(paths: Sequence[Path]) -> NDArray[np.int64]:
    stats = [_mended(path, os.stat) for path in paths]
    return np.array([(s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats], np.int64).reshape(-1, 3)


def _hash(paths: Sequence[Path]) -> NDArray[np.uint8]:
    whole = b"".join(hashlib.sha256(_mended(path, Path.read_bytes)).digest() for path in paths)
    return np.frombuffer(whole, np.uint8).reshape(-1, 32)


def _mended(path: Path, look: Callable[[Path], T]) -> T:
    try:
        return look(path)
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}; put the image back or remove it from the set") from error


def _blocks(items: Any) -> list[Any]:
    return [items[start : start + BLOCK] for start in range(0, len(items), BLOCK)]


def _each(
    paths: Sequence[Path], work: Callable[[Sequence[Path]], NDArray[Any]], progress: Progress | None = None
) -> Iterator[NDArray[Any]]:
    """`work` done to one block of files after the other, in order, by several threads."""
    done = 0
    pool = ThreadPoolExecutor(THREADS, "read")
    try:
        for found in pool.map(work, _blocks(paths)):
            yield found
            done += len(found)
            if progress:
                progress(done, len(paths))
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _alone(note: Path) -> Iterator[Callable[[], None]]:
    """Be the only one that reads what a note is to tell; where its folder can't be written, one of several."""
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        turn = writing(note)
        alive = turn.__enter__()
    except OSError:
        yield lambda: None
        return
    try:
        yield alive
    finally:
        turn.__exit__(None, None, None)


def _compared(
    known: Note, names: Sequence[str], facts: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The hashes (n, 32) that a note has for these files, and for which of them (n,)."""
    place = {name: i for i, name in enumerate(known.names)}
    at = np.array([place.get(name, -1) for name in names], np.int64)
    found, fresh = np.zeros((len(names), 32), np.uint8), at >= 0
    fresh[fresh] = (known.facts[at[fresh]] == facts[fresh]).all(1)
    found[fresh] = known.hashes[at[fresh]]
    return found, fresh


def _merged(
    known: Note, names: Sequence[str], facts: NDArray[np.int64], found: NDArray[np.uint8], settled: NDArray[np.int64]
) -> Note:
    """A note of these files and of all others that it knew."""
    asked = set(names)
    kept = [i for i, name in enumerate(known.names) if name not in asked]
    return Note(
        [known.names[i] for i in kept] + [names[i] for i in settled],
        np.concatenate([known.facts[kept], facts[settled]]),
        np.concatenate([known.hashes[kept], found[settled]]),
    )


def _digest(note: Note) -> str:
    sha = hashlib.sha256(os.fsencode("\0".join(note.names)))
    sha.update(note.facts.astype("<i8").tobytes() + note.hashes.tobytes())
    return sha.hexdigest()


def _recalled(path: Path, level: int = logging.WARNING) -> Note:
    """What a note says; nothing where there is none, or a damaged one, which the log is told."""
    if not path.exists():
        return NOTHING
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, page_checksum_verification=True, arrow_extensions_enabled=False)
        told = (file.schema_arrow.metadata or {})[b"fedray.digest"].decode()
        table = file.read()
        names = [os.fsdecode(name) for name in table["path"].to_pylist()]
        facts = np.stack([table[name].to_numpy() for name in ("size", "mtime", "ctime")], 1)
        read = np.frombuffer(b"".join(table["sha256"].to_pylist()), np.uint8).reshape(-1, 32)
        note = Note(names, facts, read)
        if _digest(note) == told:
            return note
        why = "its digest does not match"
    except (OSError, pa.ArrowException, LookupError, ValueError, TypeError, AttributeError) as error:
        why = type(error).__name__
    log.log(level, "%s: damaged (%s), reading the files anew", path, why)
    return NOTHING


def _remember(path: Path, note: Note) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "path": pa.array([os.fsencode(name) for name in note.names], pa.binary()),
        **{name: pa.array(note.facts[:, i]) for i, name in enumerate(("size", "mtime", "ctime"))},
        "sha256": pa.array([row.tobytes() for row in note.hashes], pa.binary(32)),
    }
    table = pa.table(columns).replace_schema_metadata({"fedray.digest": _digest(note)})
    draft = path.with_name(f"{path.stem}.{uuid4().hex[:8]}.tmp")
    try:
        pq.write_table(table, draft, compression="zstd", write_page_checksum=True)
        draft.replace(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        log.warning("%s: cannot be written (%s)", path, error.strerror or error)

"""Archives from strangers, unpacked into a folder and nowhere else.

Refused: names that leave the folder, links, devices, and more bytes than `limit`, whatever the archive says of its
sizes. What was unpacked before is the caller's to remove. What file systems leave in archives (``__MACOSX``, ``._*``,
``.DS_Store``) is left out, lest it be taken for an image.
"""

from __future__ import annotations

import errno
import hashlib
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, TypeAlias

from fedray.errors import Unavailable

RATIO, SPARE = 20, 64 << 20
"""Images hardly shrink: what unpacks to more than this many times its size, and some MB, is no data set."""
MEMBERS = 2_000_000
CHUNK = 1 << 20
DAMAGED = (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile, RuntimeError, ValueError)
"""What the readers of archives raise; RuntimeError is an encrypted or unknown kind of zip."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
"""Errors of the disk, not of the archive."""


class Unpacked(NamedTuple):
    """A file that came out of an archive."""

    size: int
    sha256: str


Files: TypeAlias = dict[str, Unpacked]
"""By path below the folder, with slashes."""


def allowance(archive: Path) -> int:
    """Bytes that an archive of this size may unpack to."""
    return archive.stat().st_size * RATIO + SPARE


def unpack(archive: Path, folder: Path, *, limit: int, tell: Callable[[int], None] = lambda done: None) -> Files:
    """Unpack a zip or a tar, packed or not, and return what came out of it; `tell` hears of the bytes so far.

    Raises:
        Unavailable: a member that must not be, more than `limit` bytes, a damaged archive, or a disk that is full.
    """
    files: Files = {}
    written = 0
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for count, (name, stream) in enumerate(_members(archive, folder)):
            if count >= MEMBERS:
                raise Unavailable(f"{archive.name} holds more than {MEMBERS:,} files; that is no data set")
            goal = folder / name
            goal.parent.mkdir(parents=True, exist_ok=True)
            sha, size = hashlib.sha256(), 0
            with stream, goal.open("wb") as file:
                while block := stream.read(CHUNK):
                    size += len(block)
                    if written + size > limit:
                        raise Unavailable(
                            f"{archive.name} unpacks to more than {limit:,} bytes; that is no data set, remove it"
                        )
                    file.write(block)
                    sha.update(block)
            written += size
            files[name] = Unpacked(size, sha.hexdigest())
            tell(written)
    except Unavailable:
        raise
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise Unavailable(f"{folder} can't be written ({error.strerror}); make room, or choose another") from error
        why = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
        raise Unavailable(f"{archive.name} can't be unpacked ({why}); remove it and get it again") from error
    return files


def _members(archive: Path, folder: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Path and content of each file, all paths being good."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            entries = [entry for entry in packed.infolist() if not entry.filename.endswith("/")]
            for entry in entries:
                mode = entry.external_attr >> 16
                _fit(archive, entry.filename, plain=stat.S_IFMT(mode) in (0, stat.S_IFREG))
            for entry in entries:
                if not _litter(entry.filename):
                    yield _tidy(entry.filename), packed.open(entry)
        return
    with tarfile.open(archive) as rolled:
        for member in rolled:
            if member.isdir():
                continue
            _fit(archive, member.name, plain=member.isreg())
            safe = tarfile.data_filter(member, str(folder))  # the library's own idea of it
            stream = rolled.extractfile(safe)
            if stream is not None and not _litter(safe.name):
                yield _tidy(safe.name), stream


def _fit(archive: Path, name: str, *, plain: bool) -> None:
    path = PurePosixPath(name)
    inside = path.parts and not path.is_absolute() and ".." not in path.parts
    if not inside or "\\" in name or ":" in path.parts[0] or not name.isprintable():
        raise Unavailable(f"{archive.name} holds {name!r}, which leaves its folder; nothing of it is kept, remove it")
    if not plain:
        raise Unavailable(f"{archive.name} holds {name!r}, a link or device; nothing of it is kept, remove it")


def _litter(name: str) -> bool:
    path = PurePosixPath(name)
    return "__MACOSX" in path.parts or path.name.startswith("._") or path.name == ".DS_Store"


def _tidy(name: str) -> str:
    """Without a leading ``./``."""
    return str(PurePosixPath(name))

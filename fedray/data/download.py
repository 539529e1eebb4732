"""One file from the web, whole or not at all: resumed where it was cut, checked before it gets its name.

What came so far lies beside the goal as NAME.part. Only a file with the announced size and digest is renamed, so that
whoever finds NAME may trust it. Nothing but HTTP(S) is spoken, also after a redirection; proxies are taken from the
environment. A host that is met over http, or that someone has taken over, can't change a byte: digests are ours.
"""

from __future__ import annotations

import hashlib
import http.client
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple, TypeAlias

from fedray.errors import Unavailable

Progress: TypeAlias = Callable[[str, int, int], None]
"""``progress(file, done, whole)`` in bytes; whole is 0 where nobody knows."""

PAUSES = (1.0, 2.0, 5.0)
"""Seconds before each further try; a try that brought something starts the list anew."""
TIMEOUT = 30.0
CHUNK = 1 << 20
LARGEST = 100 << 30
"""Bytes after which a file of unknown size is not read on."""
AGAIN = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
UNKNOWN = "the host's name can't be resolved; is there a network?"
BROKEN = (OSError, http.client.HTTPException)
"""What a connection can meet; urllib's errors are among them."""


class Part(NamedTuple):
    """A file to download."""

    url: str
    size: int  # bytes; 0 where it isn't published
    digest: str  # "sha256:<hex>" or "md5:<hex>"
    unpack: str | None = "."  # folder below the data set's own for what is in the archive; None: keep it as it is
    inner: tuple[str, ...] = ()  # archives in the archive, by path below `unpack`, that are unpacked too

    @property
    def name(self) -> str:
        """Its name on disk."""
        return self.url.rpartition("/")[2].partition("?")[0]


def download(part: Part, folder: Path, progress: Progress, *, sha256: str = "") -> str:
    """Bring a file into `folder`, and return its SHA-256 (hex); `sha256` is what an earlier download had.

    A file that is there and right is not fetched again.

    Raises:
        Unavailable: no network, no such file, no room on the disk, or not the file that was announced (it is removed).
    """
    goal = folder / part.name
    partial = goal.with_name(f"{goal.name}.part")
    if not goal.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _roomy(folder, part, partial)
            _persist(part, partial, progress)
        except OSError as error:  # of the disk: those of the network are told apart below
            raise Unavailable(f"{partial} can't be written ({_reason(error)}); choose another folder") from error
    return _checked(part, partial if partial.exists() else goal, goal, sha256)


def hashed(path: Path, *names: str) -> dict[str, str]:
    """Digests (hex) of a file, read once."""
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in names}
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            for one in hashes.values():
                one.update(block)
    return {name: one.hexdigest() for name, one in hashes.items()}


def _checked(part: Part, path: Path, goal: Path, earlier: str) -> str:
    """The SHA-256 of a file that is what it should be, which then has its name; any other is removed."""
    kind, _, expected = part.digest.partition(":")
    found = hashed(path, "sha256", kind)
    size = path.stat().st_size
    if part.size and size != part.size:
        wrong = f"{size:,} bytes, not {part.size:,}"
    elif found[kind] != expected:
        wrong = f"{kind} {found[kind][:12]}…, not {expected[:12]}…"
    elif earlier and found["sha256"] != earlier:
        wrong = f"sha256 {found['sha256'][:12]}…, not {earlier[:12]}… as at the first download"
    else:
        path.replace(goal)
        return found["sha256"]
    path.unlink()
    raise Unavailable(f"{part.url} brought {wrong}; the file is removed, try again or get it elsewhere")


def _roomy(folder: Path, part: Part, partial: Path) -> None:
    missing = part.size - _size(partial)
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise Unavailable(
            f"{part.name} needs {missing / 1e6:,.1f} MB, {folder} has {free / 1e6:,.1f} MB free; choose another folder"
        )


def _persist(part: Part, partial: Path, progress: Progress) -> None:
    """Try until everything is there; each byte more than ever before gives courage anew."""
    failures = 0
    most = before = _size(partial)
    while (reason := _pull(part, partial, progress)) is not None:
        if _size(partial) > most:
            failures, most = 0, _size(partial)
        nowhere = reason == UNKNOWN and most == before  # asking for the name again takes long, and helps nobody
        if nowhere or failures == len(PAUSES):
            raise Unavailable(f"{part.url} can't be reached ({reason}); what came so far is kept, try again later")
        time.sleep(PAUSES[failures])
        failures += 1


def _pull(part: Part, partial: Path, progress: Progress) -> str | None:
    """One try: None if the file is all there, else why it stopped; Unavailable where another try would not help."""
    start = _size(partial)
    if part.size and start >= part.size:
        return None
    try:
        answer = _opened(part.url, start)
    except urllib.error.HTTPError as error:
        with error:
            return _refused(part, partial, error)
    except BROKEN as error:
        return _reason(error)
    with answer:
        if answer.status != HTTPStatus.PARTIAL_CONTENT or not _continues(answer, start):
            start = 0  # the host doesn't resume
        rest = int(answer.headers.get("Content-Length") or 0)
        if part.size and rest and start + rest != part.size:
            raise Unavailable(
                f"{part.url} has {start + rest:,} bytes, not {part.size:,}: another file than the one that was "
                f"announced; get it elsewhere, as {partial.parent / part.name}"
            )
        with partial.open("r+b" if start else "wb") as file:
            file.seek(start)
            file.truncate()
            return _copy(answer, file.write, part.name, start, part.size or (start + rest if rest else 0), progress)


def _refused(part: Part, partial: Path, error: urllib.error.HTTPError) -> str | None:
    """What an answer without a file means: as `_pull`."""
    status = f"{error.code} {error.reason}".strip()
    if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and _size(partial):
        if error.headers.get("Content-Range") == f"bytes */{_size(partial)}":
            return None  # it is all there
        partial.unlink()
        return "the host has another file than before"
    if error.code in AGAIN or error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return status
    raise Unavailable(f"{part.url} answers {status}; get the file elsewhere, as {partial.parent / part.name}")


def _copy(
    answer: http.client.HTTPResponse,
    write: Callable[[bytes], int],
    name: str,
    done: int,
    whole: int,
    progress: Progress,
) -> str | None:
    """Write what comes; None at its end, else why it ended before."""
    while True:
        progress(name, done, whole)
        if done > (whole or LARGEST):
            return None  # too much: the check says so
        try:
            block = answer.read1(CHUNK)
        except BROKEN as error:
            return _reason(error)
        if not block:
            return f"cut after {done:,} of {whole:,} bytes" if done < whole else None
        write(block)
        done += len(block)


def _opened(url: str, start: int) -> http.client.HTTPResponse:
    """The host's answer, which begins at `start` if the host knows how to."""
    headers = {"User-Agent": "fedray", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)  # no files, no FTP
    answer: http.client.HTTPResponse = opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)  # noqa: S310
    return answer


def _continues(answer: http.client.HTTPResponse, start: int) -> bool:
    return answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: BaseException) -> str:
    """A word or two on what went wrong."""
    inner = getattr(error, "reason", error)
    if isinstance(inner, socket.gaierror):
        return UNKNOWN
    if isinstance(inner, TimeoutError):
        return "no answer in time"
    if isinstance(inner, ssl.SSLCertVerificationError):
        return f"its certificate can't be trusted: {inner.verify_message}"
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror.lower()
    return str(inner) or type(inner).__name__

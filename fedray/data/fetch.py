"""Get a data set, and look whether it is whole.

    get     download what is missing, check it, unpack it, write down what came
    verify  hash the files again, load the set, and decode every image

`manifest.json` in the set's folder holds the SHA-256 of each downloaded and each unpacked file. Where a SHA-256 is
published (`origins.py`), a download must have it. Where only an MD5 is, it must have that, and its SHA-256 is trusted
on first use: what a later download brings is compared with what the first one wrote down. Unpacked files have no
published hashes; theirs are taken on the way out of an archive that was right. Archives are removed then.

    <folder>/.new/       what is downloaded and unpacked, until all of it is there and moves up in one go
    <folder>/.new.lock   locked by the one process at work
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from fedray.data import sources
from fedray.data.download import Part, Progress, download, hashed
from fedray.data.origins import ALIAS, ORIGINS, Origin
from fedray.data.trees import home
from fedray.data.unpack import Files, Unpacked, allowance, unpack
from fedray.errors import Unavailable

MANIFEST = "manifest.json"
NEW = ".new"


class Manifest(NamedTuple):
    """What a folder was filled with."""

    parts: dict[str, str]  # SHA-256 (hex) of each download by its URL
    files: Files  # what they were unpacked to


def place(name: str, root: Path | None) -> Path:
    """The folder that a set's files are in."""
    return home(ALIAS.get(name, name), root)


def get(name: str, root: Path | None, progress: Progress) -> Path:
    """Have a data set's files in its folder, and return that folder; does nothing if they are there already.

    Args:
        name: a data set.
        root: its folder, if it isn't the usual one.
        progress: told of the bytes of each file.

    Raises:
        BadInput: no data set has this name.
        Unavailable: no network, no room, a file that isn't what was announced, or a set that is got by hand.
    """
    sources.find(name)
    folder = place(name, root)
    origin = ORIGINS.get(ALIAS.get(name, name))
    if origin is None or not origin.parts:
        if origin is None or origin.page:  # else it comes along
            _there(name, root, folder, origin)
        return folder
    with _alone(name, folder):
        before = manifest(folder)
        if before.files and not absent(folder, before):
            return folder
        new = folder / NEW
        parts = {
            part.url: download(part, new / "archives", progress, sha256=before.parts.get(part.url, ""))
            for part in origin.parts
        }
        files = _unpacked(origin.parts, new, progress)
        _move(new / "files", folder, files)
        _write(folder, Manifest(parts, files))
        shutil.rmtree(new)
    return folder


def manifest(folder: Path) -> Manifest:
    """What `get` wrote down; empty if it never did, or not to the end.

    Raises:
        Unavailable: the file can't be read.
    """
    path = folder / MANIFEST
    try:
        raw: Any = json.loads(path.read_bytes())
        files = {str(name): Unpacked(int(size), str(sha)) for name, (size, sha) in raw["files"].items()}
        return Manifest({str(url): str(sha) for url, sha in raw["parts"].items()}, files)
    except FileNotFoundError:
        return Manifest({}, {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unavailable(f"{path} can't be read ({error}); remove it, then get the set again") from error


def absent(folder: Path, known: Manifest) -> list[str]:
    """Files that are not there, or not as long as they were; nothing is read."""
    return [name for name, file in known.files.items() if _length(folder / name) != file.size]


def changed(folder: Path, known: Manifest, progress: Progress) -> list[str]:
    """Files whose content isn't what it was, among those that are there; all are read."""
    whole, done, found = sum(file.size for file in known.files.values()), 0, []
    for name, file in known.files.items():
        path = folder / name
        if _length(path) == file.size and hashed(path, "sha256")["sha256"] != file.sha256:
            found.append(name)
        done += file.size
        progress("files hashed", done, whole)
    return found


def by_hand(name: str, origin: Origin, folder: Path) -> str:
    """How to get what no program can."""
    about = f", {origin.size / 1e9:.1f} GB" if origin.size else ""
    return (
        f"{name} can't be downloaded by a program; get it by hand from {origin.page}{about}, put it into {folder} as "
        f"{origin.layout}, and look with: fedray data verify {name}"
    )


def _there(name: str, root: Path | None, folder: Path, origin: Origin | None) -> None:
    """For a set that can't be downloaded: quiet if it can be loaded."""
    try:
        sources.find(name)(root)
    except Unavailable as error:
        raise Unavailable(by_hand(name, origin, folder) if origin else str(error)) from error


def _unpacked(parts: tuple[Part, ...], new: Path, progress: Progress) -> Files:
    """Everything in its place below ``files``; from nothing, whatever a killed process left."""
    goal = new / "files"
    shutil.rmtree(goal, ignore_errors=True)
    files: Files = {}
    for part in parts:
        archive = new / "archives" / part.name
        if part.unpack is None:
            goal.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(archive, goal / part.name)
            files[part.name] = Unpacked(archive.stat().st_size, hashed(archive, "sha256")["sha256"])
            continue
        limit = allowance(archive)
        came = unpack(archive, goal, limit=limit, tell=_teller(part.name, progress))
        for name in part.inner:
            inner = goal / name
            if name not in came:
                raise Unavailable(f"{part.name} holds no {name}; get the set again")
            rest = limit - sum(file.size for file in came.values())
            more = unpack(inner, inner.parent, limit=rest, tell=_teller(inner.name, progress))
            inner.unlink()
            del came[name]
            came |= {(Path(name).parent / path).as_posix(): file for path, file in more.items()}
        files |= came
    return files


def _teller(name: str, progress: Progress) -> Callable[[int], None]:
    return lambda done: progress(f"{name} unpacked", done, 0)


def _move(new: Path, folder: Path, files: Mapping[str, Unpacked]) -> None:
    """Up into the set's folder: whole folders where nothing of that name is there, else file by file."""
    try:
        for path in sorted(new.iterdir()):
            if not (folder / path.name).exists():
                path.rename(folder / path.name)
        for name in files:
            if (new / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (new / name).replace(folder / name)
    except OSError as error:
        raise Unavailable(f"{error.filename} is in the way ({error.strerror}); move it elsewhere") from error


def _write(folder: Path, known: Manifest) -> None:
    """Last of all, and in one go."""
    path = folder / NEW / MANIFEST
    path.write_text(json.dumps({"version": 1, "parts": known.parts, "files": known.files}, indent=0) + "\n")
    path.replace(folder / MANIFEST)


@contextmanager
def _alone(name: str, folder: Path) -> Iterator[None]:
    """Be the only one that fills this folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{NEW}.lock", timeout=0):
            yield
    except Timeout as error:
        raise Unavailable(f"another process gets {name} into {folder}; wait for it") from error
    except OSError as error:
        raise Unavailable(f"{folder} can't be written ({error.strerror}); choose another with --root") from error


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1

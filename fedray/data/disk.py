"""Published files as they come: folders whose names people write differently, and lists that may be damaged.

Nothing here opens an image: a damaged one is found, and named, when it is encoded.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from fedray.errors import Unavailable

T = TypeVar("T")
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm")
)
"""Of files that count as images, in any case."""


def key(name: str) -> str:
    """Letters and digits alone, in lower case: "Real World", real_world and RealWorld are one folder."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def subfolders(folder: Path) -> dict[str, Path]:
    """The folders in a folder by `key`, hidden ones left out; {} if there is no such folder.

    Raises Unavailable if it can't be read, or if two names in it have the same key.
    """
    found: dict[str, Path] = {}
    for path in folders_in(folder) if folder.is_dir() else ():
        other = found.setdefault(key(path.name), path)
        if other != path:
            raise Unavailable(f"{other} and {path.name} beside it are names for the same; keep one of them")
    return found


def folders_in(folder: Path) -> list[Path]:
    """Its folders, sorted by name, hidden ones left out; Unavailable if it can't be read."""
    return [path for path in _entries(folder) if path.is_dir()]


def pictures(folder: Path) -> list[Path]:
    """The images directly in a folder by name, hidden ones left out; Unavailable if it can't be read."""
    return [path for path in _entries(folder) if path.suffix.lower() in SUFFIXES]


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, sorted by name, without hidden things; Unavailable if it can't be read."""
    try:
        return sorted((path for path in folder.iterdir() if path.name[0] != "."), key=lambda path: path.name)
    except OSError as error:
        raise Unavailable(f"{folder}: {error.strerror or error}; complete the data set") from error


def class_folders(folder: Path, classes: Sequence[Sequence[str]]) -> tuple[list[Path], list[int]]:
    """The images of a folder of class folders, by class and name, with their labels; a class may have none.

    Args:
        folder: holds a folder for each class; others in it are left alone.
        classes: for each class the names that its folder may have, compared by `key`.
    """
    there = subfolders(folder)
    paths: list[Path] = []
    labels: list[int] = []
    for label, names in enumerate(classes):
        mine = [there[key(name)] for name in names if key(name) in there]
        found = pictures(mine[0]) if mine else []
        paths += found
        labels += [label] * len(found)
    return paths, labels


def below(folder: Path, name: str, told: Path) -> Path:
    """The file that the list `told` names, below `folder`; Unavailable for a name that leads out of it."""
    if name.startswith("/") or ".." in name or "\0" in name:
        raise Unavailable(f"{told}: {name!r} leads out of {folder}; get the file again")
    return folder / name


def lines(path: Path) -> list[str]:
    """The lines of a text file without surrounding blanks, empty ones left out; Unavailable if it can't be read."""
    text = parsed(path, lambda raw: raw.decode("utf-8-sig"), "text")
    return [line for line in map(str.strip, text.splitlines()) if line]


def comma_separated(path: Path) -> list[list[str]]:
    """The rows of a CSV file, empty ones left out; Unavailable if it can't be read."""
    try:
        return [[cell.strip() for cell in row] for row in csv.reader(lines(path), strict=True)]
    except csv.Error as error:
        raise Unavailable(f"{path}: not comma-separated text ({error}); get the file again") from error


def parsed(path: Path, parse: Callable[[bytes], T], what: str) -> T:
    """A file's bytes put through `parse`.

    Raises Unavailable with the file's name if it can't be read, or if `parse` finds that it is not `what` it should be.
    """
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror or error}; get the file again, it belongs to the set") from error
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise Unavailable(f"{path}: not {what} ({why}); get the file again") from error

"""Data sets that are folders of images: where they lie, how they are listed and split; `folder` reads anybody's own.

Images are sorted by path and classes by folder name, so that a tree gives the same tables on any machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedray.data.cache import data_sets
from fedray.data.disk import folders_in, pictures
from fedray.data.lists import FILES, OWN_SPLIT, TEMPLATES, listed
from fedray.data.origins import ALIAS, ORIGINS, Origin
from fedray.data.sources import Source, Table
from fedray.data.splits import stratified
from fedray.errors import BadInput, Unavailable

NO_IMAGES = Table((), np.zeros(0, np.int64))
"""The training table of a set that is for exams only."""


def home(name: str, root: Path | None) -> Path:
    """Where a data set is looked for: `root`, else $FEDRAY_DATA/<name>, else ~/.cache/fedray/data/<name>."""
    return root or data_sets() / name


def origin(name: str) -> Origin | None:
    """Where the files of a data set come from; None for one that nobody publishes, as `folder`."""
    return ORIGINS.get(ALIAS.get(name, name))


def way(name: str) -> str:
    """How to get a data set, in a few words: ``fedray data get dtd (625 MB)``, ``by hand (some 190 MB)``."""
    known = origin(name)
    if known is None:
        return "--data.root FOLDER"
    some = "" if known.parts and all(part.size for part in known.parts) else "some "
    about = f" ({some}{_size(known.download)})" if known.download else ""
    return f"fedray data get {name}{about}" if known.parts else f"by hand{about}"


def remedy(name: str) -> str:
    """The same, and for a set that no program can get, where from and how it must lie."""
    known = origin(name)
    return way(name) + (f" from {known.page}, laid out as {known.layout}" if known and known.page else "")


def _size(count: int) -> str:
    """Bytes in two or three digits: 25 MB, 625 MB, 2.8 GB, 39 GB."""
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.{1 if count < 1e10 else 0}f} GB"


def located(name: str, root: Path | None, marks: Sequence[str], folders: Sequence[str]) -> Path:
    """The folder that a data set lies in: the first that holds one of `marks`.

    Looked at are `home`, its subfolders of the names `folders`, and without a root those beside it: what other programs
    call the set. Raises Unavailable if it is nowhere; the message says how to get it.
    """
    base = home(name, root)
    places = [base, *(base / folder for folder in folders)]
    if root is None:
        places += [data_sets() / folder for folder in folders]
    for folder in places:
        if any((folder / mark).exists() for mark in marks):
            return folder
    raise Unavailable(f"{name}: no {' or '.join(marks)} in {base}; get it: {remedy(name)}")


def listing(folders: Sequence[Path], pick: Callable[[Path], list[Path]] = pictures) -> Table:
    """The images of class folders; the class is the folder's position. Unavailable if one is empty."""
    held = [pick(folder) for folder in folders]
    for folder, images in zip(folders, held, strict=True):
        if not images:
            raise Unavailable(f"{folder}: no images; complete the data set or remove the folder")
    labels = np.repeat(np.arange(len(held), dtype=np.int64), [len(images) for images in held])
    return Table(tuple(path for images in held for path in images), labels)


def shipped(file: str) -> Any:
    """What a JSON file of fedray's own holds."""
    return json.loads((Path(__file__).parents[1] / "assets" / file).read_bytes())


def folder(root: Path | None = None) -> Source:
    """Your own images: a tree of class folders, or a CSV file beside the images (--data.root FOLDER).

    Class folders below train/ and test/, or else below `root` itself, then split 70/30, stratified, with seed 0; images
    of a class may lie in further folders. A CSV file (`lists.py` has the columns) goes first where there is one, and
    is the way to several labels per image. Class names are the names of the folders, labels or columns.

    Raises:
        BadInput: no root, no images, an empty or unknown class, a link that leads out; of a list, a wrong row.
        Unavailable: `root` is no folder or can't be read.
    """
    if root is None:
        raise BadInput("data set 'folder' has no data.root; say which folder: --data.root FOLDER")
    if not root.is_dir():
        raise Unavailable(f"{root}: not a folder; name one with class folders or a CSV file")
    root = root.resolve()
    if any((root / name).exists() for name in FILES):
        return listed(root)
    if not (root / "train").is_dir():
        names, table = _tree(root, root)
        train, test = stratified(table.labels, (0.7, 0.3), np.random.default_rng(0))
        return Source("folder", names, TEMPLATES, table.take(train), table.take(test), note=OWN_SPLIT)
    if not (root / "test").is_dir():
        raise BadInput(f"{root} has a folder train but none named test; add it or move the classes up")
    names, seen = _tree(root / "train", root)
    some, asked = _tree(root / "test", root)
    for name in some:
        if name not in names:
            raise BadInput(f"{root / 'test'} has a class {name!r} that train has not; remove it or add images to train")
    known = np.array([names.index(name) for name in some], np.int64)
    return Source("folder", names, TEMPLATES, seen, Table(asked.images, known[asked.labels]))


def _tree(base: Path, root: Path) -> tuple[tuple[str, ...], Table]:
    """Class names and images of the class folders in `base`, all of them inside `root`."""
    folders = folders_in(base)
    if not folders:
        raise BadInput(f"{base}: no class folders; make one for each class, or write labels.csv")
    for path in folders:
        if not _below(path, root):
            raise BadInput(f"{path}: no images; add some or remove the folder")
    return tuple(path.name.replace("_", " ") for path in folders), listing(folders, lambda path: _below(path, root))


def _below(folder: Path, root: Path) -> list[Path]:
    """All images below a folder; BadInput for a link that leads out of `root`."""
    if not folder.resolve().is_relative_to(root):
        raise BadInput(f"{folder} is a link that leads out of {root}; put the images themselves there")
    images = pictures(folder)
    for path in images:
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise BadInput(f"{path} is a link that leads out of {root}; put the image itself there")
    inner = [path for path in folders_in(folder) if not path.is_symlink()]  # a link would list them twice
    return images + [image for path in inner for image in _below(path, root)]

"""CoOp's protocol (Zhou et al. 2022): which images of a set are for training and test, and what classes are called.

    a split file of CoOp's makers, put beside the images  ->  its train and test         (its validation left out)
    else the set's own lists                              ->  80 % of train, its test    (20 % left out)
    else the images that are there                        ->  50 % train, 30 % test      (20 % left out)

`Parts.note` says which.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedray.data.disk import folders_in, parsed
from fedray.data.lists import strays
from fedray.data.sources import Source, Table
from fedray.data.splits import stratified
from fedray.data.trees import home, listing
from fedray.errors import Unavailable


class Parts(NamedTuple):
    """Class names in label order, images, and whose split it is."""

    names: Sequence[str]
    train: Table
    test: Table
    note: str


def parts(name: str, root: Path | None, base: Path, community: str, images: Path, own: Callable[[], Parts]) -> Parts:
    """The community's split where its file is beside the images, else the set's `own`."""
    file = f"split_zhou_{community}.json"
    for folder in (base, home(name, root)):
        if (folder / file).exists():
            train, _, test, names = zhou(folder / file, images)
            return Parts(names, train, test, f"{file}, its val left out")
    return own()


def zhou(path: Path, base: Path) -> tuple[Table, Table, Table, tuple[str, ...]]:
    """A split file: ``{"train": [[image, label, class name], ...], "val": ..., "test": ...}``.

    Args:
        path: the JSON file.
        base: the folder that its image paths start from.

    Returns:
        train, validation, test, and the class names by label.

    Raises:
        Unavailable: the file is not such a list, leads out of `base`, or names images that are not there.
    """
    members, names = parsed(path, _members, "a split file")
    train, val, test = (
        Table(_there([image for image, _, _ in part], base, path), np.array([y for _, y, _ in part], np.int64))
        for part in members
    )
    return train, val, test, names


def listed(images: Path, *, dropped: Sequence[str] = ()) -> Parts:
    """The class folders in `images`, split by `resplit`."""
    folders = [path for path in folders_in(images) if path.name not in dropped]
    return resplit([path.name for path in folders], listing(folders))


def resplit(names: Sequence[str], table: Table) -> Parts:
    """50 % for training, 30 % for test, 20 % left out, stratified with seed 1."""
    train, _, test = stratified(table.labels, (0.5, 0.2, 0.3), np.random.default_rng(1))
    note = "split 50/20/30 by fedray, stratified, seed 1, the 20 % left out"
    return Parts(names, table.take(train), table.take(test), note)


def without_fifth(names: Sequence[str], train: Table, test: Table) -> Parts:
    """The given test set, and 80 % of the rest for training, stratified with seed 1."""
    kept, _ = stratified(train.labels, (0.8, 0.2), np.random.default_rng(1))
    return Parts(names, train.take(kept), test, "the published test set; train without 20 % (stratified, seed 1)")


def told(rows: Sequence[Sequence[str]], names: Sequence[str], images: Path, path: Path) -> Table:
    """The images that the rows (image, class) of the list `path` name, which must be there, else Unavailable."""
    number = {name: c for c, name in enumerate(names)}
    for row in rows:
        if len(row) != 2 or row[1] not in number:
            raise Unavailable(f"{path}: {' '.join(row)!r} is no image with its class; get the file again")
    labels = np.array([number[name] for _, name in rows], np.int64)
    return Table(_there([image for image, _ in rows], images, path), labels)


def source(name: str, classes: int, template: str, found: Parts, renamed: Mapping[str, str] | None = None) -> Source:
    """A data set of so many classes, some of them `renamed`; underscores read as spaces. Unavailable if some lack."""
    if len(found.names) != classes:
        raise Unavailable(f"{name}: {len(found.names)} classes are there, not {classes}; complete the data set")
    words = tuple((renamed or {}).get(c, c).replace("_", " ") for c in found.names)
    return Source(name, words, (template,), found.train, found.test, note=found.note)


def _there(images: Sequence[str], base: Path, path: Path) -> tuple[Path, ...]:
    """Images below `base` that the list `path` names."""
    for image in images:
        if strays(image):
            raise Unavailable(f"{path}: {image!r} leads out of {base}; get the file again or remove it")
        if not (base / image).is_file():
            raise Unavailable(f"{base / image}: missing, but {path.name} lists it; complete the data set")
    return tuple(base / image for image in images)


def _members(raw: bytes) -> tuple[list[list[tuple[str, int, str]]], tuple[str, ...]]:
    """Train, val and test of a split file's bytes, and class names by label; ValueError if it is none."""
    try:
        content = json.loads(raw)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    members = [[(str(i), int(y), str(c)) for i, y, c in content[part]] for part in ("train", "val", "test")]
    pairs = sorted({(y, c) for part in members for _, y, c in part})
    if not pairs or [y for y, _ in pairs] != list(range(len({c for _, c in pairs}))):
        raise ValueError("its labels are not the numbers from 0 with one class name each")
    return members, tuple(c for _, c in pairs)

"""CSV files beside the images: one class per image in a column `label`, or several in a column for each class.

    image,label,split,domain          image,cat,dog,split
    a/1.jpg,black_bear,train,zoo      1.jpg,1,0,train        1 present, 0 absent, -1 or nothing: unknown

The first column is the image's path below the folder, whatever its name; `split` and `domain` may be left out. One
file labels.csv, or train.csv and test.csv. Spaces around cells don't count.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedray.data.dealing import rarest
from fedray.data.disk import SUFFIXES
from fedray.data.sources import Source, Table
from fedray.data.splits import stratified
from fedray.errors import BadInput, did_you_mean

FILES = ("labels.csv", "train.csv", "test.csv")
TEMPLATES = ("a photo of a {}.",)
OWN_SPLIT = "split 70/30 into train and test by fedray, stratified, seed 0"
MARKS = {"1": 1, "0": 0, "-1": -1, "": -1}


class Row(NamedTuple):
    """An image of a list: where that is said, its file, and the other columns."""

    where: str
    path: Path
    cells: dict[str, str]


def listed(root: Path) -> Source:
    """The data set that the CSV files in `root` describe.

    Raises:
        BadInput: a list or a row of it is wrong; the message names the file and the line.
    """
    root = root.resolve()
    files = [root / name for name in FILES if (root / name).exists()]
    if [file.name for file in files] not in (["labels.csv"], ["train.csv", "test.csv"]):
        there = " and ".join(file.name for file in files)
        raise BadInput(f"{root} holds {there}; have either labels.csv or both train.csv and test.csv")
    parts = [rows(file, root) for file in files]
    _once([row for part in parts for row in part])
    columns = [sorted(part[0].cells) for part in parts]
    if columns[0] != columns[-1]:
        raise BadInput(f"train.csv has the columns {columns[0]}, test.csv {columns[1]}; give both the same")
    if "split" not in columns[0]:
        source = _source(parts[0], parts[1] if parts[1:] else [])
        return source if parts[1:] else _split(source)
    if parts[1:]:
        raise BadInput(f"{files[0]}: a column split, but the files' names say it; remove the column")
    return _source(*_divided(parts[0]))


def rows(file: Path, root: Path) -> list[Row]:
    """The rows of a CSV file (UTF-8, with a header) about images below `root`, a resolved path.

    Raises:
        BadInput: it can't be read, has no rows, or a row is short, long, or about no image below `root`.
    """
    found = []
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, strict=True)
            header = [cell.strip() for cell in next(reader, [])]
            if len(set(header)) < len(header) or not all(header):
                raise BadInput(f"{file}: the columns {header} are not all named, each once; mend its first line")
            for cells in reader:
                where = f"{file} line {reader.line_num}"
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(header):
                    raise BadInput(f"{where}: {len(cells)} cells, the header has {len(header)}; mend the row")
                first, *rest = (cell.strip() for cell in cells)
                found.append(Row(where, inside(root, first, where), dict(zip(header[1:], rest, strict=True))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{file}: can't be read as CSV in UTF-8 ({error}); save it as such") from error
    if not found:
        raise BadInput(f"{file}: no images; write a header and a row for each image")
    return found


def inside(root: Path, text: str, where: str) -> Path:
    """The image that `text` names, which must be a file below `root`, links resolved; else BadInput."""
    path = root / text
    if strays(text):
        raise BadInput(f"{where}: {text!r} is no path below {root}; write it as folder/image.jpg")
    if path.suffix.lower() not in SUFFIXES:
        raise BadInput(f"{where}: {text!r} has no image's ending; images end in {', '.join(sorted(SUFFIXES))}")
    if not path.is_file():
        raise BadInput(f"{where}: {path} is missing; put the image there or remove the row")
    if not path.resolve().is_relative_to(root):
        raise BadInput(f"{where}: {path} is a link that leads out of {root}; put the image itself there")
    return path


def strays(text: str) -> bool:
    """Whether a path in a list is none, or leads elsewhere than below the folder that it is said to be in."""
    return not text or "\0" in text or Path(text).is_absolute() or ".." in Path(text).parts


def _once(listed_rows: list[Row]) -> None:
    seen: dict[Path, str] = {}
    for row in listed_rows:
        real = row.path.resolve()
        if real in seen:
            raise BadInput(f"{row.where}: {row.path} was listed before, at {seen[real]}; list each image once")
        seen[real] = row.where


def _divided(part: list[Row]) -> tuple[list[Row], list[Row]]:
    """Rows for training and for test by the column `split`."""
    parts: dict[str, list[Row]] = {"train": [], "test": []}
    for row in part:
        if row.cells["split"] not in parts:
            raise BadInput(f"{row.where}: split {row.cells['split']!r} is neither train nor test; choose one")
        parts[row.cells["split"]].append(row)
    for name, mine in parts.items():
        if not mine:
            raise BadInput(f"{_file(part)}: no row has split {name}; mark some, or leave the column out")
    return parts["train"], parts["test"]


def _file(part: list[Row]) -> str:
    return part[0].where.rpartition(" line")[0]


def _source(train: list[Row], test: list[Row]) -> Source:
    columns = [name for name in train[0].cells if name not in ("label", "split", "domain")]
    if columns and "label" in train[0].cells:
        raise BadInput(f"{_file(train)}: a column label and other columns ({', '.join(columns)}); keep one kind")
    if not columns and "label" not in train[0].cells:
        raise BadInput(f"{_file(train)}: no column label and none for each class; add what the images show")
    names = columns or sorted({row.cells["label"] for row in train}, key=_numbers_first)
    domains = sorted({row.cells["domain"] for row in [*train, *test]}) if "domain" in train[0].cells else []

    def table(part: list[Row]) -> Table:
        known = np.array([domains.index(row.cells["domain"]) for row in part], np.int64) if domains else None
        y = _marks(part, columns) if columns else _classes(part, names)
        return Table(tuple(row.path for row in part), y, known)

    seen = table(train)
    for c, name in enumerate(columns):
        if not (seen.labels[:, c] == 1).any():
            raise BadInput(f"{_file(train)}: no training image shows {name!r}; add one or remove the column")
    words = tuple(name.replace("_", " ") for name in names)
    return Source("folder", words, TEMPLATES, seen, table(test), tuple(domains))


def _numbers_first(label: str) -> tuple[int, str]:
    """Sorts 2 before 10."""
    return (int(label), label) if label.isascii() and label.isdigit() else (2**63, label)


def _classes(part: list[Row], names: list[str]) -> NDArray[np.int64]:
    number = {name: c for c, name in enumerate(names)}
    for row in part:
        label = row.cells["label"]
        if not label:
            raise BadInput(f"{row.where}: no label; say what the image shows")
        if label not in number:
            raise BadInput(f"{row.where}: label {label!r} is in no training row. {did_you_mean(label, names)}")
    return np.array([number[row.cells["label"]] for row in part], np.int64)


def _marks(part: list[Row], columns: list[str]) -> NDArray[np.int8]:
    for row in part:
        for name in columns:
            if row.cells[name] not in MARKS:
                raise BadInput(f"{row.where}: {row.cells[name]!r} under {name} is not 1, 0 or -1; correct it")
    return np.array([[MARKS[row.cells[name]] for name in columns] for row in part], np.int8).reshape(-1, len(columns))


def _split(source: Source) -> Source:
    """A list without a split, split here; several labels by each image's rarest class."""
    y: NDArray[np.int64] = source.train.labels.astype(np.int64)
    if source.multilabel:
        y = rarest(y)
        y[y == len(source.names)] = -1  # of no class
    train, test = stratified(y, (0.7, 0.3), np.random.default_rng(0))
    return replace(source, train=source.train.take(train), test=source.train.take(test), note=OWN_SPLIT)

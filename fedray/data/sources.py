"""Data sets: each is a public function, here or in one of `MODULES`, that returns a `Source` and is found by its name.

To add one, write a function `name(root: Path | None = None) -> Source`; `fedray ls data` prints its first line. Imports
of heavy packages stay inside, so that a listing costs nothing.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import logging
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedray.data import contents
from fedray.data.splits import stratified
from fedray.errors import BadInput, Unavailable, did_you_mean

MODULES = ("composites", "trees", "classics", "cifar", "variants", "several", "shifted", "remote")
"""Beside this one, where data sets are looked for."""
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GARMENTS = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"
)  # fmt: skip
SYSTEM = Path("/usr/share/datasets")
"""Where Linux distributions put packaged data sets (Debian: dataset-fashion-mnist)."""

log = logging.getLogger("fedray")


@dataclass(frozen=True, eq=False)
class Table:
    """Images with their classes. Images are one array uint8 (n, H, W, 3) that nobody writes to, or n files.

    Labels are one class per image, or the row of a multi-hot matrix: 1 present, 0 absent, -1 unknown.

    Raises:
        BadInput: lengths, types or values that do not go together.
    """

    images: NDArray[np.uint8] | tuple[Path, ...]
    labels: NDArray[np.int64] | NDArray[np.int8]  # (n,) or multi-hot (n, C)
    domains: NDArray[np.int64] | None = None  # (n,), which of the source's domains each image is from
    hashes: NDArray[np.uint8] | None = None  # (n, 32), SHA-256 of each file where `hashed` has looked

    def __post_init__(self) -> None:
        y = self.labels
        if f"{y.ndim} {y.dtype}" not in ("1 int64", "2 int8"):
            raise BadInput(
                f"labels of shape {y.shape}, {y.dtype}, are neither int64 (n,) nor int8 (n, C); convert them"
            )
        if len(self.images) != len(y):
            raise BadInput(f"{len(self.images)} images but {len(y)} labels; give one label for each image")
        least, most = (-1, 1) if self.multilabel else (0, np.inf)
        wrong = y[(y < least) | (y > most)]
        if wrong.size:
            rule = "multi-hot labels are 1, 0 or -1 for unknown" if self.multilabel else "classes count from 0"
            raise BadInput(f"a label is {wrong[0]}; {rule}")
        d = self.domains
        if d is not None and (d.shape != y.shape[:1] or d.dtype != np.int64 or d.min(initial=0) < 0):
            raise BadInput(
                f"domains of shape {d.shape}, {d.dtype}, are not one int64 from 0 for each of {len(y)} images"
            )
        if self.hashes is not None and self.hashes.shape != (len(y), 32):
            raise BadInput(f"hashes of shape {self.hashes.shape} are not 32 bytes for each of {len(y)} images")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def multilabel(self) -> bool:
        """Whether an image may show several classes: labels are (n, C)."""
        return self.labels.ndim == 2

    def take(self, indices: NDArray[Any]) -> Table:
        """The rows at these positions, in this order."""
        images = tuple(self.images[i] for i in indices) if isinstance(self.images, tuple) else self.images[indices]
        domains, hashes = (None if x is None else x[indices] for x in (self.domains, self.hashes))
        return Table(images, self.labels[indices], domains, hashes)

    def hashed(self, notes: Path | None = None, progress: contents.Progress | None = None) -> Table:
        """The table with the SHA-256 of each of its files, as `contents.hashes` finds it; of an array as it is."""
        if not isinstance(self.images, tuple):
            return self
        return replace(self, hashes=contents.hashes(self.images, notes, progress))

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the images alone: pixels and shape, or the bytes of the files; Unavailable if unreadable."""
        sha = hashlib.sha256()
        if isinstance(self.images, tuple):
            sha.update((contents.hashes(self.images) if self.hashes is None else self.hashes).tobytes())
        else:
            sha.update(repr(self.images.shape).encode())
            for start in range(0, len(self), 1024):
                sha.update(self.images[start : start + 1024].tobytes())
        return sha.hexdigest()


@dataclass(frozen=True, eq=False)
class Source:
    """A data set: class names by label, prompt templates with one {} each, and tables for training and test.

    A set that is only there to examine models has an empty table for training.

    Raises:
        BadInput: classes or domains without names, or tables of different kinds of labels.
    """

    name: str
    names: tuple[str, ...]
    templates: tuple[str, ...]
    train: Table
    test: Table
    domains: tuple[str, ...] = ()  # names by number; none where tables have no domains
    note: str = ""  # what a reader should know of this copy: whose split it is

    def __post_init__(self) -> None:
        for part, y in (("train", self.train.labels), ("test", self.test.labels)):
            known = y.shape[1] if y.ndim == 2 else int(y.max(initial=-1)) + 1
            if known > len(self.names) or (y.ndim == 2 and known < len(self.names)):
                raise BadInput(f"{self.name}: {part} has {known} classes but {len(self.names)} names; name each class")
        if self.train.multilabel != self.test.multilabel:
            raise BadInput(
                f"{self.name}: train and test must both have labels (n,) or both (n, C); convert one of them"
            )
        for table in (self.train, self.test):
            if table.domains is not None and int(table.domains.max(initial=-1)) >= len(self.domains):
                raise BadInput(f"{self.name}: domain {table.domains.max()} has no name; name each domain")
        if self.note:
            log.info("%s: %s", self.name, self.note)

    @property
    def multilabel(self) -> bool:
        """Whether an image may show several classes."""
        return self.train.multilabel

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of all images and labels, and of the domains where there are any."""
        sha = hashlib.sha256()
        for table in (self.train, self.test):
            sha.update(table.digest.encode())
            sha.update(repr(table.labels.shape).encode() if table.multilabel else b"")
            sha.update(np.asarray(table.labels, "<i8").tobytes())
            sha.update(b"" if table.domains is None else b"domains" + np.asarray(table.domains, "<i8").tobytes())
        return sha.hexdigest()


def digits(root: Path | None = None) -> Source:
    """1,797 handwritten digits (UCI, part of scikit-learn: no download), 8 x 8 enlarged to 28 x 28.

    A border of one pixel, bicubic enlargement as in torch, clamped, 8 bits. Split 60/40 into train and test,
    stratified, by NumPy's default generator with seed 0; `root` is not used.
    """
    return Source("digits", DIGITS, ("a photo of the digit {}",), *handwriting(28))


def fashion(root: Path | None = None) -> Source:
    """Fashion-MNIST (Xiao et al. 2017, MIT licence): 60,000 garments to train, 10,000 to test, 28 x 28.

    Reads the four idx files, packed or not, from `root` (or its sub-folders fashion and FashionMNIST/raw, as
    torchvision leaves them); without root from the same places below $FEDRAY_DATA or the cache, then from the system's
    copy.
    Raises Unavailable when they are missing or damaged.
    """
    from fedray.data.trees import home  # which is made of the tables above

    base = root or home("fashion", None).parent
    places = [base, base / "fashion", base / "FashionMNIST" / "raw"]
    if root is None:
        places.append(SYSTEM / "fashion-mnist")
    for folder in places:
        if _packed(folder / "train-images-idx3-ubyte").exists():
            return Source("fashion", GARMENTS, ("a photo of a {}",), _idx(folder, "train"), _idx(folder, "t10k"))
    raise Unavailable(
        f"fashion: no train-images-idx3-ubyte.gz in {', '.join(map(str, places))}; get it: fedray data get fashion "
        "(31 MB)"
    )


def names() -> list[str]:
    """The data sets there are, sorted."""
    return sorted(_known())


def find(name: str) -> Callable[..., Source]:
    """The function of this name; BadInput with the nearest name if there is none."""
    known = _known()
    if name not in known:
        raise BadInput(f"unknown data set {name!r}. {did_you_mean(name, known)}")
    return known[name]


def _known() -> dict[str, Callable[..., Source]]:
    found = dict(globals())
    for module in MODULES:
        if find_spec(f"fedray.data.{module}"):
            found |= vars(importlib.import_module(f"fedray.data.{module}"))
    return {
        name: value
        for name, value in found.items()
        if not name.startswith("_")
        and getattr(value, "__annotations__", {}) == {"root": "Path | None", "return": "Source"}
    }


def handwriting(side: int) -> tuple[Table, Table]:
    """The tables of `digits`, train and test, as gray images enlarged to side x side."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    padded = np.pad(bunch.images / 16, ((0, 0), (1, 1), (1, 1)))
    up = bicubic(10, side)
    gray = np.clip(up @ padded @ up.T, 0, 1)
    # Round twice, so that the last bits of a matrix product never decide a pixel and the digest holds on any machine.
    whole = _table(np.rint(np.round(gray * 255, 6)).astype(np.uint8), bunch.target)
    train, test = stratified(whole.labels, (0.6, 0.4), np.random.default_rng(0))
    return whole.take(train), whole.take(test)


def _table(gray: NDArray[np.uint8], labels: NDArray[Any]) -> Table:
    """Three equal channels from one, without copies: (n, H, W) -> (n, H, W, 3)."""
    return Table(np.broadcast_to(gray[..., None], (*gray.shape, 3)), labels.astype(np.int64))


def bicubic(old: int, new: int) -> NDArray[np.float64]:
    """The (new, old) matrix of bicubic resizing, edges repeated, pixel centres at i + 1/2 (torch: align_corners=False).

    Keys' kernel with a = -3/4:  (a+2)|t|^3 - (a+3)|t|^2 + 1 up to 1,  a|t|^3 - 5a|t|^2 + 8a|t| - 4a up to 2.
    """
    a = -0.75
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    matrix = np.zeros((new, old))
    for tap in range(-1, 3):
        at = np.floor(centre) + tap
        t = np.abs(centre - at)
        inner, outer = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
        np.add.at(matrix, (np.arange(new), np.clip(at, 0, old - 1).astype(int)), np.where(t <= 1, inner, outer))
    return matrix


def _packed(path: Path) -> Path:
    """The .gz beside a path if it is there, else the path."""
    gz = path.with_name(f"{path.name}.gz")
    return gz if gz.exists() else path


def _idx(folder: Path, part: str) -> Table:
    images = _read_idx(_packed(folder / f"{part}-images-idx3-ubyte"), (28, 28))
    path = _packed(folder / f"{part}-labels-idx1-ubyte")
    labels = _read_idx(path, ())
    if len(images) != len(labels) or labels.max() >= len(GARMENTS):
        raise Unavailable(
            f"{path}: {len(labels)} labels up to {labels.max()} do not fit {len(images)} images of "
            f"{len(GARMENTS)} classes; get the file again"
        )
    return _table(images, labels)


def _read_idx(path: Path, shape: tuple[int, ...], most: int = 100_000) -> NDArray[np.uint8]:
    """An idx file of unsigned bytes (n, *shape), 1 <= n <= most, packed or not; never reads more than that."""
    head = 4 * (2 + len(shape))
    limit = head + most * int(np.prod(shape, dtype=np.int64))
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            raw = file.read(limit + 1)
    except FileNotFoundError:
        raise Unavailable(f"{path}: no such file; get it again, it belongs to the others in its folder") from None
    except (OSError, EOFError, zlib.error) as error:
        raise Unavailable(f"{path}: cannot be read ({error}); get the file again") from error
    sizes = np.frombuffer(raw[:head], ">u4") if len(raw) >= head else np.zeros(2, np.uint32)
    magic, n, rest = int(sizes[0]), int(sizes[1]), tuple(map(int, sizes[2:]))
    if magic != 0x0800 + 1 + len(shape) or rest != shape or not 1 <= n <= most:
        raise Unavailable(f"{path}: not an idx file of at most {most} x {shape} unsigned bytes; get the file again")
    if len(raw) != head + n * int(np.prod(shape, dtype=np.int64)):
        raise Unavailable(f"{path}: holds {len(raw)} bytes, not the {n} x {shape} it announces; get the file again")
    return np.frombuffer(raw, np.uint8, offset=head).reshape(n, *shape)

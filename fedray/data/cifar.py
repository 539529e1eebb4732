"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), from either of the published forms: the binary files or Python's pickles.

The pickles (torchvision's form) are never unpickled: the bytes and numbers in them are read off their opcodes, and
nothing that they ask for is imported or called.
"""

from __future__ import annotations

import pickletools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedray.data.disk import parsed
from fedray.data.sources import Source, Table
from fedray.data.trees import located

TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HUNDRED = (
    "apple", "aquarium fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest",
    "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn mower", "leopard", "lion", "lizard",
    "lobster", "man", "maple tree", "motorcycle", "mountain", "mouse", "mushroom", "oak tree", "orange", "orchid",
    "otter", "palm tree", "pear", "pickup truck", "pine tree", "plain", "plate", "poppy", "porcupine", "possum",
    "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper",
    "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet pepper", "table", "tank", "telephone",
    "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow tree", "wolf",
    "woman", "worm",
)  # fmt: skip
TEMPLATES = ("a photo of a {}.",)
SIDE = 32
PIXELS = 3 * SIDE * SIDE
NUMBERS = ("BININT1", "BININT2", "BININT", "INT")
"""Opcodes of small whole numbers; others with a number count the pickle's memory."""


def cifar10(root: Path | None = None) -> Source:
    """CIFAR-10: 50,000 small photographs to train, 10,000 to test, 32 x 32, 10 classes.

    cifar-10-batches-bin/ or cifar-10-batches-py/. Raises Unavailable when files are missing or damaged.
    """
    marks = ["cifar-10-batches-bin", "cifar-10-batches-py"]
    base = located("cifar10", root, marks, ["cifar10", "cifar-10"])
    train = [f"data_batch_{i}" for i in range(1, 6)]
    if (base / marks[0]).exists():
        parts = [_binary([base / marks[0] / f"{n}.bin" for n in names], 1, 10) for names in (train, ["test_batch"])]
    else:
        parts = [_pickled([base / marks[1] / n for n in names], "labels", 10) for names in (train, ["test_batch"])]
    return Source("cifar10", TEN, TEMPLATES, parts[0], parts[1])


def cifar100(root: Path | None = None) -> Source:
    """CIFAR-100: 50,000 small photographs to train, 10,000 to test, 32 x 32, 100 (fine) classes.

    cifar-100-binary/ or cifar-100-python/. Raises Unavailable when files are missing or damaged.
    """
    marks = ["cifar-100-binary", "cifar-100-python"]
    base = located("cifar100", root, marks, ["cifar100", "cifar-100"])
    if (base / marks[0]).exists():
        parts = [_binary([base / marks[0] / f"{part}.bin"], 2, 100) for part in ("train", "test")]
    else:
        parts = [_pickled([base / marks[1] / part], "fine_labels", 100) for part in ("train", "test")]
    return Source("cifar100", HUNDRED, TEMPLATES, parts[0], parts[1])


def _binary(paths: list[Path], labels: int, classes: int) -> Table:
    """Files of records: so many label bytes, the last one the class, then an image."""

    def records(raw: bytes) -> NDArray[np.uint8]:
        if not raw or len(raw) % (labels + PIXELS):
            raise ValueError(f"{len(raw)} bytes are no whole number of records of {labels + PIXELS}")
        rows = np.frombuffer(raw, np.uint8).reshape(-1, labels + PIXELS)
        _possible(rows[:, labels - 1], classes)
        return rows

    rows = np.concatenate([parsed(path, records, "CIFAR's binary form") for path in paths])
    return _table(rows[:, labels:], rows[:, labels - 1].astype(np.int64))


def _pickled(paths: list[Path], key: str, classes: int) -> Table:
    """Pickled dictionaries with images under "data" and a list of classes under `key`."""
    read = [parsed(path, lambda raw: _opcodes(raw, key, classes), "CIFAR's Python form") for path in paths]
    return _table(np.concatenate([images for images, _ in read]), np.concatenate([labels for _, labels in read]))


def _possible(labels: NDArray[Any], classes: int) -> None:
    if labels.max() >= classes:
        raise ValueError(f"label {labels.max()} of {classes} classes")


def _opcodes(raw: bytes, key: str, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The one long string of whole images, and the numbers that follow the word `key`; ValueError if they don't fit."""
    images, word, labels = b"", "", []
    for opcode, value, _ in pickletools.genops(raw):
        if opcode.name in NUMBERS and word == key:
            labels.append(int(str(value)))
        elif isinstance(value, str | bytes) and opcode.name != "GLOBAL":
            text = value if isinstance(value, bytes) else value.encode("latin-1")
            if text and len(text) % PIXELS == 0:
                images = text
            else:
                word = text.decode("latin-1")
    rows = np.frombuffer(images, np.uint8).reshape(-1, PIXELS)
    if not labels or len(labels) != len(rows):
        raise ValueError(f"{len(rows)} images but {len(labels)} {key}")
    y = np.array(labels, np.int64)
    _possible(y, classes)
    return rows, y


def _table(rows: NDArray[np.uint8], labels: NDArray[np.int64]) -> Table:
    """Rows hold an image's red plane, then green, then blue."""
    return Table(np.ascontiguousarray(rows.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)), labels)

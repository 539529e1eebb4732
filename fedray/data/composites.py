"""Multi-label data sets made of real images: a digit in two colours, or one to four small things on a 2 x 2 grid.

    an image:  scene kind s uniform over 5;  number of things from COUNTS;  their classes ~ p_s;  their cells at random
    p_s:       80 % on the classes of kind s (its own fifth, and the first class of the next kind), 20 % on all

So classes of one kind occur together, as in photographs, and clusters of images differ in their labels. Test images
are made of the parts' test images only. All are 28 x 28, in the looks that the embedded backbone was pretrained on: an
ink on a paper; or scenes where a thing fills a quarter, bright on dark, which it hardly reads (zero-shot mAP near
chance).

The bytes depend on nothing but NumPy's default generator with a fixed seed. A data set of real photographs with several
labels each is written like any other: a function in sources.py whose tables hold labels (n, C).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedray.data.sources import DIGITS, GARMENTS, Source, Table, fashion, handwriting

KINDS = 5
FAVOUR = 0.8
COUNTS = (1, 2, 2, 3, 3, 4)
"""Things in an image, equally likely; the pretraining's scenes have the same mix."""
CELL = 14
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (40, 80, 220),
    "yellow": (235, 220, 50),
    "white": (245, 245, 245),
    "black": (12, 12, 12),
    "orange": (240, 140, 30),
    "purple": (140, 50, 180),
}
TRAIN, TEST = 2000, 1000
TEMPLATES = ("there is a {} here",)
"""A caption of the pretraining's scenes; of those, the one with the best zero-shot mAP, by a few tenths."""


def colourdigits(root: Path | None = None) -> Source:
    """3,000 handwritten digits (UCI, part of scikit-learn: no download) in an ink on a paper, labels (n, 18).

    Three labels an image: the digit and its two colours of 8, whichever is the ink. Digits are those of `digits`, split
    alike; kinds of images favour digits and colours as above; `root` is not used.
    """
    rng = np.random.default_rng(0)
    train, test = handwriting(2 * CELL)
    names = (*DIGITS, *COLOURS)
    return Source("colourdigits", names, ("a photo of a {}",), _tinted(train, TRAIN, rng), _tinted(test, TEST, rng))


def _tinted(table: Table, n: int, rng: np.random.Generator) -> Table:
    """`n` digits, each pixel between paper and ink as it was between dark and bright."""
    gray, colours = np.asarray(table.images)[..., 0], np.array(list(COLOURS.values()))
    digits, pairs = likelihoods([len(DIGITS)]), likelihoods([len(COLOURS)])
    pools = [np.flatnonzero(table.labels == c) for c in range(len(DIGITS))]
    images = np.zeros((n, 2 * CELL, 2 * CELL, 3), np.uint8)
    labels = np.zeros((n, len(DIGITS) + len(COLOURS)), np.int8)
    for image, label in zip(images, labels, strict=True):
        kind = rng.integers(KINDS)
        digit = rng.choice(len(DIGITS), p=digits[kind])
        ink, paper = rng.permutation(rng.choice(len(COLOURS), 2, replace=False, p=pairs[kind]))
        label[[digit, len(DIGITS) + ink, len(DIGITS) + paper]] = 1
        share = gray[rng.choice(pools[digit])].astype(np.int64)[..., None]
        image[:] = (share * colours[ink] + (255 - share) * colours[paper] + 127) // 255
    return Table(images, labels)


def multidigits(root: Path | None = None) -> Source:
    """3,000 composites of 1 to 4 handwritten digits (UCI, part of scikit-learn: no download), labels (n, 10).

    The digits are those of `digits`, enlarged to 14 x 14 and split alike; `root` is not used.
    """
    train, test = handwriting(CELL)
    return _source("multidigits", DIGITS, [train], [test])


def multifashion(root: Path | None = None) -> Source:
    """3,000 composites of 1 to 4 digits and garments, labels (n, 20); finds Fashion-MNIST as `fashion` does.

    Digits as in `multidigits`, garments halved by averaging 2 x 2 pixels. Each scene kind favours digits and garments.
    Raises Unavailable when Fashion-MNIST is missing or damaged.
    """
    clothes = fashion(root)
    train, test = handwriting(CELL)
    return _source("multifashion", DIGITS + GARMENTS, [train, _halved(clothes.train)], [test, _halved(clothes.test)])


def likelihoods(groups: Sequence[int]) -> NDArray[np.float64]:
    """The class probabilities (KINDS, C) of the scene kinds; each group of classes is dealt out to all kinds alike."""
    rows = []
    for size in groups:
        kind = np.arange(size) * KINDS // size  # whose own a class is
        first = np.r_[True, kind[1:] != kind[:-1]]
        s = np.arange(KINDS)[:, None]
        rows.append((kind == s) | (first & (kind == (s + 1) % KINDS)))
    favoured = np.hstack(rows)
    return np.asarray(FAVOUR * favoured / favoured.sum(1, keepdims=True) + (1 - FAVOUR) / favoured.shape[1])


def _source(name: str, names: tuple[str, ...], train: list[Table], test: list[Table]) -> Source:
    rng = np.random.default_rng(0)
    return Source(name, names, TEMPLATES, _compose(train, TRAIN, rng), _compose(test, TEST, rng))


def _compose(parts: Sequence[Table], n: int, rng: np.random.Generator) -> Table:
    """`n` composites of the images of `parts`, whose classes follow one another in the labels."""
    sizes = [int(part.labels.max()) + 1 for part in parts]
    things = np.concatenate([np.asarray(part.images)[..., 0] for part in parts])
    classes = np.concatenate([part.labels + sum(sizes[:i]) for i, part in enumerate(parts)])
    chances = likelihoods(sizes)
    pools = [np.flatnonzero(classes == c) for c in range(sum(sizes))]
    images = np.zeros((n, 2 * CELL, 2 * CELL), np.uint8)
    labels = np.zeros((n, len(pools)), np.int8)
    for image, label in zip(images, labels, strict=True):
        shown = rng.choice(len(pools), rng.choice(COUNTS), p=chances[rng.integers(KINDS)])
        label[shown] = 1
        for c, cell in zip(shown, rng.permutation(4), strict=False):
            _place(image, things[rng.choice(pools[c])], int(cell), rng)
    return Table(np.broadcast_to(images[..., None], (*images.shape, 3)), labels)


def _place(image: NDArray[np.uint8], thing: NDArray[np.uint8], cell: int, rng: np.random.Generator) -> None:
    """Put a thing into its cell, up to a pixel nearer to the middle; where things meet, the brighter one shows."""
    inward = rng.integers(0, 2, 2)
    top, left = (CELL - shift if corner else shift for corner, shift in zip(divmod(cell, 2), inward, strict=True))
    place = image[top : top + CELL, left : left + CELL]
    np.maximum(place, thing, out=place)


def _halved(table: Table) -> Table:
    """Every 2 x 2 pixels averaged; quarters are exact in floating point, so the rounding is the same everywhere."""
    gray = np.asarray(table.images)[..., 0]
    n, h, w = gray.shape
    mean = gray.reshape(n, h // 2, 2, w // 2, 2).mean((2, 4))
    return Table(np.rint(mean).astype(np.uint8)[..., None], table.labels)

"""Domain shifts: each is a public function here, Table -> Table, found by its name. Labels and domains stay.

An image is changed on its own and the chance in it is seeded by its pixels, so that a shifted image is the same in any
table, in any order, on any machine. To add one, write a function `name(table: Table) -> Table`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedray.data.sources import Table, bicubic
from fedray.errors import BadInput, did_you_mean

DEGREES = (15.0, 30.0)
SIGMA = 48.0
"""Standard deviation of the noise, of 255."""
BLOCK = 1024
"""Images that are enlarged at a time."""

Pixels = NDArray[np.uint8]


def inverted(table: Table) -> Table:
    """The negative: bright becomes dark."""
    return replace(table, images=255 - _pixels(table, "inverted"))


def rotated(table: Table) -> Table:
    """Turned about the middle by 15 to 30 degrees either way, bilinear, the edge's pixels repeated outside."""
    return _each(table, "rotated", _turn)


def noisy(table: Table) -> Table:
    """Gaussian noise on every pixel and channel, nearly a fifth of the range strong."""
    return _each(table, "noisy", _grain)


def coarse(table: Table) -> Table:
    """Half the resolution and back: 2 x 2 pixels averaged, bicubic enlargement; an odd side keeps its last pixel."""
    images = _pixels(table, "coarse")
    out = np.empty(images.shape, np.uint8)
    for start in range(0, len(images), BLOCK):
        out[start : start + BLOCK] = _rounded(_blur(images[start : start + BLOCK]))
    return replace(table, images=out)


def names() -> list[str]:
    """The shifts there are, sorted."""
    return sorted(_known())


def find(name: str) -> Callable[[Table], Table]:
    """The function of this name; BadInput with the nearest name if there is none."""
    known = _known()
    if name not in known:
        raise BadInput(f"unknown shift {name!r}. {did_you_mean(name, known)}")
    return known[name]


def _known() -> dict[str, Callable[[Table], Table]]:
    return {
        name: value
        for name, value in globals().items()
        if callable(value)
        and not name.startswith("_")
        and getattr(value, "__annotations__", {}) == {"table": "Table", "return": "Table"}
    }


def _pixels(table: Table, shift: str) -> Pixels:
    if isinstance(table.images, tuple):
        raise BadInput(f"{shift}: shifts need array images, got {len(table)} files; load them into an array first")
    return table.images


def _each(table: Table, shift: str, change: Callable[[Pixels, np.random.Generator], NDArray[np.float64]]) -> Table:
    """Every image changed with a generator of its own."""
    images = _pixels(table, shift)
    out = np.empty(images.shape, np.uint8)
    for old, new in zip(images, out, strict=True):
        rng = np.random.default_rng([zlib.crc32(shift.encode()), zlib.crc32(old.tobytes())])
        new[:] = _rounded(change(old, rng))
    return replace(table, images=out)


def _rounded(values: NDArray[np.float64]) -> Pixels:
    """Rounded twice, so that the last bits of a sum or a sine never decide a pixel."""
    return np.asarray(np.rint(np.round(values, 6)).clip(0, 255).astype(np.uint8))


def _blur(images: Pixels) -> NDArray[np.float64]:
    _, h, w, _ = images.shape
    even = np.pad(images, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    n, height, width, _ = even.shape
    mean = even.reshape(n, height // 2, 2, width // 2, 2, -1).mean((2, 4))
    up, along = bicubic(height // 2, height), bicubic(width // 2, width)
    return np.asarray(np.einsum("ha,nabc,wb->nhwc", up, mean, along, optimize=True)[:, :h, :w])


def _grain(image: Pixels, rng: np.random.Generator) -> NDArray[np.float64]:
    return image + SIGMA * rng.standard_normal(image.shape)


def _turn(image: Pixels, rng: np.random.Generator) -> NDArray[np.float64]:
    angle = np.deg2rad(rng.uniform(*DEGREES)) * rng.choice([-1, 1])
    h, w, _ = image.shape
    y, x = np.indices((h, w)) - np.array([h - 1, w - 1])[:, None, None] / 2
    row = np.clip(np.cos(angle) * y - np.sin(angle) * x + (h - 1) / 2, 0, h - 1)
    column = np.clip(np.sin(angle) * y + np.cos(angle) * x + (w - 1) / 2, 0, w - 1)
    top, left = np.floor(row).astype(int), np.floor(column).astype(int)
    down, right = np.minimum(top + 1, h - 1), np.minimum(left + 1, w - 1)
    v, u = (row - top)[..., None], (column - left)[..., None]
    above = (1 - u) * image[top, left] + u * image[top, right]
    below = (1 - u) * image[down, left] + u * image[down, right]
    return np.asarray((1 - v) * above + v * below)

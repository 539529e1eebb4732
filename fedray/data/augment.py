"""Random resized crop and flip: one draw for pixels in a batch, the same for stored views of whole pictures.

    area = h w U(s),  ratio = exp(U(log 3/4, log 4/3)),  box = (sqrt(area / ratio), sqrt(area ratio)), anywhere inside
    ten tries, then the largest box in the middle whose ratio is allowed; flipped with probability 1/2

That is torchvision's RandomResizedCrop and RandomHorizontalFlip, the training transform of Dassl and of nearly all
papers here (CoOp's). The resizing is Pillow's own bicubic in integers, so its bytes are the same on every device.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SCALE = (0.08, 1.0)
"""Of the image's area."""
TRIES = 10
BITS = 22
"""Of a weight behind the point, as in Pillow."""


class Crops(NamedTuple):
    """For each of B images a box, and whether it is flipped."""

    boxes: NDArray[np.int64]  # (B, 4) top, left, height, width
    flipped: NDArray[np.bool_]  # (B,)


def crops(draw: np.random.Generator, heights: NDArray[Any], widths: NDArray[Any]) -> Crops:
    """Draw for images of heights and widths (B,)."""
    h, w = (np.asarray(sides, np.float64) for sides in (heights, widths))
    share, form = draw.random((2, len(h), TRIES))
    area = (h * w)[:, None] * (SCALE[0] + (SCALE[1] - SCALE[0]) * share)
    low, high = np.log(3 / 4), np.log(4 / 3)
    ratio = np.exp(low + (high - low) * form)
    tall, wide = np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))
    fits = (tall > 0) & (wide > 0) & (tall <= h[:, None]) & (wide <= w[:, None])
    first, rows = fits.argmax(1), np.arange(len(h))
    found = fits[rows, first]
    height = np.where(found, tall[rows, first], np.minimum(h, np.rint(w * 4 / 3)))
    width = np.where(found, wide[rows, first], np.minimum(w, np.rint(h * 4 / 3)))
    down, right = draw.random((2, len(h)))
    top = np.where(found, np.floor(down * (h - height + 1)), np.floor((h - height) / 2))
    left = np.where(found, np.floor(right * (w - width + 1)), np.floor((w - width) / 2))
    boxes = np.stack([top, left, np.maximum(height, 1), np.maximum(width, 1)], 1).astype(np.int64)
    return Crops(boxes, draw.random(len(h)) < 0.5)


def augmented(pixels: Tensor, draw: np.random.Generator) -> Tensor:
    """The standard training transform of pixels (B, 3, S, S) uint8, on their device: the same bytes on each.

    Departs from the papers' code in cutting its crops from the stored S x S evaluation view, which they cut from the
    whole picture; stored views (``data.views``) are cut from that.
    """
    size = pixels.shape[-1]
    sides = np.full(len(pixels), size)
    boxes, flipped = crops(draw, sides, sides)
    x = resized(pixels, boxes)
    return torch.where(torch.from_numpy(flipped).to(x.device)[:, None, None, None], x.flip(-1), x)


def resized(pixels: Tensor, boxes: NDArray[np.int64]) -> Tensor:
    """Boxes (B, 4) of square images (B, 3, S, S) uint8 enlarged to S x S: Pillow's crop and bicubic, bit for bit."""
    top, left, height, width = boxes.T
    across = _along(pixels, left, width)
    return _along(across.transpose(2, 3), top, height).transpose(2, 3).contiguous()


def _along(pixels: Tensor, start: NDArray[np.int64], length: NDArray[np.int64]) -> Tensor:
    """The last axis of (B, 3, R, S): `length` <= S pixels from `start` enlarged to S."""
    batch, channels, rows, size = pixels.shape
    at, weights = (torch.from_numpy(part).to(pixels.device) for part in _taps(start, length, size))
    values = pixels.to(torch.int32)
    total = torch.full_like(values, 1 << (BITS - 1))
    for tap in range(at.shape[-1]):
        where = at[:, None, None, :, tap].expand(batch, channels, rows, size)
        total += values.gather(3, where) * weights[:, None, None, :, tap]
    return (total >> BITS).clamp(0, 255).to(torch.uint8)


def _taps(start: NDArray[np.int64], length: NDArray[np.int64], size: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Positions and integer weights (B, S, 4) that make each new pixel.

    Keys' kernel with a = -1/2 at the four pixels around the centre; those outside the box are left out, and the rest
    weighs 1 again.
    """
    a = -0.5
    centre = (np.arange(size) + 0.5) * (length[:, None] / size)
    at = np.floor(centre - 1.5)[..., None] + np.arange(4)
    t = np.abs(at - centre[..., None] + 0.5)
    inner, outer = ((a + 2) * t - (a + 3)) * t * t + 1, (((t - 5) * t + 8) * t - 4) * a
    inside = (at >= 0) & (at < length[:, None, None]) & (t < 2)
    weights = np.where(inside, np.where(t < 1, inner, outer), 0.0)
    weights = weights / weights.sum(-1, keepdims=True) * (1 << BITS)
    whole = np.trunc(weights + np.copysign(0.5, weights)).astype(np.int32)
    return np.clip(at, 0, length[:, None, None] - 1).astype(np.int64) + start[:, None, None], whole

"""A pen for rendered things: polygons in the unit square become two square masks.

`cover` says where there is cloth, `shade` how bright it is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIZE = 56  # a mask is twice as large as the model's input, so that averaging smooths its edges
CANVAS = 168
INK = 40  # a mask value above this counts as ink

Mask = NDArray[np.uint8]
Points = Sequence[tuple[float, float]]


def _blank(level: int) -> Image.Image:
    return Image.new("L", (CANVAS, CANVAS), level)


def _scaled(points: Points) -> list[tuple[float, float]]:
    return [(x * CANVAS, y * CANVAS) for x, y in points]


def _width(width: float) -> int:
    return max(1, round(width * CANVAS))


@dataclass(frozen=True)
class Pen:
    """Draws in the unit square, y pointing down."""

    cover: Image.Image = field(default_factory=lambda: _blank(0))
    shade: Image.Image = field(default_factory=lambda: _blank(255))

    def cloth(self, points: Points, shade: float = 255) -> None:
        """A piece of cloth of one shade."""
        ImageDraw.Draw(self.cover).polygon(_scaled(points), fill=255)
        ImageDraw.Draw(self.shade).polygon(_scaled(points), fill=int(shade))

    def cut(self, points: Points) -> None:
        """Takes cloth away."""
        ImageDraw.Draw(self.cover).polygon(_scaled(points), fill=0)

    def cut_oval(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """Takes the cloth of an oval away."""
        ImageDraw.Draw(self.cover).ellipse(_scaled([(x0, y0), (x1, y1)]), fill=0)

    def seam(self, points: Points, shade: float, width: float = 0.012) -> None:
        """A line on cloth that is there already."""
        ImageDraw.Draw(self.shade).line(_scaled(points), fill=int(shade), width=_width(width))

    def strap(self, points: Points, width: float, shade: float) -> None:
        """A line of cloth."""
        ImageDraw.Draw(self.cover).line(_scaled(points), fill=255, width=_width(width))
        self.seam(points, shade, width)

    def handle(self, x: float, y: float, rx: float, ry: float, width: float, shade: float) -> None:
        """The upper half of an oval, as a line of cloth."""
        box = _scaled([(x - rx, y - ry), (x + rx, y + ry)])
        ImageDraw.Draw(self.cover).arc(box, 180, 360, fill=255, width=_width(width))
        ImageDraw.Draw(self.shade).arc(box, 180, 360, fill=int(shade), width=_width(width))

    def button(self, x: float, y: float, shade: float) -> None:
        """A dot on cloth that is there already."""
        box = _scaled([(x, y), (x + 0.025, y + 0.025)])
        ImageDraw.Draw(self.shade).ellipse(box, fill=int(shade))

    def masks(self, fill: float = 0.92) -> tuple[Mask, Mask]:
        """Cover and shade, cropped to the cloth and centred; it takes `fill` of the square."""
        ys, xs = np.where(np.asarray(self.cover) > INK)
        box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
        w, h = box[2] - box[0], box[3] - box[1]
        scale = fill * SIZE / max(w, h)
        w, h = max(2, round(w * scale)), max(2, round(h * scale))
        cover, shade = Image.new("L", (SIZE, SIZE)), Image.new("L", (SIZE, SIZE), 255)
        for source, target in ((self.cover, cover), (self.shade, shade)):
            part = source.crop(box).resize((w, h), Image.Resampling.BOX)
            target.paste(part, ((SIZE - w) // 2, (SIZE - h) // 2))
        return np.array(cover), np.array(shade)

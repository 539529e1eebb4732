"""Garments drawn from random polygons, under the names that captions call them by.

Every drawing is a pair of square masks: `cover` says where there is cloth, `shade` how bright it
is there. No photograph is involved, so a model that learns from these has never seen the real
garments that it is tested on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
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
        ImageDraw.Draw(self.cover).polygon(_scaled(points), fill=255)
        ImageDraw.Draw(self.shade).polygon(_scaled(points), fill=int(shade))

    def cut(self, points: Points) -> None:
        ImageDraw.Draw(self.cover).polygon(_scaled(points), fill=0)

    def cut_oval(self, x0: float, y0: float, x1: float, y1: float) -> None:
        ImageDraw.Draw(self.cover).ellipse(_scaled([(x0, y0), (x1, y1)]), fill=0)

    def seam(self, points: Points, shade: float, width: float = 0.012) -> None:
        ImageDraw.Draw(self.shade).line(_scaled(points), fill=int(shade), width=_width(width))

    def strap(self, points: Points, width: float, shade: float) -> None:
        ImageDraw.Draw(self.cover).line(_scaled(points), fill=255, width=_width(width))
        self.seam(points, shade, width)

    def handle(self, x: float, y: float, rx: float, ry: float, width: float, shade: float) -> None:
        box = _scaled([(x - rx, y - ry), (x + rx, y + ry)])
        ImageDraw.Draw(self.cover).arc(box, 180, 360, fill=255, width=_width(width))
        ImageDraw.Draw(self.shade).arc(box, 180, 360, fill=int(shade), width=_width(width))

    def button(self, x: float, y: float, shade: float) -> None:
        box = _scaled([(x, y), (x + 0.025, y + 0.025)])
        ImageDraw.Draw(self.shade).ellipse(box, fill=int(shade))

    def masks(self, fill: float = 0.92) -> tuple[Mask, Mask]:
        """Both masks, cropped to the cloth and centred; its longer side takes `fill` of the square."""
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


# ---- upper body ----------------------------------------------------------------------------------


def _sleeves(r: random.Random, pen: Pen, shoulder: float, y: float, sleeve: float) -> None:
    long = sleeve > 0.3
    out = r.uniform(0.05, 0.20) if long else r.uniform(0.10, 0.20)
    cuff = r.uniform(0.07, 0.11)
    for side in (-1, 1):
        x = 0.5 + side * shoulder
        outer, inner = x + side * out, x + side * (out - cuff)
        pen.cloth(
            [
                (x - side * 0.02, y + 0.04),
                (outer, y + 0.06 + sleeve),
                (inner, y + 0.09 + sleeve),
                (x - side * 0.03, y + 0.24),
            ],
            r.uniform(205, 255),
        )
        if long:  # the line between arm and body is what tells a pullover from a wide top
            pen.seam([(x - side * 0.02, y + 0.2), (inner, y + 0.08 + sleeve)], r.uniform(60, 160))


def _front(r: random.Random, pen: Pen, y: float, end: float) -> None:
    x = 0.5 + r.uniform(-0.03, 0.03)
    pen.seam([(x, y + 0.04), (x, end)], r.uniform(20, 120), r.uniform(0.008, 0.02))
    if r.random() < 0.6:
        for i in range(r.randint(3, 6)):
            pen.button(x + 0.02, y + 0.1 + i * 0.09, r.uniform(0, 140))


def _neck(r: random.Random, pen: Pen, width: float, y: float, neck: str) -> None:
    if neck == "v":
        pen.cut([(0.5 - width, y - 0.01), (0.5 + width, y - 0.01), (0.5, y + r.uniform(0.08, 0.16))])
    else:
        top, bottom = y - r.uniform(0.04, 0.08), y + r.uniform(0.02, 0.08)
        pen.cut_oval(0.5 - width, top, 0.5 + width, bottom)


def _collar(r: random.Random, pen: Pen, width: float, y: float) -> None:
    for side in (-1, 1):
        tip = (0.5 + side * (width + 0.02), y - 0.03)
        pen.cloth([tip, (0.5, y + 0.06), (0.5 + side * 0.06, y + 0.10)], r.uniform(140, 220))


def _top(
    r: random.Random,
    sleeve: float,
    length: float,
    *,
    collar: bool = False,
    front: bool = False,
    neck: str = "round",
) -> Pen:
    pen = Pen()
    shoulder, waist, width = r.uniform(0.17, 0.24), r.uniform(0.15, 0.21), r.uniform(0.05, 0.09)
    y, end = 0.12, 0.12 + length
    right = [
        (0.5 + width, y),
        (0.5 + shoulder, y + 0.05),
        (0.5 + shoulder - 0.02, y + 0.3),
        (0.5 + waist, end),
    ]
    pen.cloth(right + [(1 - x, b) for x, b in reversed(right)])
    if sleeve > 0:
        _sleeves(r, pen, shoulder, y, sleeve)
    else:
        for x in (0.5 - shoulder - 0.06, 0.5 + shoulder - 0.05):
            pen.cut_oval(x, y + 0.02, x + 0.11, y + 0.22)
    _neck(r, pen, width, y, neck)
    if collar:
        _collar(r, pen, width, y)
    if front:
        _front(r, pen, y, end)
    if r.random() < 0.35:
        pen.seam([(0.5 - waist, end - 0.05), (0.5 + waist, end - 0.05)], r.uniform(90, 190))
    return pen


def _tshirt(r: random.Random) -> Pen:
    sleeve = r.uniform(0.08, 0.17) if r.random() < 0.85 else 0.0
    return _top(r, sleeve, r.uniform(0.56, 0.70), neck=r.choice(["round", "round", "v"]))


def _pullover(r: random.Random) -> Pen:
    return _top(r, r.uniform(0.44, 0.58), r.uniform(0.54, 0.68))


def _coat(r: random.Random) -> Pen:
    sleeve, length = r.uniform(0.46, 0.60), r.uniform(0.66, 0.80)
    return _top(r, sleeve, length, collar=r.random() < 0.7, front=True)


def _shirt(r: random.Random) -> Pen:
    sleeve = r.uniform(0.40, 0.56) if r.random() < 0.5 else r.uniform(0.10, 0.2)
    return _top(r, sleeve, r.uniform(0.56, 0.72), collar=True, front=r.random() < 0.8)


def _dress(r: random.Random) -> Pen:
    kind = r.random()
    sleeve = 0.0 if kind < 0.55 else r.uniform(0.10, 0.2) if kind < 0.85 else r.uniform(0.4, 0.5)
    pen = _top(r, sleeve, r.uniform(0.26, 0.34), neck=r.choice(["round", "v"]))
    waist, flare, y = r.uniform(0.12, 0.18), r.uniform(0.01, 0.17), 0.12
    hem = waist + flare
    pen.cloth(
        [
            (0.5 - waist, y + 0.24),
            (0.5 + waist, y + 0.24),
            (0.5 + hem, y + r.uniform(0.66, 0.78)),
            (0.5 - hem, y + 0.72),
        ],
        r.uniform(215, 255),
    )
    if r.random() < 0.5:
        pen.seam([(0.5 - waist, y + 0.26), (0.5 + waist, y + 0.26)], r.uniform(60, 180), 0.02)
    return pen


# ---- lower body ----------------------------------------------------------------------------------


def _legs(r: random.Random, length: float) -> Pen:
    pen = Pen()
    waist, gap, hem = r.uniform(0.11, 0.17), r.uniform(0.0, 0.06), r.uniform(0.05, 0.10)
    y = 0.1
    for side in (-1, 1):
        leg = [
            (0, y),
            (waist, y),
            (waist + gap + 0.01, y + length * 0.4),
            (gap + hem + 0.03, y + length),
            (gap + 0.005, y + length),
            (0, y + length * 0.36),
        ]
        pen.cloth([(0.5 + side * x, b) for x, b in leg], r.uniform(215, 255))
    pen.seam([(0.5 - waist, y + 0.05), (0.5 + waist, y + 0.05)], r.uniform(90, 200))
    pen.seam([(0.5, y), (0.5, y + length * 0.36)], r.uniform(60, 180))
    return pen


def _trouser(r: random.Random) -> Pen:
    return _legs(r, r.uniform(0.68, 0.78))


def _shorts(r: random.Random) -> Pen:
    return _legs(r, r.uniform(0.3, 0.42))


def _skirt(r: random.Random) -> Pen:
    pen = Pen()
    waist, flare, end = r.uniform(0.12, 0.17), r.uniform(0.02, 0.2), r.uniform(0.6, 0.85)
    hem = waist + flare
    pen.cloth([(0.5 - waist, 0.2), (0.5 + waist, 0.2), (0.5 + hem, end), (0.5 - hem, 0.75)])
    pen.seam([(0.5 - waist, 0.25), (0.5 + waist, 0.25)], r.uniform(60, 180))
    return pen


# ---- shoes, seen from the side: toe on the left, ground at FLOOR -----------------------------------

TOE, HEEL, FLOOR = 0.08, 0.92, 0.70


def _sneaker(r: random.Random) -> Pen:
    pen = Pen()
    top = FLOOR - r.uniform(0.20, 0.28)
    outline = [
        (TOE + 0.01, FLOOR),
        (TOE + 0.05, FLOOR - 0.10),
        (0.30, FLOOR - 0.15),
        (0.50, top),
        (0.56, top - 0.01),
        (0.62, top + 0.05),
        (0.80, top + 0.03),
        (HEEL - 0.04, top - 0.02),
        (HEEL, FLOOR - 0.05),
        (HEEL, FLOOR),
    ]
    pen.cloth(outline, r.uniform(170, 255))
    sole = FLOOR + r.uniform(0.03, 0.07)
    edge = [(TOE, FLOOR - 0.015), (HEEL + 0.01, FLOOR - 0.015)]
    pen.cloth([*edge, (HEEL + 0.01, sole), (TOE + 0.02, FLOOR + 0.045)], r.uniform(120, 255))
    pen.seam([(TOE, FLOOR - 0.01), (HEEL, FLOOR - 0.01)], r.uniform(10, 130))
    for i in range(r.randint(2, 5)):
        lace = [
            (0.34 + i * 0.05, FLOOR - 0.16 - i * 0.02),
            (0.42 + i * 0.05, FLOOR - 0.10 - i * 0.02),
        ]
        pen.seam(lace, r.uniform(20, 160))
    return pen


def _boot(r: random.Random) -> Pen:
    pen = Pen()
    top, shaft = FLOOR - r.uniform(0.36, 0.62), r.uniform(0.26, 0.36)
    lift, front = r.uniform(0.0, 0.14), HEEL - shaft
    outline = [
        (TOE, FLOOR),
        (TOE + 0.03, FLOOR - 0.08),
        (0.28, FLOOR - 0.14),
        (front - 0.02, FLOOR - 0.22),
        (front, top),
        (HEEL, top),
        (HEEL - 0.01, FLOOR - 0.05),
        (HEEL, FLOOR),
    ]
    pen.cloth(outline, r.uniform(190, 255))
    edge = [(TOE, FLOOR - 0.01), (HEEL, FLOOR - 0.01)]
    pen.cloth([*edge, (HEEL, FLOOR + 0.03), (TOE + 0.02, FLOOR + 0.03)], r.uniform(60, 220))
    end = FLOOR + 0.03 + lift
    upper, lower = HEEL - r.uniform(0.08, 0.2), HEEL - r.uniform(0.06, 0.14)
    pen.cloth([(upper, FLOOR), (HEEL, FLOOR), (HEEL, end), (lower, end)], r.uniform(60, 220))
    if r.random() < 0.5:
        zip_line = [(HEEL - shaft * 0.5, top), (HEEL - shaft * 0.6, FLOOR - 0.15)]
        pen.seam(zip_line, r.uniform(20, 150))
    return pen


def _sandal(r: random.Random) -> Pen:
    pen = Pen()
    lift = r.uniform(0.0, 0.34) if r.random() < 0.7 else 0.0
    top, ground = FLOOR - lift, FLOOR + 0.045
    upper = [(TOE, FLOOR), (TOE + 0.3, FLOOR - 0.01), (HEEL, top)]
    pen.cloth([*upper, (HEEL, top + 0.04), (TOE + 0.32, ground), (TOE, ground)], r.uniform(140, 255))
    if lift > 0.08:
        back, tip = HEEL - r.uniform(0.05, 0.12), HEEL - r.uniform(0.04, 0.08)
        pen.cloth([(back, top), (HEEL, top), (HEEL - 0.01, ground), (tip, ground)], r.uniform(140, 255))
    width = r.uniform(0.02, 0.05)
    for i in range(r.randint(1, 4)):
        x = 0.12 + i * r.uniform(0.08, 0.2)
        strap = [
            (x, FLOOR - 0.01),
            (x + r.uniform(0.02, 0.10), FLOOR - r.uniform(0.10, 0.18)),
            (x + r.uniform(0.12, 0.22), FLOOR - lift * max(0.0, x - 0.2)),
        ]
        pen.strap(strap, width, r.uniform(150, 255))
    if r.random() < 0.7:
        ankle = [
            (HEEL - 0.02, top),
            (HEEL - 0.06, top - r.uniform(0.12, 0.24)),
            (HEEL - 0.26, top - r.uniform(0.10, 0.2)),
            (HEEL - 0.30, top + 0.02),
        ]
        pen.strap(ankle, width, r.uniform(150, 255))
    return pen


def _pump(r: random.Random) -> Pen:
    pen = Pen()
    top = FLOOR - r.uniform(0.1, 0.3)
    pen.cloth(
        [
            (TOE, FLOOR),
            (TOE + 0.02, FLOOR - 0.09),
            (0.3, FLOOR - 0.13),
            (0.62, top - 0.02),
            (HEEL, top - 0.18),
            (HEEL + 0.01, top),
            (HEEL - 0.01, FLOOR + 0.03),
            (HEEL - 0.06, FLOOR + 0.03),
            (HEEL - 0.10, top + 0.06),
            (0.35, FLOOR + 0.03),
            (TOE, FLOOR + 0.02),
        ]
    )
    return pen


# ---- the rest --------------------------------------------------------------------------------------


def _bag(r: random.Random) -> Pen:
    pen = Pen()
    half, height = r.uniform(0.22, 0.40), r.uniform(0.26, 0.50)
    taper, end = r.uniform(-0.05, 0.08), 0.88
    y = end - height
    if r.random() < 0.85:
        rx, ry = r.uniform(0.08, max(0.1, half - 0.06)), r.uniform(0.08, 0.36)
        pen.handle(0.5, y, rx, ry, r.uniform(0.02, 0.05), r.uniform(120, 255))
    corners = [(0.5 - half + taper, y), (0.5 + half - taper, y), (0.5 + half, end)]
    pen.cloth([*corners, (0.5 - half, end)], r.uniform(190, 255))
    if r.random() < 0.6:
        flap = end - height * r.uniform(0.45, 0.9)
        ends = [(0.5 - half, flap), (0.5 + half, flap)]
        pen.seam(ends, r.uniform(30, 170), r.uniform(0.01, 0.03))
    if r.random() < 0.4:
        low, high = end - height * 0.45, end - height * 0.6
        pen.cloth([(0.46, high), (0.54, high), (0.54, low), (0.46, low)], r.uniform(60, 255))
    return pen


def _hat(r: random.Random) -> Pen:
    pen = Pen()
    left, right = r.uniform(0.25, 0.35), r.uniform(0.25, 0.35)
    pen.cloth([(0.5 - r.uniform(0.15, 0.22), 0.6), (0.35, left), (0.65, right), (0.7, 0.6)])
    brim = [
        (r.uniform(0.08, 0.25), 0.58),
        (r.uniform(0.75, 0.92), 0.58),
        (0.85, 0.65),
        (0.15, 0.65),
    ]
    pen.cloth(brim, r.uniform(150, 255))
    pen.seam([(0.3, 0.55), (0.7, 0.55)], r.uniform(20, 160), 0.04)
    return pen


# The first name is the one that a test would use; captions take it half of the time.
GARMENTS: dict[tuple[str, ...], Callable[[random.Random], Pen]] = {
    ("t-shirt", "t shirt", "top", "tee", "t-shirt top"): _tshirt,
    ("trouser", "trousers", "pants", "jeans", "pair of trousers"): _trouser,
    ("pullover", "sweater", "jumper", "knitted pullover", "sweatshirt"): _pullover,
    ("dress", "gown", "summer dress", "long dress"): _dress,
    ("coat", "jacket", "overcoat", "winter coat"): _coat,
    ("sandal", "open sandal", "summer sandal", "strappy sandal"): _sandal,
    ("shirt", "blouse", "button shirt", "collared shirt"): _shirt,
    ("sneaker", "running shoe", "trainer", "sport shoe"): _sneaker,
    ("bag", "handbag", "purse", "leather bag"): _bag,
    ("ankle boot", "boot", "leather boot", "boots"): _boot,
    ("skirt", "mini skirt"): _skirt,
    ("shorts", "short trousers"): _shorts,
    ("hat", "brimmed hat"): _hat,
    ("high heel", "pump", "heeled shoe"): _pump,
}
_SHOES = (_sandal, _sneaker, _boot, _pump)


def garments(each: int, r: random.Random) -> list[tuple[Mask, Mask, tuple[str, ...]]]:
    """`each` drawings of every kind: cover, shade, names."""
    bank = []
    for names, draw in GARMENTS.items():
        for _ in range(each):
            cover, shade = draw(r).masks()
            # Shoes keep their toe on the left, as in most product photographs.
            if draw not in _SHOES and r.random() < 0.5:
                cover, shade = cover[:, ::-1], shade[:, ::-1]
            bank.append((cover, shade, names))
    return bank

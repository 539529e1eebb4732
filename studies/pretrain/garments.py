"""Garments drawn from random polygons, under the names that captions call them by.

No photograph is involved: a model that learns from these has never seen the real garments that it
is tested on.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from pen import Mask, Pen
from shoes import boot, pump, sandal, sneaker

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


# ---- the rest ------------------------------------------------------------------------------------


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
    ("sandal", "open sandal", "summer sandal", "strappy sandal"): sandal,
    ("shirt", "blouse", "button shirt", "collared shirt"): _shirt,
    ("sneaker", "running shoe", "trainer", "sport shoe"): sneaker,
    ("bag", "handbag", "purse", "leather bag"): _bag,
    ("ankle boot", "boot", "leather boot", "boots"): boot,
    ("skirt", "mini skirt"): _skirt,
    ("shorts", "short trousers"): _shorts,
    ("hat", "brimmed hat"): _hat,
    ("high heel", "pump", "heeled shoe"): pump,
}
_SHOES = (sandal, sneaker, boot, pump)


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

"""Shoes, seen from the side: the toe on the left, the ground at FLOOR."""

from __future__ import annotations

import random

from pen import Pen

TOE, HEEL, FLOOR = 0.08, 0.92, 0.70


def sneaker(r: random.Random) -> Pen:
    """Laced, with a sole of its own."""
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


def boot(r: random.Random) -> Pen:
    """A shaft above the ankle; some have a heel and a zip."""
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


def sandal(r: random.Random) -> Pen:
    """A sole, mostly raised at the heel, and thin straps."""
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


def pump(r: random.Random) -> Pen:
    """A closed shoe on a high heel."""
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

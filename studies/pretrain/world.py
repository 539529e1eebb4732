"""The rendered world: pictures of glyphs, pictographs, garments and textures, with captions.

`banks` renders every thing once, as masks. `batch` draws from them: it picks a thing, colours,
a texture and a place, writes the sentence that says so, and renders all pictures together.
Batch `step` depends on (seed, step) alone. The installed fonts change the glyphs, hence the world.
"""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from garments import garments
from glyphs import glyphs, pictographs
from numpy.typing import NDArray
from pen import SIZE, Mask
from torch import Tensor

Field = NDArray[np.float64]

MIX = {
    "digit": 0.25,
    "letter": 0.12,
    "pictograph": 0.18,
    "garment": 0.32,
    "texture": 0.03,
    "scene": 0.10,
}
TEXTURES = ("striped", "checkered", "dotted", "noisy", "gradient")
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (40, 80, 220),
    "yellow": (235, 220, 50),
    "white": (245, 245, 245),
    "black": (12, 12, 12),
    "gray": (128, 128, 128),
    "orange": (240, 140, 30),
    "purple": (140, 50, 180),
    "pink": (245, 150, 190),
    "brown": (120, 75, 40),
}
BRIGHT = (
    "{}",
    "{}",
    "white {} on black",
    "bright {} on a dark background",
    "gray {}",
    "{} in black and white",
)
DARK = ("{}", "black {} on white", "dark {} on a bright background")
COLOURED = (
    "{}",
    "{ink} {}",
    "{ink} {} on {paper}",
    "{} on a {paper} background",
    "{ink} {} with {paper} background",
)
TEMPLATES = (
    "a photo of a {}",
    "a photo of the {}",
    "a picture of a {}",
    "an image of a {}",
    "a {}",
    "the {}",
    "{}",
    "this is a {}",
    "there is a {} here",
    "a drawing of a {}",
    "a good photo of a {}",
    "we can see a {} in this image",
)
CLOSE_UPS = (  # these would be wrong for a scene
    "one {} in the middle of the picture",
    "a close up photo of the {}",
    "a photo of a {}, centered",
)


class Thing(NamedTuple):
    """What covers the picture, how bright it is there, what it is called, how it is styled."""

    cover: Mask
    shade: Mask | None
    names: tuple[str, ...]
    style: tuple[str, ...] = ()


class Dice(NamedTuple):
    """The random sources of one batch."""

    plain: random.Random
    arrays: np.random.Generator
    tensors: torch.Generator


class Draft(NamedTuple):
    """One picture before rendering: masks, two colours in 0..255, an affine map, its caption."""

    cover: Field
    shade: Field
    ink: Field
    paper: Field
    place: Field
    glyph: bool
    caption: str


Banks = dict[str, list[Thing]]


def banks(seed: int) -> Banks:
    """Every thing that can be drawn, by kind."""
    r = random.Random(seed)
    full = np.full((SIZE, SIZE), 255, np.uint8)
    return {
        "digit": [Thing(m, None, names, style) for m, names, style in glyphs("digit", 200, r)],
        "letter": [Thing(m, None, names, style) for m, names, style in glyphs("letter", 120, r)],
        "pictograph": [Thing(mask, None, (name,)) for mask, name in pictographs()],
        "garment": [Thing(*drawing) for drawing in garments(400, r)],
        "texture": [Thing(full, None, ("texture",))],
    }


def dice(seed: int, step: int) -> Dice:
    """The sources of batch `step`."""
    address = random.Random(f"{seed} batch {step}").getrandbits(62)
    tensors = torch.Generator().manual_seed(address)
    return Dice(random.Random(address), np.random.default_rng(address), tensors)


# ---- one picture ---------------------------------------------------------------------------------


def _texture(kind: str, d: Dice) -> Field:
    r, size = d.plain, SIZE
    yy, xx = np.mgrid[0:size, 0:size]
    if kind == "noisy":
        n = r.choice([8, 14, 28])
        grain = np.kron(d.arrays.random((n, n)), np.ones((size // n + 1,) * 2))[:size, :size]
        return 1 - r.uniform(0.3, 0.8) * grain
    if kind == "gradient":
        angle = r.uniform(0, 2 * math.pi)
        slope = xx * math.cos(angle) + yy * math.sin(angle)
        return 1 - r.uniform(0.3, 0.8) * (slope - slope.min()) / np.ptp(slope)
    if kind == "striped":
        angle, period = r.uniform(0, math.pi), r.uniform(5, 14)
        phase = (xx * math.cos(angle) + yy * math.sin(angle)) * 2 * math.pi / period
        light = np.sin(phase + r.uniform(0, 6)) > r.uniform(-0.4, 0.4)
    elif kind == "checkered":
        p = r.randint(4, 9)
        light = (xx // p + yy // p) % 2 == 0
    else:
        p, radius = r.randint(7, 12), r.uniform(0.25, 0.4)
        light = (xx % p - p / 2) ** 2 + (yy % p - p / 2) ** 2 >= (radius * p) ** 2
    return np.where(light, 1.0, r.uniform(0.1, 0.6))


def _name(kind: str, thing: Thing, r: random.Random) -> str:
    style = [word for word in thing.style if r.random() < 0.6]
    first = kind == "garment" and r.random() < 0.5
    return " ".join([*style, thing.names[0] if first else r.choice(thing.names)])


def _scene(things: Banks, r: random.Random) -> tuple[Field, Field, str]:
    """One to four things on a 2 x 2 grid and a list of them."""
    kinds = ("digit", "letter", "pictograph", "garment")
    cover, shade = np.zeros((SIZE, SIZE)), np.ones((SIZE, SIZE))
    half, names = SIZE // 2, []
    for cell in r.sample(range(4), r.choice([1, 2, 2, 3, 3, 4])):
        kind = r.choices(kinds, [MIX[k] for k in kinds])[0]
        thing = r.choice(things[kind])
        rows, columns = (slice(i * half, (i + 1) * half) for i in divmod(cell, 2))
        cover[rows, columns] = thing.cover.reshape(half, 2, half, 2).mean((1, 3)) / 255
        light = r.uniform(0.5, 1)
        if thing.shade is not None:
            light = light * thing.shade.reshape(half, 2, half, 2).mean((1, 3)) / 255
        shade[rows, columns] = light
        plain = thing if r.random() < 0.3 else thing._replace(style=())
        names.append(_name(kind, plain, r))
    r.shuffle(names)
    if len(names) == 1:
        return cover, shade, names[0]
    return cover, shade, ", a ".join(names[:-1]) + " and a " + names[-1]


def _colours(d: Dice) -> tuple[Field, Field, str]:
    """Ink, paper and words: bright on dark (55 %), dark on bright (10 %), or two named colours."""
    r, kind = d.plain, d.plain.random()
    if kind < 0.55:
        return np.full(3, r.uniform(130, 255)), np.full(3, r.uniform(0, 25)), r.choice(BRIGHT)
    if kind < 0.65:
        return np.full(3, r.uniform(0, 60)), np.full(3, r.uniform(180, 255)), r.choice(DARK)
    ink, paper = r.sample(list(COLOURS), 2)
    jittered = [np.clip(np.array(COLOURS[c]) + d.arrays.normal(0, 12, 3), 0, 255) for c in (ink, paper)]
    words = r.choice(COLOURED).replace("{ink}", ink).replace("{paper}", paper)
    return jittered[0], jittered[1], words


def _place(kind: str, r: random.Random) -> tuple[Field, str]:
    """An affine map from the picture to the mask, and words if it is far from the identity."""
    scene, glyph = kind == "scene", kind in ("digit", "letter")
    scale = 1 / (r.uniform(0.92, 1.08) if scene else r.uniform(0.62, 1.08))
    angle = math.radians(r.gauss(0, 3 if scene else 8))
    aspect = math.exp(r.gauss(0, 0.10))
    shear = r.gauss(0, 0.12 if glyph else 0.04)
    words = []
    if r.random() < 0.04:
        angle = math.pi / 2 * r.choice([1, 2, 3])
        words.append("rotated")
    if scale > 1.4 and r.random() < 0.4:
        words.insert(0, "tiny")
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    turn = turn @ np.array([[1, shear], [0, 1]]) @ np.diag([scale * aspect, scale / aspect])
    reach = max(0, scale - 1) * 0.6 + 0.06
    shift = np.array([[r.uniform(-reach, reach)], [r.uniform(-reach, reach)]])
    return np.hstack([turn, shift]), " ".join([*words, "{}"])


def _draft(things: Banks, d: Dice) -> Draft:
    r = d.plain
    kind = r.choices(list(MIX), list(MIX.values()))[0]
    if kind == "scene":
        cover, shade, words = _scene(things, r)
    else:
        thing = r.choice(things[kind])
        cover, words = thing.cover / 255, _name(kind, thing, r)
        shade = np.ones((SIZE, SIZE)) if thing.shade is None else thing.shade / 255
    often = {"texture": 1.0, "garment": 0.29, "scene": 0.0}.get(kind, 0.10)
    if r.random() < often:
        texture = r.choice(TEXTURES)
        shade = shade * _texture(texture, d)
        if kind == "texture" or r.random() < 0.6:
            words = f"{texture} {words}"
    ink, paper, coloured = _colours(d)
    place, placed = _place(kind, r)
    words = placed.format(coloured.format(words))
    if r.random() < 0.8:
        words = r.choice(TEMPLATES if kind == "scene" else TEMPLATES + CLOSE_UPS).format(words)
    if r.random() < 0.2:  # prompts of the federated methods end with a full stop
        words += "."
    return Draft(cover, shade, ink, paper, place, kind in ("digit", "letter"), words)


# ---- a batch -------------------------------------------------------------------------------------


def batch(things: Banks, size: int, seed: int, step: int) -> tuple[Tensor, list[str]]:
    """`size` normalised images (size, 3, 28, 28) in -1..1 and their captions."""
    d = dice(seed, step)
    drafts = [_draft(things, d) for _ in range(size)]
    images = _render(drafts, d.plain, d.tensors)
    return (images - 0.5) / 0.5, [draft.caption for draft in drafts]


def _stack(fields: list[Field]) -> Tensor:
    return torch.from_numpy(np.stack(fields)).float()


def _render(drafts: list[Draft], r: random.Random, g: torch.Generator) -> Tensor:
    n = len(drafts)
    cover = _stack([x.cover for x in drafts])[:, None]
    shade = _stack([x.shade for x in drafts])[:, None]
    ink = _stack([x.ink for x in drafts])[..., None, None]
    paper = _stack([x.paper for x in drafts])[..., None, None]
    glyph = torch.tensor([x.glyph for x in drafts])
    for share, sign in ((0.25, 1), (0.15, -1)):  # bolder and thinner strokes
        chosen = glyph & (torch.rand(n, generator=g) < share)
        if chosen.any():
            cover[chosen] = sign * F.max_pool2d(sign * cover[chosen], 3, 1, 1)
    grid = F.affine_grid(_stack([x.place for x in drafts]), [n, 1, SIZE, SIZE], align_corners=False)
    warp = F.interpolate(torch.randn(n, 2, 4, 4, generator=g), size=(SIZE, SIZE), mode="bicubic", align_corners=True)
    force = 0.08 * torch.where(glyph, 1.0, 0.4) * torch.rand(n, generator=g)
    grid = grid + warp.permute(0, 2, 3, 1) * force[:, None, None, None]
    layers = F.grid_sample(torch.cat([cover, shade * cover], 1), grid, align_corners=False)
    cover, lit = layers[:, :1], layers[:, 1:]
    images = F.avg_pool2d(ink * lit + paper * (1 - cover), 2) / 255
    chosen = torch.rand(n, generator=g) < 0.15  # low resolution, as the 8 x 8 digits have
    if chosen.any():
        side = r.choice([8, 10, 12, 14])
        small = F.interpolate(images[chosen], size=(side, side), mode="area")
        images[chosen] = F.interpolate(small, size=(28, 28), mode="bicubic", align_corners=False)
    grain = torch.rand(n, generator=g)[:, None, None, None] * 0.08
    return (images + torch.randn(images.shape, generator=g) * grain).clamp(0, 1)

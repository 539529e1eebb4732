"""Digits and letters in every installed font, and the pictographs of the Symbola font."""

from __future__ import annotations

import random
import string
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
from matplotlib.font_manager import findSystemFonts
from pen import INK, SIZE, Mask
from PIL import Image, ImageDraw, ImageFont

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
UNASSIGNED = "\U0010ffff"  # every font draws its box for missing characters here
PER_FAMILY = 4  # some families have thirty weights, and would crowd out the handwritten ones

# Parts of file names: fonts that draw something else than plain characters.
SKIPPED = [
    "symb",
    "d050000l",
    "standardsymbols",
    "emoji",
    "icons",
    "math",
    "tamil",
    "initials",
    "keyboard",
    "noto",
    "balker",
    "becausewe",
    "cupola",
    "it_wasnt",
    "wargames",
    "winks",
    "penguin_attack",
]
STYLES = {
    "bold": ["bold", "black", "heavy"],
    "italic": ["italic", "oblique"],
    "typewriter": ("mono courier hack incons cursor typewriter firacode ocr").split(),
    "serif": [
        "serif",
        "roman",
        "libertine",
        "vollkorn",
        "garamond",
        "times",
        "pagella",
        "termes",
        "oldstandard",
        "gentium",
    ],
    "handwritten": [
        "hand",
        "script",
        "kristi",
        "dancing",
        "humor",
        "ruf",
        "kaushan",
        "ecolier",
        "isabella",
        "breip",
        "comic",
        "lobster",
        "leckerli",
        "femke",
        "steve",
        "delphine",
        "manners",
        "purisa",
        "chilanka",
        "yusei",
        "klee",
        "tomson",
        "z003",
        "chorus",
        "havana",
    ],
}
# Symbols, dingbats, pictures, transport, people and animals, geometric shapes, arrows.
PICTOGRAPHS = (
    (0x2600, 0x27BF),
    (0x1F300, 0x1F650),
    (0x1F680, 0x1F6F0),
    (0x1F900, 0x1F9FF),
    (0x25A0, 0x25FF),
    (0x2190, 0x21FF),
)


def _fonts(r: random.Random) -> list[str]:
    """Paths in random order, handwritten fonts first: they are few, and most like real digits."""
    names = {path: Path(path).name.lower() for path in findSystemFonts()}
    found = sorted(path for path, name in names.items() if not any(x in name for x in SKIPPED))
    r.shuffle(found)
    found.sort(key=lambda path: "handwritten" not in _styles(path))
    seen: Counter[str] = Counter()
    kept = []
    for path in found:
        family = Path(path).stem.split("-")[0].lower()[:6]
        seen[family] += 1
        if seen[family] <= PER_FAMILY:
            kept.append(path)
    return kept


def _styles(path: str) -> tuple[str, ...]:
    name = Path(path).name.lower()
    return tuple(
        style
        for style, parts in STYLES.items()
        if any(part in name for part in parts) and not (style == "serif" and "sans" in name)
    )


def _fitted(drawing: Image.Image, fill: float = 0.86) -> Mask | None:
    """The drawing cropped to its ink and centred; its longer side takes `fill` of the square."""
    ys, xs = np.where(np.asarray(drawing) > INK)
    if len(ys) < 8:
        return None
    part = drawing.crop((int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1))
    scale = fill * SIZE / max(part.size)
    w, h = (max(2, round(side * scale)) for side in part.size)
    square = Image.new("L", (SIZE, SIZE))
    place = ((SIZE - w) // 2, (SIZE - h) // 2)
    square.paste(part.resize((w, h), Image.Resampling.BILINEAR), place)
    return np.array(square)


def _glyph(character: str, font: ImageFont.FreeTypeFont) -> Mask | None:
    drawing = Image.new("L", (160, 160))
    ImageDraw.Draw(drawing).text((40, 20), character, font=font, fill=255)
    return _fitted(drawing)


def _names(character: str) -> tuple[str, ...]:
    if character.isdigit():
        word = DIGITS[int(character)]
        labels = [f"{label} {x}" for label in ("digit", "number") for x in (word, character)]
        return (*labels, word, character)
    size = "capital" if character.isupper() else "small"
    return (f"letter {character}", f"{size} letter {character}", character)


def glyphs(kind: str, fonts: int, r: random.Random) -> list[tuple[Mask, tuple[str, ...], tuple[str, ...]]]:
    """Digits or letters in up to `fonts` fonts: mask, names, words for the font's style."""
    characters = string.digits if kind == "digit" else string.ascii_letters
    bank = []
    for path in _fonts(r)[:fonts]:
        try:
            font = ImageFont.truetype(path, 80)
            missing = bytes(font.getmask(UNASSIGNED))
            if bytes(font.getmask("0")) == bytes(font.getmask("1")):
                continue
        except (OSError, ValueError):  # bitmap fonts and damaged ones
            continue
        for character in characters:
            mask = None if bytes(font.getmask(character)) == missing else _glyph(character, font)
            if mask is not None:
                bank.append((mask, _names(character), _styles(path)))
    return bank


def pictographs() -> list[tuple[Mask, str]]:
    """The symbols of Unicode as Symbola draws them, under their Unicode names."""
    path = next((p for p in findSystemFonts() if "symbola" in p.lower()), None)
    if path is None:
        raise FileNotFoundError("no Symbola font; install it (Debian: fonts-symbola)")
    font = ImageFont.truetype(path, 80)
    missing = bytes(font.getmask(UNASSIGNED))
    bank = []
    for point in (p for start, end in PICTOGRAPHS for p in range(start, end)):
        character = chr(point)
        name = unicodedata.name(character, "").lower().replace("-", " ")
        if not name or len(name.split()) > 5 or "emoji modifier" in name:
            continue
        mask = None if bytes(font.getmask(character)) == missing else _glyph(character, font)
        if mask is not None:
            bank.append((mask, name))
    return bank

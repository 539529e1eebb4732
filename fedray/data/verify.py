"""Whether a data set is what was downloaded, and whether each of its images can be read."""

from __future__ import annotations

import os
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from fedray.data import sources
from fedray.data.download import Progress
from fedray.data.fetch import absent, changed, manifest, place
from fedray.data.images import FORMATS, batches, decoded, reason
from fedray.data.sources import Source
from fedray.errors import Unavailable

GRAY = ("1", "L", "LA", "I", "I;16", "F")


class Report(NamedTuple):
    """What was found."""

    name: str
    folder: Path
    hashed: int  # files compared with the manifest; 0 where there is none
    missing: list[str]  # files of the manifest that are not there, or not as long as they were
    changed: list[str]  # files whose content isn't what was downloaded
    unlisted: int  # images that the manifest doesn't know
    train: int
    test: int
    classes: int
    broken: dict[str, str]  # images that can't be decoded, and why
    odd: dict[str, int]  # images that are read, but differ: gray, CMYK, one pixel wide, not the format they are named
    note: str  # whose split it is
    error: str  # why the set can't be loaded

    @property
    def sound(self) -> bool:
        """Nothing is missing, changed or broken."""
        return not (self.missing or self.changed or self.broken or self.error)


def verify(name: str, root: Path | None, progress: Progress) -> Report:
    """Hash the files that were downloaded again, load the set, and decode every image.

    A set that was put there by hand has no manifest: its images are decoded, but nobody knows what they should be.

    Raises:
        BadInput: no data set has this name.
        Unavailable: there is nothing to look at, or the manifest is damaged.
    """
    find, folder = sources.find(name), place(name, root)
    known = manifest(folder)
    missing, other = absent(folder, known), changed(folder, known, progress)
    try:
        source, error = find(root), ""
    except Unavailable as problem:
        if not known.files:
            raise
        source, error = None, str(problem)
    files = _files(source) if source else []
    broken, odd = _decoded(files, progress)
    listed = {folder / name for name in known.files}
    return Report(
        name=name,
        folder=folder if known.files or not files else Path(os.path.commonpath([path.parent for path in files])),
        hashed=len(known.files),
        missing=missing,
        changed=other,
        unlisted=sum(path not in listed for path in files) if listed else 0,
        train=len(source.train) if source else 0,
        test=len(source.test) if source else 0,
        classes=len(source.names) if source else 0,
        broken=broken,
        odd=dict(odd),
        note=source.note if source else "",
        error=error,
    )


def _files(source: Source) -> list[Path]:
    """Each image file once."""
    return sorted({p for t in (source.train, source.test) if isinstance(t.images, tuple) for p in t.images})


def _decoded(paths: list[Path], progress: Progress) -> tuple[dict[str, str], Counter[str]]:
    done = 0
    broken: dict[str, str] = {}
    odd: Counter[str] = Counter()
    for answers in batches(paths, _look, 256):
        for path, (why, kinds) in zip(paths[done:], answers, strict=False):
            odd.update(kinds)
            if why:
                broken[str(path)] = why
        done += len(answers)
        progress("images decoded", done, len(paths))
    return broken, odd


def _look(path: Path) -> tuple[str, list[str]]:
    """Why an image can't be decoded, if so, and what is unusual about it."""
    try:
        raw = path.read_bytes()
        decoded(raw)
        with Image.open(BytesIO(raw), formats=FORMATS) as image:
            named = Image.registered_extensions().get(path.suffix.lower())
            signs = {
                "gray": image.mode in GRAY,
                "CMYK": image.mode == "CMYK",
                "one pixel wide": min(image.size) == 1,
                "another format than named": named != image.format,
            }
            return "", [what for what, so in signs.items() if so]
    except Exception as error:  # Pillow raises a dozen types on damaged files
        return reason(error), []

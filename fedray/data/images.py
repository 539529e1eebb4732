"""Pictures become pixels, as CLIP's evaluation sees them or as a random view; and which of them are damaged.

    view 0       RGB, shorter side to S, centre crop: open_clip's evaluation transform
    view 1 ...   random resized crop and flip, seeded by (the image's bytes, view): the same for everybody

As in open_clip and Dassl the EXIF orientation is not applied, and transparency is dropped. RGB comes first, where they
resize first: only palette and transparent images differ. Gray images of 16 bits keep their upper 8, where Pillow's own
conversion would make nearly all of them white.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar
from uuid import uuid4

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from fedray.data.augment import crops
from fedray.data.sources import Table
from fedray.errors import Unavailable

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""Image formats that are opened; others would start outside programs (EPS) or are nobody's photographs."""
THREADS = min(8, os.cpu_count() or 1)
"""That decode files: Pillow works outside of Python's lock."""
NAMED = 5
"""Damaged images that a line of the log names."""

Pixels: TypeAlias = NDArray[np.uint8]
Policy: TypeAlias = Literal["error", "skip"]
T = TypeVar("T")

log = logging.getLogger("fedray")


def prepared(image: Pixels | Path, size: int, interpolation: str, view: int = 0) -> Pixels:
    """One view (3, S, S) of an image: a file, or an array (H, W, 3).

    Raises:
        Unavailable: the file is missing, or no readable image.
    """
    if view:
        return _varied(image, size, interpolation, view)
    if isinstance(image, np.ndarray) and image.shape == (size, size, 3):
        return np.ascontiguousarray(image.transpose(2, 0, 1))
    _, picture = _read(image)
    w, h = picture.size
    if min(w, h) != size:
        short = min(w, h)
        w, h = (size if side == short else int(size * side / short) for side in (w, h))
        picture = picture.resize((w, h), Image.Resampling[interpolation.upper()])
    left, top = round((w - size) / 2), round((h - size) / 2)
    return np.ascontiguousarray(np.asarray(picture)[top : top + size, left : left + size].transpose(2, 0, 1))


def _varied(image: Pixels | Path, size: int, interpolation: str, view: int) -> Pixels:
    raw, picture = _read(image)
    seed = int.from_bytes(hashlib.sha256(raw).digest()[:16], "big")
    (box,), (flip,) = crops(np.random.default_rng([seed, view]), np.array([picture.height]), np.array([picture.width]))
    top, left, height, width = map(int, box)
    part = picture.crop((left, top, left + width, top + height))
    pixels = np.asarray(part.resize((size, size), Image.Resampling[interpolation.upper()])).transpose(2, 0, 1)
    return np.ascontiguousarray(pixels[..., ::-1] if flip else pixels)


def _read(image: Pixels | Path) -> tuple[bytes, Image.Image]:
    """The bytes that an image is known by, and its RGB picture."""
    if isinstance(image, np.ndarray):
        return repr(image.shape).encode() + image.tobytes(), Image.fromarray(np.ascontiguousarray(image))
    try:
        raw = image.read_bytes()
        return raw, decoded(raw)
    except Exception as error:  # Pillow raises a dozen types on damaged files
        raise Unavailable(
            f"{image}: not a readable image ({reason(error)}); replace it or remove it from the set, or leave such "
            "images out with data.bad skip"
        ) from error


def decoded(raw: bytes) -> Image.Image:
    """The RGB picture in a file's bytes; raises whatever Pillow does where there is none, or a damaged one."""
    with Image.open(BytesIO(raw), formats=FORMATS) as file:
        if file.mode.startswith("I"):  # 16 bits, in some versions and formats held in 32
            upper = np.asarray(file).astype(np.int64).clip(0, 65535) >> 8
            return Image.fromarray(upper.astype(np.uint8)).convert("RGB")
        if file.mode == "P" and "transparency" in file.info:  # the same colours, without Pillow's warning
            return file.convert("RGBA").convert("RGB")
        return file.convert("RGB")


def reason(error: Exception) -> str:
    """Why an image can't be decoded, in words."""
    if isinstance(error, PIL.UnidentifiedImageError):
        return "of no image format that is known"  # Pillow would tell the address of an object
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(said.split()) or type(error).__name__


def batches(images: Pixels | Sequence[Path], prepare: Callable[[Any], T], size: int) -> Iterator[list[T]]:
    """`prepare` done to `size` images after the other, in order; the next ones are decoded while these are used."""
    starts = range(0, len(images), size)
    if isinstance(images, np.ndarray):
        yield from ([prepare(image) for image in images[start : start + size]] for start in starts)
        return
    ahead: deque[list[Future[T]]] = deque()
    pool = ThreadPoolExecutor(THREADS, "decode")
    try:
        for start in starts:
            ahead.append([pool.submit(prepare, image) for image in images[start : start + size]])
            if len(ahead) > 1:
                yield [future.result() for future in ahead.popleft()]
        while ahead:
            yield [future.result() for future in ahead.popleft()]
    finally:
        pool.shutdown(cancel_futures=True)


def sound(
    table: Table,
    policy: Policy = "error",
    *,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Table, tuple[Path, ...]]:
    """The table without its damaged images, and these.

    With "error" the table as it is, unread: `features.store` names the first damaged image that it meets. With "skip"
    every file is decoded once; the finding is kept by the files' paths, sizes and times.

    Args:
        table: images and labels; an array has no damaged images.
        policy: "error" or "skip".
        cache: folder that keeps what was found; None looks anew each time.
        progress: told (images looked at, images in all).

    Raises:
        Unavailable: no image can be read.
    """
    if policy == "error" or not isinstance(table.images, tuple) or not len(table):
        return table, ()
    note = None if cache is None else cache / f"{_key(table.images)}.json"
    bad = _recalled(note) if note else None
    if bad is None:
        bad = _damaged(table.images, progress)
        if note:
            _remember(note, bad)
    if not bad:
        return table, ()
    first = "; ".join(f"{table.images[i]} ({why})" for i, why in [*bad.items()][:NAMED])
    if len(bad) == len(table):
        raise Unavailable(f"none of {len(table)} images can be read: {first}; get the data set again")
    more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    log.warning("%d of %d images left out, not readable: %s%s", len(bad), len(table), first, more)
    kept = np.delete(np.arange(len(table)), list(bad))
    return table.take(kept), tuple(table.images[i] for i in bad)


def _damaged(paths: Sequence[Path], progress: Callable[[int, int], None] | None) -> dict[int, str]:
    """Positions of files that are no images, and why."""

    def why(path: Path) -> str:
        try:
            decoded(path.read_bytes())
        except Exception as error:
            return reason(error)
        return ""

    found: dict[int, str] = {}
    done = 0
    for answers in batches(paths, why, 256):
        found |= {done + i: answer for i, answer in enumerate(answers) if answer}
        done += len(answers)
        if progress:
            progress(done, len(paths))
    return found


def _key(paths: Sequence[Path]) -> str:
    """Of files as they are now; Pillow's version says what it can read."""
    sha = hashlib.sha256(f"1 {PIL.__version__}".encode())
    for path in paths:
        try:
            stat = path.stat()
            fact = [str(path.absolute()), stat.st_size, stat.st_mtime_ns]
        except OSError:
            fact = [str(path.absolute())]
        sha.update(json.dumps(fact).encode())
    return sha.hexdigest()


def _recalled(note: Path) -> dict[int, str] | None:
    try:
        kept = json.loads(note.read_bytes())
        if hashlib.sha256(json.dumps(kept["bad"]).encode()).hexdigest() == kept["sha256"]:
            os.utime(note)  # a cache removes what was used longest ago
            return {int(i): str(why) for i, why in kept["bad"]}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or damaged: look again
    return None


def _remember(note: Path, bad: dict[int, str]) -> None:
    kept = [[i, why] for i, why in bad.items()]
    draft = note.with_name(f"{note.stem}.{uuid4().hex[:8]}.tmp")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps({"bad": kept, "sha256": hashlib.sha256(json.dumps(kept).encode()).hexdigest()}))
        draft.replace(note)
    except OSError as error:  # costs another look, nothing else
        log.warning("%s: cannot be written (%s)", note, error.strerror or error)

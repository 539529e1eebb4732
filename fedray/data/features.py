"""What the frozen towers would compute anew each round, computed once: pixels or features in a content-addressed store.

    <root>/<key>.arrow   the images of a table, in one view (see images.py); data/arrow.py is about such a file
    key = SHA-256 of backbone, preprocessing, content, images, view, precision and format: other inputs never meet it

Features are computed in fixed batches and stored in fp32, so logits with and without the store are identical. In fp16
they take half the space; each value is off by 2^-11 of itself at most, and so a cosine by less than 2^-10: at CLIP's
scale of 100 a logit by less than 0.1 in the worst case, by 0.007 as measured (studies/bench_features.py).
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedray.data import arrow
from fedray.data.cache import beat, use, writing
from fedray.data.images import batches, prepared
from fedray.data.sources import Table
from fedray.errors import BadInput, Unavailable
from fedray.types import Features, Needs

if TYPE_CHECKING:
    from fedray.nn.backbone import Backbone

VERSION = 2
"""Of the file format and of the preprocessing; part of every key."""

Precision: TypeAlias = Literal["fp32", "fp16"]
Progress: TypeAlias = Callable[[int, int], None]
File: TypeAlias = tuple[Path, str]
"""A file of the store and its SHA-256."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Stored images with their labels. Pickles as paths: the receiving process maps a file on first use.

    Raises Unavailable there if a file is missing or its bytes are not those that were stored.
    """

    path: Path
    sha256: str
    content: Needs
    labels: NDArray[np.int64] | NDArray[np.int8]  # (n,), or multi-hot (n, C)
    further: tuple[File, ...] = ()  # views 1, 2, ...

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def views(self) -> int:
        """How often each image is stored: 1 where there is only its evaluation view."""
        return 1 + len(self.further)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of one image, by column: pixels (3, S, S) uint8; pooled (d,), tokens (M, d)."""
        return {name: blocks[0].shape[1:] for name, blocks in arrow.mapped(self.path, self.sha256).items()}

    def take(self, indices: NDArray[Any], views: NDArray[Any] | None = None) -> Tensor | Features:
        """Fresh tensors of the images at these positions: uint8 (B, 3, S, S), or Features (B, d), (B, M, d) in fp32.

        `views` (B,) says which view of each; None is the evaluation view, 0, of all.

        Raises IndexError for positions outside 0 .. n-1, or views outside 0 .. views-1.
        """
        index = np.asarray(indices, np.int64)
        view = np.zeros(len(index), np.int64) if views is None else np.asarray(views, np.int64)
        for what, at, count in (("positions", index, len(self)), ("views", view, self.views)):
            if at.size and (at.min() < 0 or at.max() >= count):
                raise IndexError(f"{what} {at.min()} .. {at.max()} of {count} {what.replace('positions', 'images')}")
        files = ((self.path, self.sha256), *self.further)
        wanted = sorted(set(view.tolist())) or [0]
        if len(wanted) == 1:
            got = _taken(files[wanted[0]], index)
        else:
            parts = [(np.flatnonzero(view == v), files[v]) for v in wanted]
            back = torch.from_numpy(np.argsort(np.concatenate([rows for rows, _ in parts])))
            each = [_taken(file, index[rows]) for rows, file in parts]
            got = {name: torch.cat([part[name] for part in each])[back] for name in each[0]}
        return got["pixels"] if self.content == "pixels" else Features(got["pooled"], got.get("tokens"))


def _taken(file: File, index: NDArray[np.int64]) -> dict[str, Tensor]:
    beat(file[0])
    columns = {name: torch.from_numpy(arrow.gather(blocks, index)) for name, blocks in arrow.mapped(*file).items()}
    return {name: column.float() if column.dtype == torch.float16 else column for name, column in columns.items()}


class _Wanted(NamedTuple):
    """What a file of the store holds."""

    clip: Backbone
    table: Table
    content: Needs
    precision: Precision
    batch: int
    view: int

    @property
    def key(self) -> str:
        arch = self.clip.arch
        facts: list[object] = [VERSION, self.content, self.table.digest, arch.image_size, arch.interpolation, self.view]
        if self.content != "pixels":  # pixels are stored before normalisation: backbones of one size share them
            norm = [list(map(float, values)) for values in (arch.mean, arch.std)]
            facts += [self.clip.digest, *norm, self.batch, self.precision]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def store(
    root: Path,
    clip: Backbone,
    table: Table,
    content: Needs,
    *,
    precision: Precision = "fp32",
    views: int = 1,
    progress: Progress | None = None,
    batch: int = 64,
) -> Samples:
    """The images of `table` as the backbone sees them, computed by whoever asks first and mapped by all others.

    Every call verifies the files' SHA-256; a damaged one is computed again, with a warning in the log. A view is a file
    of its own, so that more views use those that are there.

    Args:
        root: folder of the store, made when missing.
        clip: the frozen backbone; its evaluation preprocessing is applied.
        table: images and labels; labels are not part of the store.
        content: "pixels" for prompts or augmentation in the vision tower, "pooled", or "tokens" (pooled and patches).
        precision: of features, "fp32", or "fp16" for half the space (see above); pixels are bytes anyway.
        views: of each image: its evaluation view, and random resized crops seeded by its content.
        progress: told (images done, images in all) after each batch, only while computing.
        batch: images per forward pass; part of the key, as it can change the last bit of a feature.

    Raises:
        BadInput: an empty table, a batch or views below 1, features that fp16 can't hold.
        Unavailable: an unreadable image, a folder that cannot be written, not enough room on the disk.
    """
    if len(table) == 0:
        raise BadInput("a table of 0 images has nothing to store; check the split that made it")
    for name, value, remedy in (("batch", batch, "64 suits most machines"), ("views", views, "1 is the plain image")):
        if value < 1:
            raise BadInput(f"{name} must be at least 1, got {value}; {remedy}")
    wanted = [_Wanted(clip, table, content, precision, batch, view) for view in range(views)]
    paths = [root.absolute() / f"{one.key}.arrow" for one in wanted]
    known = [_known(path) for path in paths]
    missing = [view for view, sha in enumerate(known) if sha is None]
    for i, view in enumerate(missing):
        told = None if progress is None else _part(progress, i, len(missing))
        known[view] = _written(paths[view], wanted[view], len(missing) - i, told)
    files = tuple((path, sha) for path, sha in zip(paths, known, strict=True) if sha is not None)
    return Samples(*files[0], content, table.labels, files[1:])


def _known(path: Path) -> str | None:
    if path.exists():
        use(path)  # first, so that it is not removed while it is looked at
    return arrow.verified(path)


def _part(progress: Progress, part: int, parts: int) -> Progress:
    return lambda done, total: progress(part * total + done, parts * total)


def estimate(clip: Backbone, images: int, content: Needs, *, precision: Precision = "fp32", views: int = 1) -> int:
    """Bytes that `store` needs on the disk for so many images, known before it starts."""
    if content == "pixels":
        each = 3 * clip.arch.image_size**2
    else:
        vectors = 1 + (clip.arch.patches if content == "tokens" else 0)
        each = vectors * clip.arch.joint * (2 if precision == "fp16" else 4)
    pieces = images * each // arrow.BLOCK + 1
    return views * (images * each + 4096 * (pieces + 1))


def _written(path: Path, wanted: _Wanted, files: int, progress: Progress | None) -> str:
    """The SHA-256 of the file, computed here or by another process that was first; `files` are still to be made."""
    root = path.parent
    try:
        root.mkdir(parents=True, exist_ok=True)
        with writing(path) as alive:
            use(path)
            if known := arrow.verified(path):
                return known
            _fits(root, wanted, files)
            return arrow.commit(path, _encoded(wanted, alive, progress), wanted.batch)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise Unavailable(
            f"{path}: cannot be written ({why}, {_free(root) / 1e6:.0f} MB free); choose another folder"
        ) from error


def _fits(root: Path, wanted: _Wanted, files: int) -> None:
    need = estimate(wanted.clip, len(wanted.table), wanted.content, precision=wanted.precision, views=files)
    free = _free(root)
    if need > free:
        half = ", halve it with data.store fp16" if wanted.content != "pixels" and wanted.precision == "fp32" else ""
        raise Unavailable(
            f"{root}: {wanted.content} of {len(wanted.table):,} images x {files} views need {need / 1e6:,.0f} MB, "
            f"{free / 1e6:,.0f} MB are free; make room with fedray data cache --max{half}, or set FEDRAY_CACHE to a "
            "larger disk"
        )


def _free(root: Path) -> int:
    there = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def _encoded(wanted: _Wanted, alive: Callable[[], None], progress: Progress | None) -> Iterator[arrow.Columns]:
    """Columns of one batch of images after the other."""
    arch, done = wanted.clip.arch, 0

    def prepare(image: NDArray[np.uint8] | Path) -> NDArray[np.uint8]:
        return prepared(image, arch.image_size, arch.interpolation, wanted.view)

    for pictures in batches(wanted.table.images, prepare, wanted.batch):
        yield _columns(wanted, np.stack(pictures))
        done += len(pictures)
        alive()
        if progress:
            progress(done, len(wanted.table))


def _columns(wanted: _Wanted, pixels: NDArray[np.uint8]) -> arrow.Columns:
    if wanted.content == "pixels":
        return {"pixels": pixels}
    clip = wanted.clip
    with torch.inference_mode():
        x = clip.preprocess(torch.from_numpy(pixels).to(clip.logit_scale.device))
        out = clip.encode_image(x, tokens="patches" if wanted.content == "tokens" else False)
    found = {"pooled": out.pooled} | ({} if out.tokens is None else {"tokens": out.tokens})
    return {name: _kept(value.float().cpu().numpy(), wanted.precision) for name, value in found.items()}


def _kept(values: NDArray[np.float32], precision: Precision) -> NDArray[Any]:
    if precision == "fp32":
        return values
    most = float(np.abs(values).max(initial=0.0))
    if math.isfinite(most) and most > float(np.finfo(np.float16).max):
        raise BadInput(f"features up to {most:.3g} do not fit into fp16; leave data.store at fp32")
    return values.astype(np.float16)

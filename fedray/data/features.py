"""What the frozen towers would compute anew each round, computed once: pixels or features in a content-addressed store.

    <root>/<key>.arrow   one Arrow IPC file, a fixed-size list per image and column, memory mapped read-only
    <root>/<key>.json    its SHA-256
    key = SHA-256 of backbone, preprocessing, content, images and format: other inputs never meet an old file

Features are stored in fp32, encoded in fixed batches, so logits with and without the store are identical.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fedray.data.sources import Table
from fedray.errors import BadInput, Unavailable
from fedray.types import Features, Needs

if TYPE_CHECKING:
    from fedray.nn.backbone import Backbone

VERSION = 1
"""Of the file format and of the preprocessing below; part of every key."""

BLOCK = 2**26
"""Bytes of a record batch, at most: what is held in memory while writing. One block means one gather per `take`."""

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""Image formats that are opened; others would start outside programs (EPS) or are nobody's photographs."""

log = logging.getLogger("fedray")


@dataclass(frozen=True, eq=False)
class Samples:
    """Stored images with their labels. Pickles as a path: the receiving process maps the file on first use.

    Raises Unavailable there if the file is missing or its bytes are not those that were stored.
    """

    path: Path
    sha256: str
    content: Needs
    labels: NDArray[np.int64] | NDArray[np.int8]  # (n,), or multi-hot (n, C)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of one image, by column: pixels (3, S, S) uint8; pooled (d,), tokens (M, d) float32."""
        return {name: blocks[0].shape[1:] for name, blocks in _map(self.path, self.sha256).items()}

    def take(self, indices: NDArray[Any]) -> Tensor | Features:
        """Fresh tensors of the images at these positions: uint8 (B, 3, S, S), or Features (B, d), (B, M, d).

        Raises IndexError for positions outside 0 .. n-1.
        """
        index = np.asarray(indices, np.int64)
        if index.size and (index.min() < 0 or index.max() >= len(self)):
            raise IndexError(f"positions {index.min()} .. {index.max()} of {len(self)} images")
        columns = _map(self.path, self.sha256)
        got = {name: torch.from_numpy(_gather(blocks, index)) for name, blocks in columns.items()}
        return got["pixels"] if self.content == "pixels" else Features(got["pooled"], got.get("tokens"))


def store(
    root: Path,
    clip: Backbone,
    table: Table,
    content: Needs,
    *,
    progress: Callable[[int, int], None] | None = None,
    batch: int = 64,
) -> Samples:
    """The images of `table` as the backbone sees them, computed by whoever asks first and mapped by all others.

    Every call verifies the file's SHA-256; a damaged one is computed again, with a warning in the log.

    Args:
        root: folder of the store, made when missing.
        clip: the frozen backbone; its evaluation preprocessing is applied.
        table: images and labels; labels are not part of the store.
        content: "pixels" for prompts or augmentation in the vision tower, "pooled", or "tokens" (pooled and patches).
        progress: told (images done, images in all) after each batch, only while computing.
        batch: images per forward pass; part of the key, as it can change the last bit of a feature.

    Raises:
        BadInput: an empty table, a batch below 1.
        Unavailable: an unreadable image, a folder that cannot be written.
    """
    if len(table) == 0:
        raise BadInput("a table of 0 images has nothing to store; check the split that made it")
    if batch < 1:
        raise BadInput(f"batch must be at least 1, got {batch}; 64 suits most machines")
    path = root / f"{_key(clip, table, content, batch)}.arrow"
    known = _verified(path)
    if known is None:
        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                known = _verified(path) or _build(path, clip, table, content, batch, progress)
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise Unavailable(f"{path}: cannot be written ({why}, {_free(root)}); choose another folder") from error
    return Samples(path.absolute(), known, content, table.labels)


def _key(clip: Backbone, table: Table, content: Needs, batch: int) -> str:
    size, interpolation = clip.arch.image_size, clip.arch.interpolation
    facts: list[object] = [VERSION, content, table.digest, size, interpolation]
    if content != "pixels":  # pixels are stored before normalisation: backbones of one size share them
        facts += [clip.digest, list(map(float, clip.arch.mean)), list(map(float, clip.arch.std)), batch]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _verified(path: Path) -> str | None:
    """The SHA-256 of a file whose bytes are as they were written; None if it must be made (again)."""
    if not path.exists():
        return None
    sha = _sha(path)
    try:
        if json.loads(path.with_suffix(".json").read_bytes())["sha256"] == sha:
            return sha
    except (OSError, ValueError, KeyError, TypeError):
        pass  # a sidecar that cannot be read is damage as well
    log.warning("%s: damaged, computing it again", path)
    return None


def _sha(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _free(root: Path) -> str:
    there = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    return f"{shutil.disk_usage(there).free / 1e6:.0f} MB free"


def _build(
    path: Path, clip: Backbone, table: Table, content: Needs, batch: int, progress: Callable[[int, int], None] | None
) -> str:
    """Compute and write the file, then its sidecar, both by rename; the file itself comes last and commits."""
    draft, sidecar = path.with_suffix(".tmp"), path.with_suffix(".json")
    try:
        _write(draft, _encoded(clip, table, content, batch, progress), batch)
        known = _sha(draft)
        note = sidecar.with_suffix(".json.tmp")
        note.write_text(json.dumps({"sha256": known}))
        note.replace(sidecar)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    _map.cache_clear()
    return known


def _encoded(
    clip: Backbone, table: Table, content: Needs, batch: int, progress: Callable[[int, int], None] | None
) -> Iterator[dict[str, NDArray[Any]]]:
    """Columns of one batch of images after the other."""
    for start in range(0, len(table), batch):
        stop = min(start + batch, len(table))
        pixels = np.stack([_prepared(image, clip) for image in table.images[start:stop]])
        columns: dict[str, NDArray[Any]] = {"pixels": pixels}
        if content != "pixels":
            with torch.inference_mode():
                x = clip.preprocess(torch.from_numpy(pixels).to(clip.logit_scale.device))
                out = clip.encode_image(x, tokens="patches" if content == "tokens" else False)
            columns = {"pooled": out.pooled.float().cpu().numpy()}
            if content == "tokens" and out.tokens is not None:
                columns["tokens"] = out.tokens.float().cpu().numpy()
        yield columns
        if progress:
            progress(stop, len(table))


def _prepared(image: NDArray[np.uint8] | Path, clip: Backbone) -> NDArray[np.uint8]:
    """CLIP's evaluation view (3, S, S): RGB, shorter side to S, centre crop, rounded as torchvision does.

    RGB comes first, where open_clip resizes first: only palette and transparent images differ.
    """
    size = clip.arch.image_size
    if isinstance(image, Path):
        try:
            with Image.open(image, formats=FORMATS) as file:
                picture = file.convert("RGB")
        except Exception as error:  # Pillow raises a dozen types on damaged files
            raise Unavailable(
                f"{image}: not a readable image ({error}); replace it or remove it from the set"
            ) from error
    elif image.shape == (size, size, 3):
        return np.ascontiguousarray(image.transpose(2, 0, 1))
    else:
        picture = Image.fromarray(np.ascontiguousarray(image))
    w, h = picture.size
    if min(w, h) != size:
        short = min(w, h)
        w, h = (size if side == short else int(size * side / short) for side in (w, h))
        picture = picture.resize((w, h), Image.Resampling[clip.arch.interpolation.upper()])
    left, top = round((w - size) / 2), round((h - size) / 2)
    return np.ascontiguousarray(np.asarray(picture)[top : top + size, left : left + size].transpose(2, 0, 1))


def _write(path: Path, batches: Iterator[dict[str, NDArray[Any]]], batch: int) -> None:
    """Batches into record batches of equal rows, up to BLOCK bytes each; the metadata tell the shapes of one image."""
    first = next(batches)
    shapes = {name: column.shape[1:] for name, column in first.items()}
    schema = pa.schema(
        [(name, pa.list_(pa.from_numpy_dtype(c.dtype), math.prod(c.shape[1:]))) for name, c in first.items()],
        metadata={"shapes": json.dumps(shapes)},
    )
    size = sum(column[:1].nbytes for column in first.values())
    rows = max(1, BLOCK // (size * batch))  # in batches
    path.unlink(missing_ok=True)  # what a killed process left
    with path.open("xb") as file, pa.ipc.new_file(file, schema) as writer:
        block = [first]
        for columns in batches:
            if len(block) == rows:
                writer.write_batch(_record(block, schema))
                block = []
            block.append(columns)
        writer.write_batch(_record(block, schema))


def _record(block: list[dict[str, NDArray[Any]]], schema: Any) -> Any:
    columns = [np.concatenate([part[field.name] for part in block]).reshape(-1) for field in schema]
    lists = [pa.FixedSizeListArray.from_arrays(pa.array(c), type=f.type) for c, f in zip(columns, schema, strict=True)]
    return pa.record_batch(lists, schema=schema)


@lru_cache(maxsize=64)
def _map(path: Path, sha256: str) -> dict[str, list[NDArray[Any]]]:
    """Read-only views of each column's blocks, a row an image; verified once per process, before anything is parsed."""
    try:
        if _sha(path) != sha256:
            raise Unavailable(f"{path}: is not the file that was stored; run again to compute it anew")
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror or error}; run again to compute it anew") from error
    shapes = json.loads(reader.schema.metadata[b"shapes"])
    records = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    return {
        field.name: [_view(record.column(i), shapes[field.name]) for record in records]
        for i, field in enumerate(reader.schema)
    }


def _view(column: Any, shape: Sequence[int]) -> NDArray[Any]:
    """A view of a column's bytes; pyarrow's own conversion would import pandas in every actor."""
    flat = column.flatten()
    kind = np.dtype({"float": "float32"}.get(str(flat.type), str(flat.type)))
    values = np.frombuffer(flat.buffers()[1], kind, count=len(flat), offset=flat.offset * kind.itemsize)
    return values.reshape(-1, *shape)


def _gather(blocks: list[NDArray[Any]], index: NDArray[np.int64]) -> NDArray[Any]:
    """The rows at these positions, copied; all blocks but the last have equal rows."""
    if len(blocks) == 1:
        return np.take(blocks[0], index, axis=0)
    rows = len(blocks[0])
    out = np.empty((len(index), *blocks[0].shape[1:]), blocks[0].dtype)
    order = np.argsort(index, kind="stable")
    edges = np.searchsorted(index[order], np.arange(len(blocks) + 1) * rows)
    for block, start, stop in zip(blocks, edges, edges[1:], strict=False):
        at = order[start:stop]
        out[at] = block[index[at] % rows]
    return out

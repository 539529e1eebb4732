"""One file of the store: columns of equal rows as Arrow IPC, known by their SHA-256, mapped read-only by every process.

    <key>.arrow   a fixed-size list per image and column (uint8, float16 or float32), in record batches of equal rows
    <key>.json    its SHA-256

A file is written beside its place and renamed over it, the sidecar first: the file itself comes last and commits.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fedray.data.cache import use
from fedray.errors import Unavailable

Columns: TypeAlias = dict[str, NDArray[Any]]
"""Rows of some images, by column."""

BLOCK = 2**26
"""Bytes of a record batch, at most: what is held in memory while writing. One block means one gather per read."""

KINDS = {"uint8": np.uint8, "halffloat": np.float16, "float": np.float32}
"""Arrow's names of what the columns may hold."""

log = logging.getLogger("fedray")


def verified(path: Path) -> str | None:
    """The SHA-256 of a file whose bytes are as they were written; None if it must be made (again).

    Raises:
        Unavailable: it is there, but not for this user: to make it again would fail, too.
    """
    try:
        found = sha(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Unavailable(
            f"{path}: cannot be read ({error.strerror}); let its owner open it to you, or set FEDRAY_CACHE to a folder "
            "of yours"
        ) from error
    try:
        if json.loads(path.with_suffix(".json").read_bytes())["sha256"] == found:
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass  # a sidecar that cannot be read is damage as well
    log.warning("%s: damaged, computing it again", path)
    return None


def sha(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def commit(path: Path, batches: Iterator[Columns], batch: int) -> str:
    """Write the file, then its sidecar, both by rename; returns the SHA-256.

    The draft's name is nobody else's: a writer that was taken for dead can't move another's half of a file into place.
    """
    draft = path.with_name(f"{path.stem}.{uuid4().hex[:8]}.tmp")
    note = draft.with_suffix(".json.tmp")
    try:
        _write(draft, batches, batch)
        known = sha(draft)
        note.write_text(json.dumps({"sha256": known}))
        note.replace(path.with_suffix(".json"))
        if path.exists():
            mapped.cache_clear()  # of a damaged file, its bytes may be mapped
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
        note.unlink(missing_ok=True)
    return known


def _write(path: Path, batches: Iterator[Columns], batch: int) -> None:
    """Batches into record batches of equal rows, up to BLOCK bytes each; the metadata tell the shapes of one image."""
    first = next(batches)
    shapes = {name: column.shape[1:] for name, column in first.items()}
    schema = pa.schema(
        [(name, pa.list_(pa.from_numpy_dtype(c.dtype), math.prod(c.shape[1:]))) for name, c in first.items()],
        metadata={"shapes": json.dumps(shapes)},
    )
    size = sum(column[:1].nbytes for column in first.values())
    rows = max(1, BLOCK // (size * batch))  # in batches
    with path.open("xb") as file, pa.ipc.new_file(file, schema) as writer:
        block = [first]
        for columns in batches:
            if len(block) == rows:
                writer.write_batch(_record(block, schema))
                block = []
            block.append(columns)
        writer.write_batch(_record(block, schema))


def _record(block: list[Columns], schema: Any) -> Any:
    columns = [np.concatenate([part[field.name] for part in block]).reshape(-1) for field in schema]
    lists = [pa.FixedSizeListArray.from_arrays(pa.array(c), type=f.type) for c, f in zip(columns, schema, strict=True)]
    return pa.record_batch(lists, schema=schema)


@lru_cache(maxsize=256)
def mapped(path: Path, sha256: str) -> dict[str, list[NDArray[Any]]]:
    """Read-only views of each column's blocks, a row an image; verified once per process, before anything is parsed.

    Raises:
        Unavailable: the file is missing, or its bytes are not those that were stored.
    """
    use(path)
    try:
        if sha(path) != sha256:
            raise Unavailable(f"{path}: is not the file that was stored; run again to compute it anew")
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
    except (OSError, pa.ArrowException, LookupError, ValueError, TypeError, AttributeError) as error:
        # the last ones come from extension types that a library has registered with Arrow: Ray's, of tensors
        raise Unavailable(f"{path}: {getattr(error, 'strerror', 0) or error}; run again to compute it anew") from error
    if any(field.metadata or not pa.types.is_fixed_size_list(field.type) for field in reader.schema):
        raise Unavailable(f"{path}: has columns that fedray does not write; delete it and run again")
    shapes = json.loads(reader.schema.metadata[b"shapes"])
    records = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    return {
        field.name: [_view(record.column(i), shapes[field.name]) for record in records]
        for i, field in enumerate(reader.schema)
    }


def _view(column: Any, shape: Sequence[int]) -> NDArray[Any]:
    """A view of a column's bytes; pyarrow's own conversion would import pandas in every actor."""
    flat = column.flatten()
    kind = np.dtype(KINDS[str(flat.type)])
    values = np.frombuffer(flat.buffers()[1], kind, count=len(flat), offset=flat.offset * kind.itemsize)
    return values.reshape(-1, *shape)


def gather(blocks: list[NDArray[Any]], index: NDArray[np.int64]) -> NDArray[Any]:
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

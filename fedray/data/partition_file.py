"""A partition as a file: Parquet rows (client, index, label), with digests that notice any change.

Those of parts and labels are what results depend on; the seal is the SHA-256 of the whole file, with zeros in its own
place, and notices a flipped bit also where no value depends on it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedray.data.dealing import Indices
from fedray.errors import Unavailable

SEAL, BLANK = re.compile(rb"fedray\.seal..([0-9a-f]{64})", re.DOTALL), b"0" * 64
"""Where a file has its seal, and what stands there while it is computed."""
UNSEALED = 3
"""Facts that a file has from before there were seals."""


def digest(parts: Sequence[NDArray[Any]]) -> str:
    """SHA-256 (hex) of a partition: the number of clients, and the sizes and positions of each."""
    sha = hashlib.sha256(np.array([len(parts), *map(len, parts)], "<i8").tobytes())
    for part in parts:
        sha.update(np.asarray(part, "<i8").tobytes())
    return sha.hexdigest()


def save(path: Path, parts: Sequence[NDArray[Any]], labels: NDArray[Any]) -> str:
    """Write (client, index, label) rows as Parquet, all or nothing, and return the partition's digest.

    One row per image. Multi-hot labels (n, C) go into a fourth column `labels`, the list of an image's C entries, and
    `label`, which then means nothing, is -1. The metadata keep the number of clients (the last may be empty) and the
    digests of partition and labels.

    Raises:
        Unavailable: the file can't be written (disk full, forbidden).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    index = np.concatenate([np.asarray(part, np.int64) for part in parts])
    client = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
    dealt = np.asarray(labels)[index]
    multi = dealt.ndim == 2
    columns = [client, index, np.full(len(index), -1) if multi else dealt.astype(np.int64)]
    columns += [pa.array(list(dealt), pa.list_(pa.int8()))] if multi else []
    facts = {
        "fedray.clients": str(len(parts)),
        "fedray.digest": digest(parts),
        "fedray.labels": digest([*np.atleast_2d(dealt.T)]),
        "fedray.seal": BLANK.decode(),
    }
    schema = _schema(multi)
    rows = pa.table(columns, schema=schema)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    sink = pa.BufferOutputStream()
    options = {"write_statistics": False, "store_schema": False, "write_page_checksum": True}
    with pq.ParquetWriter(sink, schema, **options) as writer:
        writer.write_table(rows)
        writer.add_key_value_metadata(facts)
    image = bytes(sink.getvalue())
    try:
        with draft.open("wb") as file:
            file.write(image.replace(BLANK, hashlib.sha256(image).hexdigest().encode()))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise Unavailable(
            f"{path}: cannot be written ({error.strerror or error}); free or change the folder"
        ) from error
    return digest(parts)


def load(path: Path) -> tuple[list[Indices], Indices | NDArray[np.int8]]:
    """Read what `save` wrote: the parts, and the labels of positions 0 .. n-1, int64 (n,) or multi-hot int8 (n, C).

    Raises Unavailable, naming the file, when it is missing, damaged, of another make, or holds Arrow extension types
    (which could bring code with them).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        image = path.read_bytes()
        source = pa.BufferReader(image)
        file = pq.ParquetFile(source, page_checksum_verification=True, arrow_extensions_enabled=False)
        facts = file.metadata.metadata or {}
        multi = "labels" in file.schema_arrow.names
        if b"ARROW:schema" in facts or not file.schema_arrow.equals(_schema(multi)):
            raise Unavailable(f"{path}: its columns are not client:int32, index:int64, label:int64; write it anew")
        client, index, *_, last = file.read().columns
        client, index = client.to_numpy(), index.to_numpy()
        dealt = _rows(last, len(index)) if multi else last.to_numpy()
        parts = [index[client == k] for k in range(int(facts[b"fedray.clients"]))]
        told = facts[b"fedray.digest"].decode(), facts[b"fedray.labels"].decode()
        whole = (digest(parts), digest([*np.atleast_2d(dealt.T)])) == told and (
            len(facts) == UNSEALED or _sealed(image)
        )
    except FileNotFoundError:
        raise Unavailable(f"{path}: no such partition; write it anew") from None
    except (OSError, pa.ArrowException, LookupError, ValueError, TypeError, AttributeError) as error:
        # the last ones come from extension types that a library has registered with Arrow: Ray's, of tensors
        raise Unavailable(f"{path}: damaged ({type(error).__name__}); write it anew") from error
    if not whole:
        raise Unavailable(f"{path}: damaged, its digest does not match; write it anew")
    labels = np.empty_like(dealt)
    labels[index] = dealt
    return parts, labels


def _sealed(image: bytes) -> bool:
    seals = SEAL.findall(image)
    return len(seals) == 1 and hashlib.sha256(image.replace(seals[0], BLANK)).hexdigest().encode() == seals[0]


def _rows(column: Any, n: int) -> NDArray[np.int8]:
    """A column of n lists of equal length as (n, C); ValueError where it is not."""
    flat = column.combine_chunks().flatten().to_numpy()
    if (np.diff(column.combine_chunks().offsets.to_numpy()) * n != len(flat)).any():
        raise ValueError("lists of unequal length")
    return np.asarray(flat, np.int8).reshape(n, -1)


def _schema(multi: bool) -> Any:
    import pyarrow as pa

    fields = [("client", pa.int32()), ("index", pa.int64()), ("label", pa.int64())]
    return pa.schema(fields + ([("labels", pa.list_(pa.field("element", pa.int8())))] if multi else []))

"""Who holds which image: a partition is a frozen dataclass that deals positions out to K clients.

    kind: its name in a configuration;  __call__(labels (n,), rng) -> K sorted arrays of positions,
    disjoint, together exactly 0 .. n-1.

Dirichlet label skew (Hsu et al. 2019):  p_c ~ Dir(alpha 1_K) for each class c;  client k gets n_c p_ck of its images.

A partitioner draws from the generator that it is given and from nothing else, and it always ends. To add one: write
its dataclass here and add it to `Partition`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from fedray.errors import BadInput, Unavailable

Indices: TypeAlias = NDArray[np.int64]


class Cell(NamedTuple):
    """One bubble of the client-by-class picture."""

    client: int
    label: int
    n: int


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Iid:
    """Every client gets the same: sizes differ by at most one image, and so do the counts within each class."""

    kind: Literal["iid"] = "iid"
    clients: int = Field(default=10, ge=1)

    def __call__(self, labels: NDArray[Any], rng: np.random.Generator) -> list[Indices]:
        """Deal the images, class after class, round and round the clients; BadInput with fewer images than clients."""
        y = _classes(labels)
        _enough(self.clients, 1, len(y))
        shuffled = rng.permutation(len(y))
        dealt = shuffled[np.argsort(y[shuffled], kind="stable")]
        owner = np.empty(len(y), np.int64)
        owner[dealt] = rng.permutation(self.clients)[np.arange(len(y)) % self.clients]
        return _group(owner, self.clients)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Dirichlet:
    """Label skew: each class is spread over the clients by its own draw from Dir(alpha); small alpha is strong skew.

    Counts are unbiased: with P the running sum of p and one u ~ U(0, 1) per class, client k gets
    floor(n_c P_k + u) - floor(n_c P_(k-1) + u) images, which is n_c p_k rounded up or down and n_c p_k on average.
    (Rounding without u gives the first clients too few of every class when there are fewer shots than clients.)

    Clients below `min_size` are then filled, in order of their number, one image at a time: the largest client gives
    the last image of its most frequent class (ties: lowest client, lowest class). No draw is repeated, so it ends.
    """

    kind: Literal["dirichlet"] = "dirichlet"
    clients: int = Field(default=10, ge=1)
    alpha: float = Field(default=0.1, gt=0, le=1e12, allow_inf_nan=False)
    min_size: int = Field(default=1, ge=0)

    def __call__(self, labels: NDArray[Any], rng: np.random.Generator) -> list[Indices]:
        """Deal the images; BadInput where there are fewer than clients * min_size."""
        y = _classes(labels)
        _enough(self.clients, self.min_size, len(y))
        owner = np.empty(len(y), np.int64)
        classes = int(y.max(initial=-1)) + 1
        shares = _dirichlet(self.alpha, (classes, self.clients), rng)
        for c, offset in enumerate(rng.random(classes)):
            mine = rng.permutation(np.flatnonzero(y == c))
            edges = np.floor(len(mine) * np.cumsum(shares[c]) + offset).astype(np.int64)
            edges = np.append(np.minimum(edges[:-1], len(mine)), len(mine))  # rounding errors never lose an image
            owner[mine] = np.repeat(np.arange(self.clients), np.diff(edges, prepend=0))
        _fill(owner, y, self.clients, self.min_size)
        return _group(owner, self.clients)


Partition: TypeAlias = Annotated[Iid | Dirichlet, Field(discriminator="kind")]
"""Any partition, told apart by `kind`."""


def _classes(labels: NDArray[Any]) -> Indices:
    """The labels as 0 .. C-1, whatever integers they were."""
    if np.ndim(labels) != 1:
        raise BadInput(f"labels of shape {np.shape(labels)} are not one class per image; give a 1-d array of integers")
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def _enough(clients: int, least: int, n: int) -> None:
    if clients * least > n:
        raise BadInput(
            f"{clients} clients with min_size {least} need at least {clients * least} images, got {n}; "
            "fewer clients or more shots"
        )


def _dirichlet(alpha: float, shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    """Rows from Dir(alpha 1), for any alpha > 0: `rng.dirichlet` gives 0/0 once all its gamma draws underflow.

    Gamma(alpha) = Gamma(alpha + 1) U^(1/alpha) (Marsaglia & Tsang 2000), so log Gamma(alpha) = z / alpha with
    z = alpha log Gamma(alpha + 1) - E and E ~ Exp(1); subtracting the row's largest z before the division is exact.
    """
    z = alpha * np.log(rng.standard_gamma(alpha + 1, shape)) - rng.standard_exponential(shape)
    with np.errstate(over="ignore", under="ignore"):  # a share too small for a double is 0
        share = np.exp((z - z.max(1, keepdims=True)) / alpha)
        return np.asarray(share / share.sum(1, keepdims=True))


def _fill(owner: Indices, y: Indices, clients: int, least: int) -> None:
    """Raise every client to `least` images, in place. The largest client always has more than `least` to give."""
    sizes = np.bincount(owner, minlength=clients)
    for poor in np.flatnonzero(sizes < least):
        while sizes[poor] < least:
            rich = int(sizes.argmax())
            held = np.flatnonzero(owner == rich)
            gift = held[y[held] == np.bincount(y[held]).argmax()][-1]
            owner[gift] = poor
            sizes[rich] -= 1
            sizes[poor] += 1


def _group(owner: Indices, clients: int) -> list[Indices]:
    order = np.argsort(owner, kind="stable").astype(np.int64)
    return np.split(order, np.cumsum(np.bincount(owner, minlength=clients))[:-1])


def digest(parts: Sequence[NDArray[Any]]) -> str:
    """SHA-256 (hex) of a partition: the number of clients, and the sizes and positions of each."""
    sha = hashlib.sha256(np.array([len(parts), *map(len, parts)], "<i8").tobytes())
    for part in parts:
        sha.update(np.asarray(part, "<i8").tobytes())
    return sha.hexdigest()


def table(parts: Sequence[NDArray[Any]], labels: NDArray[Any]) -> list[Cell]:
    """How many images of which class each client holds, by client and class; empty cells are left out."""
    return [
        Cell(client, int(label), int(count))
        for client, part in enumerate(parts)
        for label, count in zip(*np.unique(np.asarray(labels)[part], return_counts=True), strict=True)
    ]


def save(path: Path, parts: Sequence[NDArray[Any]], labels: NDArray[Any]) -> str:
    """Write (client, index, label) rows as Parquet, all or nothing, and return the partition's digest.

    The metadata keep the number of clients (the last may be empty) and the digests of partition and labels.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    index = np.concatenate([np.asarray(part, np.int64) for part in parts])
    client = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
    label = np.asarray(labels, np.int64)[index]
    facts = {"fedray.clients": str(len(parts)), "fedray.digest": digest(parts), "fedray.labels": digest([label])}
    rows = pa.table([client, index, label], schema=_schema())
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            options = {"write_statistics": False, "store_schema": False, "write_page_checksum": True}
            with pq.ParquetWriter(file, _schema(), **options) as writer:
                writer.write_table(rows)
                writer.add_key_value_metadata(facts)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise Unavailable(
            f"{path}: cannot be written ({error.strerror or error}); free or change the folder"
        ) from error
    return digest(parts)


def load(path: Path) -> tuple[list[Indices], Indices]:
    """Read what `save` wrote: the parts, and the labels of positions 0 .. n-1.

    Raises Unavailable, naming the file, when it is missing, damaged, of another make, or holds Arrow extension types
    (which could bring code with them).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, page_checksum_verification=True, arrow_extensions_enabled=False)
        facts = file.metadata.metadata or {}
        if b"ARROW:schema" in facts or not file.schema_arrow.equals(_schema()):
            raise Unavailable(f"{path}: its columns are not client:int32, index:int64, label:int64; write it anew")
        client, index, label = (column.to_numpy() for column in file.read().columns)
        parts = [index[client == k] for k in range(int(facts[b"fedray.clients"]))]
        whole = (
            digest(parts) == facts[b"fedray.digest"].decode() and digest([label]) == facts[b"fedray.labels"].decode()
        )
    except FileNotFoundError:
        raise Unavailable(f"{path}: no such partition; write it anew") from None
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise Unavailable(f"{path}: damaged ({type(error).__name__}); write it anew") from error
    if not whole:
        raise Unavailable(f"{path}: damaged, its digest does not match; write it anew")
    labels = np.empty(len(index), np.int64)
    labels[index] = label
    return parts, labels


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema([("client", pa.int32()), ("index", pa.int64()), ("label", pa.int64())])

"""Who holds which image: a partition is a frozen dataclass that deals positions out to K clients.

    kind: its name in a configuration;  __call__(labels (n,) or multi-hot (n, C), rng, features (n, d)) ->
    K sorted arrays of positions, disjoint, together exactly 0 .. n-1.

Dirichlet label skew (Hsu et al. 2019):  p_c ~ Dir(alpha 1_K) for each class c;  client k gets n_c p_ck of its images.
Clusters (FedMPT):  k-means on the frozen backbone's image features, a cluster per client.

A partitioner draws from the generator that it is given and from nothing else, and it always ends. To add one: write
its dataclass here and add it to `Partition`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from fedray.data.clusters import cluster
from fedray.errors import BadInput, Unavailable

Indices: TypeAlias = NDArray[np.int64]


class Cell(NamedTuple):
    """One bubble of the client-by-class picture."""

    client: int
    label: int
    n: int


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Iid:
    """Every client gets the same: sizes differ by at most one image, and so do the counts within each class.

    Images with several classes are dealt by the rarest of them, those without any as a class of their own.
    """

    kind: Literal["iid"] = "iid"
    clients: int = Field(default=10, ge=1)
    by_features: ClassVar[bool] = False

    def __call__(
        self, labels: NDArray[Any], rng: np.random.Generator, features: NDArray[Any] | None = None
    ) -> list[Indices]:
        """Deal the images, class after class, round and round the clients; BadInput with fewer images than clients."""
        y = _classes(rarest(labels) if np.ndim(labels) == 2 else labels)
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
    by_features: ClassVar[bool] = False

    def __call__(
        self, labels: NDArray[Any], rng: np.random.Generator, features: NDArray[Any] | None = None
    ) -> list[Indices]:
        """Deal the images; BadInput where there are fewer than clients * min_size, and for labels (n, C)."""
        if np.ndim(labels) == 2:
            raise BadInput(
                f"labels of shape {np.shape(labels)}: partition dirichlet deals single-label classes; "
                "for multi-label data take partition clusters or iid"
            )
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


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Clusters:
    """Feature skew: k-means on unit-length zero-shot image features, one cluster per client, whatever the labels.

    Clients below `min_size` are filled with those images of the largest client that are nearest to their centre.
    """

    kind: Literal["clusters"] = "clusters"
    clients: int = Field(default=10, ge=1)
    min_size: int = Field(default=1, ge=0)
    by_features: ClassVar[bool] = True

    def __call__(
        self, labels: NDArray[Any], rng: np.random.Generator, features: NDArray[Any] | None = None
    ) -> list[Indices]:
        """Deal the images; BadInput without features (n, d), or with fewer than clients * min(min_size, 1) images."""
        n = len(labels)
        if features is None or len(features) != n:
            got = "none" if features is None else f"{len(features)}"
            raise BadInput(f"partition clusters needs image features (n, d), one for each of {n} images, got {got}")
        _enough(self.clients, max(self.min_size, 1), n)
        return _group(cluster(features, self.clients, self.min_size, rng), self.clients)


Partition: TypeAlias = Annotated[Dirichlet | Iid | Clusters, Field(discriminator="kind")]
"""Any partition, told apart by `kind`; the default one comes first."""


def rarest(labels: NDArray[Any]) -> Indices:
    """Of multi-hot labels (n, C), each image's class that fewest images show; C for an image that shows none."""
    shown = np.asarray(labels) == 1
    count = np.where(shown, shown.sum(0), len(shown) + 1)
    return np.asarray(np.where(shown.any(1), count.argmin(1), shown.shape[1]))


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
    """How many images of which class each client holds, by client and class; empty cells are left out.

    An image with several classes (multi-hot labels) counts once in each class that it shows.
    """
    y = np.asarray(labels)
    cells = []
    for client, part in enumerate(parts):
        shown = np.nonzero(y[part] == 1)[1] if y.ndim == 2 else y[part]
        cells += [Cell(client, int(c), int(n)) for c, n in zip(*np.unique(shown, return_counts=True), strict=True)]
    return cells


def save(path: Path, parts: Sequence[NDArray[Any]], labels: NDArray[Any]) -> str:
    """Write (client, index, label) rows as Parquet, all or nothing, and return the partition's digest.

    One row per image. Multi-hot labels (n, C) go into a fourth column `labels`, the list of an image's C entries, and
    `label`, which then means nothing, is -1. The metadata keep the number of clients (the last may be empty) and the
    digests of partition and labels.
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
    }
    schema = _schema(multi)
    rows = pa.table(columns, schema=schema)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            options = {"write_statistics": False, "store_schema": False, "write_page_checksum": True}
            with pq.ParquetWriter(file, schema, **options) as writer:
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


def load(path: Path) -> tuple[list[Indices], Indices | NDArray[np.int8]]:
    """Read what `save` wrote: the parts, and the labels of positions 0 .. n-1, int64 (n,) or multi-hot int8 (n, C).

    Raises Unavailable, naming the file, when it is missing, damaged, of another make, or holds Arrow extension types
    (which could bring code with them).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, page_checksum_verification=True, arrow_extensions_enabled=False)
        facts = file.metadata.metadata or {}
        multi = "labels" in file.schema_arrow.names
        if b"ARROW:schema" in facts or not file.schema_arrow.equals(_schema(multi)):
            raise Unavailable(f"{path}: its columns are not client:int32, index:int64, label:int64; write it anew")
        client, index, *_, last = file.read().columns
        client, index = client.to_numpy(), index.to_numpy()
        dealt = _rows(last, len(index)) if multi else last.to_numpy()
        parts = [index[client == k] for k in range(int(facts[b"fedray.clients"]))]
        told = facts[b"fedray.digest"].decode(), facts[b"fedray.labels"].decode()
        whole = (digest(parts), digest([*np.atleast_2d(dealt.T)])) == told
    except FileNotFoundError:
        raise Unavailable(f"{path}: no such partition; write it anew") from None
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise Unavailable(f"{path}: damaged ({type(error).__name__}); write it anew") from error
    if not whole:
        raise Unavailable(f"{path}: damaged, its digest does not match; write it anew")
    labels = np.empty_like(dealt)
    labels[index] = dealt
    return parts, labels


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

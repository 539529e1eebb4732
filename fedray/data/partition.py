"""Who holds which image: a partition is a frozen dataclass that deals positions out to K clients.

    kind: its name in a configuration;  by: what it deals by;
    __call__(facts, rng) -> K sorted arrays of positions, disjoint, together exactly 0 .. n-1.

Here are the plain one and the one by features, `skew` has those by class and size, `domains` the one by domain.
Clusters (FedMPT):  k-means on the frozen backbone's image features, a cluster per client.

A partitioner draws from the generator that it is given and from nothing else, and it always ends. To add one: write
its dataclass and add it to `Partition`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from fedray.data.clusters import cluster
from fedray.data.dealing import By, Facts, Indices, enough, group, one_or_rarest
from fedray.data.domains import Domains
from fedray.data.partition_file import digest, load, save
from fedray.data.skew import Blocks, Dirichlet, Pathological, Quantity, Shards
from fedray.errors import BadInput

__all__ = [
    "Blocks",
    "Cell",
    "Clusters",
    "Dirichlet",
    "Domains",
    "Facts",
    "Iid",
    "Partition",
    "Pathological",
    "Quantity",
    "Shards",
    "digest",
    "load",
    "save",
    "table",
]


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
    by: ClassVar[By] = "labels"

    def __call__(self, facts: Facts, rng: np.random.Generator) -> list[Indices]:
        """Deal the images, class after class, round and round the clients; BadInput with fewer images than clients."""
        y = one_or_rarest(facts.labels)
        enough(self.clients, 1, len(y))
        shuffled = rng.permutation(len(y))
        dealt = shuffled[np.argsort(y[shuffled], kind="stable")]
        owner = np.empty(len(y), np.int64)
        owner[dealt] = rng.permutation(self.clients)[np.arange(len(y)) % self.clients]
        return group(owner, self.clients)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Clusters:
    """Feature skew: k-means on unit-length zero-shot image features, one cluster per client, whatever the labels.

    Clients below `min_size` are filled with those images of the largest client that are nearest to their centre.
    """

    kind: Literal["clusters"] = "clusters"
    clients: int = Field(default=10, ge=1)
    min_size: int = Field(default=1, ge=0)
    by: ClassVar[By] = "features"

    def __call__(self, facts: Facts, rng: np.random.Generator) -> list[Indices]:
        """Deal the images; BadInput without features (n, d), or with fewer than clients * min(min_size, 1) images."""
        n, features = len(facts.labels), facts.features
        if features is None or len(features) != n:
            got = "none" if features is None else f"{len(features)}"
            raise BadInput(f"partition clusters needs image features (n, d), one for each of {n} images, got {got}")
        enough(self.clients, max(self.min_size, 1), n)
        return group(cluster(features, self.clients, self.min_size, rng), self.clients)


Partition: TypeAlias = Annotated[
    Dirichlet | Iid | Clusters | Pathological | Shards | Blocks | Quantity | Domains, Field(discriminator="kind")
]
"""Any partition, told apart by `kind`; the default one comes first."""


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

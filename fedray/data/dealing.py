"""What partitions deal by, and how they deal: facts about the images, and the steps that several partitions share.

owner (n,): the client 0 .. K-1 of each image;  `group` turns it into K sorted arrays of positions.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedray.errors import BadInput

Indices: TypeAlias = NDArray[np.int64]
By: TypeAlias = Literal["labels", "features", "domains"]
"""What a partition deals by; a client's own test images are chosen by the same."""


class Facts(NamedTuple):
    """What is known of each image; most partitions look at the labels alone."""

    labels: NDArray[Any]  # (n,) integers, or multi-hot (n, C): 1 present
    features: NDArray[Any] | None = None  # (n, d) of the frozen backbone
    domains: NDArray[Any] | None = None  # (n,) integers


def classes(labels: NDArray[Any]) -> Indices:
    """Labels (n,) as 0 .. C-1, whatever integers they were; BadInput for another shape."""
    if np.ndim(labels) != 1:
        raise BadInput(f"labels of shape {np.shape(labels)} are not one class per image; give a 1-d array of integers")
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def one_class(labels: NDArray[Any], kind: str) -> Indices:
    """The same for a partition that makes no sense of several classes per image: BadInput names those that do."""
    if np.ndim(labels) == 2:
        raise BadInput(
            f"labels of shape {np.shape(labels)}: partition {kind} deals single-label classes; "
            "for multi-label data take partition clusters, iid or quantity"
        )
    return classes(labels)


def rarest(labels: NDArray[Any]) -> Indices:
    """Of multi-hot labels (n, C), each image's class that fewest images show; C for an image that shows none."""
    shown = np.asarray(labels) == 1
    count = np.where(shown, shown.sum(0), len(shown) + 1)
    return np.asarray(np.where(shown.any(1), count.argmin(1), shown.shape[1]))


def one_or_rarest(labels: NDArray[Any]) -> Indices:
    """One class 0 .. C-1 for each image: its own, or of several the rarest."""
    return classes(rarest(labels) if np.ndim(labels) == 2 else labels)


def enough(clients: int, least: int, n: int, place: str = "") -> None:
    """BadInput where n images can't give each client `least` of them."""
    if clients * least > n:
        raise BadInput(
            f"{clients} clients with min_size {least} need at least {clients * least} images{place}, got {n}; "
            "fewer clients or more shots"
        )


def dirichlet(alpha: float, shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    """Rows from Dir(alpha 1), for any alpha > 0: `rng.dirichlet` gives 0/0 once all its gamma draws underflow.

    Gamma(alpha) = Gamma(alpha + 1) U^(1/alpha) (Marsaglia & Tsang 2000), so log Gamma(alpha) = z / alpha with
    z = alpha log Gamma(alpha + 1) - E and E ~ Exp(1); subtracting the row's largest z before the division is exact.
    """
    z = alpha * np.log(rng.standard_gamma(alpha + 1, shape)) - rng.standard_exponential(shape)
    with np.errstate(over="ignore", under="ignore"):  # a share too small for a double is 0
        share = np.exp((z - z.max(1, keepdims=True)) / alpha)
        return np.asarray(share / share.sum(1, keepdims=True))


def counts(shares: NDArray[np.float64], n: int, offset: float) -> Indices:
    """`n` images by shares (K,) that sum to 1: floor(n P_k + u) - floor(n P_(k-1) + u), P the running sum.

    That is n p_k rounded up or down, and n p_k on average over u ~ U(0, 1).
    """
    edges = np.floor(n * np.cumsum(shares) + offset).astype(np.int64)
    edges = np.append(np.minimum(edges[:-1], n), n)  # rounding errors never lose an image
    return np.diff(edges, prepend=0)


def fill(owner: Indices, y: Indices, clients: int, least: int) -> None:
    """Raise every client to `least` images, in place. The largest client always has more than `least` to give."""
    sizes = np.bincount(owner, minlength=clients)
    stock: dict[int, tuple[Indices, Indices, Indices]] = {}  # giver: its positions by class, how many, where each ends
    for poor in np.flatnonzero(sizes < least):
        while sizes[poor] < least:
            rich = int(sizes.argmax())
            if rich not in stock:
                mine = np.flatnonzero(owner == rich)
                left = np.bincount(y[mine])
                stock[rich] = mine[np.argsort(y[mine], kind="stable")], left, np.cumsum(left)
            mine, left, end = stock[rich]
            c = left.argmax()
            left[c] -= 1
            end[c] -= 1
            owner[mine[end[c]]] = poor
            sizes[rich] -= 1
            sizes[poor] += 1


def spread(y: Indices, sizes: Indices, rng: np.random.Generator) -> Indices:
    """The owner of each image where sizes (K,) are given, and within every client the classes are as in the whole.

    Client k's j-th place stands at (j + u_k) / n_k on a line, u_k ~ U(0, 1); the places of all clients, in order, take
    the images sorted by class. A class is a stretch of that line, so that each client gets about its share of it.
    """
    client = np.repeat(np.arange(len(sizes)), sizes)
    place = np.arange(len(y)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    line = (place + rng.random(len(sizes))[client]) / sizes[client]
    shuffled = rng.permutation(len(y))
    owner = np.empty(len(y), np.int64)
    owner[shuffled[np.argsort(y[shuffled], kind="stable")]] = client[np.argsort(line, kind="stable")]
    return owner


def among(y: Indices, client: Indices, label: Indices, clients: int, rng: np.random.Generator) -> Indices:
    """The owner of each image, each class dealt evenly among its holders; pairs (client, label) say who holds what.

    What is left of a class goes to those of its holders that have fewest images so far, ties in random order.
    """
    owner, sizes = np.empty(len(y), np.int64), np.zeros(clients, np.int64)
    for c in range(int(y.max(initial=-1)) + 1):
        mine = rng.permutation(np.flatnonzero(y == c))
        holders = rng.permutation(client[label == c])
        holders = holders[np.argsort(sizes[holders], kind="stable")]
        owner[mine] = holders[np.arange(len(mine)) % len(holders)]
        sizes += np.bincount(owner[mine], minlength=clients)
    return owner


def group(owner: Indices, clients: int) -> list[Indices]:
    """The positions of each client, sorted."""
    order = np.argsort(owner, kind="stable").astype(np.int64)
    return np.split(order, np.cumsum(np.bincount(owner, minlength=clients))[:-1])

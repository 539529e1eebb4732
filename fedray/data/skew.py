"""Partitions that make clients unlike, by class or by size. Each is a frozen dataclass, as `partition` says.

    dirichlet     p_c ~ Dir(alpha 1_K) for each class c              Hsu et al. 2019
    pathological  each client has some of the classes                FedOTP, FedPGP, pFedMoAP; PFLlib
    shards        sorted by class, cut in pieces, some for each      McMahan et al. 2017
    blocks        consecutive classes, the last client the rest      FedTPG
    quantity      sizes by Dir(alpha) or a power law, classes alike  Li et al. 2022

Pachinko allocation over coarse labels (CIFAR-100) is not here: no data set of ours carries coarse labels.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from fedray.data.dealing import (
    By,
    Facts,
    Indices,
    among,
    counts,
    dirichlet,
    enough,
    fill,
    group,
    one_class,
    one_or_rarest,
    spread,
)
from fedray.errors import BadInput

STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Dirichlet:
    """Label skew: each class is spread over the clients by its own draw from Dir(alpha); small alpha is strong skew.

    Counts are unbiased: with P the running sum of p and one u ~ U(0, 1) per class, client k gets
    floor(n_c P_k + u) - floor(n_c P_(k-1) + u) images, which is n_c p_k rounded up or down and n_c p_k on average.
    (Rounding without u gives the first clients too few of every class when there are fewer shots than clients.)

    Clients below `min_size` are then filled, in order of their number, one image at a time: the largest client gives
    the last image of its most frequent class (ties: lowest client, lowest class). No draw is repeated, so it ends.

    With `capacity` a class, taken in order of its number, is drawn for those clients alone that hold fewer than n / K
    images so far, as in FedOTP's code; what a class overshoots stays.
    """

    kind: Literal["dirichlet"] = "dirichlet"
    clients: int = Field(default=10, ge=1)
    alpha: float = Field(default=0.1, gt=0, le=1e12, allow_inf_nan=False)
    min_size: int = Field(default=1, ge=0)
    capacity: bool = False  # no further class for a client that holds an even share of the images
    by: ClassVar[By] = "labels"

    def __call__(self, facts: Facts, rng: np.random.Generator) -> list[Indices]:
        """Deal the images; BadInput where there are fewer than clients * min_size, and for labels (n, C)."""
        y = one_class(facts.labels, self.kind)
        enough(self.clients, self.min_size, len(y))
        owner, sizes = np.empty(len(y), np.int64), np.zeros(self.clients, np.int64)
        n_classes = int(y.max(initial=-1)) + 1
        shares = dirichlet(self.alpha, (n_classes, self.clients), rng)
        for c, offset in enumerate(rng.random(n_classes)):
            mine = rng.permutation(np.flatnonzero(y == c))
            if self.capacity:  # Dir(alpha 1) restricted to some clients is Dir(alpha 1) over these
                free = sizes * self.clients < len(y)
                shares[c] = 0
                shares[c, free] = dirichlet(self.alpha, (1, int(free.sum())), rng)[0]
            taken = counts(shares[c], len(mine), offset)
            owner[mine] = np.repeat(np.arange(self.clients), taken)
            sizes += taken
        fill(owner, y, self.clients, self.min_size)
        return group(owner, self.clients)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Pathological:
    """Each client has a few of the classes.

    By default nobody shares a class: of the shuffled ones every client takes round(C / K) and the last one the rest
    (floor(C / K) where rounding up would leave the last without any).

    With `classes_per_client` m, client k has classes k m .. k m + m - 1 of the shuffled list, which is read round and
    round: every class has holders, floor(K m / C) or one more, and is dealt evenly among them.
    """

    kind: Literal["pathological"] = "pathological"
    clients: int = Field(default=10, ge=1)
    classes_per_client: Annotated[int, Field(ge=1)] | None = None  # none: an equal part of them, shared with nobody
    min_size: int = Field(default=1, ge=0)
    by: ClassVar[By] = "labels"

    def __call__(self, facts: Facts, rng: np.random.Generator) -> list[Indices]:
        """Deal the images; BadInput where classes don't suffice, a client falls below min_size, for labels (n, C)."""
        y = one_class(facts.labels, self.kind)
        enough(self.clients, self.min_size, len(y))
        if not len(y):
            return group(y, self.clients)
        shuffled = rng.permutation(y.max() + 1)
        self._check(len(shuffled))
        if self.classes_per_client is None:
            each = round(len(shuffled) / self.clients)
            each -= (self.clients - 1) * each >= len(shuffled)
            client = np.minimum(np.arange(len(shuffled)) // each, self.clients - 1)
        else:
            client = np.repeat(np.arange(self.clients), self.classes_per_client)
        label = shuffled[np.arange(len(client)) % len(shuffled)]
        return _at_least(group(among(y, client, label, self.clients, rng), self.clients), self.min_size, self.kind)

    def _check(self, n_classes: int) -> None:
        """BadInput where the clients can't have so many classes."""
        each, k = self.classes_per_client, self.clients
        if each is None:
            if n_classes < k:
                raise BadInput(
                    f"{n_classes} classes can't be kept apart on {k} clients; set partition.clients to {n_classes} or "
                    "fewer, or partition.classes_per_client to share classes"
                )
        elif each > n_classes:
            raise BadInput(f"partition.classes_per_client must be <= {n_classes}, the number of classes, got {each}")
        elif k * each < n_classes:
            raise BadInput(
                f"{k} clients with {each} classes each can't hold {n_classes} classes; "
                f"set partition.classes_per_client to {-(-n_classes // k)} or more"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Shards:
    """The images sorted by class, cut into K * `shards_per_client` pieces whose sizes differ by at most one image.

    Every client gets `shards_per_client` of them at random. Within a class the images are shuffled first. McMahan et
    al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017, section 3.
    """

    kind: Literal["shards"] = "shards"
    clients: int = Field(default=10, ge=1)
    shards_per_client: int = Field(default=2, ge=1)
    by: ClassVar[By] = "labels"

    def __call__(self, facts: Facts, rng: np.random.Generator) -> list[Indices]:
        """Deal the images; BadInput with fewer images than shards, and for labels (n, C)."""
        y = one_class(facts.labels, self.kind)
        pieces = self.clients * self.shards_per_client
        if pieces > len(y):
            raise BadInput(
                f"{self.clients} clients with shards_per_client {self.shards_per_client} need at least {pieces} "
                f"images, got {len(y)}; fewer clients or shards, or more shots"
            )
        shuffled = rng.permutation(len(y))
        piece = np.arange(len(y)) * pieces // len(y)
        owner = np.empty(len(y), np.int64)
        owner[shuffled[np.argsort(y[shuffled], kind="stable")]] = rng.permutation(pieces)[piece] % self.clients
        return group(owner, self.clients)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Blocks:
    """Consecutive classes: client k has the k-th block of `classes_per_client`, the last client the rest (FedTPG).

    C classes make C // classes_per_client blocks, at least one, and `clients` must be that number. None instead makes
    as many blocks as there are clients, whose numbers of classes differ by at most one.
    """

    kind: Literal["blocks"] = "blocks"
    clients: int = Field(default=10, ge=1)
    classes_per_client: Annotated[int, Field(ge=1)] | None = 20  # none: an equal part of them
    min_size: int = Field(default=1, ge=0)
    by: ClassVar[By] = "labels"

    def __call__(self, facts: Facts, rng: np.random.Generator) -> list[Indices]:
        """Deal the images; BadInput where clients and blocks differ, a client falls below min_size, for (n, C)."""
        y = one_class(facts.labels, self.kind)
        enough(self.clients, self.min_size, len(y))
        if not len(y):
            return group(y, self.clients)
        n, size = int(y.max()) + 1, self.classes_per_client
        blocks = min(n, self.clients) if size is None else max(n // size, 1)
        if blocks != self.clients:
            made = "" if size is None else f" in blocks of {size}"
            raise BadInput(
                f"{n} classes{made} are for {blocks} clients, not {self.clients}; set partition.clients {blocks}"
                + (", or partition.classes_per_client none to deal them evenly" if n >= self.clients else "")
            )
        block = np.arange(n) * blocks // n if size is None else np.minimum(np.arange(n) // size, blocks - 1)
        return _at_least(group(block[y], self.clients), self.min_size, self.kind)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Quantity:
    """Size skew: clients have different numbers of images, and every client the classes of the whole.

    Each gets `min_size` images; the others are shared by p ~ Dir(alpha 1_K), or by p_k proportional to
    rank_k^-exponent with the ranks 1 .. K dealt at random. Images with several classes go by the rarest of them.
    """

    kind: Literal["quantity"] = "quantity"
    clients: int = Field(default=10, ge=1)
    law: Literal["dirichlet", "power"] = "dirichlet"  # of the sizes
    alpha: float = Field(default=0.5, gt=0, le=1e12, allow_inf_nan=False)  # of Dir(alpha); small is strong skew
    exponent: float = Field(default=1.0, ge=0, le=100, allow_inf_nan=False)  # of the power law; 0 is no skew
    min_size: int = Field(default=1, ge=0)
    by: ClassVar[By] = "labels"

    def __call__(self, facts: Facts, rng: np.random.Generator) -> list[Indices]:
        """Deal the images; BadInput where there are fewer than clients * min_size."""
        y = one_or_rarest(facts.labels)
        enough(self.clients, self.min_size, len(y))
        if self.law == "dirichlet":
            shares = dirichlet(self.alpha, (1, self.clients), rng)[0]
        else:
            weights = (rng.permutation(self.clients) + 1.0) ** -self.exponent
            shares = weights / weights.sum()
        free = len(y) - self.clients * self.min_size
        sizes = self.min_size + counts(shares, free, float(rng.random()))
        return group(spread(y, sizes, rng), self.clients)


def _at_least(parts: list[Indices], least: int, kind: str) -> list[Indices]:
    """The same parts; BadInput for one that is smaller: to fill it would give it classes that it must not have."""
    sizes = [len(part) for part in parts]
    if min(sizes) < least:
        poor = sizes.index(min(sizes))
        raise BadInput(
            f"partition {kind} leaves client {poor} {sizes[poor]} images, min_size is {least}; "
            "fewer clients, more shots or more classes_per_client"
        )
    return parts

"""Partitions by domain: every client draws, photographs or scans in its own way (FedOTP, pFedMMA).

domain d has K_d of the K clients;  inside it p_c ~ Dir(alpha 1_K_d) for each class c
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from fedray.data.dealing import By, Facts, Indices, enough, group, one_class
from fedray.data.skew import Dirichlet, Quantity
from fedray.data.splits import local_tests
from fedray.errors import BadInput


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Domains:
    """Each client has images of one domain; inside a domain its clients share every class by Dir(alpha).

    The K clients are shared out evenly, in order: of 30 clients and 6 domains, clients 0 .. 4 have the first domain.
    Where K is no multiple, the first domains have one client more.
    """

    kind: Literal["domains"] = "domains"
    clients: int = Field(default=10, ge=1)  # over all domains
    alpha: float = Field(default=0.3, gt=0, le=1e12, allow_inf_nan=False)
    min_size: int = Field(default=1, ge=0)
    same: bool = False  # one draw for all classes of a domain, as in FedOTP's code: sizes differ, classes hardly
    by: ClassVar[By] = "domains"

    def __call__(self, facts: Facts, rng: np.random.Generator) -> list[Indices]:
        """Deal the images; BadInput without domains, with fewer clients than domains, or with too few images."""
        one_class(facts.labels, self.kind)
        n = len(facts.labels)
        enough(self.clients, self.min_size, n)
        if facts.domains is None or np.shape(facts.domains) != (n,):
            got = "none" if facts.domains is None else f"shape {np.shape(facts.domains)}"
            raise BadInput(
                f"partition domains needs the domain of each of {n} images, got {got}; take a data set of several "
                "domains, or another partition"
            )
        known = np.unique(facts.domains)
        if self.clients < len(known):
            raise BadInput(
                f"{self.clients} clients can't have {len(known)} domains, one each; set partition.clients to a "
                f"multiple of {len(known)}"
            )
        parts = []
        for domain, clients in zip(known, np.array_split(np.arange(self.clients), len(known) or 1), strict=False):
            mine = np.flatnonzero(facts.domains == domain)
            enough(len(clients), self.min_size, len(mine), f" of domain {domain}")
            parts += [mine[part] for part in self._inside(facts.labels[mine], len(clients), rng)]
        return parts or group(np.arange(0), self.clients)

    def _inside(self, labels: NDArray[Any], clients: int, rng: np.random.Generator) -> list[Indices]:
        """The images of one domain, dealt to its clients."""
        if self.same:
            return Quantity(clients=clients, alpha=self.alpha, min_size=self.min_size)(Facts(labels), rng)
        return Dirichlet(clients=clients, alpha=self.alpha, min_size=self.min_size)(Facts(labels), rng)


def domain_tests(train: Facts, parts: Sequence[NDArray[Any]], test: Facts, rng: np.random.Generator) -> list[Indices]:
    """`splits.local_tests` inside each domain: test images of class c and domain d go to those who train on both.

    Raises BadInput where train or test have no domains.
    """

    def cells(facts: Facts) -> Indices:
        if facts.domains is None:
            raise BadInput("own tests by domain need the domain of each image; take a data set of several domains")
        wide = max(int(max(f.labels.max(initial=0) for f in (train, test))) + 1, 1)
        return np.asarray(facts.domains * wide + facts.labels, np.int64)

    return local_tests(cells(train), parts, cells(test), rng)

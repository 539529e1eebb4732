"""Attacks, simulated: some clients send what harms. Off by default; never part of a run that does not say so.

    honest       theta_k = theta + u_k,   theta as sent to k
    sign_flip    theta - s u_k                                                                  s: attack.scale, 10
    gaussian     theta + s |u_k| / sqrt(P) N(0, I),  P numbers: s times as long as u_k          s: 10
    alie         theta + mean - s std,  coordinate by coordinate over the honest u_j            s: 1.5
    label_flip   theta_k, trained on class C - 1 - y in place of y (of several labels, on the opposite of each)
    nan inf huge all numbers NaN, infinite, 1e30

Baruch et al., "A Little Is Enough: Circumventing Defenses For Distributed Learning", NeurIPS 2019 (alie). Its attackers
estimate mean and std among themselves; ours know those of all honest clients in the round, as in most code of the
field, which is worse. Its formula for s gives 0 with 2 attackers among 10, so the number is an option here.

The attackers are the same in all rounds, and those of a smaller share are among those of a larger one. They attack with
what they share; what they keep private is as they trained it. Their models are not scored: means over clients are those
of honest ones. In rows: attack/weight, 1 of a client that attacks, and the attackers' share of what was aggregated.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from fedray.fed.averaging import flat

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from fedray.fed.loop import Executor
    from fedray.fed.vault import Versions
    from fedray.types import Job, Params, Result, Scores

SCALES = {"sign_flip": 10.0, "gaussian": 10.0, "alie": 1.5}
CONSTANTS = {"nan": math.nan, "inf": math.inf, "huge": 1e30}

log = logging.getLogger("fedray")


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Attack:
    """What dishonest clients do, for tests of robust rules."""

    kind: Literal["none", "sign_flip", "gaussian", "alie", "label_flip", "nan", "inf", "huge"] = "none"
    share: float = Field(default=0.2, ge=0, lt=1)  # of the clients, rounded half up
    scale: float | None = Field(default=None, gt=0, allow_inf_nan=False)  # None: sign_flip 10, gaussian 10, alie 1.5


def attackers(attack: Attack, clients: Sequence[int], seed: int) -> list[int]:
    """The dishonest clients, ascending."""
    from fedray.fed.seeds import rng

    if attack.kind == "none":
        return []
    count = math.floor(attack.share * len(clients) + 0.5)
    order = rng(seed, "attackers").permutation(len(clients))
    return sorted(clients[i] for i in order[:count])


def attacked(executor: Executor, attack: Attack, clients: Sequence[int], seed: int) -> Executor:
    """The executor, with these clients' attack if there is any; said once, so that nobody mistakes the run."""
    bad = attackers(attack, clients, seed)
    if not bad:
        return executor
    log.warning("attack %s, simulated: by %d of %d clients (%s)", attack.kind, len(bad), len(clients), _few(bad))
    return Attacked(executor, attack, bad, seed)


class Attacked:
    """An executor some of whose clients send something else than they trained."""

    def __init__(self, honest: Executor, attack: Attack, bad: Collection[int], seed: int) -> None:
        self.honest, self.attack, self.bad, self.seed = honest, attack, frozenset(bad), seed

    def fit(self, jobs: Sequence[Job]) -> Iterator[Result]:
        """Let all train, and the attackers send what they want to be aggregated."""
        return self._sent(jobs, self.honest.fit(jobs))

    def score(self, jobs: Sequence[Job]) -> Iterator[Scores]:
        """Score the global model and honest clients' own."""
        return self.honest.score([job for job in jobs if job.client not in self.bad])

    def save(self, round: int) -> Versions:
        """Make the private states durable and name those that are new since the last time."""
        return self.honest.save(round)

    def load(self, round: int, manifest: Versions) -> None:
        """Go back to the private states of a checkpoint."""
        self.honest.load(round, manifest)

    def _sent(self, jobs: Sequence[Job], coming: Iterator[Result]) -> Iterator[Result]:
        sent = {job.client: job.shared for job in jobs}
        results = sorted(coming, key=lambda r: r.client)
        honest = [r for r in results if r.client not in self.bad]
        for r in results:
            bad = r.client in self.bad
            shared = spoiled(self.attack, sent, r, honest, self.seed) if bad else r.shared
            yield r._replace(shared=shared, metrics={**r.metrics, "attack/weight": float(bad)})


def spoiled(attack: Attack, sent: dict[int, Params], result: Result, honest: Sequence[Result], seed: int) -> Params:
    """What an attacker sends in place of its own result; whole numbers as they are.

    Args:
        attack: of what kind.
        sent: the shared parameters that each client received.
        result: its own, trained honestly (but for the labels).
        honest: the others', ascending by client.
        seed: addresses the noise.
    """
    import torch

    from fedray.fed.seeds import rng

    if attack.kind in ("none", "label_flip"):
        return result.shared
    theta, scale = sent[result.client], attack.scale or SCALES.get(attack.kind, 1.0)
    names = [name for name in sorted(theta) if theta[name].is_floating_point()]
    own = {name: result.shared[name].double() - theta[name].double() for name in names}
    if attack.kind in CONSTANTS:
        update = {name: torch.full_like(value, CONSTANTS[attack.kind]) for name, value in own.items()}
    elif attack.kind == "sign_flip":
        update = {name: -scale * value for name, value in own.items()}
    elif attack.kind == "gaussian":
        draw, total = rng(seed, "attack", result.round, result.client), flat(own)
        std = scale * float(total.norm()) / math.sqrt(max(1, len(total)))
        update = {name: torch.from_numpy(draw.normal(0.0, std, tuple(value.shape))) for name, value in own.items()}
    else:
        seen = [{name: r.shared[name].double() - sent[r.client][name].double() for name in names} for r in honest]
        update = {name: _little(torch.stack([one[name] for one in seen or [own]]), scale) for name in names}
    return {
        name: (value.double() + update[name]).to(value.dtype) if name in update else result.shared[name]
        for name, value in theta.items()
    }


def _little(updates: Tensor, scale: float) -> Tensor:
    """Mean less `scale` standard deviations, along the first axis."""
    return updates.mean(0) - scale * updates.std(0, correction=0)


def flipped(
    labels: np.ndarray, attack: Attack, shards: Sequence[np.ndarray], bad: Collection[int], classes: int
) -> np.ndarray:
    """Training labels (n,), or (n, C) of several, with those of a label-flipping attacker's images turned round."""
    if attack.kind != "label_flip":
        return labels
    labels = labels.copy()
    for k in bad:
        own = labels[shards[k]]
        known = (own >= 0) if own.ndim == 2 else slice(None)
        own[known] = (1 if own.ndim == 2 else classes - 1) - own[known]
        labels[shards[k]] = own
    return labels


def _few(clients: Sequence[int]) -> str:
    return ", ".join(map(str, clients[:8])) + (", ..." if len(clients) > 8 else "")

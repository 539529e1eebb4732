"""Aggregators: how the server turns the clients' results into the next global state.

    FedAvg:  theta <- sum_k w_k theta_k,   w_k = n_k / sum_j n_j   or   1 / |cohort|

An aggregator is a frozen dataclass; its state is a flat dict of tensors, so that a checkpoint is the state itself.
McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from fedray.fed.averaging import mean, shares

if TYPE_CHECKING:
    from fedray.types import Params, Result


class Aggregator(Protocol):
    """The server's rule. Sums run in client order and in float64, so that the order of arrival leaves no trace."""

    def init(self, shared: Params) -> Params:
        """State before the first round."""
        ...

    def send(self, state: Params, client: int, round: int) -> tuple[Params, Params]:
        """What `client` receives: (shared parameters, inbox). For GLOBAL: the global model."""
        ...

    def update(self, state: Params, results: Sequence[Result]) -> Params:
        """State after a round; `results` come in client order."""
        ...


@runtime_checkable
class Accounted(Protocol):
    """What an aggregator is, besides, whose rounds cost something of which there may be a budget: privacy."""

    def affordable(self, rounds: int) -> int:
        """How many of so many rounds the budget allows."""
        ...

    def spent(self, state: Params) -> dict[str, float]:
        """What has been spent, by name of the row that says it."""
        ...


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class FedAvg:
    """Weighted mean of the shared parameters: by training samples, or the same weight for all.

    Of whole numbers (a batch norm's count of steps) the largest, for a mean of them means nothing.
    """

    kind: Literal["fedavg"] = "fedavg"
    weighting: Literal["samples", "uniform"] | None = None  # None: as the method's paper does

    def init(self, shared: Params) -> Params:
        """The state is the global model's shared parameters."""
        return dict(shared)

    def send(self, state: Params, client: int, round: int) -> tuple[Params, Params]:
        """Everyone receives the same."""
        return state, {}

    def update(self, state: Params, results: Sequence[Result]) -> Params:
        """Average what came back; without any result the state stays as it is."""
        weights = shares([r.n for r in results], self.weighting)
        return mean(state, [r.shared for r in results], weights) if weights else state

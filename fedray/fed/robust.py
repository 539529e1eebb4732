"""Aggregators that a few dishonest clients can't steer; they can't tell dishonest from merely different, which costs.

    Median      theta_i <- median_k theta_k,i
    Trimmed     theta_i <- mean of theta_k,i over k, without the lowest and the highest share n of them
    Krum        theta <- theta_k with the lowest s_k = sum over its n - f - 2 nearest j of |theta_k - theta_j|^2
    MultiKrum   theta <- mean of the m with the lowest s_k
    Clipped     theta <- theta + sum_k w_k u_k min(1, C / |u_k|),   u_k = theta_k - theta,   C a bound or median_k |u_k|

Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018 (median, trimmed);
Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017 (Krum).
Clipping bounds how far one client can pull, not where. In float64 and in client order. Clients count alike by default:
how many images it has is a client's own word. Of whole numbers (a batch norm's count of steps) Median and Trimmed take
the one in the middle, the others the largest of those that they average.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from fedray.errors import BadInput
from fedray.fed.averaging import flat, mean, shares

if TYPE_CHECKING:
    from torch import Tensor

    from fedray.types import Params, Result

STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Median:
    """Coordinate-wise median; of an even number of clients, the mean of the two in the middle."""

    kind: Literal["median"] = "median"

    def init(self, shared: Params) -> Params:
        """The state is the global model's shared parameters."""
        return dict(shared)

    def send(self, state: Params, client: int, round: int) -> tuple[Params, Params]:
        """Everyone receives the same."""
        return state, {}

    def update(self, state: Params, results: Sequence[Result]) -> Params:
        """The middle of what came back."""
        models = [r.shared for r in in_order(results)]
        return by_coordinate(state, models, middle) if models else state


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Trimmed:
    """Coordinate-wise mean without the extremes: at most `share` of the clients may be dishonest."""

    kind: Literal["trimmed"] = "trimmed"
    share: float = Field(default=0.2, ge=0, lt=0.5)  # of the clients, rounded down, at either end of each coordinate
    weighting: Literal["samples", "uniform"] = "uniform"  # "samples" trusts the clients' own counts

    def init(self, shared: Params) -> Params:
        """The state is the global model's shared parameters."""
        return dict(shared)

    def send(self, state: Params, client: int, round: int) -> tuple[Params, Params]:
        """Everyone receives the same."""
        return state, {}

    def update(self, state: Params, results: Sequence[Result]) -> Params:
        """The mean of what lies between the extremes."""
        results = [r for r in in_order(results) if r.n or self.weighting == "uniform"]
        weights = shares([r.n for r in results], self.weighting)
        cut = min(int(self.share * len(results) + 1e-9), (len(results) - 1) // 2)  # somebody stays

        def inner(values: Tensor) -> Tensor:
            return trimmed(values, weights, cut)

        return by_coordinate(state, [r.shared for r in results], inner) if weights else state


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Krum:
    """The one client that is nearest to its neighbours. Equal scores: the lower number."""

    kind: Literal["krum"] = "krum"
    f: int = Field(default=2, ge=0)  # dishonest clients in a round, at most

    @property
    def least(self) -> int:
        """Clients that a round must have."""
        return 2 * self.f + 3

    def init(self, shared: Params) -> Params:
        """The state is the global model's shared parameters."""
        return dict(shared)

    def send(self, state: Params, client: int, round: int) -> tuple[Params, Params]:
        """Everyone receives the same."""
        return state, {}

    def update(self, state: Params, results: Sequence[Result]) -> Params:
        """One client's model.

        Raises:
            BadInput: too few clients for `f`.
        """
        return nearest(state, results, self.f, 1)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MultiKrum:
    """The mean of the `m` clients that are nearest to their neighbours, all alike. f = 0: of all."""

    kind: Literal["multikrum"] = "multikrum"
    f: int = Field(default=2, ge=0)  # dishonest clients in a round, at most
    m: int | None = Field(default=None, ge=1)  # clients that are averaged; None: all but f

    @property
    def least(self) -> int:
        """Clients that a round must have."""
        return max(2 * self.f + 3, (self.m or 0) + self.f)

    def init(self, shared: Params) -> Params:
        """The state is the global model's shared parameters."""
        return dict(shared)

    def send(self, state: Params, client: int, round: int) -> tuple[Params, Params]:
        """Everyone receives the same."""
        return state, {}

    def update(self, state: Params, results: Sequence[Result]) -> Params:
        """The mean of those chosen.

        Raises:
            BadInput: too few clients for `f` and `m`.
        """
        return nearest(state, results, self.f, self.m or len(results) - self.f)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Clipped:
    """FedAvg of updates that are cut to a length; without a bound, to the median of the round's lengths."""

    kind: Literal["clipped"] = "clipped"
    bound: float | None = Field(default=None, gt=0, allow_inf_nan=False)  # L2 norm; None: the median of the round
    weighting: Literal["samples", "uniform"] = "uniform"  # "samples" trusts the clients' own counts

    def init(self, shared: Params) -> Params:
        """The state is the global model's shared parameters."""
        return dict(shared)

    def send(self, state: Params, client: int, round: int) -> tuple[Params, Params]:
        """Everyone receives the same."""
        return state, {}

    def update(self, state: Params, results: Sequence[Result]) -> Params:
        """Cut, then average; who is not cut counts bit for bit as in FedAvg."""
        results = in_order(results)
        weights = shares([r.n for r in results], self.weighting)
        if not weights:
            return state
        here = flat(state)
        lengths = [float((flat(r.shared) - here).norm()) for r in results]
        bound = median(lengths) if self.bound is None else self.bound
        cut = [
            r.shared if size <= bound else shortened(state, r.shared, bound / size)
            for r, size in zip(results, lengths, strict=True)
        ]
        return mean(state, cut, weights)


def enough(f: int, m: int, clients: int) -> None:
    """Refuse a round in which Krum's choice would mean nothing.

    Raises:
        BadInput: too few clients for `f` and `m`.
    """
    if clients <= 2 * f + 2:
        raise BadInput(
            f"server.f {f} needs more than 2 f + 2 = {2 * f + 2} clients in a round, got {clients}; lower server.f or "
            "let more clients take part"
        )
    if m > clients - f:
        raise BadInput(
            f"server.m {m} of {clients} clients in a round leaves no room for server.f {f} dishonest ones; "
            f"at most {clients - f}"
        )


def nearest(state: Params, results: Sequence[Result], f: int, m: int) -> Params:
    """The mean of the `m` results with Krum's lowest scores; without any result, the state.

    Raises:
        BadInput: too few results for `f` and `m`.
    """
    if not results:
        return state
    enough(f, m, len(results))
    results = in_order(results)
    scores = krum_scores([r.shared for r in results], f)
    kept = sorted(sorted(range(len(results)), key=lambda i: (scores[i], i))[:m])
    return mean(state, [results[i].shared for i in kept], [1 / m] * m)


def krum_scores(models: Sequence[Params], f: int) -> list[float]:
    """s_k of each of K models: squared distances to its K - f - 2 nearest others, summed. One parameter at a time."""
    import torch

    squares = torch.zeros(len(models), len(models), dtype=torch.float64)
    for name in sorted(models[0]):
        if models[0][name].is_floating_point():
            rows = torch.stack([model[name].double().flatten() for model in models])
            squares += torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    squares.fill_diagonal_(torch.inf)
    scores: list[float] = squares.sort(1).values[:, : len(models) - f - 2].sum(1).tolist()
    return scores


def by_coordinate(like: Params, models: Sequence[Params], rule: Callable[[Tensor], Tensor]) -> Params:
    """Apply a rule (K, ...) -> (...) in float64 to each parameter; of whole numbers the lower of the middle ones."""
    import torch

    out: Params = {}
    for name, value in like.items():
        stack = torch.stack([model[name] for model in models])
        floats = value.is_floating_point()
        out[name] = rule(stack.double()).to(value.dtype) if floats else stack.median(0).values
    return out


def middle(values: Tensor) -> Tensor:
    """Median along the first axis; of an even number, the mean of the two in the middle."""
    ordered, n = values.sort(0).values, len(values)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def trimmed(values: Tensor, weights: Sequence[float], cut: int) -> Tensor:
    """Weighted mean along the first axis (K, ...) without the `cut` lowest and highest of each coordinate."""
    import torch

    places = values.argsort(dim=0, stable=True)[cut : len(values) - cut]
    w = torch.tensor(weights, dtype=values.dtype)[places]
    total: Tensor = (values.gather(0, places) * w).sum(0) / w.sum(0)
    return total


def shortened(old: Params, new: Params, factor: float) -> Params:
    """A model on the way from `old` to `new`, in float64; whole numbers stay as they came."""
    return {
        name: value.double() + factor * (new[name].double() - value.double())
        if value.is_floating_point()
        else new[name]
        for name, value in old.items()
    }


def in_order(results: Sequence[Result]) -> list[Result]:
    """Results by client."""
    return sorted(results, key=lambda r: r.client)

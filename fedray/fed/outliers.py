"""The mean over those clients whose updates point the same way: some are dropped by their cosine to the mean of all.

    update    score_k = cos(theta_k - theta, m),   m = sum_k w_k (theta_k - theta)
    rows      score_k = mean over rows of cos(theta_k, sum_j w_j theta_j), row by row (the last axis)

OpenFedML, the code of FedMPT, has this rule, with rows as scores, under the name of fedawa, of which it shares nothing
but the name. There the *highest* scores are dropped, so that outliers alone may stay: `drop` "top", `score` "rows".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from fedray.fed.averaging import flat, mean, shares

if TYPE_CHECKING:
    from torch import Tensor

    from fedray.types import Params, Result


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Outliers:
    """FedAvg without the clients that agree least with the mean. Equal scores: the higher number is dropped first."""

    kind: Literal["outliers"] = "outliers"
    share: float = Field(default=0.3, ge=0, lt=1)  # of the cohort that is dropped, rounded up; one stays at least
    drop: Literal["bottom", "top"] = "bottom"  # of the scores: those unlike the mean, or (OpenFedML) those like it
    score: Literal["update", "rows"] = "update"  # of what the cosine is taken
    weighting: Literal["samples", "uniform"] | None = None  # None: as the method's paper does

    def init(self, shared: Params) -> Params:
        """The state is the global model's shared parameters."""
        return dict(shared)

    def send(self, state: Params, client: int, round: int) -> tuple[Params, Params]:
        """Everyone receives the same."""
        return state, {}

    def update(self, state: Params, results: Sequence[Result]) -> Params:
        """Average those who stay."""
        weights = shares([r.n for r in results], self.weighting)
        if not weights:
            return state
        centre = mean(state, [r.shared for r in results], weights)
        scores = (_by_update if self.score == "update" else _by_rows)(state, [r.shared for r in results], centre)
        sign = -1 if self.drop == "bottom" else 1
        keep = max(1, int((1 - self.share) * len(results) + 1e-9))
        kept = sorted(sorted(range(len(results)), key=lambda i: (sign * scores[i], i))[:keep])
        rest = [results[i] for i in kept]
        again = shares([r.n for r in rest], self.weighting)
        return mean(state, [r.shared for r in rest], again) if again else state


def _by_update(old: Params, new: Sequence[Params], centre: Params) -> list[float]:
    import torch

    here = flat(old)
    way = flat(centre) - here
    return [float(torch.cosine_similarity(flat(one) - here, way, dim=0)) for one in new]


def _by_rows(old: Params, new: Sequence[Params], centre: Params) -> list[float]:
    import torch

    return [
        float(torch.cat([_cosines(one[n], v) for n, v in sorted(centre.items()) if v.is_floating_point()]).mean())
        for one in new
    ]


def _cosines(one: Tensor, two: Tensor) -> Tensor:
    import torch

    a, b = (torch.atleast_1d(value).double() for value in (one, two))
    return torch.cosine_similarity(a, b, dim=-1).flatten()

"""Arithmetic on parameters that every server shares: weighted means, and models as vectors.

    mean    theta = sum_k w_k theta_k    in the order given and in float64, so that the order of arrival leaves no trace

What a server remembers beside the global model has a "/" in its name, which no parameter's name has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from fedray.types import Params

TOGETHER = 1 << 17
"""Numbers that are converted to float64 at a time: 1 MB."""


def mean(like: Params, models: Sequence[Params], weights: Sequence[float]) -> Params:
    """The weighted mean of `models`, with the names and types of `like`.

    Whole numbers (a batch norm's count of steps) take the largest, for a mean of them means nothing.

    Args:
        like: names and types; a model's further parameters are left out.
        models: at least one.
        weights: one for each, summing to 1.
    """
    import torch

    averaged: Params = {}
    for name, value in like.items():
        if not value.is_floating_point():
            averaged[name] = torch.stack([model[name] for model in models]).amax(0)
            continue
        averaged[name] = _sum([model[name] for model in models], weights).to(value.dtype)
    return averaged


def _sum(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Weighted sum in float64, one after the other; what is converted together fits into the cache."""
    import torch

    weight, at_once = torch.tensor(weights, dtype=torch.float64), max(1, TOGETHER // max(1, values[0].numel()))
    total: Tensor | None = None
    for i in range(0, len(values), at_once):
        part = torch.stack(list(values[i : i + at_once])).double()
        part *= weight[i : i + at_once].view(-1, *[1] * (part.ndim - 1)).to(part.device)
        for row in part.unbind():
            total = row.clone() if total is None else total.add_(row)
    if total is None or len(weight) != len(values):
        raise ValueError(f"{len(values)} models with {len(weight)} weights; give as many, and at least one")
    return total


def shares(counts: Iterable[int], weighting: str | None) -> list[float]:
    """Weights that sum to 1, by number of samples or ("uniform") all alike; none where there is nothing to weigh."""
    weights = [float(1 if weighting == "uniform" else n) for n in counts]
    total = sum(weights)
    return [w / total for w in weights] if total else []


def flat(params: Params) -> Tensor:
    """All numbers of a model that are not whole, (P,) in float64, by name."""
    import torch

    kept = [params[name] for name in sorted(params) if params[name].is_floating_point()]
    return torch.cat([value.double().flatten() for value in kept]) if kept else torch.zeros(0, dtype=torch.float64)


def model(state: Params) -> Params:
    """The global model of a server's state."""
    return {name: value for name, value in state.items() if "/" not in name}

"""FedAvg, and beside it a mean of the global model over the rounds, weighted by a bell curve: what is evaluated.

    average = sum_r v_r theta_r / sum_r v_r,   v_r = exp(-((r - centre) / width)^2 / 2)

theta_r is the model after round r, by FedAvg; the next round starts from it, and clients are scored with it. The global
model, in evaluation and in the run's last checkpoint, is the average over the rounds so far. Rounds that nobody took
part in have no weight.
Khattak et al., "Self-regulating Prompts: Foundational Model Adaptation without Forgetting", ICCV 2023, section 3.2,
over epochs of central training; over rounds it is our reading. Their centre is 3/4 of the epochs, their width 1/20.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from fedray.fed.averaging import mean, model, shares

if TYPE_CHECKING:
    from fedray.types import Params, Result

AVERAGE, WEIGHT = "gaussian/average/", "gaussian/log_weight"


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Gaussian:
    """FedAvg whose global model is an average over rounds. Set `centre` and `width` along with the number of rounds."""

    kind: Literal["gaussian"] = "gaussian"
    centre: float = Field(default=15.0, gt=0, allow_inf_nan=False)  # round that counts most; the paper's, of 20
    width: float = Field(default=1.0, gt=0, allow_inf_nan=False)  # standard deviation, in rounds
    weighting: Literal["samples", "uniform"] | None = None  # None: as the method's paper does

    def init(self, shared: Params) -> Params:
        """The global model; there is no average yet."""
        return dict(shared)

    def send(self, state: Params, client: int, round: int) -> tuple[Params, Params]:
        """To clients the plain model, to GLOBAL the average over the rounds so far."""
        from fedray.types import GLOBAL

        theta = model(state)
        if client != GLOBAL or WEIGHT not in state:
            return theta, {}
        return {n: state.get(f"{AVERAGE}{n}", value).to(value.dtype) for n, value in theta.items()}, {}

    def update(self, state: Params, results: Sequence[Result]) -> Params:
        """Average over clients, and move the average over rounds by this round's share of all weight so far.

        Weights are kept as logarithms: those of rounds far from the centre are smaller than any float.
        """
        import torch

        weights = shares([r.n for r in results], self.weighting)
        if not weights:
            return state
        theta = mean(model(state), [r.shared for r in results], weights)
        new = torch.tensor(-(((results[0].round - self.centre) / self.width) ** 2) / 2, dtype=torch.float64)
        total = torch.logaddexp(state.get(WEIGHT, torch.full_like(new, -torch.inf)), new)
        share = (new - total).exp()
        average: Params = {}
        for name, value in theta.items():
            if value.is_floating_point():
                before = state.get(f"{AVERAGE}{name}", value.double())
                average[f"{AVERAGE}{name}"] = before + share * (value.double() - before)
        return {**theta, **average, WEIGHT: total}

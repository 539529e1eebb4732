"""How a client trains between two messages: plain SGD, made afresh at each visit.

A fresh momentum per local training is deliberate. Public code of this field builds one optimiser for all clients, so
that the momentum of one moves the next one's prompt; that would make results depend on the order of clients.

That code, Dassl's, has two more habits which nothing here has: a first epoch at a rate of 1e-5 (warm-up), and an epoch
without its last batch where that is smaller. Of few images that batch may be most of the epoch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Local:
    """Local training: SGD (momentum 0.9, weight decay 5e-4: the Dassl defaults that nearly all papers here inherit)."""

    lr: float = Field(default=0.05, gt=0, allow_inf_nan=False)  # per step
    epochs: int = Field(default=1, ge=1)  # passes over the client's images at each visit
    batch: int = Field(default=8, ge=1)  # images per step; the last batch of an epoch may be smaller
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0, allow_inf_nan=False)
    schedule: Literal["constant", "cosine"] = "constant"  # of lr over the rounds
    label_space: Literal["all", "own"] = "all"  # classes that a client trains against: the task's, or its own images'
    group: int = Field(default=1, ge=0)  # clients that train as one batch, to rounding; 0: as memory holds

    def rate(self, round: int, rounds: int) -> float:
        """Learning rate in round `round` (1-based) of `rounds`."""
        if self.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * (round - 1) / rounds))

    def step(
        self,
        parameters: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor | None],
        momenta: list[torch.Tensor | None],
        rates: Sequence[float],
    ) -> None:
        """One step of SGD in place, each parameter at its rate; parameters without a gradient rest.

        `momenta` starts as ``[None] * len(parameters)``: a visit's whole optimiser state, so nothing of an earlier
        visit or of another client can be in it. torch's own arithmetic, without the optimiser object: building one
        imports torch's compiler, which costs every actor more than its training here.
        """
        import torch
        from torch.optim.sgd import sgd

        for rate in dict.fromkeys(rates):
            used = [i for i, g in enumerate(gradients) if g is not None and rates[i] == rate]
            buffers = [momenta[i] for i in used]
            with torch.no_grad():
                sgd(
                    [parameters[i] for i in used],
                    [g for i, g in enumerate(gradients) if g is not None and rates[i] == rate],
                    buffers,
                    weight_decay=self.weight_decay,
                    momentum=self.momentum,
                    lr=rate,
                    dampening=0.0,
                    nesterov=False,
                    maximize=False,
                    foreach=False,
                )
            for i, buffer in zip(used, buffers, strict=True):
                momenta[i] = buffer

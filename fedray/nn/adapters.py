"""Adapters beside a tower's blocks, in three parts of which the middle one may be common to both towers.

    y = s up(relu(mid(relu(down(ln_1(x))))))         block(x) + y,   s = 0.001

Forward the branch counts by s; backward its parameters learn as if s were 1, and only what flows on to x counts by s:
a faint voice that learns at the usual rate. Ghiasvand et al., "pFedMMA: Personalized Federated Fine-Tuning with
Multi-Modal Adapter for Vision-Language Models", 2025.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Ends(nn.Module):
    """What leads into an adapter's middle and out of it again: the part that knows the tower's width.

    Args:
        width: w of the tower.
        dim: of the middle.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.down, self.up = linear(width, dim), linear(dim, width)


class Adapter(nn.Module):
    """The three parts put together; it owns none of them, so make one whenever it is needed.

    Args:
        ends: the tower's part.
        middle: (dim to dim).
        scale: s, above 0.
    """

    def __init__(self, ends: Ends, middle: nn.Module, scale: float) -> None:
        super().__init__()
        self.ends, self.middle, self.scale = ends, middle, scale

    def forward(self, x: Tensor) -> Tensor:
        """Map a block's normed input (R, L, w) to what is added to its output."""
        inner = rescale(x.to(self.ends.down.weight.dtype), forward=1.0, backward=self.scale)
        mixed = F.relu(self.middle(F.relu(self.ends.down(inner))))
        return rescale(self.ends.up(mixed), forward=self.scale, backward=1.0).to(x.dtype)


class _Rescale(torch.autograd.Function):
    """Multiplies values by one number and gradients by another."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, forward: float, backward: float) -> Tensor:
        return x.view_as(x) if forward == 1 else x * forward

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, float], output: Tensor) -> None:
        ctx.scale = inputs[2]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient * ctx.scale, None, None


def rescale(x: Tensor, *, forward: float, backward: float) -> Tensor:
    """`x` of any shape times `forward`, its gradient times `backward`: two numbers that need not agree."""
    out: Tensor = _Rescale.apply(x, forward, backward)
    return out


def linear(into: int, out: int) -> nn.Linear:
    """A linear layer as the paper starts it: Kaiming-normal by its outputs, for ReLU, without bias at first."""
    layer = nn.Linear(into, out)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer

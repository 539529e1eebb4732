"""Linear maps of low rank, several at once, without bias:  y_g = x W_down,g W_up,g."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fedray.errors import BadInput

FAINT = 1e-3
"""Standard deviation of W_up in a map that starts next to nothing. At 0 sharp, W_down would wait a step to learn."""


class LowRank(nn.Module):
    """Maps from one width to another through `rank` numbers.

    Args:
        maps: G, how many; each has factors of its own.
        into: width of the input.
        out: width of the output.
        rank: r.
        faint: start next to nothing, for maps that are added to something; else as linear layers do.

    Raises:
        BadInput: a rank below 1.
    """

    def __init__(self, maps: int, into: int, out: int, *, rank: int, faint: bool = True) -> None:
        super().__init__()
        if rank < 1:
            raise BadInput(f"rank is {rank}; take at least 1")
        self.down = nn.Parameter(torch.empty(maps, into, rank))
        self.up = nn.Parameter(torch.empty(maps, rank, out))
        nn.init.uniform_(self.down, -1 / math.sqrt(into), 1 / math.sqrt(into))
        if faint:
            nn.init.normal_(self.up, std=FAINT)
        else:
            nn.init.uniform_(self.up, -1 / math.sqrt(rank), 1 / math.sqrt(rank))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., 1 or G, M, into) to (..., G, M, out)."""
        return x @ self.down @ self.up

    def extra_repr(self) -> str:
        """Shape."""
        maps, into, rank = self.down.shape
        return f"maps={maps}, into={into}, out={self.up.shape[-1]}, rank={rank}"

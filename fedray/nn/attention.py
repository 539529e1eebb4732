"""Prompts that an image asks for: its patches look over texts, each on its own.

    x = MHA(LN(q), LN(k), v),   out = x + FF(x),   FF = Linear(GEGLU(Linear(LN)))         GEGLU(a, b) = a gelu(b)
    low rank: x + x A B                                                                    A (w, r), B (r, w)
    pooled:   out_i = mean of x[floor(i M / n) : ceil((i + 1) M / n)]                      M tokens to n

The attention has no residual to its queries. Singha et al., "FedMVP: Federated Multi-modal Visual Prompt Tuning for
Vision-Language Models", ICCV 2025.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedray.errors import BadInput
from fedray.nn.backbone import Backbone
from fedray.nn.prompts import STD
from fedray.nn.towers import full
from fedray.types import Features

WIDENING = 4
"""Hidden width of the feed-forward part, in widths (twice that before the gate)."""


class CrossAttention(nn.Module):
    """One block of cross attention with a feed-forward part.

    Args:
        width: w, of queries, keys and values.
        heads: of the attention.

    Raises:
        BadInput: heads that do not divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise BadInput(f"heads is {heads}; it must divide the width, {width}")
        self.norm_queries, self.norm_keys, self.norm = (nn.LayerNorm(width) for _ in range(3))
        self.attention = nn.MultiheadAttention(width, heads)
        self.widen, self.narrow = nn.Linear(width, 2 * WIDENING * width), nn.Linear(WIDENING * width, width)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Let queries (..., w) look at keys and values (A, w), the same for all: (..., w)."""
        rows = self.norm_queries(queries).flatten(0, -2)  # one long sequence: keys are projected once, not per image
        mixed, _ = self.attention(rows, self.norm_keys(keys), values, need_weights=False)
        value, gate = self.widen(self.norm(mixed)).chunk(2, dim=-1)
        out: Tensor = mixed + self.narrow(value * F.gelu(gate))
        return out.view(queries.shape)


class Lora(nn.Module):
    """The identity plus a learned map of low rank, both factors N(0, 0.02^2).

    Args:
        width: w.
        rank: r, at least 1.

    Raises:
        BadInput: `rank` below 1.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        if rank < 1:
            raise BadInput(f"rank is {rank}; take at least 1")
        self.A = nn.Parameter(nn.init.normal_(torch.empty(width, rank), std=STD))
        self.B = nn.Parameter(nn.init.normal_(torch.empty(rank, width), std=STD))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., w) to (..., w)."""
        return x + x @ self.A @ self.B


@torch.no_grad()
def patch_embeddings(clip: Backbone, x: Tensor | Features) -> Tensor:
    """What CLIP's vision tower makes of patches before its first norm, position included: (B, M, w) in fp32.

    Raises:
        BadInput: stored features, which have no patches any more.
    """
    if isinstance(x, Features):
        raise BadInput("cached features can't see vision prompts, which would learn nothing; use pixels")
    return full(clip.vision.embed(x)[:, 1:])


def pooled(x: Tensor, n: int) -> Tensor:
    """Means of n stretches of tokens, (B, M, w) to (B, n, w): adaptive pooling, with a deterministic gradient."""
    count = x.shape[1]
    return torch.stack([x[:, i * count // n : -(-(i + 1) * count // n)].mean(1) for i in range(n)], 1)

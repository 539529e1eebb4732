"""The small network that turns a frozen feature into (a part of) a prompt.

    meta(x) = W_2 act(W_1 x + b_1) + b_2,   act: ReLU, or QuickGELU x sigma(1.702 x)

CoCoOp feeds it images, TCP classes: Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022;
Yao et al., "TCP: Textual-based Class-aware Prompt Tuning for Visual-Language Model", CVPR 2024.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MetaNet(nn.Module):
    """Two linear layers with a bottleneck between them.

    Args:
        into: width of what comes in.
        hidden: width of the bottleneck.
        out: width of what goes out.
        quick: QuickGELU in place of ReLU.
    """

    def __init__(self, into: int, hidden: int, out: int, *, quick: bool = False) -> None:
        super().__init__()
        self.narrow, self.widen, self.quick = nn.Linear(into, hidden), nn.Linear(hidden, out), quick

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., into) to (..., out)."""
        hidden = self.narrow(x)
        hidden = hidden * torch.sigmoid(1.702 * hidden) if self.quick else F.relu(hidden)
        out: Tensor = self.widen(hidden)
        return out

"""Classes that know of one another: a graph convolution over text features that leaves a residual (SCPNet).

R      cosines of the classes' texts, the k largest of each row, without the diagonal, rows sum to 1
A      r R + (1 - r) I
t'     t + A s(A s(A t W1) W2) W3,   s = LeakyReLU(0.2)

Ding et al., "Exploring Structured Semantic Prior for Multi Label Recognition with Incomplete Labels", CVPR 2023.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedray.errors import BadInput
from fedray.nn.heads import Head
from fedray.types import Features, Tokens

SLOPE = 0.2


def adjacency(texts: Tensor, *, top: int, share: float) -> Tensor:
    """A (C, C) of class features (C, d): `share` of a row goes to the `top` most similar classes, the rest stays.

    A class is the first of its own top. Cosines below 0 count as 0; a class without similar ones keeps all.

    Raises:
        BadInput: top below 1, or a share outside 0 to 1.
    """
    if top < 1:
        raise BadInput(f"top is {top}; take at least 1 (the class itself)")
    if not 0 <= share <= 1:
        raise BadInput(f"share is {share}; it must be in [0, 1]")
    unit = F.normalize(texts, dim=-1)
    near = (unit @ unit.mT).clamp_min(0)
    value, index = near.topk(min(top, len(near)), dim=1)
    near = torch.zeros_like(near).scatter(1, index, value).fill_diagonal_(0)
    total = near.sum(1, keepdim=True)
    near = torch.where(total > 0, share * near / total.clamp_min(torch.finfo(near.dtype).tiny), 0)
    return near + torch.diag(1 - near.sum(1))


class Related(nn.Module):
    """Another head that sees text features after three layers of graph convolution, their input added.

    Args:
        head: compares.
        graph: A (C, C), a constant.
        width: d; the layers are d to 2d to 2d to d, without bias.
    """

    multilabel = True
    graph: Tensor

    def __init__(self, head: nn.Module, graph: Tensor, width: int) -> None:
        super().__init__()
        self.head = head
        self.tokens: Tokens = cast(Head, head).tokens
        self.register_buffer("graph", graph.detach().clone(), persistent=False)
        sizes = (width, 2 * width, 2 * width, width)
        self.weights = nn.ParameterList(torch.empty(a, b) for a, b in pairwise(sizes))
        for weight in self.weights:
            nn.init.uniform_(weight, -1 / math.sqrt(weight.shape[1]), 1 / math.sqrt(weight.shape[1]))

    def forward(self, text: Features, image: Features, scale: Tensor) -> Tensor:
        """Compare text (N, C, d), not normalised, with an image: logits (B, C).

        Raises:
            BadInput: texts of another number of classes.
        """
        if text.pooled.shape[1] != len(self.graph):
            raise BadInput(f"texts of {text.pooled.shape[1]} classes, the graph has {len(self.graph)}; make it anew")
        first, second, third = self.weights
        hidden = F.leaky_relu(self.graph @ (text.pooled @ first), SLOPE)
        hidden = F.leaky_relu(self.graph @ (hidden @ second), SLOPE)
        logits: Tensor = self.head(Features(text.pooled + self.graph @ (hidden @ third)), image, scale)
        return logits

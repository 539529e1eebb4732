"""What several labels per image ask for beside the asymmetric loss: centred logits, two more losses, class vectors.

    centred   x_bc - mean_c' x_bc'
    MMC       -mean over positives of log softmax over all B C pairs            RAM, CVPR 2025
    SPLC      focal cross entropy, margin 1 for positives, unknown labels guessed       Zhang et al., 2021
    vectors   text [e-; t + e+]                                                 PosCoOp, WACV 2025

Why centred: a patch and a class have cosines near 0.2 to 0.3 in CLIP whatever they are, which 100 per cosine turns into
logits of 20 to 30. There every sigmoid is 1, and the gradient of a negative is 0. What the classes of an image have in
common tells nothing of which are there.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedray.errors import BadInput
from fedray.nn.heads import Head
from fedray.types import Features, Tokens


def centred(logits: Tensor) -> Tensor:
    """Logits (B, C) less their mean over the classes; a single class is left as it is."""
    return logits - logits.mean(1, keepdim=True) if logits.shape[1] > 1 else logits


class Centred(nn.Module):
    """Another head, with centred logits.

    Args:
        head: compares; what it learns, it learns as before.
    """

    multilabel = True

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.tokens: Tokens = cast(Head, head).tokens

    def forward(self, text: Features, image: Features, scale: Tensor) -> Tensor:
        """Logits (B, C) of mean 0 in each image."""
        return centred(self.head(text, image, scale))


class Vectors(nn.Module):
    """Free vectors of each class: one is added to its text feature, one stands for its absence (PosCoOp).

    Args:
        head: compares two texts per class, the negative first.
        classes: C.
        width: d.
    """

    multilabel = True

    def __init__(self, head: nn.Module, classes: int, width: int) -> None:
        super().__init__()
        self.head = head
        self.tokens: Tokens = cast(Head, head).tokens
        self.positive = nn.Parameter(torch.randn(classes, width))
        self.negative = nn.Parameter(torch.randn(classes, width))

    def forward(self, text: Features, image: Features, scale: Tensor) -> Tensor:
        """Compare text (1, C, d), not normalised, with an image: logits (B, C).

        Raises:
            BadInput: texts of another number of classes, or of several prompts.
        """
        if text.pooled.shape != (1, *self.positive.shape):
            raise BadInput(
                f"texts {tuple(text.pooled.shape)} for {len(self.positive)} classes' vectors; they go with one prompt "
                "of each of the classes that the method was made for"
            )
        pair = torch.stack([self.negative, text.pooled[0] + self.positive])
        logits: Tensor = self.head(Features(pair), image, scale)
        return logits


def matching(logits: Tensor, y: Tensor) -> Tensor:
    """MMC: all pairs of image and class in one softmax; mean over the positive ones, 0 without any.

    Args:
        logits: (B, C).
        y: (B, C) of 1, 0, and -1 for unknown: such pairs take no part.
    """
    share = logits.masked_fill(y < 0, -torch.inf).flatten().log_softmax(0)
    there = (y == 1).flatten()
    return -share[there].sum() / there.sum().clamp_min(1)


def splc(
    logits: Tensor, y: Tensor, *, sure: float = 0.6, margin: float = 1.0, gamma: float = 2.0, weight: float = 0.03
) -> Tensor:
    """Focal cross entropy that guesses unknown labels: present where sigma(x) > `sure`, else absent.

    Classes (B,) get plain cross entropy.

    Args:
        logits: (B, C).
        y: (B, C) of 1, 0, and -1 for unknown.
        sure: probability from which an unknown label counts as present.
        margin: taken off the logits of positives.
        gamma: focus on what is still wrong; part of the gradient.
        weight: of the sum over images and classes.
    """
    if y.dim() == 1:
        return F.cross_entropy(logits, y)
    there = ((y == 1) | ((y < 0) & (logits.sigmoid() > sure))).to(logits.dtype)
    x = logits - margin * (y == 1).to(logits.dtype)
    p = x.sigmoid()
    wrong = there * (1 - p) + (1 - there) * p
    terms = there * F.logsigmoid(x) + (1 - there) * F.logsigmoid(-x)
    return -weight * (wrong**gamma * terms).sum()

"""What a model's logits are worth on a test set.

single-label:  acc1 = share of images whose highest logit is their class;  loss = mean cross entropy
multi-label:   AP_c = mean over positives i of class c of  (positives up to i) / (images up to i),  by falling logit
               map = mean_c AP_c
               cf1 = 2 P R / (P + R),  P = mean_c TP_c / (TP_c + FP_c),  R = mean_c TP_c / (TP_c + FN_c)
               cf1_class = mean_c 2 TP_c / (2 TP_c + FP_c + FN_c);   of1 = the same of the sums over c
               loss = mean binary cross entropy

Percent, losses in nats. cf1 is the convention of ML-GCN and DualCoOp, cf1_class that of OpenFedML.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 256
"""Images whose losses are added in the logits' precision; the blocks' sums are added in double."""


def single(logits: Tensor, y: Tensor) -> dict[str, float]:
    """acc1 and loss of logits (n, C) for classes y (n,); empty without images."""
    if not len(y):
        return {}
    pairs = zip(logits.split(BLOCK), y.split(BLOCK), strict=True)
    loss = sum(F.cross_entropy(part, classes, reduction="sum").item() for part, classes in pairs)
    return {"acc1": 100 * int((logits.argmax(1) == y).sum()) / len(y), "loss": loss / len(y)}


def multi(
    logits: Tensor, y: Tensor, *, absent: Literal["skip", "zero"] = "skip", threshold: float = 0.0
) -> dict[str, float]:
    """map, cf1, cf1_class, of1 and loss of logits (n, C) for labels y (n, C): 1, 0, or -1 which is left out.

    Args:
        logits: scores; those above `threshold` are predicted present.
        y: labels.
        absent: of a class without positives: "skip" it in map, cf1 and cf1_class, or count it as "zero", as
            OpenFedML does.
        threshold: in logits; 0 is a probability of one half.

    Returns:
        Only what can be said: nothing without a known label, and loss alone without a positive one.
    """
    known, positive = y != -1, y == 1
    if not known.any():
        return {}
    losses = F.binary_cross_entropy_with_logits(logits, positive.to(logits.dtype), reduction="none")
    loss = {"loss": losses[known].double().mean().item()}
    if not positive.any():
        return loss
    counted = positive.any(0) | (absent == "zero")
    predicted = (logits > threshold) & known
    tp, said, true = ((predicted & positive).sum(0), predicted.sum(0), positive.sum(0))
    precision, recall = _share(tp, said)[counted].mean(), _share(tp, true)[counted].mean()
    scores = {
        "map": average_precision(logits, y)[counted].mean(),
        "cf1": _share(2 * precision * recall, precision + recall),
        "cf1_class": _share(2 * tp, said + true)[counted].mean(),
        "of1": _share(2 * tp.sum(), said.sum() + true.sum()),
    }
    return {name: 100 * value.item() for name, value in scores.items()} | loss


def average_precision(logits: Tensor, y: Tensor) -> Tensor:
    """Non-interpolated AP (C,), in double, 0 for a class without positives; equal logits rank in the images' order."""
    order = logits.argsort(dim=0, descending=True, stable=True)
    ranked = y.gather(0, order)
    positive = ranked == 1
    precision = _share(positive.cumsum(0), (ranked != -1).cumsum(0))
    return _share((precision * positive).sum(0), positive.sum(0))


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """The quotient in double, 0 where the whole is nothing."""
    return torch.where(whole > 0, part.double() / whole.double().where(whole > 0, 1.0), 0.0)

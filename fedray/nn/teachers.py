"""Penalties against the frozen CLIP: what prompts may not unlearn. Student and teacher see the same images.

    text      mean |t - t0|                                      image    mean |f - f0|
    logits    sum_bc p0 (log p0 - log p) / (B C)
    joint     sum_ij T_ij G_ij,   G_ij = |a_i - a0_j|^2 / 2,   a_i = [f_i ; t_{y_i}],   T = argmin <T, G>

All features are of unit length, 0 marks the teacher's, which gets no gradient. T has marginals 1 / B and is exact.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from fedray.errors import BadInput
from fedray.nn.heads import Head
from fedray.types import Features, Given, Output


def teach(given: Given, x: Tensor | Features, student: nn.Module) -> Output:
    """CLIP's own answer to x (B, 3, S, S) without any prompt, compared by the student's `head`: logits (B, C).

    Nothing in it asks for a gradient. Images are not encoded again where `given` holds their stored features.
    """
    head = cast(Head, student.head)
    with torch.no_grad():
        text = given.clip.encode_text(given.task)
        image = given.clip.encode_image(x if given.frozen is None else given.frozen, tokens=head.tokens)
        return Output(text, image, head(text, image, given.clip.logit_scale))


def text_drift(student: Output, teacher: Output) -> Tensor:
    """Mean absolute difference of the classes' features (N, C, d), a scalar (PromptSRC's L1 on texts)."""
    return (_unit(student.text) - _unit(teacher.text)).abs().mean()


def image_drift(student: Output, teacher: Output) -> Tensor:
    """Mean absolute difference of the images' features (B, d), a scalar (PromptSRC's L1 on images)."""
    return (_unit(student.image) - _unit(teacher.image)).abs().mean()


def logit_drift(student: Output, teacher: Output) -> Tensor:
    """Divergence of the student's class probabilities (B, C) from the teacher's, divided by B C as PromptSRC does."""
    p, p0 = student.logits.log_softmax(1), teacher.logits.log_softmax(1)
    return (p0.exp() * (p0 - p)).sum() / p.numel()  # not kl_div, for which vmap has no rule


def joint_drift(student: Output, teacher: Output, y: Tensor) -> Tensor:
    """Cost of transporting a batch of (image, text of its class) to the teacher's view of the same batch (Prompt-OT).

    Args:
        student: features of B images and C classes; several prompts per class count by their mean.
        teacher: the same images and classes.
        y: (B,) classes, or (B, C) labels: an image then stands with the mean over its classes' texts.

    Raises:
        BadInput: features are NaN or Inf.
    """
    gaps = _joint(student, y).unsqueeze(1) - _joint(teacher, y).detach()  # (B, B, 2d)
    cost = gaps.square().sum(-1) / 2
    return (assignment(cost) * cost).sum()


def assignment(cost: Tensor) -> Tensor:
    """The exact plan of a square cost (B, B) with uniform marginals, detached: a permutation divided by B.

    Raises:
        BadInput: the cost is not square, or NaN or Inf.
    """
    cost = cost.detach()
    if cost.dim() != 2 or cost.shape[0] != cost.shape[1] or not len(cost):
        raise BadInput(f"cost has shape {tuple(cost.shape)}; an assignment needs as many rows as columns")
    if bad := int((~cost.isfinite()).sum()):
        raise BadInput(f"{bad} of {cost.numel()} costs are NaN or Inf; look for what made the features so")
    rows, columns = (torch.from_numpy(i).to(cost.device) for i in linear_sum_assignment(cost.double().cpu().numpy()))
    plan = torch.zeros_like(cost)
    plan[rows, columns] = 1 / len(cost)
    return plan


def _joint(out: Output, y: Tensor) -> Tensor:
    texts = _unit(out.text).mean(0)
    if y.dim() == 1:
        return torch.cat([_unit(out.image), texts[y]], -1)
    there = (y == 1).to(texts.dtype)
    return torch.cat([_unit(out.image), there @ texts / there.sum(1, keepdim=True).clamp_min(1)], -1)


def _unit(x: Features) -> Tensor:
    return F.normalize(x.pooled, dim=-1)

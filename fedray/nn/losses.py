"""What is minimised beside the task loss, and rules that bend a gradient. Plain functions, and penalties with a weight.

    task       cross entropy, or for several labels  -w sum_bc y (1-p)^g+ log p + (1-y) (1-q)^g- log q,  p = sigma(x)
    proximal   mu/2 sum ||theta - theta_received||^2                 FedProx, MLSys 2020
    guidance   w (1 - mean_c cos(t_c, z_c))                          z: hand-written prompts; KgCoOp, CVPR 2023
    contrast   mean_c -log softmax([cos(a, near), cos(a, far)] / tau)_near                    FedPGP, ICML 2024
    distil     -T^2 sum_c softmax(z / T)_c log softmax(s / T)_c      the gradient of T^2 KL(teacher || student)
    project    g - lambda min(<g, h>, 0) h / ||h||^2                 ProGrad, ICCV 2023

A penalty is a frozen dataclass that is called as ``(method, given, x, y, out) -> {name: term}``, its weight included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedray.errors import BadInput
from fedray.types import Batching, Features, Given, Output


def task_loss(
    logits: Tensor, y: Tensor, *, weight: float = 0.03, down: float = 2.0, up: float = 1.0, margin: float = 0.05
) -> Tensor:
    """Cross entropy of logits (B, C) to classes (B,), or `asymmetric`, with these constants, to labels (B, C)."""
    if y.dim() == 1:
        return F.cross_entropy(logits, y)
    return asymmetric(logits, y, weight=weight, down=down, up=up, margin=margin)


def with_constants(*, weight: float, down: float, up: float, margin: float) -> partial[Tensor]:
    """`task_loss` with a user's constants, for logits (B, C).

    Raises:
        BadInput: `weight`, `down` or `up` below 0, or `margin` outside [0, 1): negatives would not count.
    """
    for name, value in (("weight", weight), ("down", down), ("up", up)):
        check_weight(f"method.{name}", value)
    if not 0 <= margin < 1:
        raise BadInput(f"method.margin is {margin}; it must be at least 0 and below 1, a probability")
    return partial(task_loss, weight=weight, down=down, up=up, margin=margin)


def asymmetric(
    logits: Tensor,
    y: Tensor,
    *,
    down: float = 2.0,
    up: float = 1.0,
    margin: float = 0.05,
    weight: float = 0.03,
    floor: float = 1e-6,
) -> Tensor:
    """Asymmetric loss of independent classes (Ridnik et al., ICCV 2021; FedMPT Eq. 12 with the minus it forgets).

    With p = sigma(x) and q = min(1 - p + margin, 1); the focal factors are constants for the gradient. Of a pair
    (negative, positive) compared by softmax it is the same with x = positive - negative.

    Args:
        logits: (B, C).
        y: (B, C) of 1, 0, and -1 for unknown, which counts for nothing.
        down: gamma of the negatives.
        up: gamma of the positives.
        margin: probability that a negative may keep.
        weight: of the sum over images and classes (DualCoOp's code: 0.03, FedMPT's: 0.02).
        floor: of a probability in a logarithm.
    """
    p = logits.sigmoid()
    q = (1 - p + margin).clamp(max=1)
    hard, easy = ((1 - p) ** up).detach(), ((1 - q) ** down).detach()
    there, gone = (y == 1).to(p.dtype), (y == 0).to(p.dtype)
    gain = there * hard * p.clamp_min(floor).log() + gone * easy * q.clamp_min(floor).log()
    return -weight * gain.sum()


@dataclass(frozen=True)
class Proximal:
    """Keeps what is shared near what the server sent: mu/2 times the squared distance, its gradient mu times the way.

    What the server did not send, which is what is private, goes free. Li et al., "Federated Optimization in
    Heterogeneous Networks" (FedProx), MLSys 2020, Eq. 2.

    Raises:
        BadInput: `mu` is negative or not finite.
    """

    mu: float = 0.5
    batching: ClassVar[Batching] = "ragged"  # it looks at no image

    def __post_init__(self) -> None:
        check_weight("mu", self.mu)

    def __call__(
        self, method: nn.Module, given: Given, x: Tensor | Features, y: Tensor, out: Output
    ) -> dict[str, Tensor]:
        """The term, a scalar; images and labels play no part.

        Raises:
            BadInput: the server sent none of the method's parameters.
        """
        sent = {name: p for name, p in method.named_parameters() if name in given.received}
        if not sent:
            names = sorted(name for name, _ in method.named_parameters())
            raise BadInput(f"received holds none of {names}, so nothing can stay near it; share some, or set mu to 0")
        gaps = [(p - given.received[name].detach().to(p)).square().sum() for name, p in sent.items()]
        return {"proximal": self.mu / 2 * torch.stack(gaps).sum()}


@dataclass(frozen=True)
class Guidance:
    """Keeps the learned text features (N, C, d) at a small angle to the hand-written ones (C, d) of the task (KgCoOp).

    Raises:
        BadInput: `weight` is negative or not finite.
    """

    weight: float = 8.0
    batching: ClassVar[Batching] = "ragged"  # it looks at no image

    def __post_init__(self) -> None:
        check_weight("weight", self.weight)

    def __call__(
        self, method: nn.Module, given: Given, x: Tensor | Features, y: Tensor, out: Output
    ) -> dict[str, Tensor]:
        """The term, a scalar from 0 to twice the weight."""
        near = F.cosine_similarity(out.text.pooled, given.task.zeroshot, dim=-1).mean()
        return {"guidance": self.weight * (1 - near)}


def contrast(anchor: Tensor, *, near: Tensor, far: Tensor, tau: float = 0.5) -> Tensor:
    """Pull (..., d) features towards `near` and push them from `far` (FedPGP); mean over leading axes."""
    pull, push = (F.cosine_similarity(anchor, other, dim=-1) / tau for other in (near, far))
    return F.softplus(push - pull).mean()  # = cross entropy of the pair (pull, push) with target 0


def distil(student: Tensor, teacher: Tensor, *, tau: float = 1.0) -> Tensor:
    """Cross entropy of student logits (B, C) to the soft labels of a constant teacher, mean over images (ProGrad)."""
    soft = (teacher.detach() / tau).softmax(-1)
    return -(tau**2) * (soft * (student / tau).log_softmax(-1)).sum(-1).mean()


def project(gradient: Tensor, guide: Tensor, *, strength: float = 1.0) -> Tensor:
    """Take out of `gradient` what goes against `guide`, of the same shape: all of it at strength 1 (ProGrad).

    One tensor, one decision. A gradient that does not conflict keeps its bits, and so does one whose guide is 0. In
    float64 inside, for squares of late gradients underflow in float32.
    """
    g, h = gradient.double(), guide.double()
    unit: Tensor = h / torch.linalg.vector_norm(h).clamp_min(torch.finfo(h.dtype).tiny)
    against = (g * unit).sum().clamp(max=0)
    return (g - strength * against * unit).to(gradient.dtype)


def with_gradient(value: Tensor, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """A surrogate: it has the value of `value`, a scalar, and with respect to `parameters` exactly the given gradients.

    value + sum_i <theta_i - const(theta_i), g_i>, where the differences are 0. So a rule on gradients is a loss term
    like any other, and whoever minimises it needs no hook. `value`'s own graph is cut off.
    """
    pairs = zip(parameters, gradients, strict=True)
    return value.detach() + torch.stack([((p - p.detach()) * g.detach()).sum() for p, g in pairs]).sum()


def check_weight(name: str, value: float) -> None:
    """Refuse a weight that is negative or not finite.

    Raises:
        BadInput: says so.
    """
    if not (value >= 0 and math.isfinite(value)):
        raise BadInput(f"{name} is {value}; it must be 0 (off) or above")


def check_temperature(name: str, value: float) -> None:
    """Refuse a temperature that is not above 0 and finite.

    Raises:
        BadInput: says so.
    """
    if not (value > 0 and math.isfinite(value)):
        raise BadInput(f"{name} is {value}; it must be above 0")

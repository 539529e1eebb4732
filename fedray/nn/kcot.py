"""Patches matched to classes by transport under a teacher's guidance, beside CLIP's own comparison (RAM's KCOT).

    global   z_c = cos(f, t_c) / tau_g
    local    z_c = sum_m P_mc cos(v_m, t_c) / tau_l,   P = plan(1 - softmax_c(s cos); u, 1 / C)
             u = softmax_m(max_c cos / 0.1)
    train    cost + 0.05 (-log q),  eps + 0.05,   q = softmax_m(20 softmax_c(s cos0)), its least where a class is absent
    score    (softmax_c(global) + softmax_c(local)) / 2

cos0 are cosines of the frozen tower's patches with the hand-written texts; plans are constants for autograd.
Temperatures are learned as logarithms: plain gradient steps would soon take them below 0. Tan et al., "Recover and
Match: Open-Vocabulary Multi-Label Recognition through Knowledge-Constrained Optimal Transport" (RAM), CVPR 2025.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedray.nn.heads import tokens_of
from fedray.nn.losses import check_temperature
from fedray.nn.transport import LIMIT, TOLERANCE, check_options, transport
from fedray.types import Features

CALM, FOCUS = 0.1, 20.0  # temperature of u; factor in q


class Kcot(nn.Module):
    """Two comparisons, each with a temperature of its own.

    Args:
        scale: CLIP's s; tau_g starts at its inverse.
        tau: tau_l at the start.
        eps: entropy weight of the plan.
        guidance: of the teacher, in the cost and on top of eps.
        iters: cap on the solver's iterations.

    Raises:
        BadInput: an option out of its range.
    """

    multilabel = True

    def __init__(
        self, scale: float, *, tau: float = 2e-3, eps: float = 0.1, guidance: float = 0.05, iters: int = 100
    ) -> None:
        super().__init__()
        check_temperature("tau", tau)
        check_options(eps, "balanced", 1.0, iters, TOLERANCE, LIMIT, "problem")
        self.log_global = nn.Parameter(torch.tensor(-math.log(scale)))
        self.log_local = nn.Parameter(torch.tensor(math.log(tau)))
        self.eps, self.guidance, self.iters = eps, guidance, iters

    def forward(
        self, text: Tensor, image: Features, scale: Tensor, teacher: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compare texts (C, d) with pooled (B, d) and patches (B, M, d): global and local logits (B, C).

        `teacher` (B, M, C) are probabilities q.

        Raises:
            BadInput: features without tokens, or not finite.
            NotConverged: a plan misses its marginals by more than a tenth of its mass.
        """
        texts, patches = F.normalize(text, dim=-1), tokens_of(image)
        whole = F.normalize(image.pooled, dim=-1) @ texts.mT / self.log_global.exp()
        close = F.normalize(patches, dim=-1) @ texts.mT  # (B, M, C)
        cost, eps = 1 - (scale * close.detach()).softmax(-1), self.eps
        if teacher is not None:
            cost, eps = cost - self.guidance * teacher.log(), eps + self.guidance
        masses = (close.detach().amax(-1) / CALM).softmax(-1)
        plan = transport(cost, a=masses, eps=eps, iters=self.iters, tol=TOLERANCE, limit=LIMIT).plan
        return whole, (plan * close).sum(1) / self.log_local.exp()


def guide(frozen: Features, texts: Tensor, scale: Tensor, absent: Tensor) -> Tensor:
    """The teacher's q (B, M, C) of frozen patches (B, M, d), hand-written texts (C, d) and absent classes (B, C)."""
    near = (scale * F.normalize(tokens_of(frozen), dim=-1) @ F.normalize(texts, dim=-1).mT).softmax(-1)
    q = (FOCUS * near).softmax(1)
    return torch.where(absent.unsqueeze(1), q.amin(), q).detach()


def mixture(whole: Tensor, local: Tensor) -> Tensor:
    """Logarithm (B, C) of the mean of both softmaxes, times C: above 0 is more than an even share."""
    both = torch.stack([whole.log_softmax(-1), local.log_softmax(-1)])
    return both.logsumexp(0) + math.log(whole.shape[-1] / 2)

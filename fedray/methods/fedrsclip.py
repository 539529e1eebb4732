"""FedRSCLIP: a shared and a private prompt, the class name amid them, kept together by an alignment constraint (DPAC).

    prompt   [V]_1 .. [V]_h/2 [CLASS] [V]_h/2+1 .. [V]_h,  h = 4                                       (Eq. 4)
    logits   s * sum T sim,  T: partial transport of the patches to the two prompts, as FedOTP's     (Eqs. 11-15)
    L        CE + lambda_a L_DPAC,   L_DPAC = log(1 + sum_{j != i} exp(kappa <E_p, E_sj> - kappa <E_p, E_s>))  (Eq. 9)
    eq10     L_DPAC = log sum_{j != i} exp(kappa <E_p, E_sj> - kappa <E_p, E_s>), unbounded below     (Eq. 10)

E_s, E_p: text features (C, d) of the shared and private prompt; E_sj: of client j's last shared prompt, a constant,
which comes with the server's message (``server.kind=peers``). <.,.> is the mean over classes of the cosine; negatives
"classes" are the other classes of E_s instead, class by class.
Without negatives (first round, one client, FedAvg as server, or "none") one of similarity 0 stands for the empty sum,
so that the term still pulls E_p to E_s: the paper gains by DPAC with one client too.
Global view: the shared prompt alone, with all of the mass on it.
"FedRSCLIP: Federated Learning for Remote Sensing Scene Classification Using Vision-Language Models", Section IV.

Departs from the paper: where it is silent, mass 0.8, eps 0.1, lambda_a 1, kappa 10, momentum 0.9, weight decay 5e-4, 50
rounds, unit features for its embeddings phi and psi; logits differ from (1 - d) / tau by a constant. No public code.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedray.errors import BadInput, did_you_mean
from fedray.method import PromptMethod
from fedray.nn.backbone import Backbone
from fedray.nn.generate import Once, peer_features
from fedray.nn.heads import Transport
from fedray.nn.prompts import Beside, TextContext
from fedray.types import Features, Given, Output, Position

FIDELITY = "paper-only"
PROTOCOL = {
    "local.lr": 0.001,
    "local.batch": 32,
    "local.epochs": 1,
    "rounds": 50,
    "split.shots": None,
    "partition.kind": "iid",
    "partition.clients": 10,
    "server.kind": "peers",
}
SPACE = {
    "local.lr": (0.0001, 0.01, "log"),
    "method.eps": (0.01, 0.1, "log"),
    "method.mass": (0.5, 1.0),
    "method.lambda_a": (0.01, 1.0, "log"),
    "method.kappa": (1.0, 100.0, "log"),
    "method.negatives": ["others", "none", "classes"],
}


def fedrsclip(
    clip: Backbone,
    *,
    n_ctx: int = 4,
    words: str | None = None,
    position: Position = "middle",
    lambda_a: float = 1.0,
    kappa: float = 10.0,
    form: Literal["eq9", "eq10"] = "eq9",
    negatives: Literal["others", "none", "classes"] = "others",
    mass: float = 0.8,
    eps: float = 0.1,
    iters: int = 100,
    temperature: float | None = None,
) -> PromptMethod:
    """Two prompts per class, the first shared, the second private and aligned with it.

    Args:
        clip: the frozen backbone.
        n_ctx: context tokens of each prompt.
        words: start both from these words in place of noise.
        position: where the class name stands.
        lambda_a: weight of the alignment constraint; 0 leaves it out.
        kappa: its scale, in units per cosine.
        form: "eq9", or "eq10" whose sum leaves out the positive.
        negatives: the prompts to stay away from: other clients', none, or the own shared one's other classes.
        mass: share of the patches' mass that is transported, in (0, 1].
        eps: entropic regularisation, in cost units (cost = 1 - cosine).
        iters: most iterations of the transport solver.
        temperature: of the softmax over classes; None keeps CLIP's own.

    Raises:
        BadInput: a weight below 0, kappa not above 0, an unknown form or source of negatives.
    """
    shared, local = (TextContext(clip, n=n_ctx, words=words, position=position) for _ in range(2))
    head = Transport(kind="partial", eps=eps, mass=mass, iters=iters, temperature=temperature)
    align = Alignment(lambda_a, kappa, form, negatives, position)
    penalties = [align] if lambda_a else []
    server = "peers" if penalties and negatives == "others" else None
    return PromptMethod(Beside(shared, local), head, private=["prompts.local.*"], penalties=penalties, server=server)


class Alignment(nn.Module):
    """The weighted constraint, as a penalty of `PromptMethod`; BadInput for options out of range."""

    def __init__(self, weight: float, kappa: float, form: str, negatives: str, position: Position) -> None:
        super().__init__()
        if not weight >= 0:
            raise BadInput(f"method.lambda_a must be >= 0, got {weight:g}")
        if not kappa > 0:
            raise BadInput(f"method.kappa must be > 0, got {kappa:g}; lambda_a=0 leaves the constraint out")
        for label, value, known in (
            ("form", form, ("eq9", "eq10")),
            ("negatives", negatives, ("others", "none", "classes")),
        ):
            if value not in known:
                raise BadInput(f"method.{label} is {value!r}. {did_you_mean(value, known)}")
        self.weight, self.kappa, self.bounded, self.negatives = weight, kappa, form == "eq9", negatives
        self.others = Once(partial(peer_features, name="prompts.shared.tokens", position=position))

    def forward(
        self, method: PromptMethod, given: Given, x: Tensor | Features, y: Tensor, out: Output
    ) -> dict[str, Tensor]:
        """The term, a scalar, of a forward pass with both prompts: texts (2, C, d)."""
        shared, own = out.text.pooled[0], out.text.pooled[-1]
        others = self.others(given) if self.negatives == "others" else None
        positive = F.cosine_similarity(own, shared, dim=-1)
        classes = self.negatives == "classes" and len(own) > 1
        if classes:
            similar = F.normalize(shared, dim=-1) @ F.normalize(own, dim=-1).mT
            negative = similar.masked_fill(torch.eye(len(own), dtype=torch.bool, device=own.device), -torch.inf)
        elif others is not None:
            negative = F.cosine_similarity(own, others, dim=-1)
        else:
            negative = torch.zeros_like(positive)[None]
        term = dpac(positive, negative, self.kappa, bounded=self.bounded, by_class=classes)
        return {"dpac": self.weight * term}


def dpac(
    positive: Tensor, negative: Tensor, kappa: float = 10.0, *, bounded: bool = True, by_class: bool = False
) -> Tensor:
    """Eq. 9 (`bounded`) or Eq. 10, of cosines: positive (C,), negative (E, C) for E others.

    Cosines are averaged over the classes, or with `by_class` the terms are.
    """
    gaps = kappa * (negative - positive)
    total = (gaps if by_class else gaps.mean(1, keepdim=True)).logsumexp(0)
    return (F.softplus(total) if bounded else total).mean()

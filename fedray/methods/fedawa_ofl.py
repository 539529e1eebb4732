"""OpenFedML's "FedAWA": a context guided by hand-written prompts, averaged without the clients that deviate.

    loss = L + w (1 - mean_c cos(t_c, z_c)),   L: cross entropy, or with several labels 0.02 ASL, and w times 0.02
    theta <- mean of theta_k over the clients whose score is not among the 30 % dropped (server ``outliers``)

t_c: learned, z_c: text feature of the hand-written template(s). Everything is shared.
The code of FedMPT calls this FedAWA; it has nothing of Shi et al., "FedAWA: Adaptive Optimization of Aggregation
Weights in Federated Learning Using Client Vectors", CVPR 2025, which is `fedawa`.

The guidance is KgCoOp's (`kgcoop`) with weight 1; the mean is unweighted.

Departs from their code: it drops the clients most *like* the mean, by rows of the parameters (``server.drop top``,
``server.score rows``), here those whose updates are most unlike; patches are normalised as vectors (theirs: each
channel along the patches); z_c is the mean over a data set's templates where it has several; there is a form for one
label per image, which theirs lacks; a fresh optimiser at each visit.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from fedray.method import PromptMethod
from fedray.nn.backbone import Backbone
from fedray.nn.heads import Cosine
from fedray.nn.losses import Guidance, asymmetric, check_weight, task_loss
from fedray.nn.prompts import TextContext
from fedray.types import Features, Given, Output

FIDELITY = "code-read"
PROTOCOL = {
    "local.lr": 0.001,
    "local.weight_decay": 0.00001,
    "local.batch": 32,
    "local.epochs": 1,
    "local.schedule": "cosine",
    "rounds": 100,
    "split.shots": None,
    "partition.kind": "clusters",
}
SPACE = {"local.lr": (0.0001, 0.1, "log"), "method.n_ctx": (2, 16), "method.weight": (0.1, 10.0, "log")}

SEVERAL = 0.02
"""Weight of the whole loss where images have several labels."""


def fedawa_ofl(
    clip: Backbone,
    *,
    n_ctx: int = 4,
    words: str | None = None,
    weight: float = 1.0,
    temperature: float | None = None,
) -> PromptMethod:
    """One shared context, kept near the hand-written prompts.

    Args:
        clip: the frozen backbone.
        n_ctx: context tokens.
        words: start from these words ("a photo of a") in place of noise.
        weight: w of the guidance, 0 or above.
        temperature: of the softmax over classes; None keeps CLIP's own.

    Raises:
        BadInput: `weight` is negative.
    """
    context, head = TextContext(clip, n=n_ctx, words=words), Cosine(temperature=temperature)
    return PromptMethod(context, head, penalties=[Guided(weight)], loss=loss, server="outliers", weighting="uniform")


def loss(logits: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of logits (B, C) to classes y (B,); to labels (B, C) the asymmetric loss with the code's weight."""
    return task_loss(logits, y) if y.dim() == 1 else asymmetric(logits, y, weight=SEVERAL)


@dataclass(frozen=True)
class Guided:
    """KgCoOp's guidance, scaled like the loss that it stands beside."""

    weight: float

    def __post_init__(self) -> None:
        check_weight("method.weight", self.weight)

    def __call__(
        self, method: nn.Module, given: Given, x: Tensor | Features, y: Tensor, out: Output
    ) -> dict[str, Tensor]:
        """The term, a scalar, of the learned texts (1, C, d)."""
        weight = self.weight if y.dim() == 1 else SEVERAL * self.weight
        return Guidance(weight)(method, given, x, y, out)

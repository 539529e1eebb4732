"""FedAWA: PromptFL's context, averaged with weights that the server learns from where clients went.

    theta <- sum_k p_k theta_k,   p = softmax(T),   T moves against J's slope (see the server, ``fedray/fed/peers.py``)

The method at the clients is `promptfl`; what is FedAWA's is the server of that kind. Everything is shared.
Shi et al., "FedAWA: Adaptive Optimization of Aggregation Weights in Federated Learning Using Client Vectors", CVPR
2025, trains whole networks; FedMPT (2025) puts its rule on CoOp's context. OpenFedML's rule of that name is another:
`fedawa_ofl`.

Departs from the paper: a context is trained in place of a network, with prompts' learning rate (theirs: 0.08). The
server's departures are with the server.
"""

from __future__ import annotations

from fedray.method import PromptMethod
from fedray.nn.backbone import Backbone
from fedray.nn.heads import Cosine
from fedray.nn.prompts import TextContext

FIDELITY = "code-read"
PROTOCOL = {"local.lr": 0.001, "local.batch": 32, "local.epochs": 1, "rounds": 100}
SPACE = {"local.lr": (0.0001, 0.1, "log"), "method.n_ctx": (2, 16)}


def fedawa(
    clip: Backbone,
    *,
    n_ctx: int = 16,
    words: str | None = None,
    temperature: float | None = None,
) -> PromptMethod:
    """One shared context, for the server that learns how to weigh it.

    Args:
        clip: the frozen backbone.
        n_ctx: context tokens.
        words: start from these words ("a photo of a") in place of noise.
        temperature: of the softmax over classes; None keeps CLIP's own.

    Raises:
        BadInput: an option out of its range.
    """
    return PromptMethod(TextContext(clip, n=n_ctx, words=words), Cosine(temperature=temperature), server="fedawa")

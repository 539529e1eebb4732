"""FedProx: PromptFL with a spring to the global context, so that skewed clients do not run away from it.

    loss = CE + mu/2 ||theta - theta_g||^2,   theta_g: the context as the server sent it at the start of the round

Everything is shared, so that local and global view are one.
Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020; see `promptfl` for the context.

Released names: prompt_learner.ctx (n, w) -> prompts.tokens[0, 0].

Departs from the paper: mu is not tuned per data set, 0.5 is what public prompt-tuning code takes; every client does
the same number of epochs (no stragglers). And from that code: its term is made of copies and has no gradient, so that
it trains PromptFL, as ``mu=0`` does here.
"""

from __future__ import annotations

from fedray.method import PromptMethod
from fedray.nn.backbone import Backbone
from fedray.nn.heads import Cosine
from fedray.nn.losses import Proximal
from fedray.nn.prompts import TextContext
from fedray.types import Position

FIDELITY = "code-read"
PROTOCOL = {
    "local.lr": 0.001,
    "local.batch": 32,
    "local.epochs": 1,
    "rounds": 10,
    "split.shots": 16,
    "partition.clients": 10,
}
SPACE = {
    "local.lr": (0.0001, 0.01, "log"),
    "local.epochs": (1, 5),
    "method.mu": (0.001, 1.0, "log"),
    "method.n_ctx": (2, 16),
}


def fedprox(
    clip: Backbone,
    *,
    mu: float = 0.5,
    n_ctx: int = 16,
    words: str | None = None,
    position: Position = "end",
    temperature: float | None = None,
) -> PromptMethod:
    """One shared context, held near the global one.

    Args:
        clip: the frozen backbone.
        mu: weight of the proximal term, 0 or above; 0 is PromptFL.
        n_ctx: context tokens.
        words: start from these words ("a photo of a") in place of noise.
        position: where the class name stands.
        temperature: of the softmax over classes; None keeps CLIP's own.

    Raises:
        BadInput: `mu` is negative.
    """
    context = TextContext(clip, n=n_ctx, words=words, position=position)
    return PromptMethod(context, Cosine(temperature=temperature), penalties=[Proximal(mu)])

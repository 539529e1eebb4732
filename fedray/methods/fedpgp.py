"""FedPGP: a shared context plus a private low-rank one, pulled apart by a contrast with the hand-written prompt.

    p = sigma + U V,   p(c | x) = softmax_c( s * cos(f(x), t_c(p)) )
    loss = CE + mu mean_c -log( e^(cos(t0, ts) / tau) / (e^(cos(t0, ts) / tau) + e^(cos(ts, tp) / tau)) )

t0, ts, tp: text features of the hand-written prompt, of sigma alone, and of p. So what is shared stays near CLIP, and
what is personal moves away from it. sigma is averaged over clients, U (n, r) and V (r, w) never leave their client.
Global view: sigma alone.
Cui et al., "Harmonizing Generalization and Personalization in Federated Prompt Learning", ICML 2024.

Released names: prompt_learner.sigma (1, n, w) -> prompts.sigma.tokens[0];
prompt_learner.U[0] (n, r) -> prompts.U; prompt_learner.V[0] (r, w) -> prompts.V.

Departs from the paper: t0 is the mean over a data set's templates where it has several. And from its code: t0 is that
hand-written prompt (theirs holds placeholder words, "X X .. X name"); rank 8 as in its scripts; a fresh optimiser at
each visit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedray.errors import BadInput
from fedray.method import PromptMethod
from fedray.nn.backbone import Backbone
from fedray.nn.heads import Cosine
from fedray.nn.losses import check_temperature, check_weight, contrast
from fedray.nn.prompts import STD, TextContext
from fedray.types import Features, Given, Output, Prompts, TextPrompts

FIDELITY = "verified"
PROTOCOL = {
    "local.lr": 0.001,
    "local.batch": 32,
    "local.epochs": 2,
    "rounds": 25,
    "split.shots": 16,
    "partition.clients": 10,
}
SPACE = {
    "local.lr": (0.0001, 0.01, "log"),
    "method.n_ctx": (2, 16),
    "method.rank": (2, 16),
    "method.mu": (0.1, 10.0, "log"),
    "method.tau": (0.1, 1.0),
}


def fedpgp(
    clip: Backbone,
    *,
    n_ctx: int = 16,
    rank: int = 8,
    words: str | None = None,
    mu: float = 1.0,
    tau: float = 0.5,
    temperature: float | None = None,
) -> PromptMethod:
    """One prompt per class, shared but for a private correction of low rank.

    Args:
        clip: the frozen backbone.
        n_ctx: context tokens.
        rank: r of the private correction, at least 1.
        words: start sigma from these words in place of noise.
        mu: weight of the contrast, 0 or above; 0 leaves it out, and with it half of the cost.
        tau: temperature of the contrast.
        temperature: of the softmax over classes; None keeps CLIP's own.

    Raises:
        BadInput: `rank`, `mu` or `tau` out of range.
    """
    apart = Apart(mu, tau)
    prompts = LowRank(TextContext(clip, n=n_ctx, words=words), rank)
    return PromptMethod(
        prompts,
        Cosine(temperature=temperature),
        private=["prompts.U", "prompts.V"],
        penalties=[apart] if mu else [],
    )


class LowRank(nn.Module):
    """A context plus a correction of low rank, U V; the global view has the context alone.

    Args:
        sigma: the shared context, shallow and with one prompt per class.
        rank: r, at least 1; else BadInput.
    """

    vision = False

    def __init__(self, sigma: TextContext, rank: int) -> None:
        super().__init__()
        if rank < 1:
            raise BadInput(f"rank is {rank}; take at least 1")
        n, width = sigma.tokens.shape[-2:]
        self.sigma = sigma
        self.U = nn.Parameter(nn.init.normal_(torch.empty(n, rank), std=STD))
        self.V = nn.Parameter(nn.init.normal_(torch.empty(rank, width), std=STD))

    def forward(self, given: Given, x: Tensor | Features) -> Prompts:
        """The sum, or sigma where the view is global: text (1, 1, 1, n, w)."""
        shared: Prompts = self.sigma(given, x)
        if given.view == "global" or not isinstance(shared.text, TextPrompts):
            return shared
        return Prompts(shared.text._replace(tokens=shared.text.tokens + self.U @ self.V))


@dataclass(frozen=True)
class Apart:
    """The contrast as a penalty; it costs a second pass through the text tower, for sigma alone."""

    mu: float
    tau: float

    def __post_init__(self) -> None:
        check_weight("mu", self.mu)
        check_temperature("tau", self.tau)

    def __call__(
        self, method: PromptMethod, given: Given, x: Tensor | Features, y: Tensor, out: Output
    ) -> dict[str, Tensor]:
        """The term, a scalar, of the learned texts (1, C, d)."""
        sigma: Prompts = method.prompts(given._replace(view="global"), x)
        shared = given.clip.encode_text(given.task, sigma.text).pooled
        apart = contrast(shared, near=given.task.zeroshot, far=out.text.pooled, tau=self.tau)
        return {"contrast": self.mu * apart}

"""pFedMoAP: other clients' prompts as experts, mixed per image and class with the own one by a private gate.

    logit_c = lambda s <f, t_c> + s <pool f, o_c>,   o_c = MHA(query pool f, keys = values pool [t_c, t_1c, .. t_Ec])

f, t: unit features; t_ec: class c in expert e's prompt, a constant; pool: every (d / 128)-th channel; 8 heads, and
scores times 10 in place of 1 / sqrt(head width). The context is averaged over clients, the gate stays with its client.
Experts come with the server's message (``server.kind=experts``): the last prompts of the clients nearest to one's own.
A client without experts (its first round, FedAvg as server) has s <f, t_c> alone, and its gate rests.
Global view: the context alone, no experts, no gate.
Luo et al., "Mixture of Experts Made Personalized: Federated Prompt Learning for Vision-Language Models", ICLR 2025.
The gate learns 5 times as fast as the context (their rates: 0.01 and 0.002).

Released names: prompt_learner.ctx (n, w) -> prompts.tokens[0, 0]; gating.W_q.{x} (g, ...) -> gate.into.{x}[:g];
gating.W_k.{x} (g, ...) -> gate.into.{x}[g:2*g]; gating.W_v.{x} (g, ...) -> gate.into.{x}[2*g:];
gating.W_o.{x} -> gate.out.{x}.

Departs from their code: experts are encoded when they come (theirs may be a round old); a client is scored with the
averaged context, its experts and its gate (theirs, where it took part, with the context as its training left it); a
fresh optimiser at each visit; the gate's rate follows the context's schedule (theirs is constant).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedray.errors import BadInput
from fedray.nn.backbone import Backbone
from fedray.nn.generate import Once, peer_features
from fedray.nn.heads import Cosine
from fedray.nn.losses import task_loss
from fedray.nn.prompts import TextContext
from fedray.types import Batching, Features, Given, Needs, Output, Weighting

FIDELITY = "verified"
PROTOCOL = {
    "local.lr": 0.002,
    "local.batch": 16,
    "local.schedule": "cosine",
    "local.epochs": 5,
    "rounds": 10,
    "split.shots": 16,
    "partition.clients": 10,
    "server.kind": "experts",
    "server.k": 9,
}
SPACE = {
    "local.lr": (0.0002, 0.02, "log"),
    "method.n_ctx": (2, 16),
    "method.lambda_local": (0.1, 1.0),
    "method.scaling": (1.0, 100.0, "log"),
}
PAPER_GATE = 128


def pfedmoap(
    clip: Backbone,
    *,
    n_ctx: int = 16,
    words: str | None = None,
    lambda_local: float = 0.5,
    gate: int | None = None,
    heads: int = 8,
    scaling: float = 10.0,
    temperature: float | None = None,
) -> Mixture:
    """A shared context and a private gate over it and the experts.

    Args:
        clip: the frozen backbone.
        n_ctx: context tokens.
        words: start from these words ("a photo of a") in place of noise.
        lambda_local: weight of the own prompt's logits where there are experts.
        gate: channels of the gate; None is the paper's 128, or all where features have fewer.
        heads: of the gate's attention.
        scaling: factor of the attention's scores.
        temperature: of the softmax over classes; None keeps CLIP's own.

    Raises:
        BadInput: `gate` exceeds the features, or `heads` does not divide it.
    """
    width = min(PAPER_GATE, clip.arch.joint) if gate is None else gate
    if not 1 <= width <= clip.arch.joint:
        raise BadInput(f"method.gate must be 1 to {clip.arch.joint}, the features' width, got {width}")
    if heads < 1 or width % heads:
        raise BadInput(f"method.heads must divide the gate's {width} channels, got {heads}")
    return Mixture(
        TextContext(clip, n=n_ctx, words=words),
        Gate(width, heads, scaling),
        lambda_local,
        Cosine(temperature=temperature),
    )


class Gate(nn.Module):
    """Attention of each image over the prompts of each class."""

    def __init__(self, width: int, heads: int, scaling: float) -> None:
        super().__init__()
        self.width, self.heads, self.scaling = width, heads, scaling
        self.into, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)  # query, key and value in one

    def pool(self, x: Tensor) -> Tensor:
        """Unit features with evenly spaced channels of theirs, (..., d) to (..., width)."""
        return F.normalize(x, dim=-1)[..., :: x.shape[-1] // self.width][..., : self.width]

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """Compare the mixtures of text (N, C, d) with image (B, d): cosines (B, C), of pooled features."""
        texts, images = self.pool(text).transpose(0, 1), self.pool(image)  # (C, N, g), (B, g)
        (wq, wk, wv), (bq, bk, bv) = self.into.weight.chunk(3), self.into.bias.chunk(3)
        q = F.linear(images, wq, bq).unflatten(-1, (self.heads, -1))
        k, v = (F.linear(texts, *one).unflatten(-1, (self.heads, -1)) for one in ((wk, bk), (wv, bv)))
        share = (self.scaling * torch.einsum("bhe,cnhe->bchn", q, k)).softmax(-1)
        mixed = self.out(torch.einsum("bchn,cnhe->bche", share, v).flatten(-2))
        return torch.einsum("bg,bcg->bc", images, mixed)


class Mixture(nn.Module):
    """The method: a flow of its own, for experts are encoded once a visit and have no gradient."""

    private = ("gate.*",)
    needs: Needs = "pooled"
    server: str | None = "experts"
    weighting: Weighting = "samples"
    batching: Batching = "equal"
    rates: Mapping[str, float] = {"gate.*": 5.0}

    def __init__(self, prompts: TextContext, gate: Gate, weight: float, head: Cosine) -> None:
        super().__init__()
        self.prompts, self.gate, self.weight, self.head = prompts, gate, weight, head
        self.experts = Once(partial(peer_features, name="prompts.tokens"))

    def forward(self, given: Given, x: Tensor | Features) -> Output:
        """The own prompt's logits (B, C), and the mixture's added where experts (E, C, d) came."""
        text = given.clip.encode_text(given.task, self.prompts(given, x).text)
        image, scale = given.clip.encode_image(x), given.clip.logit_scale
        logits = self.head(text, image, scale)
        if given.view != "global" and (experts := self.experts(given)) is not None:
            text = Features(torch.cat([text.pooled, experts]))
            s = scale if self.head.temperature is None else 1 / self.head.temperature
            logits = self.weight * logits + s * self.gate(text.pooled, image.pooled)
        return Output(text, image, logits)

    def terms(self, given: Given, x: Tensor | Features, y: Tensor) -> dict[str, Tensor]:
        """Cross-entropy with classes y (B,)."""
        return {"loss": task_loss(self(given, x).logits, y)}

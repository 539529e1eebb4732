"""Where a head looks: how much each patch counts for an image's own class, by the very weights of the forward pass.

    Transport     T_mn, of the class's plan                                          FedOTP, OTDPP, FedRSCLIP, PLOT
    PatchSoftmax  w_mnc / N; of a dual head the positive half, which both halves are read by          DualCoOp, ...
    Hierarchical  sum_v T_vn sum_l T'_jl over the tokens l of the class's name, as a share of all         ALIGN
    Conditional   g_n P_nmc / sum_m P_nmc, or without transport g_n w_nmc;   g: the gate                 FedMPT
    Spread        g_n w_nmc                                                          FedMPT as it was released
    Kcot          P_mc / sum_m P_mc                                                                        RAM

They add up to 1 over prompts and tokens (partial plans: to the mass that they move); what falls on the class token or
on vision prompts is left out. A balanced plan gives each patch the same mass in all, so that one prompt alone makes an
even map, and ALIGN's is read at the class's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedray.nn.backbone import Backbone
from fedray.nn.condition_heads import SHARPNESS, Conditional, Spread
from fedray.nn.features import first_patch
from fedray.nn.heads import PatchSoftmax, Transport, tokens_of
from fedray.nn.hierarchical import FAR, Hierarchical, _cosines
from fedray.nn.kcot import CALM, Kcot
from fedray.nn.transport import LIMIT, TOLERANCE, transport
from fedray.types import Features, Given, VisionPrompts


class Map(NamedTuple):
    """Of B images: the weight of each of M patches, by prompt."""

    kind: str
    weights: Tensor  # (B, N, M)


class Watched:
    """A backbone that remembers with which prompts it last encoded an image to all of its tokens."""

    def __init__(self, clip: Backbone) -> None:
        self.clip, self.prompts = clip, cast(VisionPrompts | None, None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.clip, name)

    def encode_image(self, x: Tensor | Features, prompts: VisionPrompts | None = None, **how: Any) -> Features:
        """Features (B, d) of pixels (B, 3, S, S), as the backbone makes them."""
        self.prompts = prompts if how.get("tokens") == "all" else self.prompts
        return self.clip.encode_image(x, prompts, **how)


@torch.no_grad()
def look(method: nn.Module, given: Given, x: Tensor | Features, labels: Tensor) -> Map | None:
    """Where a method looks for the classes `labels` (B,) of its images; None where its head weighs no tokens.

    Args:
        method: as trained.
        given: what it is given.
        x: the images.
        labels: a class for each.
    """
    head = next((part for part in method.modules() if type(part) in WEIGHTS), None)
    if head is None:
        return None
    calls: list[tuple[Any, ...]] = []
    watched = Watched(given.clip)
    handle = head.register_forward_pre_hook(lambda _, args: calls.append(args))
    try:
        method(given._replace(clip=cast(Backbone, watched)), x)
    finally:
        handle.remove()
    kind, weigh = WEIGHTS[type(head)]
    parts = labels.split(1) if len(calls) > 1 else (labels,)  # CoCoOp compares image by image
    weights = torch.cat([weigh(head, given, own, *call) for own, call in zip(parts, calls, strict=True)])
    start = first_patch(watched.prompts) if getattr(head, "tokens", False) == "all" else 0
    return Map(kind, weights[..., start : start + given.clip.arch.patches])


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=-1)


def _close(text: Tensor, image: Features, labels: Tensor) -> Tensor:
    """Cosines (B, N, M) of texts (N, C, d), of each image's own class, with tokens (B, M, d)."""
    return torch.einsum("nbd,bmd->bnm", _unit(text)[:, labels], _unit(tokens_of(image)))


def _transport(head: Transport, given: Given, labels: Tensor, text: Features, image: Features, _: Any) -> Tensor:
    options = {name: getattr(head, name) for name in ("eps", "kind", "mass", "iters", "tol", "limit")}
    return transport(1 - _close(text.pooled, image, labels).mT, **options).plan.mT


def _patches(head: PatchSoftmax, given: Given, labels: Tensor, text: Features, image: Features, _: Any) -> Tensor:
    texts = text.pooled[1:] if head.dual else text.pooled
    return (head.sharpness * _close(texts, image, labels)).softmax(-1) / len(texts)


def _hierarchical(
    head: Hierarchical, given: Given, labels: Tensor, text: Features, image: Features, mask: Tensor, _: Any
) -> Tensor:
    found, words = [], tokens_of(text)
    for b, c in enumerate(labels.tolist()):
        own, views = slice(c, c + 1), slice(b, b + 1)
        taken = mask[:, own].transpose(0, 1).unsqueeze(1)  # (1, 1, N, L)
        close = _cosines(words[:, own], tokens_of(image)[views])  # (1, 1, V, N, J, L)
        inner = head._solve((1 - close).masked_fill(~taken.unsqueeze(-2), FAR), taken / taken.sum(-1, keepdim=True))
        cost = 1 - _cosines(text.pooled[:, own].unsqueeze(2), image.pooled[views].unsqueeze(2))[..., 0, 0]
        alike = (inner * close).sum((-2, -1))
        outer = head._solve(cost + head.beta * (1 - alike if head.mode == "paper" else alike))  # (1, 1, V, N)
        ends = (words[:, own] - text.pooled[:, own].unsqueeze(2)).square().sum(-1).argmin(-1)  # (N, 1)
        start = ends - given.task.tokens[c].argmax()  # which is where the end stands without a prompt
        place = torch.arange(words.shape[2], device=ends.device) - start
        name = (place > 0) & (place <= given.task.lengths[c])  # (N, L)
        mass = (outer[..., None] * (inner * name.unsqueeze(-2)).sum(-1)).sum(2)[0, 0]  # (N, J)
        found.append(mass / mass.sum())
    return torch.stack(found)


def _conditional(head: Conditional, given: Given, labels: Tensor, text: Features, image: Features, _: Any) -> Tensor:
    patches = tokens_of(image)
    v = patches.unsqueeze(1)
    if head.adapters is not None:
        v = v + head.adapters(v) if head.residual else head.adapters(v)
    close = _unit(v) @ _unit(text.pooled).mT  # (B, N, M, C)
    close = close if head.form == "literal" else SHARPNESS * close
    weights = close.softmax(2)
    if head.solve:
        shares = (close / head.tau).softmax(2) * (1 if head.form == "literal" else close.shape[2])
        weights = head._plan(close, shares)
        weights = weights / weights.sum(2, keepdim=True)
    shares = head._mix(patches, torch.eye(weights.shape[1]).expand(len(patches), -1, -1))  # (B, N), of the gate
    return weights[torch.arange(len(labels)), :, :, labels] * shares.unsqueeze(-1)


def _spread(head: Spread, given: Given, labels: Tensor, text: Features, image: Features, _: Any) -> Tensor:
    tokens = F.normalize(tokens_of(image), dim=head.axis).unsqueeze(1)
    close = SHARPNESS * tokens @ _unit(text.pooled).mT  # (B, N, T, C)
    weights = (close / head.temperature).softmax(2)
    shares = ((5 * (weights * close).sum(2)).std(-1, keepdim=True) / head.temperature).softmax(1)  # (B, N, 1)
    return weights[torch.arange(len(labels)), :, :, labels] * shares


def _kcot(
    head: Kcot,
    given: Given,
    labels: Tensor,
    text: Tensor,
    image: Features,
    scale: Tensor,
    teacher: Tensor | None = None,
) -> Tensor:
    close = _unit(tokens_of(image)) @ _unit(text).mT  # (B, M, C)
    masses = (close.amax(-1) / CALM).softmax(-1)
    cost = 1 - (scale * close).softmax(-1)
    plan = transport(cost, a=masses, eps=head.eps, iters=head.iters, tol=TOLERANCE, limit=LIMIT).plan
    own = plan[torch.arange(len(labels)), :, labels]
    return (own / own.sum(-1, keepdim=True)).unsqueeze(1)


WEIGHTS: Mapping[type[nn.Module], tuple[str, Callable[..., Tensor]]] = {
    Transport: ("transport plan", _transport),
    PatchSoftmax: ("attention", _patches),
    Hierarchical: ("plan of tokens at the class's name", _hierarchical),
    Conditional: ("plan of each condition times its gate", _conditional),
    Spread: ("attention of each condition times its share", _spread),
    Kcot: ("plan of the local stream", _kcot),
}
"""Of each head: what its weights are, and the function of (head, given, labels, its arguments) -> (B, N, T)."""

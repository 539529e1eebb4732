"""FedMVP as OpenFedML has it, the module behind FedMPT's "FedMVP" column: another model than `fedmvp`. All is shared.

    t_c = text([v_1 .. v_4, name_c]),   q = W_2 relu(W_1 MHA(f0(x), t, t) + b_1) + b_2,   f0: frozen
    f_m = token m of vision([CLS], q, patches), q entering after the first norm, class token and q among the m
    logit_c = 5 sum_m w_mc (20 cos(f_m, t_c)),   w_mc = softmax_m( 20 cos(f_m, t_c) )
    loss = 0.02 (ASL + 1 - mean_c cos(t_c, z_c)),   z_c: hand-written text;   one label per image: CE for 0.02 ASL

f0 and t go into the attention (8 heads) at their own lengths. Nothing learned belongs to a class. Averaged over clients
with equal weights: 1,135,424 numbers on ViT-B/16, the "1.14 M" of FedMPT's Table 5.
"FedMPT: Federated Multi-Label Prompt Tuning of Vision-Language Models", CVPR 2026, whose code it is part of; after
Singha et al., "FedMVP: Federated Multi-modal Visual Prompt Tuning for Vision-Language Models", ICCV 2025.

Released names: prompt_learner.ctx (n, w) -> prompts.context.tokens[0, 0];
prompt_learner.cross_attention.{x} -> prompts.attention.{x}; prompt_learner.pro.0.{x} -> prompts.meta.narrow.{x};
prompt_learner.pro.2.{x} -> prompts.meta.widen.{x}.

Departs from the code: image tokens have unit length each (`token_norm`: each channel over the tokens, as there), and
logits are `centre`d over an image's classes, else they start near 25, where the loss has no slope; no dropout of 0.1 in
the attention, for a method here is a function of its parameters; fp32; z_c is the mean over a data set's templates. One
label per image is our reading, theirs always has several.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedray.errors import BadInput
from fedray.nn.backbone import Backbone
from fedray.nn.heads import PatchSoftmax, tokens_of
from fedray.nn.losses import Guidance, check_weight, task_loss
from fedray.nn.meta import MetaNet
from fedray.nn.multilabel import Centred
from fedray.nn.prompts import TextContext
from fedray.types import Features, Given, Needs, Output, Prompts, Tokens, VisionPrompts, Weighting

FIDELITY = "verified"
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
SPACE = {"local.lr": (0.0001, 0.01, "log"), "method.n_ctx": (2, 8), "method.hidden": [16, 32, 64, 128]}
WEIGHT = 0.02


def fedmvp_ofl(
    clip: Backbone,
    *,
    n_ctx: int = 4,
    words: str | None = None,
    heads: int = 8,
    hidden: int = 64,
    weight: float = 0.02,
    token_norm: bool = False,
    centre: bool = True,
) -> FedMVPOFL:
    """A shared context, and a vision prompt for each image.

    Args:
        clip: the frozen backbone.
        n_ctx: context tokens before the class name.
        words: start from these words in place of noise.
        heads: of the attention.
        hidden: width of the bottleneck between attention and vision tower.
        weight: of the guidance, 0 or above.
        token_norm: the released code's scaling of tokens.
        centre: take an image's mean over the classes off its logits.

    Raises:
        BadInput: `n_ctx`, `heads`, `hidden` or `weight` out of range.
    """
    check_weight("method.weight", weight)
    prompts = Looked(clip, TextContext(clip, n=n_ctx, words=words), heads, hidden)
    head = Channelwise() if token_norm else PatchSoftmax()
    return FedMVPOFL(prompts, Centred(head) if centre else head, Guidance(weight))


class Channelwise(nn.Module):
    """`PatchSoftmax` of the released code, whose tokens have unit length channel by channel, over all tokens."""

    tokens: Tokens = "all"
    multilabel = True

    def forward(self, text: Features, image: Features, scale: Tensor) -> Tensor:
        """Compare text (1, C, d) with image tokens (B, M, d): logits (B, C)."""
        close = 20 * F.normalize(tokens_of(image), dim=1) @ F.normalize(text.pooled[0], dim=-1).mT
        return 5 * (close.softmax(1) * close).sum(1)


class Looked(nn.Module):
    """A text context, and a network from image and texts to one vision prompt; BadInput for sizes out of range."""

    vision = True

    def __init__(self, clip: Backbone, context: TextContext, heads: int, hidden: int) -> None:
        super().__init__()
        joint = clip.arch.joint
        if heads < 1 or joint % heads:
            raise BadInput(f"method.heads is {heads}; it must divide the features' width, {joint}")
        if hidden < 1:
            raise BadInput(f"method.hidden is {hidden}; take at least 1")
        self.context, self.attention = context, nn.MultiheadAttention(joint, heads)
        self.meta = MetaNet(joint, hidden, clip.arch.vision.width)

    def forward(self, image: Tensor, text: Tensor) -> VisionPrompts:
        """Features (B, d) of images and (C, d) of classes to vision (B, 1, 1, w)."""
        mixed, _ = self.attention(image, text, text, need_weights=False)  # images stand as one sequence
        return VisionPrompts(self.meta(mixed)[:, None, None], "after_cls", "post_ln")


class FedMVPOFL(nn.Module):
    """The method: a flow of its own, for the texts are encoded before the images. Shares everything."""

    private: tuple[str, ...] = ()
    needs: Needs = "pixels"
    server: str | None = None
    weighting: Weighting = "uniform"
    rates: Mapping[str, float] = {}

    def __init__(self, prompts: Looked, head: Channelwise | PatchSoftmax | Centred, guidance: Guidance) -> None:
        super().__init__()
        self.prompts, self.head, self.guidance = prompts, head, guidance

    def forward(self, given: Given, x: Tensor | Features) -> Output:
        """Encode the classes, prompt the vision tower with what frozen images make of them, compare: logits (B, C)."""
        context: Prompts = self.prompts.context(given, x)
        text = given.clip.encode_text(given.task, context.text)
        with torch.no_grad():
            frozen = given.clip.encode_image(x).pooled
        prompt = self.prompts(frozen, text.pooled[0])
        image = given.clip.encode_image(x, prompt, tokens=self.head.tokens)
        return Output(text, image, self.head(text, image, given.clip.logit_scale))

    def terms(self, given: Given, x: Tensor | Features, y: Tensor) -> dict[str, Tensor]:
        """The task loss for y (B,) or (B, C), and the guidance."""
        out = self(given, x)
        return {"loss": task_loss(out.logits, y, weight=WEIGHT)} | self.guidance(self, given, x, y, out)

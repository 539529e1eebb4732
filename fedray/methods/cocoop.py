"""CoCoOp: a context that each image shifts, so that every image is compared with texts of its own.

    pi(x) = W_2 relu(W_1 f(x) + b_1) + b_2,   v_i(x) = v_i + pi(x)                                         (Section 3.2)
    t_c(x) = text([v_1(x) .. v_n(x), name_c]),   p(c | x) = softmax_c( s * cos(f(x), t_c(x)) )

f(x) is of unit length. The text tower reads B C texts for a batch of B images. Everything is shared (averaged over
clients), so that local and global view are one: 35,360 numbers on ViT-B/16.
Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022.

Released names: prompt_learner.ctx (n, w) -> student.prompts.context.tokens[0, 0];
prompt_learner.meta_net.linear1.{x} -> student.prompts.meta.narrow.{x};
prompt_learner.meta_net.linear2.{x} -> student.prompts.meta.widen.{x}.

Departs from the paper: in a federation it has no protocol of its own, context and meta-net travel as in `promptfl`; the
meta-net's bottleneck, d / 16, is at least 8 wide, for small towers. And from its code: texts of more than `chunk`
images are encoded in turn, and again on the way back; the meta-net in fp32 (theirs is fp16).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fedray.errors import BadInput
from fedray.method import PromptMethod
from fedray.nn.backbone import Backbone
from fedray.nn.heads import Cosine, Head
from fedray.nn.meta import MetaNet
from fedray.nn.prompts import TextContext
from fedray.types import Batching, Features, Given, Needs, Output, Prompts, Task, TextPrompts, Weighting

FIDELITY = "verified"
PROTOCOL = {
    "local.lr": 0.002,
    "local.batch": 1,
    "local.epochs": 1,
    "local.schedule": "cosine",
    "rounds": 10,
    "split.shots": 16,
}
SPACE = {"local.lr": (0.0002, 0.02, "log"), "method.n_ctx": (2, 8)}
REDUCTION, LEAST = 16, 8


def cocoop(
    clip: Backbone,
    *,
    n_ctx: int = 4,
    words: str | None = "a photo of a",
    chunk: int = 32,
    temperature: float | None = None,
) -> CoCoOp:
    """One shared context, and the network that shifts it.

    Args:
        clip: the frozen backbone.
        n_ctx: context tokens.
        words: start from these words; None is noise.
        chunk: images whose texts are encoded at a time; it bounds memory, and moves no result but by
            rounding.
        temperature: of the softmax over classes; None keeps CLIP's own.

    Raises:
        BadInput: `n_ctx` or `chunk` out of range.
    """
    if chunk < 1:
        raise BadInput(f"method.chunk is {chunk}; take at least 1 image")
    context = TextContext(clip, n=n_ctx, words=words)
    return CoCoOp(PromptMethod(Shifted(clip, context), Cosine(temperature=temperature)), chunk)


class Shifted(nn.Module):
    """A context plus what the meta-net makes of each image: as many prompts as images."""

    vision = False

    def __init__(self, clip: Backbone, context: TextContext) -> None:
        super().__init__()
        joint = clip.arch.joint
        self.context = context
        self.meta = MetaNet(joint, max(joint // REDUCTION, LEAST), clip.arch.text.width)

    def forward(self, given: Given, x: Tensor | Features) -> Prompts:
        """Text (B, 1, 1, n, w)."""
        shift = self.meta(F.normalize(given.clip.encode_image(x).pooled, dim=-1))
        return Prompts(TextPrompts(self.context.tokens.unsqueeze(1) + shift[:, None, None, None]))


class CoCoOp(nn.Module):
    """The method: a flow of its own, for image b is compared with row b of the texts (B, C, d). Shares everything."""

    private: tuple[str, ...] = ()
    server: str | None = None
    weighting: Weighting = "samples"
    batching: Batching = "equal"
    rates: Mapping[str, float] = {}

    def __init__(self, student: PromptMethod, chunk: int) -> None:
        super().__init__()
        self.student, self.chunk = student, chunk

    @property
    def needs(self) -> Needs:
        """Stored features: with tokens where the head reads them."""
        return self.student.needs

    def forward(self, given: Given, x: Tensor | Features) -> Output:
        """Encode the texts (B, C, d) of some images at a time, and compare each image with its own: logits (B, C)."""
        head, scale = cast(Head, self.student.head), given.clip.logit_scale
        image = given.clip.encode_image(x, tokens=head.tokens)
        prompts: Prompts = self.student.prompts(given, image)
        parts = cast(TextPrompts, prompts.text).tokens.split(self.chunk)
        encode = partial(_encode, given.clip, given.task)
        if len(parts) > 1 and torch.is_grad_enabled():
            encode = partial(checkpoint, encode, use_reentrant=False, preserve_rng_state=False)
        text = torch.cat([encode(part) for part in parts])
        tokens = [None] * len(text) if image.tokens is None else image.tokens.split(1)
        pairs = zip(text.split(1), image.pooled.split(1), tokens, strict=True)
        logits = torch.cat([head(Features(t), Features(f, m), scale) for t, f, m in pairs])
        return Output(Features(text), image, logits)

    def terms(self, given: Given, x: Tensor | Features, y: Tensor) -> dict[str, Tensor]:
        """The task loss, a scalar, for classes y (B,) or labels (B, C)."""
        return {"loss": self.student.loss(self(given, x).logits, y)}


def _encode(clip: Backbone, task: Task, tokens: Tensor) -> Tensor:
    return clip.encode_text(task, TextPrompts(tokens)).pooled

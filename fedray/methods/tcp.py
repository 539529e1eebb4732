"""TCP: what CLIP knows of each class's name enters the text tower halfway up, as prompts of that class.

    P_c = W_2 q(W_1 z_c + b_1) + b_2,  reshaped to n tokens,   q: QuickGELU                                      (Eq. 5)
    t_c = text([v_1 .. v_n, name_c]), where P_c replaces the context's outputs before block l;   l = 8, from 0
    loss = CE + w (1 - mean_c cos(t_c, z_c)),   w = 8

z_c: the task's hand-written text features, of unit length. Nothing learned belongs to a class: other classes bring
other z_c. Everything is shared (averaged over clients): 331,904 numbers on ViT-B/16.
Yao et al., "TCP: Textual-based Class-aware Prompt Tuning for Visual-Language Model", CVPR 2024.

Released names: prompt_learner.ctx (n, w) -> prompts.context.tokens[0, 0];
prompt_learner.meta_net.linear1.{x} -> prompts.meta.narrow.{x};
prompt_learner.meta_net.linear2.{x} -> prompts.meta.widen.{x}.

Departs from the paper: in a federation it has no protocol of its own; SGD as for every method here, where theirs is
Adam; the class name ends the prompt, without "a type of pet" and the like behind it; z_c is the mean over a data set's
templates where it has several. A text tower of other than 12 layers gets P_c at two thirds of its height.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedray.errors import BadInput
from fedray.method import PromptMethod
from fedray.nn.backbone import Backbone
from fedray.nn.heads import Cosine
from fedray.nn.losses import Guidance
from fedray.nn.meta import MetaNet
from fedray.nn.prompts import TextContext
from fedray.types import Features, Given, Prompts, TextPrompts

FIDELITY = "verified"
PROTOCOL = {
    "local.lr": 0.002,
    "local.batch": 32,
    "local.epochs": 1,
    "local.schedule": "cosine",
    "rounds": 50,
    "split.shots": 16,
}
SPACE = {"local.lr": (0.0002, 0.02, "log"), "method.weight": (0.8, 80.0, "log"), "method.n_ctx": (2, 8)}
REDUCTION = 4


def tcp(
    clip: Backbone,
    *,
    n_ctx: int = 4,
    words: str | None = None,
    layer: int | None = None,
    weight: float = 8.0,
    temperature: float | None = None,
) -> PromptMethod:
    """One shared context, and the network that makes prompts of class features.

    Args:
        clip: the frozen backbone.
        n_ctx: tokens of the context, and of each class's prompt.
        words: start the context from these words in place of noise.
        layer: l, before which the class's prompts come in, from 1; None is two thirds of the layers: 8 of 12.
        weight: w of the guidance, 0 or above.
        temperature: of the softmax over classes; None keeps CLIP's own.

    Raises:
        BadInput: `n_ctx` or `layer` out of range, or `weight` negative.
    """
    layers = clip.arch.text.layers
    level = 2 * layers // 3 if layer is None else layer
    if not 1 <= level < layers:
        raise BadInput(f"method.layer is {level}; the text tower has {layers} layers, take 1 to {layers - 1}")
    prompts = ClassAware(clip, TextContext(clip, n=n_ctx, words=words), level)
    return PromptMethod(prompts, Cosine(temperature=temperature), penalties=[Guidance(weight)])


class ClassAware(nn.Module):
    """A context of all classes, and at one layer one of each class's own."""

    vision = False

    def __init__(self, clip: Backbone, context: TextContext, layer: int) -> None:
        super().__init__()
        joint, (n, width) = clip.arch.joint, context.tokens.shape[-2:]
        self.context, self.layer = context, layer
        self.meta = MetaNet(joint, joint // REDUCTION, n * width, quick=True)

    def forward(self, given: Given, x: Tensor | Features) -> Prompts:
        """Text (1, C, 2, n, w) for layers 0 and l."""
        n, width = self.context.tokens.shape[-2:]
        aware = self.meta(given.task.zeroshot).view(-1, n, width)
        both = torch.stack([self.context.tokens[0].expand_as(aware), aware], 1)
        return Prompts(TextPrompts(both[None], layers=(0, self.layer)))

    def extra_repr(self) -> str:
        """Which layer."""
        return f"layer={self.layer}"

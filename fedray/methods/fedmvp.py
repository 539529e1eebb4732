"""FedMVP: vision prompts that each image's patches gather from attributes of the classes. The generator is shared.

    K = W z + b,   z_ac: attribute a of class c,   x = MHA(LN(E), LN(K), K),   h = x + FF(x),   E: patch embeddings
    f = vision([CLS], patches, pool(h)),   pool: means of 4 equal stretches of the patches
    logit_c = s mean_a cos(f, z_ac),   loss = CE + alpha (1 - mean cos(f, f0(flip x))),   f0: frozen;  alpha = 10

Nothing learned belongs to a class: other classes bring other attributes. Averaged over clients with equal weights:
9,845,760 numbers on ViT-B/16, 36,864 more with `lora`, where E, and K as key and as value, each gain x A B of rank 8.
Singha et al., "FedMVP: Federated Multi-modal Visual Prompt Tuning for Vision-Language Models", ICCV 2025.

Released names: prompt_learner.linear.{x} -> student.prompts.enter.{x};
prompt_learner.crossattn.cross_attend_blocks.0.norm.{x} -> student.prompts.cross.norm_queries.{x};
prompt_learner.crossattn.cross_attend_blocks.0.norm_context.{x} -> student.prompts.cross.norm_keys.{x};
prompt_learner.crossattn.cross_attend_blocks.0.fn.{x} -> student.prompts.cross.attention.{x};
prompt_learner.crossattn.cross_attend_blocks.1.net.0.{x} -> student.prompts.cross.norm.{x};
prompt_learner.crossattn.cross_attend_blocks.1.net.1.{x} -> student.prompts.cross.widen.{x};
prompt_learner.crossattn.cross_attend_blocks.1.net.3.{x} -> student.prompts.cross.narrow.{x};
prompt_learner.cross_loraparams.cross_query{x} -> student.prompts.low.0.{x};
prompt_learner.cross_loraparams.cross_key{x} -> student.prompts.low.1.{x};
prompt_learner.cross_loraparams.cross_value{x} -> student.prompts.low.2.{x}.

The last three are there with `lora`.

Departs from the paper: without a file of attributes (theirs has 10 sentences a class, by a language model) the classes'
hand-written texts stand for them; `flip` mirrors all images or none (theirs: half of the batches, at random); `lora` is
there from the start or not at all, and learns beside the attention (theirs: for good at a client whose loss fell below
0.5, the attention then frozen). And from its code: a step for every batch (theirs for an epoch's last); fp32; sentences
that are too long are refused, not cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from fedray.errors import BadInput
from fedray.method import PromptMethod
from fedray.nn.attention import CrossAttention, Lora, patch_embeddings, pooled
from fedray.nn.attributes import descriptions
from fedray.nn.backbone import Backbone
from fedray.nn.heads import Cosine, Head
from fedray.nn.mirror import Consistent
from fedray.types import Features, Given, Needs, Output, Prompts, VisionPrompts, Weighting

FIDELITY = "verified"
PROTOCOL = {
    "local.lr": 0.003,
    "local.weight_decay": 0.00001,
    "local.batch": 128,
    "local.schedule": "cosine",
    "local.label_space": "own",
    "rounds": 100,
    "split.shots": 8,
    "split.classes": "base",
}
SPACE = {"local.lr": (0.0003, 0.03, "log"), "method.alpha": (1.0, 100.0, "log"), "method.n_vision": [1, 2, 4]}
RANK = 8


def fedmvp(
    clip: Backbone,
    *,
    n_vision: int = 4,
    heads: int = 4,
    attributes: str | None = None,
    alpha: float = 10.0,
    flip: bool = True,
    lora: bool = False,
    temperature: float | None = None,
) -> FedMVP:
    """A shared generator of vision prompts.

    Args:
        clip: the frozen backbone.
        n_vision: tokens beside the patches.
        heads: of the cross attention.
        attributes: path of a JSON file, {class: [sentence, ...]}; None: the classes' hand-written texts.
        alpha: weight of the consistency, 0 or above.
        flip: mirror the image that the frozen tower sees.
        lora: low-rank additions to the attention's inputs.
        temperature: of the softmax over classes; None keeps CLIP's own.

    Raises:
        BadInput: `n_vision`, `heads` or `alpha` out of range, or a file of another form.
        Unavailable: the file can't be read.
    """
    generator = Gathered(clip, n_vision, heads, attributes, lora)
    head, penalties = Cosine(temperature=temperature), [Consistent(alpha, flip)] if alpha else []
    return FedMVP(PromptMethod(generator, head, penalties=penalties))


class Gathered(nn.Module):
    """The generator, and the frozen attributes that it reads; BadInput for tokens or heads that do not fit."""

    vision = True

    def __init__(self, clip: Backbone, n: int, heads: int, path: str | None, lora: bool) -> None:
        super().__init__()
        if not 1 <= n <= clip.arch.patches:
            raise BadInput(f"method.n_vision is {n}; patches are pooled to 1 to {clip.arch.patches} tokens")
        width = clip.arch.vision.width
        self.n, self.texts = n, descriptions(clip, path)
        self.enter, self.cross = nn.Linear(clip.arch.joint, width), CrossAttention(width, heads)
        self.low = nn.ModuleList(Lora(width, RANK) if lora else nn.Identity() for _ in range(3))

    def forward(self, given: Given, x: Tensor | Features) -> Prompts:
        """Vision (B, 1, n, w)."""
        keys = self.enter(self.texts(given).flatten(0, 1))  # (A C, w), in any order
        parts = zip(self.low, (patch_embeddings(given.clip, x), keys, keys), strict=True)
        gathered = self.cross(*(low(part) for low, part in parts))
        return Prompts(vision=VisionPrompts(pooled(gathered, self.n).unsqueeze(1)))


class FedMVP(nn.Module):
    """The method: its texts are the attributes, which no prompt precedes. Shares everything."""

    private: tuple[str, ...] = ()
    needs: Needs = "pixels"
    server: str | None = None
    weighting: Weighting = "uniform"
    rates: Mapping[str, float] = {}

    def __init__(self, student: PromptMethod) -> None:
        super().__init__()
        self.student = student

    def forward(self, given: Given, x: Tensor | Features) -> Output:
        """Prompt the vision tower, and compare with every attribute (A, C, d): logits (B, C)."""
        head = cast(Head, self.student.head)
        image = given.clip.encode_image(x, self.student.prompts(given, x).vision, tokens=head.tokens)
        text = Features(cast(Gathered, self.student.prompts).texts(given))
        return Output(text, image, head(text, image, given.clip.logit_scale))

    def terms(self, given: Given, x: Tensor | Features, y: Tensor) -> dict[str, Tensor]:
        """The task loss for y (B,) or (B, C), and the consistency."""
        out = self(given, x)
        terms = {"loss": self.student.loss(out.logits, y)}
        for penalty in self.student.penalties:
            terms |= penalty(self, given, x, y, out)
        return terms

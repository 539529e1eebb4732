"""pFedMMA: adapters in the upper blocks of both towers; their middle, common to the towers, is what clients share.

    block_i(x) + y_i,   y_i = s up_i(relu(S_i relu(down_i(ln_1(x)))))      s = 0.001;  S_i (32 x 32) for both towers
    t_c = text("a photo of a name_c."),   p(c | x) = softmax_c( s' * cos(f(x), t_c) )

Backward the adapters learn as if s were 1, while the gradient that leaves them downwards counts by s. S_i is averaged
over clients, weights n_k / n (8,448 numbers on ViT-B/16), down_i and up_i of either tower never leave theirs (666,112).
Global view: S alone leads nowhere, hence no adapters: zero-shot CLIP with the task's hand-written texts.
Ghiasvand et al., "pFedMMA: Personalized Federated Fine-Tuning with Multi-Modal Adapter for Vision-Language Models",
2025.

Released names: adapter_learner.text_adapter.{i}.down.0.{x} -> prompts.text.{i-5}.down.{x};
adapter_learner.text_adapter.{i}.up.{x} -> prompts.text.{i-5}.up.{x};
adapter_learner.visual_adapter.{i}.down.0.{x} -> prompts.image.{i-5}.down.{x};
adapter_learner.visual_adapter.{i}.up.{x} -> prompts.image.{i-5}.up.{x};
adapter_learner.shared_adapter.{i}.0.{x} -> prompts.shared.{i-5}.{x}.

Departs from the paper: it adapts blocks 5 to 12 of 12; here these are the 8 highest of either tower, and where one has
fewer than 12 blocks two thirds of the shallower tower's, rounded. And from its code: fp32 (theirs mixes); no random
crops and flips.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from fedray.errors import BadInput
from fedray.method import PromptMethod
from fedray.nn.adapters import Adapter, Ends, linear
from fedray.nn.backbone import Backbone
from fedray.nn.heads import Cosine
from fedray.types import Features, Given, Prompts, TextPrompts, VisionPrompts

FIDELITY = "verified"
PROTOCOL = {
    "local.lr": 0.001,
    "local.batch": 16,
    "local.epochs": 1,
    "rounds": 100,
    "split.shots": 16,
    "partition.clients": 10,
}
SPACE = {
    "local.lr": (0.0001, 0.01, "log"),
    "method.dim": [8, 16, 32, 64],
    "method.scale": (0.0001, 0.1, "log"),
}
PAPER_BLOCKS = 8


def pfedmma(
    clip: Backbone,
    *,
    blocks: int | None = None,
    dim: int = 32,
    scale: float = 0.001,
    words: str = "a photo of a",
    temperature: float | None = None,
) -> PromptMethod:
    """Adapters in both towers with a shared middle.

    Args:
        clip: the frozen backbone.
        blocks: how many of either tower's highest blocks get one; None is the paper's 8 of 12, of shallower towers two
            thirds.
        dim: width of the middle.
        scale: s, above 0.
        words: before the class name; they stay as they are.
        temperature: of the softmax over classes; None keeps CLIP's own.

    Raises:
        BadInput: `blocks`, `dim` or `scale` out of range.
    """
    fewest = min(clip.arch.text.layers, clip.arch.vision.layers)
    count = max(1, min(PAPER_BLOCKS, round(2 * fewest / 3))) if blocks is None else blocks
    if not 1 <= count <= fewest:
        raise BadInput(f"method.blocks is {count}; the shallower tower has {fewest}, take 1 to {fewest}")
    if dim < 1 or not scale > 0:
        raise BadInput(f"method.dim is {dim} and method.scale {scale}; take at least 1, and a number above 0")
    return PromptMethod(
        Adapted(clip, count, dim, scale, words),
        Cosine(temperature=temperature),
        private=["prompts.text.*", "prompts.image.*"],
    )


class Adapted(nn.Module):
    """Fixed words, no vision prompts, and an adapter beside each of the highest blocks; the global view has none."""

    vision = True
    words: Tensor  # (f,) ids

    def __init__(self, clip: Backbone, count: int, dim: int, scale: float, words: str) -> None:
        super().__init__()
        text, image = clip.arch.text, clip.arch.vision
        self.widths, self.first, self.scale = (
            (text.width, image.width),
            (text.layers - count, image.layers - count),
            scale,
        )
        self.text = nn.ModuleList(Ends(text.width, dim) for _ in range(count))
        self.image = nn.ModuleList(Ends(image.width, dim) for _ in range(count))
        self.shared = nn.ModuleList(linear(dim, dim) for _ in range(count))
        self.register_buffer("words", torch.tensor(clip.encode(words), dtype=torch.long), persistent=False)

    def forward(self, given: Given, x: Tensor | Features) -> Prompts:
        """No tokens, text (1, 1, 1, 0, w) and vision (1, 1, 0, w), but adapters."""
        if given.view == "global":
            return Prompts()
        text, image = (given.clip.logit_scale.new_empty(1, 1, 1, 0, width) for width in self.widths)
        adapters = [self._beside(ends, first) for ends, first in zip((self.text, self.image), self.first, strict=True)]
        return Prompts(
            TextPrompts(text, words=self.words, adapters=adapters[0]), VisionPrompts(image[0], adapters=adapters[1])
        )

    def _beside(self, ends: nn.ModuleList, first: int) -> dict[int, nn.Module]:
        pairs = zip(ends, self.shared, strict=True)
        return {first + i: Adapter(cast(Ends, e), middle, self.scale) for i, (e, middle) in enumerate(pairs)}

"""VPT as its paper has it: deep tokens in the vision tower, and a linear classifier on the class token. All is shared.

    f = vision([CLS], P_0, patches),   logits = W f + b
    P_i ~ U(-v, v),   v = sqrt(6 / (3 p^2 + w)),   p: pixels along a patch

P_i, i > 0, replaces before block i what the block before made of P_{i-1}. No text takes part, and an image may show
several classes. The classifier is made for a task's classes and refuses another number of them. Federated: tokens and
classifier are averaged over clients, weights n_k / n.
Jia et al., "Visual Prompt Tuning" (VPT-Deep), ECCV 2022. `vpt` is the form that prompt-tuning papers compare with.

Released names: enc.transformer.prompt_embeddings[0] -> prompts.inner.tokens[0];
enc.transformer.deep_prompt_embeddings -> prompts.inner.tokens[1:]; head.last_layer.{x} -> head.map.{x}.

Departs from the paper: CLIP's vision tower in place of a ViT that has learned ImageNet-21k's labels, so that there is a
layer norm before the tokens enter, and the classifier reads the projected feature; its weights start small (theirs
N(0, 2 / C)); no dropout of prompts; n is one of the paper's 1 to 200 tokens, the rate one of its grid, for all data
sets.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from fedray.method import PromptMethod
from fedray.nn.backbone import Backbone
from fedray.nn.bound import Bound
from fedray.nn.prompts import VisionContext
from fedray.types import Features, Task, Tokens

FIDELITY = "code-read"
PROTOCOL = {"local.lr": 0.025, "local.batch": 64, "local.epochs": 1, "local.schedule": "cosine", "rounds": 100}
SPACE = {"local.lr": (0.0125, 12.5, "log"), "method.n_vision": [1, 5, 10, 50]}


def vpt_linear(clip: Backbone, task: Task, *, n_vision: int = 10, depth: int | None = None) -> PromptMethod:
    """Vision prompts and a linear classifier.

    Args:
        clip: the frozen backbone.
        task: the classes that it is made for.
        n_vision: tokens beside the patches, in each layer.
        depth: layers with tokens of their own; None is all of them (VPT-Deep), 1 is VPT-Shallow.

    Raises:
        BadInput: `n_vision` is below 1, or `depth` exceeds the tower; in a forward pass, the given task has another
            number of classes.
    """
    tower, classes = clip.arch.vision, len(task.names)
    layers = tower.layers if depth is None else depth
    context = VisionContext(clip, n=n_vision, depth=layers, place="after_cls", stage="post_ln")
    bound = math.sqrt(6 / (3 * clip.arch.patch**2 + tower.width))
    nn.init.uniform_(context.tokens, -bound, bound)
    return PromptMethod(Bound(context, classes), Classifier(clip.arch.joint, classes))


class Classifier(nn.Module):
    """Logits that are linear in the image's feature; the text plays no part."""

    tokens: Tokens = False
    multilabel = True

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, classes)

    def forward(self, text: Features, image: Features, scale: Tensor) -> Tensor:
        """Map image features (B, d), as long as the tower makes them, to logits (B, C)."""
        logits: Tensor = self.map(image.pooled)
        return logits

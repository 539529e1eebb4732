"""Prompt-OT: IVLP's prompts, held near the frozen CLIP by transport between joint features. Everything is shared.

    L = CE + lambda sum_ij T_ij G_ij,   G_ij = |a_i - a0_j|^2 / 2,   a_i = [f_i ; t_{y_i}]                (Eq. 16)
    T = argmin <T, G>,   T 1 = T' 1 = 1 / B

a_i joins an image's unit feature with the one of its class's text, 0 marks the frozen CLIP on the same batch. The exact
plan T is a permutation divided by B; it is a constant for the gradient, which reaches the prompts through G. Federated:
averaged over clients, weights n_k / n, the penalty at each client.
Chen et al., "Prompt-OT: An Optimal Transport Regularization Paradigm for Knowledge Preservation in Vision-Language
Model Adaptation", 2025.

Released names: prompt_learner.ctx (n, w) -> prompts.text.tokens[0, 0];
text_encoder.transformer.resblocks.{i}.VPT_shallow (n, w) -> prompts.text.tokens[0, i];
image_encoder.VPT (n, w) -> prompts.image.tokens[0];
image_encoder.transformer.resblocks.{i}.VPT_shallow (n, w) -> prompts.image.tokens[i].

Departs from their code: the assignment is solved directly (theirs calls a general solver; the plan is the same); the
frozen text is the mean over the data set's templates (theirs takes the one "a photo of a {}."); the entropic,
unbalanced and partial plans that it also has are left out; `depth` is capped at each tower; a fresh optimiser at each
visit; no warm-up epoch, random crops only where ``data.augment`` asks for them; fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedray.method import PromptMethod
from fedray.methods.ivlp import independent
from fedray.nn.backbone import Backbone
from fedray.nn.heads import Cosine
from fedray.nn.losses import check_weight
from fedray.nn.teachers import joint_drift, teach
from fedray.types import Batching, Features, Given, Output

FIDELITY = "code-read"
PROTOCOL = {"local.lr": 0.005, "local.batch": 4, "local.schedule": "cosine", "rounds": 100, "split.shots": 16}
SPACE = {
    "local.lr": (0.0005, 0.05, "log"),
    "method.n_ctx": (2, 8),
    "method.n_vision": (2, 8),
    "method.depth": [1, 3, None],
    "method.transport": (1.0, 100.0, "log"),
}

PAPER_DEPTH = 12


@dataclass(frozen=True)
class Joint:
    """The weighted transport cost, as a penalty; it needs the labels."""

    weight: float
    batching: ClassVar[Batching] = "none"  # the exact plan is not torch's
    teaches: ClassVar[bool] = True  # images without prompts

    def __post_init__(self) -> None:
        check_weight("method.transport", self.weight)

    def __call__(
        self, method: PromptMethod, given: Given, x: Tensor | Features, y: Tensor, out: Output
    ) -> dict[str, Tensor]:
        """The term, a scalar, of images (B, d), texts (1, C, d) and labels y (B,) or (B, C)."""
        return {"transport": self.weight * joint_drift(out, teach(given, x, method), y)}


def promptot(
    clip: Backbone,
    *,
    n_ctx: int = 4,
    n_vision: int = 4,
    depth: int | None = None,
    words: str | None = "a photo of a",
    transport: float = 10.0,
    temperature: float | None = None,
) -> PromptMethod:
    """Prompts in both towers under a transport penalty.

    Args:
        clip: the frozen backbone.
        n_ctx: context tokens before the class name, in each layer.
        n_vision: tokens beside the patches, in each layer.
        depth: layers with learnables of their own, in both towers; None is the paper's 12, or all there are.
        words: start the first layer's context from these words; None: noise.
        transport: lambda, weight of the transport cost.
        temperature: of the softmax over classes; None keeps CLIP's own.

    Raises:
        BadInput: no tokens, `depth` exceeds a tower, or the weight is below 0.
    """
    prompts = independent(clip, n_ctx, n_vision, depth, words, deepest=PAPER_DEPTH)
    return PromptMethod(prompts, Cosine(temperature=temperature), penalties=[Joint(transport)])

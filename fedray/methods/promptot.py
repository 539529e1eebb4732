"""Prompt-OT: IVLP's prompts, held near the frozen CLIP by transport between joint features. Everything is shared.

    L = CE + lambda sum_ij T_ij G_ij,   G_ij = |a_i - a0_j|^2 / 2,   a_i = [f_i ; t_{y_i}]                (Eq. 16)
    T = argmin <T, G>,   T 1 = T' 1 = 1 / B

a_i joins an image's unit feature with the one of its class's text, 0 marks the frozen CLIP on the same batch. The exact
plan T is a permutation divided by B; it is a constant for the gradient, which reaches the prompts through G. Federated:
averaged over clients, weights n_k / n, the penalty at each client.
Chen et al., "Prompt-OT: An Optimal Transport Regularization Paradigm for Knowledge Preservation in Vision-Language
Model Adaptation", 2025.

Departs from their code: the assignment is solved directly (theirs calls a general solver; the plan is the same); the
frozen text is the mean over the data set's templates (theirs takes the one "a photo of a {}."); the entropic,
unbalanced and partial plans that it also has are left out; `depth` is capped at each tower; a fresh optimiser at each
visit; fp32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fedray.errors import BadInput
from fedray.methods.ivlp import independent
from fedray.nn.backbone import Backbone
from fedray.nn.heads import Cosine
from fedray.nn.teachers import joint_drift, teach
from fedray.types import Features, Given, Needs, Output

PAPER_DEPTH = 12


class PromptOT(nn.Module):
    """Prompts in both towers, and one penalty that needs the labels."""

    private: Sequence[str] = ()
    needs: Needs = "pixels"
    server: str | None = None

    def __init__(self, prompts: nn.Module, head: nn.Module, *, transport: float) -> None:
        super().__init__()
        if not 0 <= transport < float("inf"):
            raise BadInput(f"method.transport is {transport}; a penalty's weight must be at least 0")
        self.prompts, self.head, self.transport = prompts, head, transport

    def forward(self, given: Given, x: Tensor | Features) -> Output:
        """Encode text and images with the prompts, and compare them."""
        prompts = self.prompts(given, x)
        text, image = given.clip.encode_text(given.task, prompts.text), given.clip.encode_image(x, prompts.vision)
        return Output(text, image, self.head(text, image, given.clip.logit_scale))

    def terms(self, given: Given, x: Tensor | Features, y: Tensor) -> dict[str, Tensor]:
        """The task loss and the weighted transport cost."""
        out, frozen = self(given, x), teach(given, x, self.head)
        return {"loss": F.cross_entropy(out.logits, y), "transport": self.transport * joint_drift(out, frozen, y)}


def promptot(
    clip: Backbone,
    *,
    n_ctx: int = 4,
    n_vision: int = 4,
    depth: int | None = None,
    words: str | None = "a photo of a",
    transport: float = 10.0,
    temperature: float | None = None,
) -> PromptOT:
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
    return PromptOT(prompts, Cosine(temperature=temperature), transport=transport)

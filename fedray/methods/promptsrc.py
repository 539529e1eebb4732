"""PromptSRC: IVLP's prompts, held near the frozen CLIP in features and in logits. Everything is shared.

    L = CE + lambda_1 mean |t - t0| + lambda_2 mean |f - f0| + sum p0 (log p0 - log p) / (B C)

t, f, p are the prompted model's unit features and probabilities, 0 marks the frozen CLIP on the same images; t0 is the
mean over hand-written templates. Federated: averaged over clients, weights n_k / n, penalties at each client.
Khattak et al., "Self-regulating Prompts: Foundational Model Adaptation without Forgetting", ICCV 2023.

Departs from the paper: its Gaussian averaging of the prompts over the epochs is left out (in a federation that would be
an average over rounds, at the server); t0 is the mean over the data set's own templates, not over 60 of ImageNet's.
Departs from their code: `depth` is capped at each tower; a fresh optimiser at each visit; fp32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fedray.errors import BadInput
from fedray.methods.ivlp import independent
from fedray.nn.backbone import Backbone
from fedray.nn.heads import Cosine
from fedray.nn.teachers import image_drift, logit_drift, teach, text_drift
from fedray.types import Features, Given, Needs, Output

PAPER_DEPTH = 9


class PromptSRC(nn.Module):
    """Prompts in both towers, and three penalties against the frozen CLIP, which answers once per batch."""

    private: Sequence[str] = ()
    needs: Needs = "pixels"
    server: str | None = None

    def __init__(self, prompts: nn.Module, head: nn.Module, *, text: float, image: float, logits: float) -> None:
        super().__init__()
        for name, weight in (("text", text), ("image", image), ("logits", logits)):
            if not 0 <= weight < float("inf"):
                raise BadInput(f"method.{name} is {weight}; a penalty's weight must be at least 0")
        self.prompts, self.head = prompts, head
        self.text, self.image, self.logits = text, image, logits

    def forward(self, given: Given, x: Tensor | Features) -> Output:
        """Encode text and images with the prompts, and compare them."""
        prompts = self.prompts(given, x)
        text, image = given.clip.encode_text(given.task, prompts.text), given.clip.encode_image(x, prompts.vision)
        return Output(text, image, self.head(text, image, given.clip.logit_scale))

    def terms(self, given: Given, x: Tensor | Features, y: Tensor) -> dict[str, Tensor]:
        """The task loss and the three penalties, weighted."""
        out, frozen = self(given, x), teach(given, x, self.head)
        return {
            "loss": F.cross_entropy(out.logits, y),
            "text": self.text * text_drift(out, frozen),
            "image": self.image * image_drift(out, frozen),
            "logits": self.logits * logit_drift(out, frozen),
        }


def promptsrc(
    clip: Backbone,
    *,
    n_ctx: int = 4,
    n_vision: int = 4,
    depth: int | None = None,
    words: str | None = "a photo of a",
    text: float = 25.0,
    image: float = 10.0,
    logits: float = 1.0,
    temperature: float | None = None,
) -> PromptSRC:
    """Prompts in both towers that regulate themselves.

    Args:
        clip: the frozen backbone.
        n_ctx: context tokens before the class name, in each layer.
        n_vision: tokens beside the patches, in each layer.
        depth: layers with learnables of their own, in both towers; None is the paper's 9, or all there are.
        words: start the first layer's context from these words; None: noise.
        text: lambda_1, weight of the text features' drift.
        image: lambda_2, weight of the image features' drift.
        logits: weight of the probabilities' drift.
        temperature: of the softmax over classes, the teacher's too; None keeps CLIP's own.

    Raises:
        BadInput: no tokens, `depth` exceeds a tower, or a weight is below 0.
    """
    prompts = independent(clip, n_ctx, n_vision, depth, words, deepest=PAPER_DEPTH)
    return PromptSRC(prompts, Cosine(temperature=temperature), text=text, image=image, logits=logits)

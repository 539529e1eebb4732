"""PromptSRC: IVLP's prompts, held near the frozen CLIP in features and in logits. Everything is shared.

    L = CE + lambda_1 mean |t - t0| + lambda_2 mean |f - f0| + sum p0 (log p0 - log p) / (B C)

t, f, p are the prompted model's unit features and probabilities, 0 marks the frozen CLIP on the same images; t0 is the
mean over hand-written templates. Federated: averaged over clients, weights n_k / n, penalties at each client.
Khattak et al., "Self-regulating Prompts: Foundational Model Adaptation without Forgetting", ICCV 2023.

Released names: prompt_learner.ctx (n, w) -> prompts.text.tokens[0, 0];
text_encoder.transformer.resblocks.{i}.VPT_shallow (n, w) -> prompts.text.tokens[0, i];
image_encoder.VPT (n, w) -> prompts.image.tokens[0];
image_encoder.transformer.resblocks.{i}.VPT_shallow (n, w) -> prompts.image.tokens[i].

Departs from the paper: its Gaussian averaging of the prompts over the epochs is one over rounds here, at the server,
off by default (``server=gaussian``); t0 is the mean over the data set's own templates, not over 60 of ImageNet's.
Departs from their code: `depth` capped at each tower; a fresh optimiser each visit; fp32; no warm-up, crops if asked.
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
from fedray.nn.teachers import image_drift, logit_drift, teach, text_drift
from fedray.types import Features, Given, Output

FIDELITY = "code-read"
PROTOCOL = {"local.lr": 0.0025, "local.batch": 4, "local.schedule": "cosine", "rounds": 100, "split.shots": 16}
SPACE = {
    "local.lr": (0.00025, 0.025, "log"),
    "method.n_ctx": (2, 8),
    "method.n_vision": (2, 8),
    "method.depth": [1, 3, None],
    "method.text": (2.5, 250.0, "log"),
    "method.image": (1.0, 100.0, "log"),
}

PAPER_DEPTH = 9


@dataclass(frozen=True)
class SelfRegulation:
    """Three terms against the frozen CLIP, which answers once per batch."""

    text: float
    image: float
    logits: float
    teaches: ClassVar[bool] = True  # images without prompts

    def __post_init__(self) -> None:
        for name, weight in vars(self).items():
            check_weight(f"method.{name}", weight)

    def __call__(
        self, method: PromptMethod, given: Given, x: Tensor | Features, y: Tensor, out: Output
    ) -> dict[str, Tensor]:
        """Three scalars, by what they hold: texts (1, C, d), images (B, d), logits (B, C)."""
        frozen = teach(given, x, method)
        return {
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
) -> PromptMethod:
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
    regulation = SelfRegulation(text, image, logits)
    return PromptMethod(prompts, Cosine(temperature=temperature), penalties=[regulation])

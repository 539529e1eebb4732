"""IVLP: deep prompts in both towers, learned side by side without any tie. Everything is shared.

    t_c = text([P_0, name_c]),  f = vision([CLS], patches, Q_0),   p(c | x) = softmax_c( s * cos(f(x), t_c) )

P_i and Q_i, i > 0, replace before block i what the block before made of P_{i-1} and Q_{i-1}.
The baseline "independent vision-language prompting" of MaPLe, and what PromptSRC and Prompt-OT add their penalties to.
Federated: averaged over clients, weights n_k / n.
Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023, Section 3 and Table 1; Khattak et al., "Self-regulating
Prompts: Foundational Model Adaptation without Forgetting" (PromptSRC), ICCV 2023, for 4 + 4 tokens in 9 layers.

Released names: prompt_learner.ctx (n, w) -> prompts.text.tokens[0, 0];
text_encoder.transformer.resblocks.{i}.VPT_shallow (n, w) -> prompts.text.tokens[0, i];
image_encoder.VPT (n, w) -> prompts.image.tokens[0];
image_encoder.transformer.resblocks.{i}.VPT_shallow (n, w) -> prompts.image.tokens[i].

Departs from their code: with fewer context tokens than words, the words left over are dropped (theirs keeps them fixed
before the class name); `depth` is capped at each tower; a fresh optimiser each visit; fp32; no warm-up, crops if asked.
"""

from __future__ import annotations

from fedray.method import PromptMethod
from fedray.nn.backbone import Backbone
from fedray.nn.heads import Cosine
from fedray.nn.prompts import Both, TextContext, VisionContext

FIDELITY = "verified"
PROTOCOL = {"local.lr": 0.0025, "local.batch": 4, "local.schedule": "cosine", "rounds": 100, "split.shots": 16}
SPACE = {
    "local.lr": (0.00025, 0.025, "log"),
    "method.n_ctx": (2, 8),
    "method.n_vision": (2, 8),
    "method.depth": [1, 3, None],
}

PAPER_DEPTH = 9


def ivlp(
    clip: Backbone,
    *,
    n_ctx: int = 4,
    n_vision: int = 4,
    depth: int | None = None,
    words: str | None = "a photo of a",
    temperature: float | None = None,
) -> PromptMethod:
    """Independent prompts in both towers.

    Args:
        clip: the frozen backbone.
        n_ctx: context tokens before the class name, in each layer.
        n_vision: tokens beside the patches, in each layer.
        depth: layers with learnables of their own, in both towers; None is the paper's 9, or all there are.
        words: start the first layer's context from these words; None: noise.
        temperature: of the softmax over classes; None keeps CLIP's own.

    Raises:
        BadInput: no tokens, or `depth` exceeds a tower.
    """
    prompts = independent(clip, n_ctx, n_vision, depth, words, deepest=PAPER_DEPTH)
    return PromptMethod(prompts, Cosine(temperature=temperature))


def independent(
    clip: Backbone, n_ctx: int, n_vision: int, depth: int | None, words: str | None, *, deepest: int
) -> Both:
    """The prompts of IVLP, for the methods that build on it; `depth` None is `deepest`, or all that a tower has."""
    text, vision = (min(deepest, t.layers) if depth is None else depth for t in (clip.arch.text, clip.arch.vision))
    return Both(TextContext(clip, n=n_ctx, words=words, depth=text), VisionContext(clip, n=n_vision, depth=vision))

"""FedVLP: independent prompts in both towers, averaged over clients; FedTPG's vision-language baseline. All is shared.

    text    [SOS] v_1 .. v_n name . [EOT]        vision   LN(CLS, patches), u_1 .. u_n
    p(c | x) = softmax_c( s * cos(f(x; u), t_c(v)) ),   with `depth` > 1 each further layer has learnables of its own

See `fedtpg` for the paper, Qiu et al., ICLR 2024, which averages with equal weights.

Released names: prompt_learner.text_ctx[1:] (D, n, w) -> prompts.text.tokens[0, 1:];
prompt_learner.text_ctx[0] (n, w) - text_encoder.positional_embedding[1:n+1] -> prompts.text.tokens[0, 0];
prompt_learner.vis_ctx (D, n, w) -> prompts.image.tokens.

Departs from their code: the first text prompts come with the positions' embeddings (theirs overwrite the sum of both;
the same models, other starting points); fp32; a fresh optimiser at each visit.
"""

from __future__ import annotations

from fedray.method import PromptMethod
from fedray.nn.backbone import Backbone
from fedray.nn.heads import Cosine
from fedray.nn.prompts import Both, TextContext, VisionContext

FIDELITY = "verified"
PROTOCOL = {
    "local.lr": 0.003,
    "local.batch": 200,
    "local.weight_decay": 1e-05,
    "local.schedule": "cosine",
    "local.epochs": 1,
    "local.label_space": "own",
    "rounds": 500,
    "split.shots": 8,
    "split.classes": "base",
}
SPACE = {"local.lr": (0.0003, 0.03, "log"), "method.n_ctx": (2, 8), "method.n_vision": (2, 8), "method.depth": [1, 3]}


def fedvlp(
    clip: Backbone,
    *,
    n_ctx: int = 4,
    n_vision: int = 4,
    depth: int = 1,
    words: str | None = None,
    temperature: float | None = None,
) -> PromptMethod:
    """Prompts in both towers.

    Args:
        clip: the frozen backbone.
        n_ctx: context tokens of the text prompt.
        n_vision: tokens beside the patches, behind the first layer norm.
        depth: layers with learnables of their own, in both towers.
        words: start the text prompt from these words in place of noise.
        temperature: of the softmax over classes; None keeps CLIP's own.

    Raises:
        BadInput: an option out of its range.
    """
    text = TextContext(clip, n=n_ctx, depth=depth, words=words)
    vision = VisionContext(clip, n=n_vision, depth=depth, place="end", stage="post_ln")
    return PromptMethod(Both(text, vision), Cosine(temperature=temperature), weighting="uniform")

"""KgCoOp: a learned context whose class features may not turn far from those of hand-written prompts.

    loss = CE + w (1 - mean_c cos(t_c, z_c)),   t_c: learned,   z_c: text feature of the hand-written template(s)

Everything is shared (averaged over clients), so that local and global view are one.
Yao et al., "Visual-Language Prompt Tuning with Knowledge-guided Context Optimization", CVPR 2023. w = 8.

Released names: prompt_learner.ctx (n, w) -> prompts.tokens[0, 0].

Departs from the paper: in a federation it has no protocol of its own, the context travels as in `promptfl`; z_c is the
mean over a data set's templates where it has several. And from its code: no layer and bias that never take part.
"""

from __future__ import annotations

from fedray.method import PromptMethod
from fedray.nn.backbone import Backbone
from fedray.nn.heads import Cosine
from fedray.nn.losses import Guidance
from fedray.nn.prompts import TextContext

FIDELITY = "verified"
PROTOCOL = {"local.lr": 0.002, "local.batch": 128, "local.schedule": "cosine", "rounds": 100, "split.shots": 16}
SPACE = {"local.lr": (0.0002, 0.02, "log"), "method.n_ctx": (2, 16), "method.weight": (0.8, 80.0, "log")}


def kgcoop(
    clip: Backbone,
    *,
    n_ctx: int = 4,
    words: str = "a photo of a",
    weight: float = 8.0,
    temperature: float | None = None,
) -> PromptMethod:
    """One shared context, kept near the hand-written prompts.

    Args:
        clip: the frozen backbone.
        n_ctx: context tokens.
        words: start from these words; empty is noise.
        weight: w of the guidance, 0 or above; 0 is PromptFL.
        temperature: of the softmax over classes; None keeps CLIP's own.

    Raises:
        BadInput: `weight` is negative.
    """
    context = TextContext(clip, n=n_ctx, words=words or None)
    return PromptMethod(context, Cosine(temperature=temperature), penalties=[Guidance(weight)])

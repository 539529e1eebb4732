"""PromptFL: CoOp's learnable context, averaged over clients. Everything is shared.

    t_c = text([v_1 .. v_n, name_c]),   p(c | x) = softmax_c( s * cos(f(x), t_c) )

Guo et al., "PromptFL: Let Federated Participants Cooperatively Learn Prompts Instead of Models", IEEE TMC 2024;
Zhou et al., "Learning to Prompt for Vision-Language Models" (CoOp), IJCV 2022.

Released names: prompt_learner.ctx (n, w) -> prompts.tokens[0, 0].

Departs from their code: a fresh optimiser at each visit (theirs carries momentum from client to client); fp32.
"""

from __future__ import annotations

from fedray.method import PromptMethod
from fedray.nn.backbone import Backbone
from fedray.nn.heads import Cosine
from fedray.nn.prompts import TextContext
from fedray.types import Position

FIDELITY = "verified"
PROTOCOL = {
    "local.lr": 0.001,
    "local.batch": 32,
    "local.epochs": 5,
    "rounds": 20,
    "split.shots": 16,
    "partition.clients": 10,
}
SPACE = {"local.lr": (0.0001, 0.01, "log"), "local.epochs": (1, 5), "method.n_ctx": (2, 16)}


def promptfl(
    clip: Backbone,
    *,
    n_ctx: int = 16,
    words: str | None = None,
    depth: int = 1,
    position: Position = "end",
    temperature: float | None = None,
) -> PromptMethod:
    """One shared context in front of the class names.

    Args:
        clip: the frozen backbone.
        n_ctx: context tokens.
        words: start from these words ("a photo of a") in place of noise.
        depth: text layers that get prompts of their own; 1 is CoOp.
        position: where the class name stands.
        temperature: of the softmax over classes; None keeps CLIP's own.

    Raises:
        BadInput: an option out of its range.
    """
    context = TextContext(clip, n=n_ctx, words=words, depth=depth, position=position)
    return PromptMethod(context, Cosine(temperature=temperature))

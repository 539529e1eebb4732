"""FedTPG: learn a generator that turns the task's class names into a context. Everything is shared.

    context = x + FF(x),  x = MHA(LN(Q), LN(E), LN(E));   t_c = text([context, name_c]);   p(c | x) = softmax_c(s cos)

E are CLIP's features of the bare class names, Q is learned (4 tokens). Classes that no client has trained on, or
another data set, get a context of their own from the same generator: 4,206,080 numbers on ViT-B/16 for any task.
Qiu et al., "Federated Text-driven Prompt Generation for Vision-Language Models", ICLR 2024.

The paper averages clients with equal weights: run with ``server.weighting=uniform``.

Departs from their code: the generator in fp32 (theirs is fp16); a client's context is generated from all classes of the
task, where theirs gives every client a class list of its own; a fresh optimiser at each visit.
"""

from __future__ import annotations

from fedray.method import PromptMethod
from fedray.nn.backbone import Backbone
from fedray.nn.generate import Generated
from fedray.nn.heads import Cosine


def fedtpg(
    clip: Backbone, *, n_ctx: int = 4, depth: int = 1, heads: int = 4, temperature: float | None = None
) -> PromptMethod:
    """A shared generator of contexts.

    Args:
        clip: the frozen backbone.
        n_ctx: context tokens.
        depth: text layers that get prompts of their own.
        heads: of the generator's cross attention.
        temperature: of the softmax over classes; None keeps CLIP's own.
    """
    return PromptMethod(Generated(clip, n=n_ctx, depth=depth, heads=heads), Cosine(temperature=temperature))

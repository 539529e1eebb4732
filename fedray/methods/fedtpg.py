"""FedTPG: learn a generator that turns the task's class names into a context. Everything is shared.

    context = x + FF(x),  x = MHA(LN(Q), LN(E), LN(E));   t_c = text([context, name_c]);   p(c | x) = softmax_c(s cos)

E are CLIP's features of the bare class names, Q is learned (4 tokens). Classes that no client has trained on, or
another data set, get a context of their own from the same generator: 4,206,080 numbers on ViT-B/16 for any task.
Qiu et al., "Federated Text-driven Prompt Generation for Vision-Language Models", ICLR 2024.

Clients are averaged with equal weights, as in the paper.

Released names: prompt_learner.meta_net.soft_prompt (n, w) -> prompts.queries;
prompt_learner.meta_net.encoder.cross_attend_blocks.0.norm.{x} -> prompts.norm_queries.{x};
prompt_learner.meta_net.encoder.cross_attend_blocks.0.norm_context.{x} -> prompts.norm_names.{x};
prompt_learner.meta_net.encoder.cross_attend_blocks.0.fn.{x} -> prompts.attention.{x};
prompt_learner.meta_net.encoder.cross_attend_blocks.1.net.0.{x} -> prompts.norm.{x};
prompt_learner.meta_net.encoder.cross_attend_blocks.1.net.1.{x} -> prompts.widen.{x};
prompt_learner.meta_net.encoder.cross_attend_blocks.1.net.3.{x} -> prompts.narrow.{x}.

Departs from their code: the generator in fp32 (theirs is fp16); a client's context is generated from all classes of the
task, theirs from its own classes alone (as ``local.label_space=own`` does here); with `depth` > 1 theirs puts
the second context in the first one's place before block 0, ours before block 1; a fresh optimiser at each visit.
"""

from __future__ import annotations

from fedray.method import PromptMethod
from fedray.nn.backbone import Backbone
from fedray.nn.generate import Generated
from fedray.nn.heads import Cosine

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
SPACE = {"local.lr": (0.0003, 0.03, "log"), "method.n_ctx": (2, 8), "method.heads": [2, 4, 8], "method.depth": [1, 3]}


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

    Raises:
        BadInput: an option out of its range.
    """
    return PromptMethod(
        Generated(clip, n=n_ctx, depth=depth, heads=heads), Cosine(temperature=temperature), weighting="uniform"
    )

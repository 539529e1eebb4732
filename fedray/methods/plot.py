"""PLOT: several prompts per class, matched to image patches by optimal transport. Everything is shared.

    logit_c = s * sum_mn T_mn sim_mn(c),   T = argmin <T, 1 - sim> - eps H(T),   T 1 = 1/M,   T' 1 = 1/N

Prompts are shared by all classes; patches without the class token. All are averaged over clients (what `otdpp`'s
tables call OT without personal prompts), so that local and global view are one.
Chen et al., "PLOT: Prompt Learning with Optimal Transport for Vision-Language Models", ICLR 2023.

Released names: prompt_learner.ctx (N, n, w) -> prompts.tokens[:, 0].

Departs from the paper: patches of a ViT where its code has maps of a ResNet (its ViT version, PLOT++, is another
method); no pooled term on ImageNet. And from its code: transport in fp32 at least, each problem stopped by its own
marginal error of 1e-3 (theirs: the batch's mean change below 1e-2; NaN skips a batch); no warm-up, crops if asked.
"""

from __future__ import annotations

from fedray.method import PromptMethod
from fedray.nn.backbone import Backbone
from fedray.nn.heads import Transport
from fedray.nn.prompts import TextContext

FIDELITY = "code-read"
PROTOCOL = {"local.lr": 0.002, "local.batch": 32, "local.schedule": "cosine", "rounds": 100, "split.shots": 16}
SPACE = {
    "local.lr": (0.0002, 0.02, "log"),
    "method.n_ctx": (2, 16),
    "method.prompts": (2, 8),
    "method.eps": (0.01, 0.1, "log"),
}


def plot(
    clip: Backbone,
    *,
    prompts: int = 4,
    n_ctx: int = 16,
    words: str | None = None,
    eps: float = 0.1,
    iters: int = 100,
    temperature: float | None = None,
) -> PromptMethod:
    """Several shared prompts per class.

    Args:
        clip: the frozen backbone.
        prompts: N, prompts per class; with 1 the plan is the mean over patches.
        n_ctx: context tokens of each prompt.
        words: start all from these words (with noise after the first) in place of noise.
        eps: entropic regularisation, in cost units (cost = 1 - cosine).
        iters: most iterations of the transport solver.
        temperature: of the softmax over classes; None keeps CLIP's own.

    Raises:
        BadInput: an option out of its range.
    """
    context = TextContext(clip, n=n_ctx, prompts=prompts, words=words)
    return PromptMethod(context, Transport(kind="balanced", eps=eps, iters=iters, temperature=temperature))

"""OTDPP: deep prompts in both towers, half global, half personal; patches matched to prompts by balanced transport.

    text    [G_t ; L_t]  two prompts of n tokens per class     vision  [G_v ; L_v]  q tokens beside the patches
    logit_c = s * (1 - D_OT(c)),   D_OT(c) = sum_mn T_mn (1 - cos(v_m, p_cn)),   T 1 = 1/M,  T' 1 = 1/N   (Eq. 3)

G is averaged over clients (weights n_k / n), L stays with its client. Layers below `depth` get learnables of their own,
deeper ones pass on what comes out. Global view: G alone.
"A Federated CLIP Fine-Tuning Method Based on Optimal Transport and Dual Prompt Personalization", Eqs. 1-5, Section 3.3.

The paper's parameter count (0.004752 %, 4,096 numbers) fits no deep prompt: `otdpp_inferred` is the reading that fits.

Departs from the paper: where it is silent, eps 0.1, four vision tokens, momentum 0.9, weight decay 5e-4, a constant lr,
ten clients, images not cropped at random, noise of std 0.02 as start, and `depth` 9 (or the whole tower, where it has
fewer layers). A class has no tokens of its own. The server sends G alone: the paper pads it with a placeholder in the
shape of L, which the client throws away. The class token, projected in 3.4, is in no equation and plays no part.
"""

from __future__ import annotations

from torch import nn

from fedray.errors import BadInput
from fedray.method import PromptMethod
from fedray.nn.backbone import Backbone
from fedray.nn.heads import Transport
from fedray.nn.prompts import Beside, Both, TextContext, VisionContext

FIDELITY = "paper-only"
PROTOCOL = {
    "local.lr": 0.005,
    "local.batch": 8,
    "local.epochs": 1,
    "rounds": 100,
    "split.shots": 8,
    "partition.clients": 10,
    "partition.alpha": 0.1,
}
SPACE = {
    "local.lr": (0.0005, 0.05, "log"),
    "method.depth": [1, 3, None],
    "method.n_ctx": (2, 8),
    "method.n_vision": [2, 4, 8],
    "method.eps": [0.01, 0.05, 0.1],
}

PAPER_DEPTH = 9


def otdpp(
    clip: Backbone,
    *,
    n_ctx: int = 4,
    n_vision: int = 4,
    depth: int | None = None,
    words: str | None = None,
    eps: float = 0.1,
    iters: int = 100,
    temperature: float | None = None,
) -> PromptMethod:
    """Global and personal prompts in both towers.

    Args:
        clip: the frozen backbone.
        n_ctx: context tokens of each of the two text prompts.
        n_vision: vision tokens, half of them global; 0 leaves the vision tower alone.
        depth: layers with learnables of their own, in both towers; None is the paper's 9, or all there are.
        words: start the text prompts from these words in place of noise.
        eps: entropic regularisation, in cost units (cost = 1 - cosine).
        iters: most iterations of the transport solver.
        temperature: of the softmax over classes; None keeps CLIP's own.

    Raises:
        BadInput: `n_vision` is odd or negative, or `depth` exceeds a tower.
    """
    if n_vision < 0 or n_vision % 2:
        raise BadInput(f"method.n_vision must be even and >= 0, got {n_vision}; half of the tokens are global")

    layers, deep = (min(PAPER_DEPTH, t.layers) if depth is None else depth for t in (clip.arch.text, clip.arch.vision))

    def half() -> nn.Module:
        text = TextContext(clip, n=n_ctx, words=words, depth=layers)
        return Both(text, VisionContext(clip, n=n_vision // 2, depth=deep)) if n_vision else text

    head = Transport(kind="balanced", eps=eps, iters=iters, temperature=temperature)
    return PromptMethod(Beside(shared=half(), local=half()), head, private=["prompts.local.*"])

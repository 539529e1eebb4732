"""DualCoOp: two learned contexts per class, one that says it is there and one that says it is not.

    logit_c = 5 sum_m w_mc (c+_mc - c-_mc),   c+-_mc = 20 cos(v_m, t+-_c),   w: softmax over tokens m of c+

so that sigma(logit) is the softmax over (present, absent), and the asymmetric loss (gamma 2 and 1, margin 0.05) reads
that. Everything is shared, averaged with equal weights as FedMPT does with its baselines: local and global view are
one. 16,384 numbers on ViT-B/16.
Sun et al., "DualCoOp: Fast Adaptation to Multi-Label Recognition with Limited Annotations", NeurIPS 2022.

Released names: prompt_learner.ctx_neg (n, w) -> prompts.tokens[0, 0]; ctx_pos -> prompts.tokens[1, 0].

Departs from the paper: in a federation it has no protocol of its own; all tokens of a ViT, the class token among them,
where it has the maps of a ResNet at 448 pixels; no augmentation; no context of each class's own. Its zero-shot setting
is n_ctx 64, weight 0.01.
"""

from __future__ import annotations

from fedray.method import PromptMethod
from fedray.nn.backbone import Backbone
from fedray.nn.heads import PatchSoftmax
from fedray.nn.losses import with_constants
from fedray.nn.multilabel import Centred
from fedray.nn.prompts import TextContext
from fedray.types import Tokens

FIDELITY = "verified"
PROTOCOL = {
    "local.lr": 0.002,
    "local.batch": 32,
    "local.epochs": 1,
    "local.momentum": 0.9,
    "local.weight_decay": 0.0005,
    "local.schedule": "cosine",
    "rounds": 100,
    "split.shots": None,
    "partition.kind": "clusters",
}
SPACE = {
    "local.lr": (0.0002, 0.1, "log"),
    "method.n_ctx": (4, 64, "log"),
    "method.weight": (0.003, 0.1, "log"),
    "method.centre": [False, True],
}


def dualcoop(
    clip: Backbone,
    *,
    n_ctx: int = 16,
    words: str | None = None,
    tokens: Tokens = "all",
    centre: bool = False,
    weight: float = 0.03,
    down: float = 2.0,
    up: float = 1.0,
    margin: float = 0.05,
) -> PromptMethod:
    """A negative and a positive context, common to all classes.

    Args:
        clip: the frozen backbone.
        n_ctx: context tokens of each.
        words: start both from these words, the positive one with noise, in place of noise alone.
        tokens: of an image, "all" or "patches".
        centre: take an image's mean over the classes off its logits; where CLIP fits the images badly, the loss may
            lose its slope without.
        weight: of the asymmetric loss's sum over images and classes.
        down: its gamma of negatives.
        up: its gamma of positives.
        margin: probability that a negative may keep.

    Raises:
        BadInput: an option out of its range.
    """
    context = TextContext(clip, n=n_ctx, prompts=2, words=words)
    loss = with_constants(weight=weight, down=down, up=up, margin=margin)
    head = PatchSoftmax(dual=True, tokens=tokens)
    return PromptMethod(context, Centred(head) if centre else head, loss=loss, weighting="uniform")

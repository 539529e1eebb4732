"""PosCoOp (PositiveCoOp): a learned context for what is there; for what is not, a free vector without any text.

    logit_c = 5 sum_m w_mc (c+_mc - c-_mc),   c+_mc = 20 cos(v_m, t_c + e+_c),   c-_mc = 20 cos(v_m, e-_c)

w: softmax over tokens m of c+. t is not normalised before e+ is added; e+ and e- (C, d) start at N(0, 1). Loss and head
as in `dualcoop`. The context learns at a hundredth of the vectors' rate. Everything is shared, averaged with equal
weights as FedMPT does with its baselines: local and global view are one. 8,192 + 1,024 C numbers on ViT-B/16.
Rawlekar et al., "PositiveCoOp: Rethinking Prompting Strategies for Multi-Label Recognition with Partial Annotations",
WACV 2025.

Released names: prompt_learner.ctx_pos (n, w) -> prompts.inner.tokens[0, 0]; txt_prompt_learn -> head.positive;
txt_prompt_neg -> head.negative.

Departs from the paper: in a federation it has no protocol of its own; all tokens of a ViT where it has the maps of a
ResNet. From FedMPT's code for it: there the vectors are never trained, and every client draws its own.
"""

from __future__ import annotations

from fedray.method import PromptMethod
from fedray.nn.backbone import Backbone
from fedray.nn.bound import Bound
from fedray.nn.heads import PatchSoftmax
from fedray.nn.losses import with_constants
from fedray.nn.multilabel import Centred, Vectors
from fedray.nn.prompts import TextContext
from fedray.types import Task, Tokens

FIDELITY = "verified"
PROTOCOL = {
    "local.lr": 0.002,
    "local.batch": 32,
    "local.epochs": 1,
    "local.momentum": 0.9,
    "local.weight_decay": 0.0,
    "local.schedule": "cosine",
    "rounds": 100,
    "split.shots": None,
    "partition.kind": "clusters",
}
SPACE = {
    "local.lr": (0.0002, 0.5, "log"),
    "method.n_ctx": (4, 64, "log"),
    "method.rate": (0.001, 1.0, "log"),
    "method.centre": [False, True],
}


def poscoop(
    clip: Backbone,
    task: Task,
    *,
    n_ctx: int = 16,
    words: str | None = None,
    rate: float = 0.01,
    tokens: Tokens = "all",
    centre: bool = False,
    weight: float = 0.03,
    down: float = 2.0,
    up: float = 1.0,
    margin: float = 0.05,
) -> PromptMethod:
    """One context, and two vectors for each class of the task.

    Args:
        clip: the frozen backbone.
        task: its classes get the vectors.
        n_ctx: context tokens.
        words: start from these words in place of noise.
        rate: the context's learning rate as a share of the vectors'.
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
    classes = len(task.names)
    pair = PatchSoftmax(dual=True, tokens=tokens)
    head = Vectors(Centred(pair) if centre else pair, classes, clip.arch.joint)
    loss = with_constants(weight=weight, down=down, up=up, margin=margin)
    context = Bound(TextContext(clip, n=n_ctx, words=words), classes)
    return PromptMethod(context, head, loss=loss, weighting="uniform", rates={"prompts.*": rate})

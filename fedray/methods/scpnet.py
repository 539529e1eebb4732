"""SCPNet: a learned context whose class features pass through a graph convolution over related classes.

    t' = t + A s(A s(A t W1) W2) W3,  s = LeakyReLU(0.2);   A: diagonal 0.8, 0.2 over the k most similar classes
    logit_c = 5 sum_m w_mc c_mc,   c_mc = 20 cos(v_m, t'_c),   w: softmax over tokens m of c     (`head` "patches")
    logit_c = 10 cos(f, t'_c)                                                                     (`head` "cosine")

Similarity is that of the hand-written prompts' features. Everything is shared, averaged with equal weights as FedMPT
does with its baselines: local and global view are one. 2,099,200 numbers on ViT-B/16.
Ding et al., "Exploring Structured Semantic Prior for Multi Label Recognition with Incomplete Labels", CVPR 2023.

Released names: prompt_learner.ctx (n, w) -> prompts.inner.tokens[0, 0]; gc1.weight, gc2.weight, gc3.weight ->
head.weights.0, .1, .2.

Departs from the paper: the federated form of FedMPT's code, with frozen towers, head "patches" and the asymmetric
loss, but here the graph convolution is trained, and averaged. Left out are the strongly augmented view with its
consistency term (pseudo labels, class thresholds, label propagation over a softened graph) and the moving average of
weights. `loss` "splc" is its other half: margin, focus, guesses for unknown labels (theirs from the second epoch on,
and for all that are not positive). Logits are `centre`d over an image's classes, else they start near 25, where the
loss has no slope. Negative similarities count as 0.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import nn

from fedray.errors import BadInput
from fedray.method import Loss, PromptMethod
from fedray.nn.backbone import Backbone
from fedray.nn.bound import Bound
from fedray.nn.graph import Related, adjacency
from fedray.nn.heads import Cosine, PatchSoftmax
from fedray.nn.losses import check_weight, task_loss
from fedray.nn.multilabel import Centred, splc
from fedray.nn.prompts import TextContext
from fedray.types import Task

FIDELITY = "code-read"
PROTOCOL = {
    "local.lr": 0.001,
    "local.batch": 32,
    "local.epochs": 1,
    "local.momentum": 0.9,
    "local.weight_decay": 0.0001,
    "local.schedule": "cosine",
    "rounds": 100,
    "split.shots": None,
    "partition.kind": "clusters",
}
SPACE = {
    "local.lr": (0.0001, 0.1, "log"),
    "method.top": (2, 62, "log"),
    "method.share": (0.0, 0.5),
    "method.loss": ["asl", "splc"],
}


def scpnet(
    clip: Backbone,
    task: Task,
    *,
    n_ctx: int = 4,
    words: str | None = "a photo of a",
    top: int = 20,
    share: float = 0.2,
    head: Literal["patches", "cosine"] = "patches",
    loss: Literal["asl", "splc"] = "asl",
    centre: bool = True,
    weight: float = 0.03,
    sure: float = 0.6,
) -> PromptMethod:
    """A context and a graph convolution over the task's classes.

    Args:
        clip: the frozen backbone.
        task: its classes make the graph.
        n_ctx: context tokens.
        words: start from these words; None is noise.
        top: k, the most similar classes to keep, itself counted (VOC 20, COCO 62, NUS 50); at most all.
        share: of a class's weight that goes to them.
        head: "patches", or "cosine" for the paper's with the pooled image.
        loss: "asl" or "splc".
        centre: take an image's mean over the classes off its logits.
        weight: of the loss's sum over images and classes.
        sure: probability from which "splc" takes an unknown label for present.

    Raises:
        BadInput: an option out of its range.
    """
    check_weight("method.weight", weight)
    losses: dict[str, Loss] = {
        "asl": partial(task_loss, weight=weight),
        "splc": partial(splc, weight=weight, sure=sure),
    }
    heads: dict[str, nn.Module] = {"patches": PatchSoftmax(), "cosine": Cosine(temperature=0.1)}
    for label, value, known in (("head", head, heads), ("loss", loss, losses)):
        if value not in known:
            raise BadInput(f"method.{label} is {value!r}; choose {' or '.join(known)}")
    compared = Centred(heads[head]) if centre else heads[head]
    related = Related(compared, adjacency(task.zeroshot, top=top, share=share), clip.arch.joint)
    context = Bound(TextContext(clip, n=n_ctx, words=words), len(task.names))
    return PromptMethod(context, related, loss=losses[loss], weighting="uniform")

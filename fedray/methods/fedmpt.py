"""FedMPT: prompts that name a condition besides the class, each matched to patches by transport, and a gate.

    prompt    [L^n]_1 .. [L^n]_4 [COND_n] [L]_1 .. [L]_4 [CLASS_c],  [L^n] of each condition, [L] common to all   (4.1)
    patches   v_n = v + W_up,n W_down,n v  (Eq. 6),   c_nmc = 20 cos(v_nm, t_nc)
    plan      P_n: patches to classes, cost 1 - M softmax_m(c / tau), rows a by entropy, columns 1 / C       (Eqs. 7-10)
    logits    x_c = sum_n softmax_n(mean_m Omega v_m) 5 sum_m C P_nmc c_nmc,  less its mean over classes       (Eq. 11)

tau 4, lambda (`eps`) 0.2, ranks 32, asymmetric loss (Eq. 12). Everything is shared and averaged with equal weights
(Eq. 13), so that local and global view are one. 192,672 numbers on ViT-B/16.
"FedMPT: Federated Multi-Label Prompt Tuning of Vision-Language Models".

Released names: none. The public code is another model, see `fedmpt_code`; its ctx -> prompts.context, attr_ctx (4, w)
-> each row of prompts.condition.

Departs from the paper: Eqs. 7-10 as printed (`form` "literal") give plans within 0.1 % of a b' and the same tiny
probability to every class, and do not learn; the default multiplies the softmax by M, sharpens cosines by 20, and
reads the sharp cosines under the plan. Logits are `centre`d over an image's classes, else they start near 25 where
the loss has no slope. Adapters are added to the patch (`residual`) and start next to nothing. The conditions, momentum
and the loss's constants are its code's; Eq. 12 lacks its minus; Eq. 4 weighs clients by size where Eq. 13 does not.
Read into it where it is unclear: a plan for each image and condition (the text gives a and b each other's lengths), and
a gate that takes the mean over patches, of the adapters' rank.
"""

from __future__ import annotations

from fedray.method import PromptMethod
from fedray.nn.backbone import Backbone
from fedray.nn.condition_heads import Conditional, Form
from fedray.nn.conditions import Conditioned, listed
from fedray.nn.losses import with_constants

FIDELITY = "paper-only"
PROTOCOL = {
    "local.lr": 0.001,
    "local.batch": 32,
    "local.epochs": 1,
    "local.momentum": 0.9,
    "local.weight_decay": 1e-5,
    "local.schedule": "cosine",
    "rounds": 100,
    "split.shots": None,
    "partition.kind": "clusters",
}
SPACE = {
    "local.lr": (0.0001, 0.1, "log"),
    "method.n_condition": (2, 8),
    "method.n_class": (2, 8),
    "method.rank": (16, 128),
    "method.tau": (1.0, 20.0, "log"),
    "method.eps": (0.05, 1.0, "log"),
    "method.entropy_sign": [1, -1],
}


def fedmpt(
    clip: Backbone,
    *,
    conditions: str = "color,background,scene type,spatial layout,pose",
    n_condition: int = 4,
    n_class: int = 4,
    form: Form = "stable",
    transport: bool = True,
    adapters: bool = True,
    residual: bool = True,
    gate: bool = True,
    rank: int = 32,
    tau: float = 4.0,
    eps: float = 0.2,
    entropy_sign: int = 1,
    iters: int = 100,
    centre: bool = True,
    weight: float = 0.02,
    down: float = 2.0,
    up: float = 1.0,
    margin: float = 0.05,
) -> PromptMethod:
    """Condition prompts, transport, adapters and gate; without the last three, the rows of the paper's ablation.

    Args:
        clip: the frozen backbone.
        conditions: parted by commas; the prompts must fit the text tower.
        n_condition: context tokens before a condition.
        n_class: context tokens between condition and class.
        form: "stable", or "literal" for the equations as printed.
        transport: match by optimal transport; without, by a softmax over patches.
        adapters: learn a low-rank map of the patches for each condition.
        residual: add its output to the patch; without, it takes the patch's place.
        gate: learn how much each condition counts for an image; without, all alike.
        rank: of adapters and gate.
        tau: of the softmaxes in cost and row masses.
        eps: lambda, entropy weight in units of the cost.
        entropy_sign: 1 gives patches more mass that could be any class (Eq. 8), -1 less, 0 the same to all.
        iters: most iterations of the transport solver.
        centre: take an image's mean over the classes off its logits.
        weight: of the asymmetric loss's sum over images and classes.
        down: its gamma of negatives.
        up: its gamma of positives.
        margin: probability that a negative may keep.

    Raises:
        BadInput: an option out of its range, or prompts too long for the text tower.
    """
    names = listed(conditions)
    head = Conditional(
        clip.arch.joint,
        len(names),
        form=form,
        solve=transport,
        rank=rank if adapters else 0,
        residual=residual,
        gate=rank if gate else 0,
        tau=tau,
        eps=eps,
        sign=entropy_sign,
        iters=iters,
        centre=centre,
    )
    prompts = Conditioned(clip, conditions=names, n_condition=n_condition, n_class=n_class)
    loss = with_constants(weight=weight, down=down, up=up, margin=margin)
    return PromptMethod(prompts, head, loss=loss, weighting="uniform")

"""FedMPT as its code was released: condition prompts that generate one vision prompt; no transport, adapters or gate.

    prompt    [a]_1 .. [a]_4 [COND_n] [l]_1 .. [l]_4 [CLASS_c],   a and l common to all conditions
    vision    q = W2 relu(W1 MHA(f, T, T)),   f: the frozen image feature, T: the N C text features, none normalised;
              q stands after the class token, behind the first layer norm, and stays to the end
    logits    mean_n softmax_n(sd_n) (y_nc - mean_c y_n) / sd_n,  y_nc = 5 sum_t w c,  c = 20 cos(v_t, t_nc),
              w = softmax_t(c / TEMP),  sd_n = std_c y_n,  the softmax over conditions of sd / TEMP

t runs over all tokens: class token, q's output, patches. Asymmetric loss times 0.02. Everything is shared and averaged
with equal weights, so that local and global view are one: 1,137,472 numbers on ViT-B/16.
Code of "FedMPT: Federated Multi-Label Prompt Tuning of Vision-Language Models"; the paper's own model is `fedmpt`.

Released names: prompt_learner.ctx -> prompts.context; attr_ctx (4, w) -> prompts.condition[0]; cross_attention.* ->
attention.*; pro.0 -> narrow; pro.2 -> widen.

Departs from the code: a condition keeps all of its words (`first_word`: its first token alone, and an "X" before the
class for each one lost, as there) and tokens are scaled to unit length one by one (`token_norm`: channel by channel
over the tokens, as there); no dropout of 0.1 in the attention; fp32. Its evaluation is none of the method: it clusters
by labels, drops images of few labels, masks test labels and picks thresholds on the test set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedray.errors import BadInput
from fedray.nn.backbone import Backbone
from fedray.nn.condition_heads import Spread
from fedray.nn.conditions import Conditioned, listed
from fedray.nn.losses import check_weight, task_loss
from fedray.types import Features, Given, Needs, Output, Prompts, VisionPrompts, Weighting

FIDELITY = "verified"
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
    "method.latent": (16, 256, "log"),
    "method.temperature": (0.5, 4.0, "log"),
}


class FedMPTCode(nn.Module):
    """Text, then a vision prompt made of it, then the image. Shares everything. BadInput for options that do not fit.

    Args:
        clip: the backbone; read for shapes, not kept.
        prompts: text prompts, one per condition.
        head: compares.
        heads: of the attention.
        latent: width between attention and vision prompt.
        weight: of the asymmetric loss.
    """

    private: Sequence[str] = ()
    needs: Needs = "pixels"
    server: str | None = None
    weighting: Weighting = "uniform"
    rates: Mapping[str, float] = {}

    def __init__(
        self, clip: Backbone, prompts: Conditioned, head: Spread, *, heads: int, latent: int, weight: float
    ) -> None:
        super().__init__()
        joint = clip.arch.joint
        if heads < 1 or joint % heads:
            raise BadInput(f"method.heads is {heads}; it must divide the width of features, {joint}")
        if latent < 1:
            raise BadInput(f"method.latent is {latent}; take at least 1")
        check_weight("method.weight", weight)
        self.prompts, self.head, self.weight = prompts, head, weight
        self.attention = nn.MultiheadAttention(joint, heads)
        self.narrow, self.widen = nn.Linear(joint, latent), nn.Linear(latent, clip.arch.vision.width)

    def forward(self, given: Given, x: Tensor | Features) -> Output:
        """Encode all prompts (N, C, d), ask them what to add to the image, and encode that: logits (B, C)."""
        clip, prompts = given.clip, cast(Prompts, self.prompts(given, x))
        text = clip.encode_text(given.task, prompts.text)
        with torch.no_grad():
            plain = clip.encode_image(x).pooled
        keys = text.pooled.flatten(0, 1)  # (N C, d): every image looks at the same ones
        token = self.widen(F.relu(self.narrow(self.attention(plain, keys, keys, need_weights=False)[0])))
        image = clip.encode_image(x, VisionPrompts(token[:, None, None], "after_cls", "post_ln"), tokens="all")
        return Output(text, image, self.head(text, image, clip.logit_scale))

    def terms(self, given: Given, x: Tensor | Features, y: Tensor) -> dict[str, Tensor]:
        """The asymmetric loss of labels y (B, C), or cross entropy for one class per image (B,)."""
        return {"loss": task_loss(self(given, x).logits, y, weight=self.weight)}


def fedmpt_code(
    clip: Backbone,
    *,
    conditions: str = "color,background,scene type,spatial layout,pose",
    n_condition: int = 4,
    n_class: int = 4,
    heads: int = 8,
    latent: int = 64,
    temperature: float = 1.0,
    first_word: bool = False,
    token_norm: bool = False,
    weight: float = 0.02,
) -> FedMPTCode:
    """The released model.

    Args:
        clip: the frozen backbone.
        conditions: parted by commas; the prompts must fit the text tower.
        n_condition: context tokens before a condition.
        n_class: context tokens between condition and class.
        heads: of the attention; they divide the width of features.
        latent: width between the attention and the vision prompt.
        temperature: TEMP, above 0.
        first_word: the released code's prompts, which cut longer conditions.
        token_norm: the released code's scaling of tokens.
        weight: of the asymmetric loss.

    Raises:
        BadInput: an option out of its range, or conditions that leave no room for a class name.
    """
    prompts = Conditioned(
        clip,
        conditions=listed(conditions),
        n_condition=n_condition,
        n_class=n_class,
        common=True,
        first_word=first_word,
    )
    head = Spread(temperature=temperature, token_norm=token_norm)
    return FedMPTCode(clip, prompts, head, heads=heads, latent=latent, weight=weight)

"""RAM: a local stream beside the vision tower that looks at the class texts, matched to classes by guided transport.

    text      4 tokens after the start token in the last 3 layers, taken out behind each:  t_c, of "a photo of a {}."
    image     8 tokens in the last 3 layers:  f;   patches v of a local stream (attention among values in every layer,
              an adapter of convolutions and cross attention to t in the last 3)              see `nn/local_path.py`
    global    z_c = cos(f, t_c) / tau_g       local    z_c = sum_m P_mc cos(v_m, t_c) / tau_l       see `nn/kcot.py`
    score     (softmax_c(global) + softmax_c(local)) / 2;   logits: log(C score)
    loss      MMC on both: softmax over all pairs of image and class, mean over the positive ones

Layers are 9-11 of 12 in either tower; in smaller towers the last `depth` ones there are. Everything is shared, batch
statistics too, and averaged with equal weights as FedMPT does with its baselines: local and global view are one.
13,016,174 numbers on ViT-B/16, the two temperatures among them, and 6,144 running statistics.
Tan et al., "Recover and Match: Open-Vocabulary Multi-Label Recognition through Knowledge-Constrained Optimal
Transport", CVPR 2025.

Released names, under clip_model: transformer.resblocks.{9 + i}.deep_embeds -> text.tokens[i];
visual.transformer.resblocks.{9 + i}.adapt_embeds -> image.tokens[i], .conv_adapter.* -> image.adapters.{i}:
conv_adapter_layers{1,2}.0 -> streams.{0,1}, .1 -> norms.{0,1} (running_mean -> mean, running_var -> var),
adapter_norm_q{1,2} -> queries.{0,1}, adapter_norm_kv -> keys, conv_adapter_layers -> gate, conv_adapter_final -> out;
log(temperature) -> head.log_global; log(temperature_loc) -> head.log_local.

Departs from the paper: one label per image is learned by cross entropy of the score; SGD for all, the tokens at 0.001
as theirs and adapters at a hundred times that (theirs: AdamW at 5e-6), temperatures as logarithms; no moving average
of weights; the teacher's texts are the task's; no text is cut by the inserted tokens; transport in fp32, to 1e-3 of
its mass. Scores are shares of all classes, so that a threshold (here 1 / C) is not the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedray.errors import BadInput
from fedray.nn.backbone import Backbone
from fedray.nn.kcot import Kcot, guide, mixture
from fedray.nn.local_path import LocalPath, TextInsert
from fedray.nn.multilabel import matching
from fedray.types import Features, Given, Needs, Output, Weighting

FIDELITY = "verified"
PROTOCOL = {
    "local.lr": 0.1,
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
    "local.lr": (0.01, 1.0, "log"),
    "method.rate": (0.001, 0.1, "log"),
    "method.eps": (0.05, 0.2, "log"),
    "method.guidance": (0.0, 0.1),
    "method.tau": (0.0002, 0.02, "log"),
}


class Ram(nn.Module):
    """Both sides, and the head; it reads pixels, and features are BadInput. Shares everything."""

    private: Sequence[str] = ()
    needs: Needs = "pixels"
    server: str | None = None
    weighting: Weighting = "uniform"

    def __init__(self, text: TextInsert, image: LocalPath, head: Kcot, rates: Mapping[str, float]) -> None:
        super().__init__()
        self.text, self.image, self.head, self.rates = text, image, head, rates

    def forward(self, given: Given, x: Tensor | Features) -> Output:
        """Texts, both streams, both comparisons: logits (B, C), without the teacher and by remembered statistics."""
        text, image, _ = self._seen(given, x, training=False)
        logits = mixture(*self.head(text, image, given.clip.logit_scale))
        return Output(Features(text[None]), image, logits)

    def terms(self, given: Given, x: Tensor | Features, y: Tensor) -> dict[str, Tensor]:
        """MMC of the global and of the local logits with labels y (B, C), or cross entropy with classes (B,)."""
        text, image, frozen = self._seen(given, x, training=torch.is_grad_enabled())
        scale, classes = given.clip.logit_scale, len(given.task.names)
        absent = (F.one_hot(y, classes) if y.dim() == 1 else y) == 0
        teacher = None if frozen is None else guide(frozen, given.task.zeroshot, scale, absent)
        whole, local = self.head(text, image, scale, teacher)
        if y.dim() == 1:
            return {"loss": F.cross_entropy(mixture(whole, local), y)}
        return {"loss": matching(whole, y), "local": matching(local, y)}

    def _seen(self, given: Given, x: Tensor | Features, *, training: bool) -> tuple[Tensor, Features, Features | None]:
        if isinstance(x, Features):
            raise BadInput("cached features have no local stream; RAM needs pixels")
        text: Tensor = self.text(given)
        image, frozen = self.image(given.clip.vision, x, text, training=training)
        return text, image, frozen


def ram(
    clip: Backbone,
    *,
    n_text: int = 4,
    n_vision: int = 8,
    depth: int | None = None,
    text_depth: int | None = None,
    eps: float = 0.1,
    guidance: float = 0.05,
    tau: float = 0.002,
    iters: int = 100,
    rate: float = 0.01,
) -> Ram:
    """Local stream and guided transport.

    Args:
        clip: the frozen backbone.
        n_text: tokens in each of the last text layers.
        n_vision: tokens in each of the last vision layers.
        depth: how many vision layers are the last; None is the paper's 3, or all there are.
        text_depth: how many text layers are; None is 3 too (NUS-WIDE: 6).
        eps: entropy weight of the plan, in cost units.
        guidance: of the frozen teacher, in training.
        tau: tau_l at the start (NUS-WIDE: 0.0002).
        iters: most iterations of the transport solver.
        rate: the tokens' and temperatures' learning rate as a share of the adapters'.

    Raises:
        BadInput: an option out of its range.
    """
    layers, texts = clip.arch.vision.layers, clip.arch.text.layers
    text = TextInsert(clip, n=n_text, depth=min(3, texts) if text_depth is None else text_depth)
    image = LocalPath(clip, n=n_vision, depth=min(3, layers) if depth is None else depth)
    head = Kcot(float(clip.logit_scale), tau=tau, eps=eps, guidance=guidance, iters=iters)
    return Ram(text, image, head, {"*.tokens": rate, "head.*": rate})

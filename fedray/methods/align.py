"""ALIGN: several prompts in either tower, matched by transport between them and, below, between their tokens.

    C_mn = 1 - cos(z_m, h_n) + beta d_mn,   d_mn = sum_jl T'_jl (1 - cos(r_j, s_l))         (Eqs. 5-6)
    logit_c = s * (1 - sum_mn T_mn C_mn),   T, T' balanced, with entropy weight eps         (Eqs. 4, 7)

z_m: class token of the image beside vision prompt m; r: its patches and prompt outputs. h_n: end token of text prompt
n; s: its context and name. Prompts are deep as in MaPLe. Everything is shared: averaged over clients, weights n_k / n.
Wang et al., "Tuning Multi-mode Token-level Prompt Alignment across Modalities", NeurIPS 2023.
Vision prompts are images of text prompts (2.1), yet no network is learned (3.2): `coupling` "linear" (code), "none".

Released names: prompt_learner.ctx[0] -> first.tokens[0, 0]; prompt_learner.ctx[1:] (N, n, w) -> others.tokens[:, 0];
prompt_learner.compound_prompts_text.{i}[0] (n, w) -> first.tokens[0, i+1]; prompt_learner.proj.{x} -> maps.0.{x};
prompt_learner.compound_prompts_text.{i}[1:] (N, n, w) -> others.tokens[:, i+1];
prompt_learner.compound_prompt_projections.{i}.{x} -> maps.{i+1}.{x}.

Departs from the paper: the entropy is in the plans alone, not in the distances of Eqs. 4-5 (so does their code); fixed
words count with the name; `depth` is capped at the towers; no warm-up, crops if asked. And from their code, also with
`token_mode` "code" (there the token level is added as a similarity, only to steer T, and reads start tokens and some
full stops and end tokens): plans in logs and fp32, finished to 1e-3 of their mass; a fresh optimiser at each visit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor, nn

from fedray.errors import BadInput
from fedray.nn.backbone import Backbone
from fedray.nn.hierarchical import Hierarchical, Mode, encode_prompts, encode_views
from fedray.nn.losses import task_loss
from fedray.nn.prompts import TextContext, VisionContext
from fedray.types import Batching, Features, Given, Needs, Output, TextPrompts, Weighting

FIDELITY = "verified"
PROTOCOL = {"local.lr": 0.0035, "local.batch": 4, "local.schedule": "cosine", "rounds": 100, "split.shots": 16}
SPACE = {
    "local.lr": (0.00035, 0.035, "log"),
    "method.beta": (0.0, 1.0),
    "method.eps": (0.01, 1.0, "log"),
    "method.depth": [1, 3, None],
}
PAPER_DEPTH = 9


class Align(nn.Module):
    """Text prompts, the first of them from words, and vision prompts: linear images of them, or (`views`) free."""

    private: Sequence[str] = ()
    needs: Needs = "pixels"
    server: str | None = None
    weighting: Weighting = "samples"
    batching: Batching = "equal"
    rates: Mapping[str, float] = {}
    words: Tensor  # (f,) ids of those that stay fixed

    def __init__(
        self, clip: Backbone, head: Hierarchical, *, prompts: int, views: int | None, n: int, depth: int, words: str
    ) -> None:
        super().__init__()
        self.head, self.mode = head, head.mode
        self.first = TextContext(clip, n=n, depth=depth, words=words)
        self.others = TextContext(clip, n=n, depth=depth, prompts=prompts - 1) if prompts > 1 else None
        self.register_buffer("words", torch.tensor(clip.encode(words)[n:], dtype=torch.long), persistent=False)
        self.maps: nn.ModuleList | None = None
        self.views: nn.ModuleList | None = None
        if views is None:
            shallow, deep = (nn.Linear(clip.arch.text.width, clip.arch.vision.width) for _ in range(2))
            self.maps = nn.ModuleList([shallow, *(deepcopy(deep) for _ in range(depth - 1))])
        else:
            self.views = nn.ModuleList(VisionContext(clip, n=n, depth=depth) for _ in range(views))

    def contexts(self) -> list[TextPrompts]:
        """The first prompt with its fixed words, and the others, which have none."""
        first = TextPrompts(self.first.tokens.unsqueeze(1), words=self.words)
        return [first] if self.others is None else [first, TextPrompts(self.others.tokens.unsqueeze(1))]

    def forward(self, given: Given, x: Tensor | Features) -> Output:
        """Encode each class N times and each image M times, and transport: logits (B, C), the views' mean (B, d)."""
        contexts = self.contexts()
        text, mask = encode_prompts(given.clip, given.task, contexts, self.mode)
        if self.views is not None:
            views = torch.cat([view(given, x).vision.tokens for view in self.views])  # (M, D, n, w)
        else:
            layers = torch.cat([part.tokens.squeeze(1) for part in contexts]).unbind(1)
            views = torch.stack([layer(part) for layer, part in zip(self.maps or (), layers, strict=True)], 1)
        image = encode_views(given.clip, x, views)
        logits = self.head(text, image, mask, given.clip.logit_scale)
        return Output(Features(text.pooled), Features(image.pooled.mean(1)), logits)

    def terms(self, given: Given, x: Tensor | Features, y: Tensor) -> dict[str, Tensor]:
        """Cross-entropy (Eq. 8, with the logarithm that is missing there) with classes y (B,)."""
        return {"loss": task_loss(self(given, x).logits, y)}


def align(
    clip: Backbone,
    *,
    prompts: int = 4,
    views: int = 4,
    n_ctx: int = 2,
    depth: int | None = None,
    words: str = "a photo of a",
    coupling: Literal["linear", "none"] = "linear",
    token_mode: Mode = "paper",  # noqa: S107  (tokens of a text, no password)
    beta: float = 1.0,
    eps: float = 0.1,
    iters: int = 100,
    temperature: float | None = None,
) -> Align:
    """Hierarchical transport between prompts of both towers.

    Args:
        clip: the frozen backbone.
        prompts: N, text prompts per class; the first starts from `words`, the others from noise.
        views: M, vision prompts, each a pass of the image through the tower; N if they are linear images.
        n_ctx: b, tokens of each prompt in either tower, in each layer.
        depth: layers with learnables of their own, in both towers; None is the paper's 9, or all there are.
        words: the first `n_ctx` start the first prompt, the others stay fixed behind it.
        coupling: "linear", a map per layer from text to vision prompts, or "none", free vision prompts.
        token_mode: "paper", or "code" for what their code computes.
        beta: weight of the token level; 0 leaves it out.
        eps: entropy weight on both levels, in cost units (cost = 1 - cosine).
        iters: most iterations of the transport solver.
        temperature: of the softmax over classes; None keeps CLIP's own.

    Raises:
        BadInput: an option out of its range, or `views` other than `prompts` with linear coupling.
    """
    if coupling not in ("linear", "none"):
        raise BadInput(f"method.coupling is {coupling!r}; choose linear or none")
    for name, count in (("prompts", prompts), ("views", views)):
        if count < 1:
            raise BadInput(f"method.{name} is {count}; take at least 1")
    if coupling == "linear" and views != prompts:
        raise BadInput(
            f"method.views is {views} and method.prompts {prompts}; linear coupling makes one view of each prompt: "
            f"make them equal, or take coupling none"
        )
    layers = min(PAPER_DEPTH, clip.arch.text.layers, clip.arch.vision.layers) if depth is None else depth
    if layers > clip.arch.vision.layers:
        raise BadInput(
            f"method.depth is {layers}; the vision tower has {clip.arch.vision.layers} layers, take at most as many"
        )
    head = Hierarchical(beta=beta, eps=eps, iters=iters, mode=token_mode, temperature=temperature)
    free = views if coupling == "none" else None
    return Align(clip, head, prompts=prompts, views=free, n=n_ctx, depth=layers, words=words)

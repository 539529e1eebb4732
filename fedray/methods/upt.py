"""UPT: one latent prompt, mixed by a small transformer, whose halves prompt the two towers. Everything is shared.

    y = LN_1(u + MHA(u)),   [z_t ; z_v] = y + W_2 relu(W_1 LN_2(y) + b_1) + b_2                            (Section 3.2)
    t_c = text([z_t, name_c]),   f = vision([CLS], W z_v + b, patches),   p(c | x) = softmax_c( s * cos(f, t_c) )

u: 2 n latent tokens of the text tower's width, N(0, 0.02^2), n = 4; one attention head. Federated: averaged over
clients, latents and transformer, weights n_k / n; 1,976,064 numbers on ViT-B/16.
Zang et al., "Unified Vision and Language Prompt Learning", 2022.

Released names: prompt_learner.uni_ctx[0] -> prompts.latent;
prompt_learner.self_attn.{x} -> prompts.attention.{x}; prompt_learner.norm1.{x} -> prompts.norm_mixed.{x};
prompt_learner.norm2.{x} -> prompts.norm.{x}; prompt_learner.linear1.{x} -> prompts.feed.narrow.{x};
prompt_learner.linear2.{x} -> prompts.feed.widen.{x}; prompt_learner.mlp.{x} -> prompts.to_vision.{x}.

Departs from the paper: no dropout (0.1 there, drawn anew for each half): a method here is a function of its parameters;
in a federation it has no protocol of its own. And from the released code, a third party's: it hands the tokens to the
attention as a batch of sequences of length 1, so that none sees another; `seq_axis` does as it does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedray.errors import BadInput
from fedray.method import PromptMethod
from fedray.nn.backbone import Backbone
from fedray.nn.heads import Cosine
from fedray.nn.meta import MetaNet
from fedray.nn.prompts import FRAME, STD
from fedray.types import Batching, Features, Given, Prompts, TextPrompts, VisionPrompts

FIDELITY = "verified"
PROTOCOL = {
    "local.lr": 0.002,
    "local.batch": 32,
    "local.epochs": 1,
    "local.schedule": "cosine",
    "rounds": 200,
    "split.shots": 16,
}
SPACE = {"local.lr": (0.0002, 0.02, "log"), "method.n_ctx": (1, 8)}


def upt(clip: Backbone, *, n_ctx: int = 4, seq_axis: bool = False, temperature: float | None = None) -> PromptMethod:
    """A shared latent prompt and the network that parts it.

    Args:
        clip: the frozen backbone.
        n_ctx: tokens in either tower.
        seq_axis: the released code's axes, in which no token attends to another.
        temperature: of the softmax over classes; None keeps CLIP's own.

    Raises:
        BadInput: `n_ctx` is out of range.
    """
    return PromptMethod(Unified(clip, n=n_ctx, seq_axis=seq_axis), Cosine(temperature=temperature))


class Unified(nn.Module):
    """The latent prompt and its transformer; BadInput for more tokens than the text tower holds."""

    vision = True
    batching: Batching = "none"  # torch's attention has no rule for vmap

    def __init__(self, clip: Backbone, *, n: int, seq_axis: bool) -> None:
        super().__init__()
        width, room = clip.arch.text.width, clip.arch.context - FRAME
        if not 1 <= n <= room:
            raise BadInput(f"n is {n}; the text tower takes 1 to {room} context tokens")
        self.n, self.seq_axis = n, seq_axis
        self.latent = nn.Parameter(nn.init.normal_(torch.empty(2 * n, width), std=STD))
        self.attention = nn.MultiheadAttention(width, 1)
        self.norm_mixed, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed = MetaNet(width, width, width)
        self.to_vision = nn.Linear(width, clip.arch.vision.width)

    def forward(self, given: Given, x: Tensor | Features) -> Prompts:
        """Text (1, 1, 1, n, w) and vision (1, 1, n, w)."""
        u = self.latent.unsqueeze(0 if self.seq_axis else 1)  # (tokens, batch, w)
        mixed, _ = self.attention(u, u, u, need_weights=False)
        y = self.norm_mixed(u + mixed).view_as(self.latent)
        z = y + self.feed(self.norm(y))
        text, vision = z[: self.n], self.to_vision(z[self.n :])
        return Prompts(TextPrompts(text[None, None, None]), VisionPrompts(vision[None, None], "after_cls"))

    def extra_repr(self) -> str:
        """Tokens, and the quirk."""
        return f"n={self.n}, seq_axis={self.seq_axis}"

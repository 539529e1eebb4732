"""OTDPP as its numbers imply: shallow text prompts only, which is the one reading of 4,096 parameters that fits.

2 prompts x 4 tokens x 512 = 4,096 = 0.004752 % of CLIP's vision tower (86,192,640). So: FedOTP's architecture with four
context tokens and balanced transport. See `otdpp` for the method as the text describes it, and for the paper.

Departs from the paper: this file *is* a reading of it; publish both.
"""

from __future__ import annotations

from fedray.method import PromptMethod
from fedray.methods.otdpp import otdpp
from fedray.nn.backbone import Backbone

FIDELITY = "interpretation"
PROTOCOL = {
    "local.lr": 0.005,
    "local.batch": 8,
    "local.epochs": 1,
    "rounds": 100,
    "split.shots": 8,
    "partition.clients": 10,
    "partition.alpha": 0.1,
}
SPACE = {"local.lr": (0.0005, 0.05, "log"), "method.n_ctx": (2, 8), "method.eps": [0.01, 0.05, 0.1]}


def otdpp_inferred(
    clip: Backbone,
    *,
    n_ctx: int = 4,
    words: str | None = None,
    eps: float = 0.1,
    iters: int = 100,
    temperature: float | None = None,
) -> PromptMethod:
    """One global and one personal text prompt, balanced transport; options and errors (BadInput) as in `otdpp`."""
    return otdpp(clip, n_ctx=n_ctx, n_vision=0, depth=1, words=words, eps=eps, iters=iters, temperature=temperature)

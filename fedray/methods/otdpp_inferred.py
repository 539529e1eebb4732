"""OTDPP as its numbers imply: shallow text prompts only, which is the one reading of 4,096 parameters that fits.

2 prompts x 4 tokens x 512 = 4,096 = 0.004752 % of CLIP's vision tower (86,192,640). So: FedOTP's architecture with four
context tokens and balanced transport. See `otdpp` for the method as the text describes it, and for the paper.

Departs from the paper: this file *is* a reading of it; publish both.
"""

from __future__ import annotations

from fedray.method import PromptMethod
from fedray.methods.otdpp import otdpp
from fedray.nn.backbone import Backbone


def otdpp_inferred(
    clip: Backbone,
    *,
    n_ctx: int = 4,
    words: str | None = None,
    eps: float = 0.1,
    iters: int = 100,
    temperature: float | None = None,
) -> PromptMethod:
    """One global and one personal text prompt, balanced transport; options as in `otdpp`."""
    return otdpp(clip, n_ctx=n_ctx, n_vision=0, depth=1, words=words, eps=eps, iters=iters, temperature=temperature)

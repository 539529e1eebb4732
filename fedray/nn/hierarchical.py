"""Several views of an image against several prompts of a class, by transport on two levels (ALIGN).

    inner_vn = sum_jl T'_jl cos(r_j, s_l)        tokens r of view v, tokens s of prompt n; T' on cost 1 - cos
    paper      C_vn = 1 - cos(z_v, h_n) + beta (1 - inner_vn),   logit = s (1 - sum_vn T_vn C_vn)
    code       C_vn = 1 - cos(z_v, h_n) + beta inner_vn,         logit = s sum_vn T_vn cos(z_v, h_n)

Plans are balanced, entropic and constants for autograd, as all of `transport`. A view is the image as the tower sees it
beside one set of vision prompts: V views, N prompts, J = M + n tokens of a view. Wang et al., "Tuning Multi-mode
Token-level Prompt Alignment across Modalities", NeurIPS 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedray.errors import BadInput, did_you_mean
from fedray.nn.backbone import Backbone
from fedray.nn.heads import own_temperature
from fedray.nn.layout import lay
from fedray.nn.transport import LIMIT, TOLERANCE, check_options, matched, transport
from fedray.types import Features, Task, TextPrompts, VisionPrompts

Mode: TypeAlias = Literal["paper", "code"]

ROOM = 2**24  # token similarities at once: 64 MB for each of the few copies that a solver needs
FAR = 1e4  # cost of a token that takes no part: without mass anyway, but the solver's first step would feel it


class Hierarchical(nn.Module):
    """Prompt-level transport whose cost holds the outcome of token-level transport.

    Args:
        beta: weight of the token level; 0 leaves it out.
        eps: entropy weight on both levels, in units of 1 - cosine.
        iters: cap on the iterations of either solver.
        mode: "paper", or "code" where the token level only steers the plan of the prompt level.
        temperature: in logits per cosine, replaces 1 / CLIP's scale; above 0.

    Raises:
        BadInput: an option out of its range.
    """

    def __init__(
        self,
        *,
        beta: float = 1.0,
        eps: float = 0.1,
        iters: int = 100,
        mode: Mode = "paper",
        temperature: float | None = None,
    ) -> None:
        super().__init__()
        check_options(eps, "balanced", 1.0, iters, TOLERANCE, LIMIT, "problem")
        if not 0 <= beta < float("inf"):
            raise BadInput(f"beta is {beta}; it must be at least 0, where 0 leaves the tokens out")
        if mode not in get_args(Mode):
            raise BadInput(f"mode is {mode!r}. {did_you_mean(mode, get_args(Mode))}")
        self.beta, self.eps, self.iters, self.mode = beta, eps, iters, mode
        self.temperature = own_temperature(temperature)

    def forward(self, text: Features, image: Features, mask: Tensor, scale: Tensor) -> Tensor:
        """Compare text (N, C, d) and its tokens (N, C, L, d) with views (B, V, d) and theirs (B, V, J, d): (B, C).

        `mask` (N, C, L) is true where a text token takes part; `scale` is CLIP's.

        Raises:
            BadInput: features without tokens, or not finite.
            NotConverged: a plan misses its marginals by more than a tenth of its mass.
        """
        gain = _cosines(text.pooled.unsqueeze(2), image.pooled.unsqueeze(2))[..., 0, 0]  # (B, C, V, N)
        cost = 1 - gain
        if self.beta and self.mode == "paper":
            gain = gain - self.beta * (1 - self._inner(_tokens(text), _tokens(image), mask))
            cost = 1 - gain  # T has mass 1: sum T (1 - C) is 1 - sum T C
        elif self.beta:
            cost = cost + self.beta * self._inner(_tokens(text).detach(), _tokens(image).detach(), mask)
        s = scale if self.temperature is None else 1 / self.temperature
        return s * matched(self._solve(cost), gain)

    def _inner(self, text: Tensor, image: Tensor, mask: Tensor) -> Tensor:
        """Similarity under the token plans (B, C, V, N), a few images at a time: the problems are many."""
        mask = mask.transpose(0, 1).unsqueeze(1)  # (C, 1, N, L)
        weights = mask / mask.sum(-1, keepdim=True)
        size = max(1, ROOM // (image[0, ..., 0].numel() * text[..., 0].numel()))
        parts = []
        for some in image.split(size):
            sim = _cosines(text, some)
            cost = (1 - sim.detach()).masked_fill(~mask.unsqueeze(-2), FAR)
            parts.append(matched(self._solve(cost, weights), sim))
        return torch.cat(parts)

    def _solve(self, cost: Tensor, columns: Tensor | None = None) -> Tensor:
        solved = transport(cost, b=columns, eps=self.eps, iters=self.iters, tol=TOLERANCE, limit=LIMIT, ordered=False)
        return solved.plan


def encode_prompts(clip: Backbone, task: Task, prompts: Sequence[TextPrompts], mode: Mode) -> tuple[Features, Tensor]:
    """Sets of text prompts that may differ in their fixed words, side by side along N.

    Returns:
        Features (N, C, d) with tokens (N, C, L, d), and the mask (N, C, L) of tokens that take part: context, fixed
        words and name ("paper"); or from the start token on, as many as the first set has before its full stop
        ("code": a set with fewer fixed words shows its full stop and end token too).

    Raises:
        BadInput: prompts too long, too wide or too deep for the tower.
    """
    features = clip.encode_text(task, tuple(prompts), tokens=True)
    ends = torch.stack([lay(task, part, clip.arch.context).ends for part in prompts]).unsqueeze(-1)  # (sets, C, 1)
    place = torch.arange(_tokens(features).shape[2], device=ends.device)
    taken = (place > 0) & (place < ends - 1) if mode == "paper" else (place < ends[:1] - 1) & (place <= ends)
    counts = torch.tensor([len(part.tokens) for part in prompts], device=ends.device)
    return features, taken.repeat_interleave(counts, 0)


def encode_views(clip: Backbone, x: Tensor | Features, views: Tensor) -> Features:
    """Each image once beside each set of vision prompts (V, D, n, w): pooled (B, V, d), tokens (B, V, M + n, d).

    The prompts stand behind the patches, before the first layer norm; their own outputs are among the tokens, last.

    Raises:
        BadInput: stored features in place of pixels, or pixels of another size; prompts too wide or too deep.
    """
    count, each = len(views), x
    if not isinstance(x, Features):
        each = x.repeat_interleave(count, 0)  # an image's views lie together
        views = views.repeat(len(x), 1, 1, 1)
    out = clip.encode_image(each, VisionPrompts(views), tokens="all")
    return Features(out.pooled.unflatten(0, (-1, count)), _tokens(out)[:, 1:].unflatten(0, (-1, count)))


def _cosines(text: Tensor, image: Tensor) -> Tensor:
    """Cosines (B, C, V, N, J, L) of (N, C, L, d) and (B, V, J, d); a product per image, so no batch moves its bits."""
    (n, c, length, d), (b, v, j, _) = text.shape, image.shape
    rows = F.normalize(text, dim=-1).transpose(0, 1).reshape(c * n * length, d)
    sim = torch.bmm(rows.expand(b, -1, -1), F.normalize(image, dim=-1).reshape(b, v * j, d).mT)
    return sim.view(b, c, n, length, v, j).permute(0, 1, 4, 2, 5, 3)


def _tokens(features: Features) -> Tensor:
    if features.tokens is None:
        raise BadInput(
            "features have no tokens, which the token level compares; encode them with tokens, or set beta 0"
        )
    return features.tokens

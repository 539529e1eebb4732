"""From features to logits: how an image is compared with the prompts of each class.

    cosine      logit_c = s * mean_n <f, t_nc>                 f, t of unit length
    transport   logit_c = s * sum_mn T_mn <f_m, t_nc>          T: plan from M patches to N prompts, cost 1 - <f_m, t_nc>
    patches     logit_c = k * mean_n sum_m w_mnc (a <f_m, t_nc>),   w: softmax over m of a <f_m, t_nc>;   a 20, k 5
    dual        logit_c = k * sum_m w_mc (a <f_m, t+_c> - a <f_m, t-_c>),   w: of the positive half

Heads learn nothing. They compare in float32 at least, whatever the towers' precision: s is near 100, so that the three
digits of a bfloat16 cosine would blur the logits by 0.4.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedray.errors import BadInput
from fedray.nn.transport import LIMIT, TOLERANCE, Kind, Scope, check_options, matched, transport
from fedray.types import Features, Tokens

ROOM = 2**19  # cosines at once where no gradient is asked for: they stay in a CPU's cache until the logits are made
FEW = 64  # texts: fewer are the left factor of a product, for speed


class Head(Protocol):
    """Compares text with images; `tokens` says which of an image's tokens it wants to see."""

    tokens: Tokens

    def __call__(self, text: Features, image: Features, scale: Tensor) -> Tensor:
        """Logits (B, C)."""
        ...


class Cosine(nn.Module):
    """CLIP's own head; with several prompts per class the mean of their cosines.

    Args:
        temperature: in logits per cosine, replaces 1 / CLIP's scale; above 0.
    """

    tokens: Tokens = False

    def __init__(self, *, temperature: float | None = None) -> None:
        super().__init__()
        self.temperature = own_temperature(temperature)

    def forward(self, text: Features, image: Features, scale: Tensor) -> Tensor:
        """Compare text (N, C, d) with image (B, d): logits (B, C)."""
        return _scale(self.temperature, scale) * (_unit(image.pooled) @ _unit(text.pooled).mean(0).mT)


class PatchSoftmax(nn.Module):
    """Each class looks at the patches that fit it best: the head of multi-label papers (DualCoOp, FedMPT).

    With one prompt per class, or the mean over several. Logits are for a sigmoid, class by class.

    Args:
        sharpness: a, of the softmax over tokens.
        gain: k.
        temperature: in logits per cosine, replaces 1 / (a k); above 0.
        dual: read text (2, C, d) as [negative; positive] prompts; the logit is the difference of the two.
        tokens: "all" also looks at the class token and prompts' outputs, "patches" at patches alone.
    """

    multilabel = True

    def __init__(
        self,
        *,
        sharpness: float = 20.0,
        gain: float = 5.0,
        temperature: float | None = None,
        dual: bool = False,
        tokens: Tokens = "all",
    ) -> None:
        super().__init__()
        self.sharpness = sharpness
        own = own_temperature(temperature)
        self.gain = gain if own is None else 1 / (sharpness * own)
        self.dual, self.tokens = dual, tokens

    def forward(self, text: Features, image: Features, scale: Tensor) -> Tensor:
        """Compare text (N, C, d) with image tokens (B, M, d): logits (B, C). CLIP's scale plays no part.

        Raises:
            BadInput: image features without tokens, or a dual head without two prompts per class.
        """
        close = self.sharpness * _similarities(_unit(text.pooled), _unit(tokens_of(image)))  # (B, C, N, M)
        if not self.dual:
            return self.gain * (close.softmax(-1) * close).sum(-1).mean(-1)
        if close.shape[2] != 2:
            raise BadInput(f"{close.shape[2]} prompts per class, a dual head compares 2: negative, then positive")
        negative, positive = close.unbind(2)
        return self.gain * (positive.softmax(-1) * (positive - negative)).sum(-1)


class Transport(nn.Module):
    """Patches against prompts by entropic optimal transport (PLOT, FedOTP, OTDPP), the plan held fixed in the gradient.

    Balanced logits are s (1 - <T, C>), OTDPP Eq. 3. Partial ones are s (mass - <T, C>), not divided by the mass, as in
    FedOTP's code. A single prompt makes the balanced plan the mean over patches, and the partial one a soft choice of
    the patches that fit best (FedOTP's global view).

    Args:
        kind: "balanced", or "partial" where only `mass` of the patches has to be explained.
        eps: entropy weight in units of 1 - cosine.
        mass: moved by a partial plan, in (0, 1].
        iters: cap on iterations.
        tol: L1 error of the marginals at which a problem is finished, as a share of the mass.
        limit: error above which an unfinished plan raises NotConverged.
        scope: "problem", or "batch" for the reference codes' stop, which couples the images of a batch.
        temperature: in logits per cosine, replaces 1 / CLIP's scale; above 0.
    """

    tokens: Tokens = "patches"

    def __init__(
        self,
        *,
        kind: Kind = "balanced",
        eps: float = 0.1,
        mass: float = 1.0,
        iters: int = 100,
        tol: float = TOLERANCE,
        limit: float = LIMIT,
        scope: Scope = "problem",
        temperature: float | None = None,
    ) -> None:
        super().__init__()
        check_options(eps, kind, mass, iters, tol, limit, scope)  # at once, not in the first round
        self.kind, self.eps, self.mass, self.iters = kind, eps, mass, iters
        self.tol, self.limit, self.scope = tol, limit, scope
        self.temperature = own_temperature(temperature)

    def forward(self, text: Features, image: Features, scale: Tensor) -> Tensor:
        """Compare text (N, C, d) with image tokens (B, M, d): logits (B, C).

        Raises:
            BadInput: the image features come without tokens.
            NotConverged: a plan misses its marginals by more than `limit`.
        """
        rows, patches = _unit(text.pooled), tokens_of(image)
        few = len(patches)
        if not torch.is_grad_enabled() and self.scope == "problem":  # what a few images need stays in the cache
            few = ROOM // (patches.shape[1] * rows.shape[0] * rows.shape[1])
        parts = [self._compare(rows, some) for some in patches.split(max(1, few))]
        return _scale(self.temperature, scale) * (parts[0] if len(parts) == 1 else torch.cat(parts))

    def _compare(self, rows: Tensor, patches: Tensor) -> Tensor:
        """Cosines under the plan (B, C), of texts (N, C, d) of unit length and patches (B, M, d) of any."""
        n, c, d = rows.shape
        lengths = torch.linalg.vector_norm(patches, dim=-1, keepdim=True).clamp_min(1e-12)
        sim: Tensor = _Products.apply(patches, rows.reshape(n * c, d)) / lengths
        sim = sim.unflatten(-1, (n, c)).permute(0, 3, 1, 2)  # (B, C, M, N), the classes side by side in memory
        solved = transport(
            1 - sim,
            eps=self.eps,
            kind=self.kind,
            mass=self.mass,
            iters=self.iters,
            tol=self.tol,
            limit=self.limit,
            scope=self.scope,
            ordered=False,
        )
        return matched(solved.plan, sim)


class _Products(torch.autograd.Function):
    """Patches (B, M, d) times texts (R, d): (B, M, R), one product per image, so that no batch moves its bits.

    The gradient of the texts is one product over all images, not a sum of one for each.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(patches: Tensor, rows: Tensor) -> Tensor:
        if len(rows) < FEW:
            return torch.bmm(rows.expand(len(patches), -1, -1), patches.mT).mT
        return torch.bmm(patches, rows.mT.expand(len(patches), -1, -1))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        patches, rows = ctx.saved_tensors
        back = torch.matmul(grad, rows) if ctx.needs_input_grad[0] else None
        return back, grad.flatten(0, 1).mT @ patches.flatten(0, 1) if ctx.needs_input_grad[1] else None


def tokens_of(image: Features) -> Tensor:
    """An image's tokens (B, M, d), in float32 at least.

    Raises:
        BadInput: there are none.
    """
    if image.tokens is None:
        raise BadInput("image features have no tokens, which this head compares; encode or store them with tokens")
    return image.tokens.to(torch.promote_types(image.tokens.dtype, torch.float32))


def _similarities(text: Tensor, patches: Tensor) -> Tensor:
    """Make (B, C, N, M), a problem's patches side by side; one product per image, so that no batch moves its bits."""
    n, c, d = text.shape
    rows = text.transpose(0, 1).reshape(c * n, d)
    return torch.bmm(rows.expand(len(patches), -1, -1), patches.mT).reshape(len(patches), c, n, -1)


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


def _scale(temperature: float | None, scale: Tensor) -> Tensor | float:
    return scale if temperature is None else 1 / temperature


def own_temperature(value: float | None) -> float | None:
    """A head's own temperature, or None for CLIP's; BadInput unless it is above 0."""
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise BadInput(f"temperature is {value}; it must be above 0 (CLIP's own is about 0.01: leave it out)")
    return value

"""Several prompts per class, one for each condition n: patches m against classes c under each, then a mixture.

    c_nmc = a cos(v_m + A_n v_m, t_nc),  a = 20                    A_n: low rank, learned
    stable    S_m = M softmax_m(c / tau),  P = plan(1 - S; a, 1 / C),  w = C P,    psi_nc = k sum_m w c,  k = 5
    literal   S_m = softmax_m(cos / tau),  P = plan(1 - S; a, 1 / C),  psi_nc = sum_m P S, a probability   (Eqs. 7-10)
    a_nm      softmax_m(+-H_nm / tau),  H: entropy over the classes of softmax_c, of c / tau or of cos     (Eq. 8)
    gate      x_c = sum_n softmax_n(mean_m Omega v_m) psi_nc                                              (Eq. 11)
    spread    x_c = mean_n g_n (psi - mean_c psi) / std_c psi,  g = softmax_n(std_c psi / tau)     (released code)

One plan for each image and condition, a constant for autograd. FedMPT, sections 4.2 and 4.3.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedray.errors import BadInput, did_you_mean
from fedray.nn.heads import tokens_of
from fedray.nn.losses import check_temperature
from fedray.nn.lowrank import LowRank
from fedray.nn.multilabel import centred
from fedray.nn.transport import LIMIT, TOLERANCE, check_options, transport
from fedray.types import Features, Tokens

Form: TypeAlias = Literal["stable", "literal"]

SHARPNESS, GAIN = 20.0, 5.0


class Conditional(nn.Module):
    """FedMPT's head.

    Without transport each class looks at patches by a softmax, as `PatchSoftmax`; without a gate all conditions count
    alike.

    Args:
        width: d, of the features.
        conditions: N.
        form: "stable", or "literal" for the equations as printed, whose plan hardly differs from the outer product of
            its marginals.
        solve: transport patches to classes.
        rank: of the adapters; 0 leaves them out.
        residual: add an adapter's output to the patch; without, it takes the patch's place (Eq. 6).
        gate: rank of the gate; 0 leaves it out.
        tau: of the softmax over patches or classes where transport is.
        eps: the paper's lambda, entropy weight in units of the cost.
        sign: of the entropy in a: 1 favours patches that might show anything (Eq. 8), -1 the others, 0 none.
        iters: cap on the solver's iterations.
        centre: take off the mean over classes (see `multilabel`); the literal form has probabilities instead.

    Raises:
        BadInput: an option out of its range.
    """

    multilabel = True
    tokens: Tokens = "patches"

    def __init__(
        self,
        width: int,
        conditions: int,
        *,
        form: Form = "stable",
        solve: bool = True,
        rank: int = 32,
        residual: bool = True,
        gate: int = 32,
        tau: float = 4.0,
        eps: float = 0.2,
        sign: int = 1,
        iters: int = 100,
        centre: bool = True,
    ) -> None:
        super().__init__()
        check_options(eps, "balanced", 1.0, iters, TOLERANCE, LIMIT, "problem")
        if form not in get_args(Form):
            raise BadInput(f"form is {form!r}. {did_you_mean(form, get_args(Form))}")
        if form == "literal" and not solve:
            raise BadInput("form 'literal' is a way to transport; take form 'stable' without transport")
        if sign not in (-1, 0, 1):
            raise BadInput(f"the entropy's sign is {sign}; choose 1, -1, or 0 for patches that all count alike")
        check_temperature("tau", tau)
        self.form, self.solve, self.residual, self.centre = form, solve, residual, centre
        self.tau, self.eps, self.sign, self.iters = tau, eps, sign, iters
        self.adapters = LowRank(conditions, width, width, rank=rank, faint=residual) if rank else None
        self.gate = LowRank(1, width, conditions, rank=gate) if gate else None

    def forward(self, text: Features, image: Features, scale: Tensor) -> Tensor:
        """Compare text (N, C, d) with patches (B, M, d): logits (B, C). CLIP's scale plays no part.

        Raises:
            BadInput: image features without tokens.
            NotConverged: a plan misses its marginals by more than a tenth of its mass.
        """
        patches = tokens_of(image)
        seen = patches.unsqueeze(1)  # (B, 1, M, d)
        if self.adapters is not None:
            seen = seen + self.adapters(seen) if self.residual else self.adapters(seen)
        close = F.normalize(seen, dim=-1) @ F.normalize(text.pooled, dim=-1).mT  # (B, N, M, C)
        if self.form == "literal":
            shares = (close / self.tau).softmax(2)
            mixed = self._mix(patches, (self._plan(close, shares) * shares).sum(2))
            return torch.logit(mixed, 1e-9)  # so that a sigmoid gives the probability back
        close = SHARPNESS * close
        if self.solve:
            shares = close.shape[2] * (close.detach() / self.tau).softmax(2)
            plan = self._plan(close, shares)
            weights = plan / plan.sum(2, keepdim=True)
        else:
            weights = close.softmax(2)
        mixed = self._mix(patches, GAIN * (weights * close).sum(2))
        return centred(mixed) if self.centre else mixed

    def _plan(self, close: Tensor, shares: Tensor) -> Tensor:
        """Plans (B, N, M, C) of cost 1 - shares; the rows' masses follow each patch's entropy over the classes."""
        p = (close.detach() / (1 if self.form == "literal" else self.tau)).log_softmax(-1)
        masses = (self.sign * -(p.exp() * p).sum(-1) / self.tau).softmax(-1)  # (B, N, M)
        solved = transport(1 - shares, a=masses, eps=self.eps, iters=self.iters, tol=TOLERANCE, limit=LIMIT)
        return solved.plan

    def _mix(self, patches: Tensor, psi: Tensor) -> Tensor:
        """(B, N, C) to (B, C)."""
        if self.gate is None:
            return psi.mean(1)
        shares: Tensor = self.gate(patches.mean(1, keepdim=True).unsqueeze(1)).flatten(1).softmax(-1)  # (B, N)
        return (shares.unsqueeze(-1) * psi).sum(1)


class Spread(nn.Module):
    """The released code's head: under each condition z-scores over the classes, conditions that part them count more.

    Args:
        temperature: of the softmax over tokens and over conditions; above 0.
        token_norm: scale each of the d channels to unit length over the tokens, as the released code does by mistake,
            in place of each token.

    Raises:
        BadInput: a temperature not above 0.
    """

    multilabel = True
    tokens: Tokens = "all"

    def __init__(self, *, temperature: float = 1.0, token_norm: bool = False) -> None:
        super().__init__()
        check_temperature("tau", temperature)
        self.temperature, self.axis = temperature, 1 if token_norm else -1

    def forward(self, text: Features, image: Features, scale: Tensor) -> Tensor:
        """Compare text (N, C, d) with image tokens (B, T, d): logits (B, C). CLIP's scale plays no part.

        Raises:
            BadInput: image features without tokens, or a single class.
        """
        if text.pooled.shape[1] < 2:
            raise BadInput("one class has no spread, which this head divides by; give at least two")
        tokens = F.normalize(tokens_of(image), dim=self.axis).unsqueeze(1)
        close = SHARPNESS * tokens @ F.normalize(text.pooled, dim=-1).mT  # (B, N, T, C)
        psi = GAIN * ((close / self.temperature).softmax(2) * close).sum(2)
        spread = psi.std(-1, keepdim=True)
        shares = (spread / self.temperature).softmax(1)
        return (shares * (psi - psi.mean(-1, keepdim=True)) / (spread + 1e-5)).mean(1)

"""Optimal transport of M patches to N prompts: many small problems at once, one function, one result.

    T = argmin_T <T, C> + eps sum T log T    with  T 1 = a (balanced) or T 1 <= a (partial)   and   T' 1 = b

Sinkhorn's alternation: u <- a / K v (partial: min(a / K v, 1)), v <- b / K'u, T = diag(u) K diag(v), K = exp(-C / eps).
The plan is a constant for autograd. By the envelope theorem d/dC min <T, C> + eps sum T log T = T, so that <T, C> with
T held fixed has the gradient of the regularised optimum, which is how PLOT, FedOTP and their kin train.
Cuturi, "Sinkhorn Distances", NeurIPS 2013; with inequalities Li et al., "Global and Local Prompts Cooperation via
Optimal Transport for Federated Learning" (FedOTP), CVPR 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.library import custom_op

from fedray.errors import BadInput
from fedray.nn.sinkhorn import alternate
from fedray.nn.solvers import WIDE, Stop, fill, fold, newton, room, spread

Kind: TypeAlias = Literal["balanced", "partial"]
Scope: TypeAlias = Literal["problem", "batch"]

TOLERANCE, LIMIT = 1e-3, 0.1  # of the marginals, for heads: a plan is finished, is refused
MOST = 1_000_000  # iterations, whatever a file of strangers says
CACHE = 2**19  # numbers that are iterated on at once on a CPU: they stay in its last-level cache


class Plan(NamedTuple):
    """Solved problems."""

    plan: Tensor  # (..., m, n) at least float32, detached
    error: Tensor  # (...,) L1 distance from the marginals that were asked for, as a share of the transported mass
    iterations: int  # of the slowest problem


class NotConverged(ArithmeticError):
    """A plan is too far from its marginals to be used."""


def transport(
    cost: Tensor,
    *,
    a: Tensor | None = None,
    b: Tensor | None = None,
    eps: float = 0.1,
    kind: Kind = "balanced",
    mass: float = 1.0,
    iters: int = 100,
    tol: float = 1e-3,
    limit: float | None = None,
    scope: Scope = "problem",
    ordered: bool = True,
) -> Plan:
    """Solve entropic optimal transport for each (m, n) cost, in float32 at least.

    Sinkhorn in stabilised form: potentials stay in logs, and a few plain iterations run between two re-centrings, so
    that any `eps` is safe. Balanced problems with two columns have a dual in one unknown, solved by Newton's method.
    A problem's plan has the same bits in whatever batch it comes (on CPU, with `scope="problem"`).

    Args:
        cost: (..., m, n) finite.
        a: (..., m) row masses, uniform with sum 1 by default: equalities when balanced, upper bounds when partial.
        b: (..., n) column masses, equalities; uniform by default. Partial: scaled so that their sum is `mass`.
        eps: entropy weight in units of the cost; 0 would be the unregularised plan, infinity the outer product.
        kind: "balanced", or "partial": FedOTP's COT, which moves `mass` and leaves the worst of the rows behind.
        mass: moved by a partial plan, in (0, 1]; no more than sum a. With `mass` = sum a the plan is the balanced one.
        iters: cap on iterations (the alternation makes at least 2).
        tol: a problem is finished when its error is at most this share of its mass.
        limit: error above which an unfinished plan is refused; `tol` by default, so that 100 iterations are either
            enough or an error. Papers take what 100 iterations give: the heads allow more.
        scope: "problem" stops each problem alone. "batch" stops all when their mean error is at most `tol`, and
            refuses by the mean, as reference code stops (with another statistic); it couples the samples of a batch.
        ordered: lay the plan out in memory in the same way whatever the batch, for a caller whose sums shall not depend
            on it; `matched` needs no such copy.

    Raises:
        BadInput: an argument out of its range, NaN or Inf in the cost, masses that cannot be moved.
        NotConverged: the error after `iters` iterations is above `limit`.
    """
    check_options(eps, kind, mass, iters, tol, limit, scope)
    if cost.dim() < 2 or 0 in cost.shape[-2:]:
        raise BadInput(
            f"cost has shape {tuple(cost.shape)}; it must be (..., m, n) with at least one row and one column"
        )
    cost = cost.detach().to(torch.promote_types(cost.dtype, torch.float32))
    m, n = cost.shape[-2:]
    given = a is not None or b is not None
    a = cost.new_full((1,), 1 / m) if a is None else _masses("a", a, m, cost)
    b = cost.new_full((n,), 1 / n) if b is None else _masses("b", b, n, cost)
    try:
        np.broadcast_shapes(cost.shape[:-2], a.shape[:-1], b.shape[:-1])
    except ValueError:
        shapes = f"cost {tuple(cost.shape)}, a {tuple(a.shape)} and b {tuple(b.shape)}"
        raise BadInput(f"the leading axes of {shapes} do not fit; make them equal or 1") from None
    options = eps, kind == "partial", mass, iters, tol, tol if limit is None else limit, scope == "batch"
    plan, error, used = _solve(cost, a, b, given, *options)
    return Plan(plan.mT.contiguous().mT if ordered else plan, error, used)


def matched(plan: Tensor, gain: Tensor) -> Tensor:
    """Sum over m and n of plan * gain, both (..., m, n), the plan held fixed; the same bits in whatever batch."""
    total: Tensor = _Matched.apply(plan, gain)
    return total


class _Matched(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(plan: Tensor, gain: Tensor) -> Tensor:
        return fold(fold(plan * gain, -1), -1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        (plan,) = ctx.saved_tensors
        return None, grad[..., None, None] * plan


def check_options(eps: float, kind: str, mass: float, iters: int, tol: float, limit: float | None, scope: str) -> None:
    """Refuse options out of their range, for whoever takes them before there is a cost.

    Raises:
        BadInput: names the option, its value and its range.
    """
    if not (eps > 0 and math.isfinite(eps)):
        raise BadInput(f"eps is {eps}; it must be above 0 (papers use 0.01 to 0.1)")
    if kind not in ("balanced", "partial"):
        raise BadInput(f"kind is {kind!r}; choose balanced or partial")
    if not 0 < mass <= 1:
        raise BadInput(f"mass is {mass}; it must be in (0, 1]")
    if kind == "balanced" and mass != 1:
        raise BadInput(f"mass is {mass}, but a balanced plan moves everything; use kind='partial' or mass=1")
    if iters < 1:
        raise BadInput(f"iters is {iters}; it must be at least 1")
    if iters > MOST:
        raise BadInput(f"iters is {iters}; it must be at most {MOST}, where an eps that needs more is too small")
    if not 0 < tol < 1:
        raise BadInput(f"tol is {tol}; it must be in (0, 1), a share of the mass")
    if limit is not None and not tol <= limit:
        raise BadInput(f"limit is {limit}; it must be at least tol={tol}")
    if scope not in ("problem", "batch"):
        raise BadInput(f"scope is {scope!r}; choose problem or batch")


def _masses(name: str, given: Tensor, size: int, cost: Tensor) -> Tensor:
    if given.dim() < 1 or given.shape[-1] != size:
        raise BadInput(
            f"{name} has shape {tuple(given.shape)}; its last axis must be {size} for cost {tuple(cost.shape)}"
        )
    return given.detach().to(cost)


@custom_op("fedray::transport", mutates_args=())
def _solve(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    given: bool,
    eps: float,
    partial: bool,
    mass: float,
    iters: int,
    tol: float,
    limit: float,
    batch: bool,
) -> tuple[Tensor, Tensor, int]:
    """Solve the problems; opaque to autograd and vmap, for it looks at values to know when to stop."""
    m, n = cost.shape[-2:]
    if not bool(cost.sum().isfinite()) and (bad := int((~cost.isfinite()).sum())):
        raise BadInput(f"{bad} of {cost.numel()} costs are NaN or Inf; look for what made the features so")
    b = _scaled(a, b, m, partial, mass) if given else b * mass  # uniform masses need no look at them
    lead = np.broadcast_shapes(cost.shape[:-2], a.shape[:-1], b.shape[:-1])
    plan, columns = _room(cost, lead, partial), cost.expand(*lead, m, n).movedim((-1, -2), (0, 1))
    logk, p = plan.view(n, m, *lead), math.prod(lead)  # which the plan replaces
    if n == 2 and not partial:
        torch.sub(columns[0], columns[1], out=logk[1]).mul_(1 / eps)  # all that Newton's method needs
    else:
        torch.mul(columns, -1 / eps, out=logk)
    a, b = _masses_last(a, lead), _masses_last(b, lead)
    error, used = cost.new_empty(p), 0
    parts = 1 if batch or plan.is_cuda else math.ceil(m * n * p / CACHE)
    chunk = max(1, math.ceil(p / max(1, parts)))
    for i in range(0, p, chunk):
        part, rows, sums = (x if x.shape[-1] == 1 else x[..., i : i + chunk] for x in (plan, a, b))
        error[i : i + chunk], its = _by_columns(part, rows, sums, partial, Stop(iters, tol, batch))
        used = max(used, its)
    off = error.mean(0, keepdim=True) if batch else error
    if p and not bool((off <= limit).all()):
        missed = f"{int((~(off <= limit)).sum())} of {off.numel()} transport plans miss their marginals"
        worst = f"L1 error up to {float(off.max()):.1e} of the mass, limit {limit:g}"
        raise NotConverged(
            f"{missed} after {used} iterations with eps={eps:g} ({worst}); raise eps or iters, or the limit"
        )
    return plan.view(n, m, *lead).movedim((0, 1), (-1, -2)), error.view(lead), used


@_solve.register_vmap
def _mapped(
    info: Any, dims: tuple[int | None, ...], cost: Tensor, a: Tensor, b: Tensor, *options: Any
) -> tuple[tuple[Tensor, Tensor, int], tuple[int, int, None]]:
    """The mapped axis is one more leading axis; a batch that stops together stays one batch per index."""
    given = list(zip((cost, a, b), dims[:3], (2, 1, 1), strict=True))
    if options[-1]:
        each = [[x if dim is None else x.select(dim, k) for x, dim, _ in given] for k in range(info.batch_size)]
        plans, errors, used = zip(*(_solve(*one, *options) for one in each), strict=True)
        return (torch.stack(plans), torch.stack(errors), max(used)), (0, 0, None)
    rank = max(x.dim() - (dim is not None) - own for x, dim, own in given)
    problems = []
    for x, dim, own in given:
        if dim is not None:
            x = x.movedim(dim, 0)
            x = x[(slice(None), *(None,) * (rank + own + 1 - x.dim()))]
        problems.append(x)
    return _solve(*problems, *options), (0, 0, None)


def _by_columns(logk: Tensor, a: Tensor, b: Tensor, partial: bool, stop: Stop) -> tuple[Tensor, int]:
    """Solve by what suits the number of columns."""
    if logk.shape[0] == 1 and not partial:
        return spread(logk, a)
    if logk.shape[0] == 1 and not stop.batch:  # a batch's stop is for who wants the references' iterates
        return fill(logk, a, b, stop)
    if logk.shape[0] == 2 and not partial:
        return newton(logk, a, b, stop)
    return alternate(logk, a, b, partial, stop)


def _room(cost: Tensor, lead: Sequence[int], partial: bool) -> Tensor:
    """Make an empty plan (n, m, P): problems beside each other where they come so, or where that is worth a copy."""
    m, n = cost.shape[-2:]
    p, alternates = math.prod(lead), n > (1 if partial else 2)
    came = cost.dim() > 2 and cost.stride(-3) == 1  # as in a product with texts
    return room(n, m, p, cost, beside=p >= WIDE and (came or alternates))


def _masses_last(x: Tensor, lead: Sequence[int]) -> Tensor:
    """(..., m) as (m, P), or (m, 1) where all problems have the same."""
    if math.prod(x.shape[:-1]) == 1:
        return x.reshape(-1, 1)
    return x.expand(*lead, x.shape[-1]).movedim(-1, 0).reshape(x.shape[-1], -1)


def _scaled(a: Tensor, b: Tensor, m: int, partial: bool, mass: float) -> Tensor:
    """Scale the columns' masses to what m rows move; BadInput where they can't."""
    rows, columns = a.sum(-1) * (m // a.shape[-1]), b.sum(-1)
    for name, x, total in (("a", a, rows), ("b", b, columns)):
        if x.numel() and not (bool(x.amin() >= 0) and bool(total.isfinite().all())):
            raise BadInput(
                f"{name} has masses below 0, NaN or Inf, the smallest {float(x.amin()):g}; masses must be >= 0"
            )
        if not bool((total > 0).all()):
            raise BadInput(f"{name} has a sum of 0; give at least one mass above 0")
    if partial:
        return b * (rows.clamp(max=mass) / columns).unsqueeze(-1)
    if rows.numel() and (gap := float(((rows - columns).abs() / rows).max())) > 1e-4:
        raise BadInput(f"sums of a and b differ by {gap:.1e} of their size; make them equal or use kind='partial'")
    return b * (rows / columns).unsqueeze(-1)

"""Optimal transport of M patches to N prompts: many small problems at once, one function, one result.

    T = argmin_T <T, C> + eps sum T log T    with  T 1 = a (balanced) or T 1 <= a (partial)   and   T' 1 = b

Sinkhorn's alternation: u <- a / K v (partial: min(a / K v, 1)), v <- b / K'u, T = diag(u) K diag(v), K = exp(-C / eps).
The plan is a constant for autograd. By the envelope theorem d/dC min <T, C> + eps sum T log T = T, so that <T, C> with
T held fixed has the gradient of the regularised optimum, which is how PLOT, FedOTP and their kin train.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.library import custom_op

from fedray.errors import BadInput

Kind: TypeAlias = Literal["balanced", "partial"]
Scope: TypeAlias = Literal["problem", "batch"]

TOLERANCE, LIMIT = 1e-3, 0.1  # of the marginals, for heads: a plan is finished, is refused
BLOCK = 5  # iterations between two looks at the error (each look waits for the device)
CACHE = 2**18  # numbers that are iterated on at once on a CPU: they stay in its second-level cache


class Plan(NamedTuple):
    """Solved problems."""

    plan: Tensor  # (..., m, n) at least float32, detached
    error: Tensor  # (...) L1 distance from the marginals that were asked for, as a share of the transported mass
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
    a = cost.new_full((m,), 1 / m) if a is None else _masses("a", a, m, cost)
    b = cost.new_full((n,), 1 / n) if b is None else _masses("b", b, n, cost)
    try:
        lead = np.broadcast_shapes(cost.shape[:-2], a.shape[:-1], b.shape[:-1])
    except ValueError:
        shapes = f"cost {tuple(cost.shape)}, a {tuple(a.shape)} and b {tuple(b.shape)}"
        raise BadInput(f"the leading axes of {shapes} do not fit; make them equal or 1") from None
    problems = cost.expand(*lead, m, n), a.expand(*lead, m), b.expand(*lead, n)
    refuse = tol if limit is None else limit
    return Plan(*_solve(*problems, eps, kind == "partial", mass, iters, tol, refuse, scope == "batch"))


def check_options(eps: float, kind: str, mass: float, iters: int, tol: float, limit: float | None, scope: str) -> None:
    """Refuse options out of their range, for whoever takes them before there is a cost."""
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
    eps: float,
    partial: bool,
    mass: float,
    iters: int,
    tol: float,
    limit: float,
    batch: bool,
) -> tuple[Tensor, Tensor, int]:
    """Solve the problems; opaque to autograd and vmap, for it looks at values to know when to stop."""
    *lead, m, n = cost.shape
    cost, a, b = cost.reshape(-1, m, n), a.reshape(-1, m), b.reshape(-1, n)
    a, b = _check_values(cost, a, b, partial, mass)
    logk = (cost.mT / -eps).contiguous()  # (P, n, m): a problem's rows lie together, whatever is beside it
    chunk = max(1, len(logk) if batch or logk.is_cuda else CACHE // (m * n))
    solved = []
    for i in range(0, max(1, len(logk)), chunk):
        part = (logk[i : i + chunk], a[i : i + chunk], b[i : i + chunk])
        newton = n == 2 and not partial
        solved.append(_newton(*part, iters, tol, batch) if newton else _alternate(*part, partial, iters, tol, batch))
    plan, error, used = torch.cat([x[0] for x in solved]), torch.cat([x[1] for x in solved]), max(x[2] for x in solved)
    off = error.mean(0, keepdim=True) if batch else error
    if error.numel() and not bool((off <= limit).all()):
        missed = f"{int((~(off <= limit)).sum())} of {off.numel()} transport plans miss their marginals"
        worst = f"L1 error up to {float(off.max()):.1e} of the mass, limit {limit:g}"
        raise NotConverged(
            f"{missed} after {used} iterations with eps={eps:g} ({worst}); raise eps or iters, or the limit"
        )
    return plan.mT.reshape(*lead, m, n), error.reshape(lead), used


@_solve.register_vmap
def _mapped(
    info: Any, dims: tuple[int | None, ...], cost: Tensor, a: Tensor, b: Tensor, *options: Any
) -> tuple[tuple[Tensor, Tensor, int], tuple[int, int, None]]:
    """The mapped axis is one more leading axis; a batch that stops together stays one batch per index."""
    problems = [
        x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip((cost, a, b), dims, strict=False)
    ]
    if not options[-1]:
        return _solve(*problems, *options), (0, 0, None)
    plans, errors, used = zip(*(_solve(*one, *options) for one in zip(*problems, strict=True)), strict=True)
    return (torch.stack(plans), torch.stack(errors), max(used)), (0, 0, None)


def _check_values(cost: Tensor, a: Tensor, b: Tensor, partial: bool, mass: float) -> tuple[Tensor, Tensor]:
    if not bool(cost.sum().isfinite()) and (bad := int((~cost.isfinite()).sum())):
        raise BadInput(f"{bad} of {cost.numel()} costs are NaN or Inf; look for what made the features so")
    rows, columns = a.sum(-1), b.sum(-1)
    for name, x, total in (("a", a, rows), ("b", b, columns)):
        if x.numel() and not (bool(x.amin() >= 0) and bool(total.isfinite().all())):
            raise BadInput(
                f"{name} has masses below 0, NaN or Inf, the smallest {float(x.amin()):g}; masses must be >= 0"
            )
        if not bool((total > 0).all()):
            raise BadInput(f"{name} has a sum of 0; give at least one mass above 0")
    if partial:
        return a, b * (rows.clamp(max=mass) / columns).unsqueeze(-1)
    if rows.numel() and (gap := float(((rows - columns).abs() / rows).max())) > 1e-4:
        raise BadInput(f"sums of a and b differ by {gap:.1e} of their size; make them equal or use kind='partial'")
    return a, b * (rows / columns).unsqueeze(-1)


def _fold(x: Tensor) -> Tensor:
    """Sum over axis 1 by halves: elementwise only, so fast where that axis is short and the same for every problem."""
    while (n := x.shape[1]) > 1:
        half = x[:, : n // 2] + x[:, n // 2 : 2 * (n // 2)]
        x = half if n % 2 == 0 else torch.cat([half, x[:, -1:]], 1)
    return x


def _alternate(
    logk: Tensor, a: Tensor, b: Tensor, partial: bool, iters: int, tol: float, batch: bool
) -> tuple[Tensor, Tensor, int]:
    """Sinkhorn's alternation, ending on the columns: their sums are exact, `error` is that of the rows.

    After an exact column update, v changes by at most 1 / min(a) per iteration: a block of plain iterations on a kernel
    whose rows have maximum 1 can't overflow, and the entries it rounds to 0 are below 1e-25 of their row.
    """
    logu = a.log() - _logsum_columns(logk)
    if partial:
        logu = logu.clamp(max=0)
    logv = b.log() - (logk + logu.unsqueeze(1)).logsumexp(-1)  # the first iteration, where anything may underflow
    plan, error, used = torch.empty_like(logk), torch.empty_like(a[:, 0]), 1
    tiny, total = 1e-30, b.sum(-1)
    live = torch.arange(len(logk), device=logk.device)
    while live.numel():
        steps = min(BLOCK, max(iters - used, 1))
        kernel, rows, columns = logk[live] + logv[live].unsqueeze(-1), a[live].unsqueeze(1), b[live]
        top = kernel.amax(1, keepdim=True)
        kernel = kernel.sub_(top).exp_()
        cap = top.exp() if partial else top.new_full((), math.inf)  # u <= 1 in the units of this kernel
        v = torch.ones_like(columns)
        for _ in range(steps):
            u = torch.minimum(rows / _fold(kernel * v.unsqueeze(-1)), cap)
            v = (columns / (kernel * u).sum(-1).clamp_min(tiny)).clamp(max=1 / tiny)
        used += steps
        kernel *= v.unsqueeze(-1)
        sums = _fold(kernel)
        off = ((u - torch.minimum(rows / sums, cap)).abs() * sums).sum((1, 2)) / total[live]
        plan[live], error[live], logv[live] = kernel * u, off, logv[live] + v.log()
        live = _unfinished(live, off, tol, batch) if used < iters else live[:0]
    return plan, error, used


def _logsum_columns(x: Tensor) -> Tensor:
    top = x.amax(1, keepdim=True)
    return (_fold((x - top).exp()).log() + top).squeeze(1)


def _unfinished(live: Tensor, off: Tensor, tol: float, batch: bool) -> Tensor:
    """The problems that go on; those left out keep what they have, so others can't touch their bits."""
    if batch:
        return live[:0] if bool(off.mean() <= tol) else live
    return live[~(off <= tol)]


def _newton(logk: Tensor, a: Tensor, b: Tensor, iters: int, tol: float, batch: bool) -> tuple[Tensor, Tensor, int]:
    """Balanced, two columns: one dual unknown y with sum_m a_m tanh(z_m + y) = b_1 - b_0, z = log(K_1 / K_0) / 2.

    Newton inside a bracket that always holds the root, bisection where a step would leave it. z carries y, and the
    bracket is kept relative to it: at small eps y itself is too large for float32. Rows are exact, `error` is columns'.
    """
    total = b.sum(-1, keepdim=True)
    goal = (b[:, 1:] - b[:, :1]) / total
    edge = goal.clamp(-1 + torch.finfo(goal.dtype).eps, 1 - torch.finfo(goal.dtype).eps).atanh()
    share, z = a / total, (logk[:, 1] - logk[:, 0]) / 2
    y = edge - (share * z).sum(-1, keepdim=True)
    low, high = edge - z.amax(-1, keepdim=True) - y, edge - z.amin(-1, keepdim=True) - y
    z = z + y
    plan, error, used = torch.empty_like(logk), torch.empty_like(a[:, 0]), 0
    live = torch.arange(len(logk), device=logk.device)
    while live.numel():
        steps = min(BLOCK - 1, iters - used)
        for _ in range(steps):
            t = z.tanh()
            part = share * t
            value, slope = part.sum(-1, keepdim=True) - goal, 1 - (part * t).sum(-1, keepdim=True)
            low, high = low.where(value > 0, low.clamp(min=0)), high.where(value < 0, high.clamp(max=0))
            step = -value / slope
            step = step.where((step > low) & (step < high), (low + high) / 2)  # also where slope is 0
            z, low, high = z + step, low - step, high - step
        used += steps
        t = z.tanh()
        off = ((share * t).sum(-1, keepdim=True) - goal).abs().squeeze(-1)
        plan[live] = torch.stack([1 - t, 1 + t], 1) * (share * total / 2).unsqueeze(1)
        error[live] = off
        on = ~(off <= tol) if not batch else (off.mean() > tol).expand_as(off)
        live = live[on] if used < iters else live[:0]
        z, low, high, share, goal, total = z[on], low[on], high[on], share[on], goal[on], total[on]
    return plan, error, used

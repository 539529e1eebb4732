"""Many small transport problems at once: how they lie in memory, and those that have one unknown.

m rows, n columns, P problems, told apart by the last axis: logk = -cost / eps (n, m, P), masses a (m, P) and b (n, P).
Where all rows weigh the same a is (1, P), and the last axis of either is 1 where all problems have the same masses.
Solvers put the plans in the place of `logk`, and return the errors (P) and the iterations of the slowest problem.

Each pass is elementwise and each sum is folded by halves: a problem's plan has the same bits in whatever company,
memory order and number of threads. What is kept of a problem is its few unknowns: one that is finished may be iterated
on beside others, and its plan is made of the unknowns with which it finished.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 5  # iterations between two looks at the error (each look waits for the device)
WIDE = 128  # problems from which on they may lie beside each other in memory; fewer: each one's rows do
SLACK = 1e-3  # by which rounding may carry a step out of its bracket
FAR = 10.0  # what a block moves where it has to be helped by bisection, in logs
REACH = 30.0  # how far Newton's unknown moves, in logs, before exponentials are taken anew


class Stop(NamedTuple):
    """When to stop."""

    iters: int  # at most
    tol: float  # error, as a share of the mass
    batch: bool  # all problems together, by their mean error

    def unfinished(self, off: Tensor) -> Tensor:
        """Which problems go on, by their errors (P)."""
        return ~(off <= self.tol) if not self.batch else (~(off.mean() <= self.tol)).expand_as(off)


def room(n: int, m: int, p: int, like: Tensor, *, beside: bool) -> Tensor:
    """Make an empty (n, m, p): the problems beside each other in memory, or each one's rows together."""
    return like.new_empty(n, m, p) if beside else like.new_empty(p, n, m).permute(1, 2, 0)


def room_for(n: int, like: Tensor) -> Tensor:
    """Make an empty (n, m, P), in the memory order of `like` (..., m, P)."""
    m, p = like.shape[-2:]
    return room(n, m, p, like, beside=like.stride(-1) == 1)


def folder(x: Tensor, dim: int) -> Callable[[], Tensor]:
    """Prepare the sum over an axis of `x`, of any shape, by halves and in place, for as often as x is filled anew."""
    pairs, n = [], x.shape[dim]
    while n > 1:
        pairs.append((x.narrow(dim, 0, n // 2), x.narrow(dim, n - n // 2, n // 2)))
        n -= n // 2
    first = x.select(dim, 0)

    def fold() -> Tensor:
        for into, other in pairs:
            into.add_(other)
        return first

    return fold


def fold(x: Tensor, dim: int) -> Tensor:
    """Sum over an axis of `x`, of any shape, which is spent."""
    return folder(x, dim)()


def logsum(x: Tensor, dim: int) -> Tensor:
    """Logarithm of the sum of exponentials over an axis of `x`, of any shape, which is spent."""
    top = x.amax(dim, keepdim=True)
    return fold(x.sub_(top).exp_(), dim).log() + top.squeeze(dim)


def pick(x: Tensor, which: Tensor) -> Tensor:
    """Some of the problems (..., P), by their places (Q): (..., Q), or what is the same for all (..., 1) as it is."""
    if x.shape[-1] == 1:
        return x
    if x.dim() < 2 or len(which) >= WIDE:
        return x.index_select(-1, which)
    return x.movedim(-1, 0).index_select(0, which).movedim(0, -1)


def spread(logk: Tensor, a: Tensor) -> tuple[Tensor, int]:
    """Balanced, one column: each row's mass (m, P) into logk (1, m, P)."""
    logk[0] = a
    return torch.zeros_like(logk[0, 0]), 1


def fill(logk: Tensor, a: Tensor, b: Tensor, stop: Stop) -> tuple[Tensor, int]:
    """Partial, one column: rows (m, P) fill up to min(a_m, exp(x_m)), x = logk + y, with the y that makes their sum b.

    Newton on the sum, which is concave in exp(y) and of pieces, inside a bracket: from below it never oversteps and
    is exact once the full rows are known. At small eps it would fill a row a step: then every other block bisects.
    """
    x, goal, used = logk[0] + (b[0].log() - logsum(logk[0] + 0, 0)), b[0], 0
    part, both = torch.empty_like(x), room_for(2, x)
    sums, none, off = folder(both, 1), x.new_zeros(()), torch.zeros_like(x[0])
    low, high, on = torch.zeros_like(off), (a.log() - x).amax(0), torch.ones_like(off, dtype=torch.bool)
    while True:
        kernel, y, steps = x.exp(), torch.zeros_like(off), min(BLOCK - 1, stop.iters - used)
        for i in range(steps + 1):
            torch.mul(kernel, y.exp(), out=part)
            torch.where(part < a, part, none, out=both[1])
            torch.minimum(part, a, out=both[0])
            if i == steps:
                logk[0] = both[0].where(on, logk[0])  # a finished plan stays, to the bit
            whole, loose = sums()
            low, high = low.where(whole > goal, none), high.where(whole < goal, none)
            if i < steps:
                step = ((goal - whole + loose) / loose).log()
                step = step.where((step > low - SLACK) & (step < high + SLACK), (low + high) / 2)
                step = (y + step).clamp(-REACH, REACH) - y
                y, low, high = y + step, low - step, high - step
        off, used = (whole / goal - 1).abs().where(on, off), used + steps
        on &= stop.unfinished(off)
        if used == stop.iters or not bool(on.any()):
            return off, used
        hop = ((low + high) / 2).where(y.abs() > FAR, none)
        x, low, high = x + (y + hop), low - hop, high - hop


def newton(plan: Tensor, a: Tensor, b: Tensor, stop: Stop) -> tuple[Tensor, int]:
    """Balanced, two columns (2, m, P): one unknown y with sum_m a_m / (1 + exp(d_m + y)) = b_0, d = log(K_1 / K_0).

    d is what `plan` has in place of its column 1, and column 0 is empty. Newton inside a bracket that always holds the
    root, bisection where a step would leave it. d carries y, and the bracket is kept relative to it: at small eps y
    itself is too large for float32. Rows are exact, `error` is columns'.
    """
    total, tiny, d = b.sum(0), torch.finfo(plan.dtype).eps, plan[1]
    share, goal, edge = a / total, b[0] / total, (b[1] / total).clamp(tiny, 1 - tiny).logit()
    y = edge - (fold(d.clone(), 0) * share[0] if len(share) == 1 else fold(d * share, 0))
    low, high = edge - d.amax(0) - y, edge - d.amin(0) - y
    d += y
    error, live, used = torch.empty_like(y), torch.arange(len(y), device=y.device), 0
    while True:
        steps = min(BLOCK - 1, stop.iters - used)
        q, value, slope, moved, low, high = _descend(d, share, goal, low, high, steps)
        used, off = used + steps, 2 * value.abs()
        error[live] = off
        on = stop.unfinished(off).nonzero().squeeze(-1)
        if len(on) and used < stop.iters:  # before the plan takes the place of d
            step, low, high = _step(value, slope, low, high)  # of any length: the exponentials follow
            d, low, high = pick(d + (moved + step), on), (low - step)[on], (high - step)[on]
        if len(live) == len(error):
            torch.sub(a, torch.mul(q, a, out=plan[0]), out=plan[1])
        else:
            plan.index_copy_(-1, live, torch.stack([q * a, a - q * a]))
        if used == stop.iters or not len(on):
            return error, used
        used, live = used + 1, live[on]
        a, share, goal = pick(a, on), pick(share, on), pick(goal, on)


def _descend(
    d: Tensor, share: Tensor, goal: Tensor, low: Tensor, high: Tensor, steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Take some steps, of at most REACH in all, on exponentials that are taken once; fewer where all are at the root.

    Then the share of each row that column 0 gets, by how much their sum misses the goal and its slope there, how far y
    moved, and the bracket as seen from there.
    """
    e, both, none = d.exp(), room_for(2, d), torch.zeros_like(low)
    q, sums, moved, there = torch.empty_like(e), folder(both, 1), none, 8 * torch.finfo(d.dtype).eps
    for i in range(steps + 1):
        back = (-moved).exp()
        torch.div(back, torch.add(e, back, out=q), out=q)  # 1 / (1 + exp(d + moved)), where e may be infinite
        torch.mul(q, share if len(share) > 1 else 1, out=both[0])
        torch.mul(q, both[0], out=both[1])
        one, two = sums() if len(share) > 1 else sums() * share
        value, slope = goal - one, two - one
        off = value.abs() > there
        if i == steps or not (d.is_cuda or bool(off.any())):
            break
        step, low, high = _step(value, slope, low, high)
        step = ((moved + step).clamp(-REACH, REACH) - moved).where(off, none)  # rounding moves nobody
        moved, low, high = moved + step, low - step, high - step
    return q, value, slope, moved, low, high


def _step(value: Tensor, slope: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Newton's step, or to the middle of the bracket, where that would leave it; and the bracket, narrower by here."""
    none, step = torch.zeros_like(low), value / slope
    low, high = low.where(value > 0, none), high.where(value < 0, none)
    return step.where((step > low) & (step < high), (low + high) / 2), low, high  # the middle also where slope is 0

"""Sinkhorn's alternation for many small problems at once; shapes and promises as in `solvers`.

u <- a / K v (partial: min(a / K v, 1)), v <- b / K'u, and in the end T = diag(u) K diag(v).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fedray.nn.solvers import BLOCK, REACH, Stop, fold, folder, logsum, pick, room_for

FEW = 0.5  # share of problems that go on, below which they are copied to a place of their own
TAME = 40.0  # range of logk up to which a kernel times two factors stays within float32
TINY = 1e-30


class _Buffers(NamedTuple):
    """What iterations write to, made once."""

    work: Tensor  # (n, m, P)
    u: Tensor  # (m, P)
    rows: Callable[[], Tensor]  # the sums of `work` over columns (m, P)
    columns: Callable[[], Tensor]  # over rows (n, P)


def _buffers(like: Tensor) -> _Buffers:
    work, u = room_for(len(like), like), room_for(1, like)[0]
    return _Buffers(work, u, folder(work, 0), folder(work, 1))


class _Group(NamedTuple):
    """Problems that are iterated on beside each other."""

    source: Tensor  # (n, m, P) the kernel; logk where the kernel is made anew for each block
    a: Tensor
    b: Tensor
    base: Tensor  # (n, P) logarithms of the columns' factors that a new kernel holds
    v: Tensor  # (n, P) the columns' other factors
    place: Tensor  # (P) among all problems

    def some(self, which: Tensor) -> _Group:
        """Copy a few to a place of their own."""
        return _Group(*(pick(x, which) for x in self))


def alternate(logk: Tensor, a: Tensor, b: Tensor, partial: bool, stop: Stop) -> tuple[Tensor, int]:
    """Sinkhorn's alternation on logk (n, m, P), ending on the columns: their sums are exact, `error` (P) is the rows'.

    A kernel of a small range is exponentiated once: no factor leaves float32 then. Other problems keep their factors
    as logarithms, and run a block of plain iterations between two re-centrings.
    """
    top, void = logk.amax((0, 1)), b == 0  # columns without mass may lie as far away as they like
    low = (logk.masked_fill(void.unsqueeze(1), torch.inf) if bool(void.any()) else logk).amin((0, 1))
    tame = top - low <= TAME
    if partial:
        tame &= top <= TAME
    if (same := bool(tame.all())) or stop.batch or not bool(tame.any()):
        return _alternate(logk, a, b, top if same else None, partial, stop)
    error, used = torch.empty_like(top), 0
    for some, range_ in ((tame, top), (~tame, None)):
        which = some.nonzero().squeeze(-1)
        part = pick(logk, which)
        masses = pick(a, which), pick(b, which)
        error[which], its = _alternate(part, *masses, None if range_ is None else range_[which], partial, stop)
        logk.index_copy_(-1, which, part)
        used = max(used, its)
    return error, used


def _alternate(logk: Tensor, a: Tensor, b: Tensor, top: Tensor | None, partial: bool, stop: Stop) -> tuple[Tensor, int]:
    """Problems of one sort: tame where `top` has their largest logk."""
    n, _, p = logk.shape
    cap, into, used = logk.new_ones(()) if partial else None, _buffers(logk), 1
    group = whole = _start(logk, a, b, top, cap, into)
    kept, error = logk.new_empty(3, n, p), logk.new_empty(p)
    on = torch.ones(p, dtype=torch.bool, device=logk.device)
    while True:
        kernel, cap = _kernel(group, top is None, cap)
        v = group.v
        for _ in range(steps := min(BLOCK, max(stop.iters - used, 1))):
            before, v = v, _columns(kernel, _rows(kernel, group.a, v, cap, into), group.b, into)
        used, off = used + steps, _gap(kernel, group.a, v, cap, into) / group.b.sum(0)
        which = on.nonzero().squeeze(-1)
        together = len(which) == p
        kept[..., group.place[which]] = torch.stack([group.base, before, v])[..., which]
        error[group.place[which]] = off[which]
        on &= stop.unfinished(off)
        if used >= stop.iters or not (going := int(on.sum())):
            break
        group = group._replace(v=v) if top is not None else group._replace(base=group.base + v.log())
        if going < FEW * len(on):
            group, on = group.some(on.nonzero().squeeze(-1)), on[on]
            into = _buffers(group.source)
    u, (base, before, v) = into.u, kept
    if not together:
        kernel, cap = _kernel(whole._replace(base=base), top is None, cap)
        u = _rows(kernel, a, before, cap, _buffers(logk) if len(on) < p else into)
    torch.mul(kernel, v.unsqueeze(1), out=logk).mul_(u)
    return error, used


def _start(logk: Tensor, a: Tensor, b: Tensor, top: Tensor | None, cap: Tensor | None, into: _Buffers) -> _Group:
    """The first iteration, from factors 1; in logarithms where anything may underflow."""
    n, _, p = logk.shape
    none, place = logk.new_zeros(n, p), torch.arange(p, device=logk.device)
    if top is None:
        logu = a.log() - logsum(logk + 0, 0)
        logu = logu if cap is None else logu.clamp(max=0)
        return _Group(logk, a, b, b.log() - logsum(logk + logu, 1), torch.ones_like(none), place)
    kernel = (logk - top).exp_()
    v = none + (1 if cap is None else top.clamp(min=-REACH).exp())
    return _Group(kernel, a, b, none, _columns(kernel, _rows(kernel, a, v, cap, into), b, into), place)


def _kernel(group: _Group, wild: bool, cap: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The kernel of a block, and the most that a row's factor may be in its units.

    After an exact column update, v changes by at most 1 / min(a) per iteration: a block of plain iterations on a kernel
    whose rows have maximum 1 can't overflow, and the entries it rounds to 0 are below 1e-25 of their row.
    """
    if not wild:
        return group.source, cap
    kernel = group.source + group.base.unsqueeze(1)
    top = kernel.amax(0)
    return kernel.sub_(top).exp_(), None if cap is None else top.exp_()


def _rows(kernel: Tensor, a: Tensor, v: Tensor, cap: Tensor | None, into: _Buffers) -> Tensor:
    """Rows' factors u = min(a / K v, cap)."""
    torch.mul(kernel, v.unsqueeze(1), out=into.work)
    u = torch.div(a, into.rows(), out=into.u)
    return u if cap is None else torch.minimum(u, cap, out=u)


def _columns(kernel: Tensor, u: Tensor, b: Tensor, into: _Buffers) -> Tensor:
    """Columns' factors v = b / K'u."""
    torch.mul(kernel, u, out=into.work)
    return (b / into.columns().clamp_min(TINY)).clamp_(max=1 / TINY)


def _gap(kernel: Tensor, a: Tensor, v: Tensor, cap: Tensor | None, into: _Buffers) -> Tensor:
    """By how much the rows' sums are off, now that the columns' are right (P)."""
    torch.mul(kernel, v.unsqueeze(1), out=into.work)
    sums = into.rows()
    u = a / sums if cap is None else torch.minimum(a / sums, cap)
    return fold(u.sub_(into.u).abs_().mul_(sums), 0)

"""How far clients pull apart: each client's update beside the mean update of its round.

    u_k = theta_k - theta as sent to k,   m = mean_k u_k        cosine_k = <u_k, m> / |u_k| |m|,   norm_k = |u_k|

The rows of a round are few however many clients it has: `drift/cosine` and `drift/norm` are means over clients, with
``_std`` how clients differ. m holds u_k itself: K updates that have nothing in common are at 1 / sqrt(K), not at 0.
Of a large cohort `MOST` clients are looked at, evenly over their numbers, so that the cost is bounded too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedray.types import GLOBAL, Job, Result, Row

if TYPE_CHECKING:
    from torch import Tensor

MOST = 64
TOGETHER = 1 << 17
"""Numbers that are looked at together, so that they stay in a processor's cache; further sums are in float64."""


def drift(round: int, jobs: Sequence[Job], results: Sequence[Result]) -> list[Row]:
    """Rows of a round; none where fewer than two clients sent anything, and no cosine where nobody moved.

    Args:
        round: its number.
        jobs: what was sent, to at least those of the results.
        results: good ones alone, see `checks`; clients ascending.
    """
    some = [results[i] for i in sorted({*np.linspace(0, len(results) - 1, min(MOST, len(results))).astype(int)})]
    names = [name for name, value in some[0].shared.items() if value.is_floating_point()] if len(some) > 1 else []
    if not names:
        return []
    sent = {job.client: job.shared for job in jobs}
    dots, squares, mean = np.zeros(len(some)), np.zeros(len(some)), 0.0
    for name in names:
        ends, starts = [r.shared[name] for r in some], [sent[r.client][name] for r in some]
        if all(start is starts[0] for start in starts):  # nearly every server sends all the same
            starts = starts[:1]
        after, before, step = _flat(ends), _flat(starts), max(1, TOGETHER // len(some))
        for at in range(0, len(after[0]), step):
            moved = _part(after, at, step)  # (K, step)
            moved -= _part(before, at, step)
            m = moved.sum(0) / len(some)
            dots += np.einsum("kp,p->k", moved, m)  # not by BLAS, whose sums depend on the number of threads
            squares += np.einsum("kp,kp->k", moved, moved)
            mean += float(np.einsum("p,p->", m, m))
    norms = np.sqrt(squares)
    cosines = dots[norms > 0] / norms[norms > 0] / np.sqrt(mean) if mean > 0 else norms[:0]
    return [
        Row(round, GLOBAL, f"drift/{name}{end}", float(value), len(values))
        for name, values in (("cosine", cosines), ("norm", norms))
        if len(values)
        for end, value in (("", values.mean()), ("_std", values.std()))
    ]


def _flat(values: Sequence[Tensor]) -> list[NDArray[Any]]:
    """All numbers of each in a row, without a copy where numpy knows their type."""
    import torch

    known = values[0].dtype is not torch.bfloat16
    return [(value if known else value.float()).numpy().reshape(-1) for value in values]


def _part(rows: Sequence[NDArray[Any]], at: int, step: int) -> NDArray[Any]:
    """Some columns of all, (K, step)."""
    return np.stack([row[at : at + step] for row in rows])

"""Case 22: plans over the whole range of settings, with inputs that are wrong: the plan, or an error; nothing else."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import ot
import pytest
import torch
from torch import Tensor

from fedray.errors import BadInput
from fedray.nn.transport import NotConverged, transport

pytestmark = [pytest.mark.chaos, pytest.mark.filterwarnings("ignore")]
Tally = Callable[[str, str, int, int], None]
EPS = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
DTYPES = (torch.bfloat16, torch.float32, torch.float64)
PATCHES, PROMPTS = 49, 4


def cost(m: int, n: int, dtype: torch.dtype) -> Tensor:
    """Cosine distances, as heads have them."""
    draw = torch.Generator().manual_seed(22)
    return (1 - 0.25 * torch.rand(m, n, generator=draw, dtype=torch.float64)).to(dtype)


def holds(c: Tensor, eps: float, b: Tensor) -> bool:
    """Within 1e-3 of its marginals and 1e-4 of POT's plan in float64, or refused; never negative, never all zero."""
    a = torch.full((len(c),), 1 / len(c), dtype=torch.float64)
    try:
        plan = transport(
            c, b=b.to(torch.promote_types(c.dtype, torch.float32)), eps=eps, tol=1e-4, iters=2000
        ).plan.double()
    except NotConverged:
        return True
    off = (plan.sum(1) - a).abs().sum() + (plan.sum(0) - b).abs().sum()
    if not bool(plan.isfinite().all()) or float(plan.min()) < 0 or float(off) > 1e-3 or float(plan.sum()) < 0.5:
        return False
    if eps < 1e-2:  # where POT itself needs more than a test's time, the plan's cost is compared with the exact one
        least = ot.emd2(a.numpy(), b.numpy(), c.double().numpy())
        return float((plan * c.double()).sum()) <= least + eps * float(np.log(plan.numel())) + 1e-3
    theirs = ot.sinkhorn(
        a.numpy(), b.numpy(), c.double().numpy(), eps, method="sinkhorn_log", numItermax=5000, stopThr=1e-9
    )
    return float((plan - torch.from_numpy(theirs)).abs().max()) <= 1e-4


def refused(c: Tensor, eps: float, b: Tensor | None = None) -> bool:
    """A mistake of the caller's, told as one."""
    try:
        transport(c, b=b, eps=eps)
    except BadInput as error:
        return "\n" not in str(error)
    return False


@pytest.mark.parametrize("kind", ["NaN", "Inf", "zero mass", "sum not 1", "one prompt", "one patch"])
def test_every_setting(kind: str, tally: Tally) -> None:
    passed, tried = 0, list(product(EPS, DTYPES))
    uniform = torch.full((PROMPTS,), 1 / PROMPTS, dtype=torch.float64)
    for eps, dtype in tried:
        c = cost(PATCHES, PROMPTS, dtype)
        if kind == "NaN" or kind == "Inf":
            c[3, 1] = float(kind)
            passed += refused(c, eps)
        elif kind == "zero mass":
            b = torch.tensor([0.5, 0.0, 0.25, 0.25], dtype=torch.float64)
            passed += holds(c, eps, b)
        elif kind == "sum not 1":
            passed += refused(c, eps, (0.7 * uniform).to(torch.promote_types(dtype, torch.float32)))
        elif kind == "one prompt":
            passed += holds(c[:, :1], eps, torch.ones(1, dtype=torch.float64))
        else:
            passed += holds(c[:1], eps, uniform)
    tally("22", f"transport: {kind}", len(tried), passed)


def test_ordinary_costs(tally: Tally) -> None:
    """The oracle itself, on what heads really solve."""
    passed, tried = 0, list(product(EPS, DTYPES))
    uniform = torch.full((PROMPTS,), 1 / PROMPTS, dtype=torch.float64)
    for eps, dtype in tried:
        passed += holds(cost(PATCHES, PROMPTS, dtype), eps, uniform)
    tally("22", "transport: ordinary costs", len(tried), passed)

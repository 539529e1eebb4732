"""Plans against POT in float64, a plain-domain loop, a linear programme, and what must hold of any plan."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedray.errors import BadInput
from fedray.nn import sinkhorn
from fedray.nn import transport as module
from fedray.nn.transport import NotConverged, matched, transport


def costs(*shape: int, seed: int = 0, spread: float = 0.25, dtype: torch.dtype = torch.float64) -> Tensor:
    """Cosine costs as of CLIP: around 1, in [0, 2]."""
    draw = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (1 - draw * spread).clamp(0, 2).to(dtype)


def plain_partial(cost: Tensor, a: Tensor, b: Tensor, eps: float, iters: int) -> Tensor:
    """FedOTP's alternation as its code writes it, in float64."""
    kernel, v = (-cost / eps).exp(), torch.ones_like(b)
    for _ in range(iters):
        u = (a / (kernel @ v)).clamp(max=1)
        v = b / (kernel.mT @ u)
    return u[:, None] * kernel * v


class TestOracles:
    @pytest.mark.parametrize(("n", "eps"), [(1, 0.1), (2, 0.1), (2, 0.02), (3, 0.1), (5, 0.05)])
    def test_balanced_is_pots_plan(self, n: int, eps: float) -> None:
        ot = pytest.importorskip("ot")
        cost = costs(3, 20, n)
        a = torch.full((20,), 1 / 20, dtype=torch.float64)
        b = torch.full((n,), 1 / n, dtype=torch.float64)
        solved = transport(cost, eps=eps, iters=20_000, tol=1e-11)
        for c, plan in zip(cost, solved.plan, strict=True):
            options = {"method": "sinkhorn_log", "numItermax": 100_000, "stopThr": 1e-13}
            expected = ot.sinkhorn(a.numpy(), b.numpy(), c.numpy(), eps, **options)
            np.testing.assert_allclose(plan.numpy(), expected, atol=1e-9)

    def test_balanced_with_given_masses_is_pots_plan(self) -> None:
        ot = pytest.importorskip("ot")
        a = torch.tensor([0.5, 0.0, 0.3, 0.2], dtype=torch.float64)
        for b in ([0.9, 0.1], [0.2, 0.5, 0.3]):
            columns = torch.tensor(b, dtype=torch.float64)
            cost = costs(4, len(b))
            plan = transport(cost, a=a, b=columns, eps=0.2, iters=5000, tol=1e-12).plan
            options = {"method": "sinkhorn_log", "numItermax": 100_000, "stopThr": 1e-14}
            kept = a > 0
            expected = ot.sinkhorn(a[kept].numpy(), columns.numpy(), cost[kept].numpy(), 0.2, **options)
            np.testing.assert_allclose(plan[kept].numpy(), expected, atol=1e-9)
            assert plan[1].abs().max() == 0

    @pytest.mark.parametrize(
        ("n", "eps", "iters"), [(1, 0.1, 100), (2, 0.1, 16), (2, 0.05, 100), (4, 0.1, 37), (2, 1, 3)]
    )
    def test_partial_follows_the_references_iterates(self, n: int, eps: float, iters: int) -> None:
        cost = costs(5, 30, n)
        a = torch.full((30,), 1 / 30, dtype=torch.float64)
        b = torch.full((n,), 0.8 / n, dtype=torch.float64)
        scope = "batch" if n == 1 else "problem"  # else one column is solved in one unknown
        solved = transport(cost, kind="partial", mass=0.8, eps=eps, iters=iters, tol=1e-15, limit=1, scope=scope)
        for c, plan in zip(cost, solved.plan, strict=True):
            torch.testing.assert_close(plan, plain_partial(c, a, b, eps, iters), atol=1e-12, rtol=1e-9)

    @pytest.mark.parametrize(("eps", "spread"), [(1.0, 0.25), (0.1, 0.25), (0.05, 0.1)])
    def test_one_partial_column_is_the_references_limit(self, eps: float, spread: float) -> None:
        cost = costs(5, 30, 1, spread=spread)
        a, b = (torch.full((n,), mass, dtype=torch.float64) for n, mass in ((30, 1 / 30), (1, 0.6)))
        solved = transport(cost, kind="partial", mass=0.6, eps=eps, tol=1e-12)
        assert solved.iterations < 30
        for c, plan in zip(cost, solved.plan, strict=True):
            torch.testing.assert_close(plan, plain_partial(c, a, b, eps, 3000), atol=1e-10, rtol=0)

    def test_partial_tends_to_the_linear_programme(self) -> None:
        ot = pytest.importorskip("ot")
        cost = costs(12, 3)
        plan = transport(cost, kind="partial", mass=0.5, eps=0.004, iters=50_000, tol=1e-6).plan
        rest = np.concatenate([cost.numpy(), np.zeros((12, 1))], 1)  # the mass left behind goes to a free column
        exact = ot.emd(np.full(12, 1 / 12), np.array([0.5 / 3] * 3 + [0.5]), rest)[:, :3]
        assert float((plan * cost).sum()) == pytest.approx(float((exact * cost.numpy()).sum()), abs=2e-3)
        np.testing.assert_allclose(plan.numpy(), exact, atol=0.01)

    def test_partial_with_all_mass_is_balanced(self) -> None:
        cost = costs(4, 10, 3)
        plan, same = (transport(cost, kind=kind, iters=3000, tol=1e-10).plan for kind in ("partial", "balanced"))
        torch.testing.assert_close(plan, same)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_newton_is_sinkhorn_on_two_columns(self, dtype: torch.dtype) -> None:
        """A third column without mass sends the same problem through the alternation."""
        cost = costs(50, 49, 2, dtype=dtype)
        fast = transport(cost, eps=0.05)
        wide = torch.cat([cost, torch.ones_like(cost[..., :1])], -1)
        slow = transport(wide, b=torch.tensor([0.5, 0.5, 0.0]), eps=0.05, iters=2000, tol=1e-6)
        torch.testing.assert_close(fast.plan, slow.plan[..., :2], atol=1e-6, rtol=0)
        assert slow.plan[..., 2].abs().max() == 0
        assert fast.iterations < slow.iterations


class TestProperties:
    @settings(max_examples=60, deadline=None)
    @given(
        m=st.integers(1, 40),
        n=st.integers(1, 6),
        eps=st.floats(0.05, 2),
        mass=st.floats(0.1, 1),
        partial=st.booleans(),
        seed=st.integers(0, 2**30),
    )
    def test_a_plan_has_its_marginals(self, m: int, n: int, eps: float, mass: float, partial: bool, seed: int) -> None:
        mass, kind = (mass, "partial") if partial else (1.0, "balanced")
        solved = transport(costs(3, m, n, seed=seed), eps=eps, kind=kind, mass=mass, iters=3000)
        plan, slack = solved.plan, 1.01e-3 * mass
        assert bool((plan >= 0).all())
        rows, columns = plan.sum(-1), plan.sum(-2)
        assert bool(((columns - mass / n).abs().sum(-1) <= slack).all())
        over = (rows - 1 / m).clamp(min=0) if partial else (rows - 1 / m).abs()
        assert bool((over.sum(-1) <= slack).all())

    @settings(max_examples=30, deadline=None)
    @given(n=st.integers(1, 5), partial=st.booleans(), seed=st.integers(0, 2**30))
    def test_permuting_patches_and_prompts_permutes_the_plan(self, n: int, partial: bool, seed: int) -> None:
        cost, draw = costs(15, n, seed=seed), torch.Generator().manual_seed(seed)
        rows, columns = torch.randperm(15, generator=draw), torch.randperm(n, generator=draw)
        options = {"kind": "partial", "mass": 0.7} if partial else {}
        plan = transport(cost, iters=5000, tol=1e-10, **options).plan
        moved = transport(cost[rows][:, columns], iters=5000, tol=1e-10, **options).plan
        torch.testing.assert_close(moved, plan[rows][:, columns], atol=1e-9, rtol=0)

    def test_partial_plan_is_optimal(self) -> None:
        """KKT: T = u K v with u <= 1, and rows that are not full have u = 1."""
        cost = costs(25, 3)
        plan = transport(cost, kind="partial", mass=0.6, eps=0.1, iters=20_000, tol=1e-10).plan
        ratio = plan / (-cost / 0.1).exp()  # u_m v_n
        u = ratio[:, 0] / ratio[:, 0].max()
        torch.testing.assert_close(ratio, u[:, None] * ratio.max(0).values)
        full = plan.sum(-1) > 1 / 25 - 1e-8
        assert full.any()
        assert not full.all()
        torch.testing.assert_close(u[~full], torch.ones_like(u[~full]))

    def test_small_eps_tends_to_the_assignment(self) -> None:
        scipy = pytest.importorskip("scipy.optimize")
        cost = costs(5, 5, seed=3)
        plan = transport(cost, eps=0.005, iters=20_000).plan
        best = np.zeros((5, 5))
        best[scipy.linear_sum_assignment(cost.numpy())] = 1 / 5
        np.testing.assert_allclose(plan.numpy(), best, atol=2e-3)

    def test_large_eps_tends_to_the_outer_product(self) -> None:
        for n in (2, 3):
            plan = transport(costs(7, n), eps=1e6).plan
            torch.testing.assert_close(plan, torch.full_like(plan, 1 / (7 * n)), atol=1e-6, rtol=0)

    def test_one_patch_and_one_prompt(self) -> None:
        for m, n in ((1, 1), (1, 2), (1, 3), (9, 1)):
            plan = transport(costs(2, m, n)).plan
            torch.testing.assert_close(plan, torch.full_like(plan, 1 / (m * n)))
        solved = transport(costs(2, 9, 1), kind="partial", mass=0.5, iters=2000, tol=1e-9)
        torch.testing.assert_close(solved.plan.sum((1, 2)), torch.full((2,), 0.5, dtype=torch.float64))

    def test_leading_axes_broadcast_and_may_be_empty(self) -> None:
        cost, b = costs(3, 6, 2), torch.tensor([[0.5, 0.5], [0.1, 0.9]], dtype=torch.float64)
        solved = transport(cost[:, None], b=b)
        assert solved.plan.shape == (3, 2, 6, 2)
        assert solved.error.shape == (3, 2)
        torch.testing.assert_close(solved.plan[1, 1], transport(cost[1], b=b[1]).plan)
        assert transport(cost[:0]).plan.shape == (0, 6, 2)
        assert transport(cost[:0], scope="batch").plan.shape == (0, 6, 2)


class TestNeverSilentlyWrong:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
    @pytest.mark.parametrize("kind", ["balanced", "partial"])
    def test_every_eps_gives_the_marginals_or_an_error(self, dtype: torch.dtype, kind: str) -> None:
        mass, raised = 0.8 if kind == "partial" else 1.0, 0
        for eps, m, n in product((1e-4, 1e-3, 1e-2, 0.1, 1), (1, 49), (1, 2, 4)):
            cost = costs(4, m, n, dtype=dtype)
            try:
                solved = transport(cost, eps=eps, kind=kind, mass=mass)
            except NotConverged:
                raised += 1
                continue
            assert solved.plan.dtype == torch.promote_types(dtype, torch.float32)
            moved = solved.plan.double().sum((1, 2))
            torch.testing.assert_close(moved, torch.full_like(moved, mass), atol=1e-3, rtol=0)
            rows = solved.plan.double().sum(-1) - 1 / m
            assert bool(((rows.clamp(min=0) if kind == "partial" else rows.abs()).sum(-1) <= 1.01e-3).all())
        assert raised < 30

    @pytest.mark.parametrize("eps", [1e-4, 1e-3, 1e-2, 0.1, 1])
    @pytest.mark.parametrize("spread", [0.02, 0.25, 1.0])
    def test_two_balanced_columns_always_converge_in_float32(self, eps: float, spread: float) -> None:
        cost = costs(200, 196, 2, spread=spread, dtype=torch.float32)
        assert float(transport(cost, eps=eps).error.max()) <= 1e-3

    @pytest.mark.parametrize("eps", [1e-4, 1e-3, 1e-2, 0.1, 1])
    @pytest.mark.parametrize("spread", [0.02, 0.25, 1.0])
    @pytest.mark.parametrize("mass", [0.01, 0.8, 1.0])
    def test_one_partial_column_always_converges_in_float32(self, eps: float, spread: float, mass: float) -> None:
        cost = costs(200, 196, 1, spread=spread, dtype=torch.float32)
        solved = transport(cost, eps=eps, kind="partial", mass=mass)
        torch.testing.assert_close(solved.plan.sum((1, 2)), torch.full((200,), mass), atol=1e-3 * mass, rtol=0)
        assert float(solved.plan.max()) <= 1 / 196

    @pytest.mark.parametrize(("kind", "mass"), [("balanced", 1.0), ("partial", 0.8)])
    @pytest.mark.parametrize("n", [2, 3])
    def test_plain_kernels_are_the_logarithms(
        self, kind: str, mass: float, n: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A kernel of a small range is iterated on as it is; made to take the other way, a problem ends the same."""
        cost = torch.cat([costs(20, 49, n, dtype=torch.float32), 1000 + costs(3, 49, n, dtype=torch.float32)])
        plain = transport(cost, kind=kind, mass=mass, limit=1)
        monkeypatch.setattr(sinkhorn, "TAME", -1.0)
        logs = transport(cost, kind=kind, mass=mass, limit=1)
        assert logs.iterations == plain.iterations
        torch.testing.assert_close(logs.plan, plain.plan, atol=1e-7, rtol=1e-4)

    def test_not_converged_says_what_helps(self) -> None:
        with pytest.raises(NotConverged) as caught:
            transport(costs(8, 49, 3), eps=0.002, iters=20)
        text = str(caught.value)
        assert "of 8 transport plans miss their marginals after 20 iterations with eps=0.002" in text
        assert text.endswith("raise eps or iters, or the limit")

    def test_limit_lets_a_rough_plan_pass(self) -> None:
        solved = transport(costs(8, 49, 3), eps=0.002, iters=20, limit=1)
        assert 1e-3 < float(solved.error.max()) < 1
        torch.testing.assert_close(solved.plan.sum((1, 2)), torch.ones(8, dtype=torch.float64))

    def test_error_is_the_distance_of_the_rows(self) -> None:
        solved = transport(costs(8, 49, 3), eps=0.005, iters=10, limit=1)
        torch.testing.assert_close(solved.error, (solved.plan.sum(-1) - 1 / 49).abs().sum(-1))

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"eps": 0.0}, "eps is 0.0; it must be above 0"),
            ({"eps": -1.0}, "eps is -1.0; it must be above 0"),
            ({"eps": math.nan}, "eps is nan; it must be above 0"),
            ({"kind": "exakt"}, "kind is 'exakt'; choose balanced or partial"),
            ({"kind": "partial", "mass": 0.0}, r"mass is 0.0; it must be in \(0, 1\]"),
            ({"kind": "partial", "mass": 1.5}, r"mass is 1.5; it must be in \(0, 1\]"),
            ({"mass": 0.5}, "mass is 0.5, but a balanced plan moves everything; use kind='partial'"),
            ({"iters": 0}, "iters is 0; it must be at least 1"),
            ({"iters": 10**9}, "iters is 1000000000; it must be at most 1000000, where an eps that needs more is too"),
            ({"tol": 0.0}, r"tol is 0.0; it must be in \(0, 1\)"),
            ({"limit": 1e-9}, "limit is 1e-09; it must be at least tol=0.001"),
            ({"scope": "all"}, "scope is 'all'; choose problem or batch"),
            ({"cost": torch.ones(3)}, r"cost has shape \(3,\); it must be"),
            ({"cost": torch.ones(3, 0)}, r"cost has shape \(3, 0\); it must be"),
            ({"cost": torch.tensor([[1.0, math.nan], [math.inf, 0.0]])}, "2 of 4 costs are NaN or Inf"),
            ({"a": torch.ones(3)}, r"a has shape \(3,\); its last axis must be 4"),
            ({"a": torch.ones(7, 4), "cost": torch.ones(2, 4, 2)}, "the leading axes of cost .* do not fit"),
            ({"a": torch.tensor([1.0, 1.0, -1.0, 0.0])}, "a has masses below 0, NaN or Inf, the smallest -1"),
            ({"b": torch.tensor([1.0, math.nan])}, "b has masses below 0, NaN or Inf"),
            ({"b": torch.zeros(2)}, "b has a sum of 0; give at least one mass above 0"),
            ({"b": torch.ones(2)}, "sums of a and b differ by 1.0e[+]00 of their size; make them equal"),
        ],
    )
    def test_bad_input_is_named(self, change: dict[str, object], text: str) -> None:
        with pytest.raises(BadInput, match=text):
            transport(**({"cost": torch.ones(4, 2)} | change))


class TestBatching:
    @pytest.mark.parametrize(("kind", "n", "eps"), list(product(["balanced", "partial"], [1, 2, 3, 4], [0.1, 0.03])))
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_problem_has_the_same_bits_in_any_company(
        self, kind: str, n: int, eps: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spreads = torch.linspace(0.02, 0.5, 37, dtype=torch.float64)[:, None, None]  # easy and hard ones side by side
        cost = (1 - (1 - costs(37, 49, n)) * 4 * spreads).to(dtype)
        options = {"kind": kind, "eps": eps, "mass": 0.8 if kind == "partial" else 1.0, "limit": 1}
        plan = transport(cost, **options).plan
        draw = torch.Generator().manual_seed(0)
        for pick in ([5], [36], list(range(3, 20)), torch.randperm(37, generator=draw).tolist()):
            assert torch.equal(transport(cost[pick], **options).plan, plan[pick])
        monkeypatch.setattr(module, "CACHE", 1)  # one problem at a time
        assert torch.equal(transport(cost, **options).plan, plan)
        monkeypatch.undo()
        monkeypatch.setattr(module, "WIDE", 2)  # problems beside each other in memory, not each one's rows together
        assert torch.equal(transport(cost.movedim(0, -1).contiguous().movedim(-1, 0), **options).plan, plan)
        assert torch.equal(transport(cost.mT.contiguous().mT, **options).plan, plan)

    def test_an_ordered_plan_has_one_order(self) -> None:
        cost = costs(9, 3, module.WIDE, dtype=torch.float32).movedim(-1, 0)  # as in a product with texts
        assert {transport(cost[:p].clone()).plan.stride()[1:] for p in (1, 5, module.WIDE)} == {(1, 9)}
        assert transport(cost, ordered=False).plan.stride(0) == 1
        assert torch.equal(transport(cost, ordered=False).plan, transport(cost).plan)

    def test_matched_has_the_same_bits_in_any_company(self) -> None:
        cost, gain = (costs(49, 3, 300, seed=k, dtype=torch.float32).movedim(-1, 0) for k in range(2))
        whole = matched(transport(cost, ordered=False).plan, gain)
        assert torch.equal(matched(transport(cost).plan, gain), whole)
        for pick in ([5], list(range(3, 20))):
            assert torch.equal(matched(transport(cost[pick], ordered=False).plan, gain[pick]), whole[pick])
        torch.testing.assert_close(whole, (transport(cost).plan * gain).sum((1, 2)))

    def test_scope_batch_stops_by_the_mean(self) -> None:
        cost = torch.cat([costs(20, 49, 3, spread=0.01), costs(1, 49, 3, spread=0.5)])
        together = transport(cost, eps=0.05, scope="batch")
        alone = transport(cost, eps=0.05, iters=1000)
        assert float(together.error.mean()) <= 1e-3 < float(together.error.max())
        assert together.iterations < alone.iterations

    @pytest.mark.parametrize("scope", ["problem", "batch"])
    @pytest.mark.parametrize("n", [2, 3])
    def test_vmap_is_the_loop(self, scope: str, n: int) -> None:
        cost = costs(4, 5, 49, n, dtype=torch.float32) * torch.linspace(0.5, 2, 4)[:, None, None, None]

        def plan(c: Tensor) -> Tensor:
            return transport(c, scope=scope, iters=1000).plan

        assert torch.equal(torch.func.vmap(plan)(cost), torch.stack([plan(c) for c in cost]))
        moved = torch.func.vmap(plan, in_dims=1)(cost)
        assert torch.equal(moved, torch.stack([plan(c) for c in cost.unbind(1)]))

    def test_vmap_over_masses_only(self) -> None:
        cost, b = costs(5, 9, 2), torch.tensor([[0.5, 0.5], [0.3, 0.7]], dtype=torch.float64)
        mapped = torch.func.vmap(lambda x: transport(cost, b=x).plan)(b)
        assert torch.equal(mapped, torch.stack([transport(cost, b=x).plan for x in b]))

    def test_vmap_over_costs_and_masses_of_other_ranks(self) -> None:
        cost, draw = costs(2, 4, 9, 3), torch.Generator().manual_seed(0)
        a = torch.rand(2, 9, generator=draw, dtype=torch.float64).softmax(-1)
        b = torch.rand(4, 2, 3, generator=draw, dtype=torch.float64).softmax(-1)
        mapped = torch.func.vmap(lambda c, x, y: transport(c, a=x, b=y).plan, in_dims=(0, 0, 1))(cost, a, b)
        looped = torch.stack([transport(c, a=x, b=y).plan for c, x, y in zip(cost, a, b.unbind(1), strict=True)])
        assert torch.equal(mapped, looped)

    def test_the_plan_is_a_constant_for_autograd(self) -> None:
        sim = (1 - costs(6, 3)).requires_grad_()
        plan = transport(1 - sim).plan
        assert not plan.requires_grad
        (plan * sim).sum().backward()
        assert torch.equal(sim.grad, plan)

    @pytest.mark.parametrize(
        ("kind", "n"), [("balanced", 2), ("balanced", 3), ("partial", 1), ("partial", 2), ("partial", 3)]
    )
    def test_fixed_plan_is_the_gradient_of_the_regularised_optimum(self, kind: str, n: int) -> None:
        """The envelope theorem, by central differences of <T, C> + eps sum T log T."""
        cost, h = costs(5, n), 1e-4
        options = {"kind": kind, "mass": 0.7 if kind == "partial" else 1.0, "eps": 0.2, "iters": 20_000, "tol": 1e-13}

        def optimum(c: Tensor) -> float:
            plan = transport(c, **options).plan
            return float((plan * c).sum() + 0.2 * (plan * plan.log()).sum())

        leaf = cost.clone().requires_grad_()
        matched(transport(leaf, **options).plan, leaf).backward()
        for i, j in ((0, 0), (3, n - 1), (4, 0)):
            bump = torch.zeros_like(cost)
            bump[i, j] = h
            slope = (optimum(cost + bump) - optimum(cost - bump)) / (2 * h)
            assert slope == pytest.approx(float(leaf.grad[i, j]), abs=1e-7)

"""Outliers: the clients that point away from the mean are dropped, or as OpenFedML has it, those that point with it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.fed.outliers import Outliers
from fedray.fed.server import FedAvg
from fedray.types import Result

START = {"b": torch.full((2, 3), 0.5), "a": torch.full((4,), -1.0)}


def result(client, updates, n=10):
    return Result(1, client, n, {name: START[name] + updates[name] for name in START}, {})


def crowd(count, odd):
    """Clients that go the same way but for noise, and some that go against it."""
    draw = torch.Generator().manual_seed(0)
    way = {name: torch.randn(value.shape, generator=draw) for name, value in START.items()}
    noise = {k: {n: 0.1 * torch.randn(v.shape, generator=draw) for n, v in START.items()} for k in range(count)}
    sign = {k: -1.0 if k in odd else 1.0 for k in range(count)}
    return [result(k, {n: sign[k] * way[n] + noise[k][n] for n in START}, n=k + 1) for k in range(count)]


def same(one, two):
    return all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
@pytest.mark.parametrize("odd", [(0, 4, 7), (1, 2, 3)])
def test_those_that_go_elsewhere_are_dropped(odd, weighting):
    got = crowd(10, odd)
    rest = [r for r in got if r.client not in odd]
    assert same(Outliers(weighting=weighting).update(START, got), FedAvg(weighting=weighting).update(START, rest))


def test_top_drops_those_that_agree():
    got = crowd(10, (0, 4, 7))
    weights = np.array([r.n for r in got]) / sum(r.n for r in got)
    moves = np.stack([torch.cat([(r.shared[n] - START[n]).flatten() for n in START]).numpy() for r in got])
    mean = weights @ moves
    order = np.argsort(moves @ mean / np.linalg.norm(moves, axis=1))
    rest = [got[i] for i in sorted(order[:7])]
    assert same(Outliers(drop="top").update(START, got), FedAvg().update(START, rest))
    assert {r.client for r in rest} > {0, 4, 7}


def test_rows_are_openfedmls_scores():
    """Mean over rows of the cosines of the parameters themselves, as its server has it; one parameter, its context."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 3, 8)) + 1
    got = [Result(1, k, 1, {"ctx": torch.from_numpy(x[k]).float()}, {}) for k in range(5)]
    mean = x.mean(0)
    cosines = (x * mean).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(mean, axis=-1)
    order = sorted(range(5), key=lambda i: cosines[i].mean())
    server = Outliers(drop="top", score="rows", weighting="uniform")
    state = server.update({"ctx": torch.zeros(3, 8)}, got)
    kept = x[order[: int(0.7 * 5)]].mean(0)
    assert torch.allclose(state["ctx"], torch.from_numpy(kept).float(), atol=1e-6)


@given(count=st.integers(1, 12), share=st.floats(0, 0.99))
@settings(max_examples=40, deadline=None)
def test_as_many_stay_as_said_and_one_at_least(count, share):
    """Clients are unit vectors, so that the mean tells who is in it."""
    start = {"a": torch.zeros(count)}
    got = [Result(1, k, 1, {"a": torch.eye(count)[k]}, {}) for k in range(count)]
    state = Outliers(share=share).update(start, got)
    kept = int((state["a"] > 0).sum())
    assert kept == max(1, int(np.floor((1 - share) * count + 1e-9)))
    assert float(state["a"].sum()) == pytest.approx(1)
    assert bool((state["a"][:kept] > 0).all())  # all agree alike with the mean: the first ones stay


def test_without_a_share_it_is_fedavg():
    got = crowd(6, (2,))
    assert same(Outliers(share=0).update(START, got), FedAvg().update(START, got))
    assert same(Outliers().update(START, got[:1]), got[0].shared)


def test_without_samples_the_state_stays():
    assert Outliers().update(START, [r._replace(n=0) for r in crowd(3, ())]) is START

"""FedAvg against its closed form, and the properties of a mean."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.fed.server import FedAvg
from fedray.types import GLOBAL, Result

SHAPES = {"a": (2, 3), "b": (4,)}


def results(rng, count, sizes=None):
    sizes = sizes or [int(n) for n in rng.integers(1, 50, size=count)]
    return [
        Result(1, k, n, {m: torch.from_numpy(rng.normal(size=s)).float() for m, s in SHAPES.items()}, {})
        for k, n in enumerate(sizes)
    ]


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_weighted_mean_is_the_closed_form(seed, count):
    got = results(np.random.default_rng(seed), count)
    state = FedAvg().update(got[0].shared, got)
    n = np.array([r.n for r in got], float)
    for name in SHAPES:
        closed = np.tensordot(n / n.sum(), np.stack([r.shared[name].double().numpy() for r in got]), axes=1)
        assert np.abs(state[name].numpy() - closed.astype(np.float32)).max() <= 1.2e-7 * max(1, np.abs(closed).max())
        assert state[name].dtype == torch.float32


def test_uniform_forgets_sizes():
    rng = np.random.default_rng(0)
    got = results(rng, 3, sizes=[1, 10, 100])
    state = FedAvg(weighting="uniform").update(got[0].shared, got)
    assert torch.allclose(state["a"], torch.stack([r.shared["a"] for r in got]).mean(0), atol=1e-6)


def test_equal_updates_are_a_fixed_point():
    one = {name: torch.randn(s, generator=torch.Generator().manual_seed(0)) for name, s in SHAPES.items()}
    got = [Result(1, k, k + 1, one, {}) for k in range(7)]
    assert all(torch.equal(v, one[name]) for name, v in FedAvg().update(one, got).items())


def test_weights_are_free_of_scale():
    rng = np.random.default_rng(1)
    got = results(rng, 4, sizes=[1, 2, 3, 4])
    scaled = [r._replace(n=r.n * 8) for r in got]
    one, two = FedAvg().update(got[0].shared, got), FedAvg().update(got[0].shared, scaled)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("got", [[], [Result(1, 0, 0, {"a": torch.ones(1)}, {})]], ids=["nobody", "no samples"])
def test_without_weight_the_state_stays(got):
    state = {"a": torch.zeros(1)}
    assert FedAvg().update(state, got) is state


def test_everyone_receives_the_same():
    state = FedAvg().init({"a": torch.ones(1)})
    assert FedAvg().send(state, 3, 1) == FedAvg().send(state, GLOBAL, 9) == (state, {})

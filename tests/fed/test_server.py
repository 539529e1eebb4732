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


@given(seed=st.integers(0, 999), count=st.integers(2, 6))
@settings(max_examples=20, deadline=None)
def test_the_order_of_clients_does_not_matter(seed, count):
    got = results(np.random.default_rng(seed), count)
    order = np.random.default_rng(seed + 1).permutation(count)
    one, two = FedAvg().update(got[0].shared, got), FedAvg().update(got[0].shared, [got[i] for i in order])
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)


def test_batch_norms_are_averaged_but_for_their_counts():
    """Running statistics by samples like weights; of the number of steps the largest, in its own type."""
    norms = []
    for steps, scale in ((3, 1.0), (1, 5.0)):
        norms.append(torch.nn.BatchNorm2d(2).train())
        for _ in range(steps):
            norms[-1](scale * torch.randn(8, 2, 3, 3, generator=torch.Generator().manual_seed(steps)))
    states = [{name: value.detach().clone() for name, value in norm.state_dict().items()} for norm in norms]
    got = [Result(1, k, n, state, {}) for k, (n, state) in enumerate(zip((10, 30), states, strict=True))]
    state = FedAvg().update(states[0], got)
    assert torch.equal(state["num_batches_tracked"], torch.tensor(3))
    for name in ("weight", "running_mean", "running_var"):
        assert torch.allclose(state[name], 0.25 * states[0][name] + 0.75 * states[1][name], atol=1e-6)
    torch.nn.BatchNorm2d(2).load_state_dict(state, strict=True)

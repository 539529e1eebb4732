"""Mixtures: each client's model is mixed by how alike the others' local parts are, against the formula in NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.errors import BadInput
from fedray.fed.mixtures import Mixtures
from fedray.fed.server import FedAvg
from fedray.types import GLOBAL, Result

SHAPES = {"p.shared.tokens": (2, 3), "p.local.tokens": (2, 3)}
SHARED, LOCAL = SHAPES
INITIAL = {name: torch.zeros(shape) for name, shape in SHAPES.items()}


def results(seed, clients, round=1, local=None):
    rng = np.random.default_rng(seed)
    got = []
    for k in clients:
        shared = {name: torch.from_numpy(rng.normal(size=shape)).float() for name, shape in SHAPES.items()}
        got.append(Result(round, k, int(rng.integers(1, 50)), shared | ({} if local is None else {LOCAL: local}), {}))
    return got


def after(server, *rounds):
    state = server.init(INITIAL)
    for got in rounds:
        state = server.update(state, got)
    return state


def formula(got, k, tau, weighting="samples"):
    """METHODS 3.3.9 in NumPy: softmax over clients of the cosines, times samples, normalised."""
    x = np.stack([r.shared[LOCAL].double().numpy().ravel() for r in got])
    cos = x @ x[k] / np.linalg.norm(x, axis=1) / np.linalg.norm(x[k])
    w = np.exp(cos / tau) / np.exp(cos / tau).sum()
    w *= 1 if weighting == "uniform" else np.array([r.n for r in got])
    return w / w.sum()


@given(seed=st.integers(0, 999), count=st.integers(1, 6), tau=st.floats(0.05, 10))
@settings(max_examples=25, deadline=None)
def test_a_client_gets_the_mixture_and_its_own_local_part(seed, count, tau):
    server, got = Mixtures(tau=tau), results(seed, range(count))
    state = after(server, got)
    for k in range(count):
        weights = server.weights(state, k)
        assert np.allclose(weights, formula(got, k, tau), atol=1e-12)
        assert min(weights) >= 0
        assert sum(weights) == pytest.approx(1)
        model, inbox = server.send(state, k, 2)
        mixed = sum(w * r.shared[SHARED].double() for w, r in zip(weights, got, strict=True))
        assert torch.equal(model[SHARED], mixed.float())
        assert torch.equal(model[LOCAL], got[k].shared[LOCAL])
        assert (list(model), inbox) == ([*SHAPES], {})


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
def test_equal_local_parts_make_it_fedavg(weighting):
    got = results(3, range(5), local=torch.ones(2, 3))
    server = Mixtures(weighting=weighting)
    state, mean = after(server, got), FedAvg(weighting=weighting).update(INITIAL, got)
    for client in (*range(5), GLOBAL):
        model, _ = server.send(state, client, 2)
        assert all(torch.allclose(value, mean[name], atol=1e-6) for name, value in model.items())


def test_the_global_model_is_fedavg_whatever_the_local_parts():
    got = results(4, range(5))
    model, _ = Mixtures().send(after(Mixtures(), got), GLOBAL, 2)
    mean = FedAvg().update(INITIAL, got)
    assert all(torch.equal(value, mean[name]) for name, value in model.items())


def test_temperature_goes_from_the_own_model_to_the_mean():
    got = results(5, range(4))
    cold, hot = Mixtures(tau=1e-3), Mixtures(tau=1e6)
    mean = FedAvg().update(INITIAL, got)[SHARED]
    assert torch.allclose(cold.send(after(cold, got), 2, 2)[0][SHARED], got[2].shared[SHARED])
    assert torch.allclose(hot.send(after(hot, got), 2, 2)[0][SHARED], mean, atol=1e-5)


def test_like_clients_get_more_of_each_other():
    one, two = torch.eye(2, 3), torch.eye(2, 3).flip(0)
    got = [r._replace(n=7, shared=r.shared | {LOCAL: one if r.client < 2 else two}) for r in results(6, range(4))]
    weights = Mixtures().weights(after(Mixtures(), got), 0)
    assert weights[0] > 2 * weights[2]
    assert weights == pytest.approx([weights[0], weights[0], weights[2], weights[2]])


def test_last_uploads_stay_for_those_who_rest():
    first, second = results(7, range(4)), results(8, [1, 3], 2)
    server = Mixtures()
    state = after(server, first, second)
    last = [first[0], second[0], first[2], second[1]]
    assert np.allclose(server.weights(state, 2), formula(last, 2, 0.1), atol=1e-12)
    assert torch.equal(server.send(state, 2, 3)[0][LOCAL], first[2].shared[LOCAL])
    mean = FedAvg().update(INITIAL, last)
    assert all(torch.equal(value, mean[name]) for name, value in server.send(state, GLOBAL, 3)[0].items())


def test_a_newcomer_starts_from_the_global_model():
    state = after(Mixtures(), results(9, [0, 1, 2]))
    model, _ = Mixtures().send(state, 8, 2)
    assert all(torch.equal(value, state[name]) for name, value in model.items())


def test_everything_may_be_mixed():
    server, got = Mixtures(own=""), results(10, range(3))
    state = after(server, got)
    model, _ = server.send(state, 1, 2)
    weights = server.weights(state, 1)
    local = sum(w * r.shared[LOCAL].double() for w, r in zip(weights, got, strict=True))
    assert torch.equal(model[LOCAL], local.float())


def test_clients_without_images_are_left_out():
    got = [r._replace(n=0) if r.client == 1 else r for r in results(11, range(3))]
    state = after(Mixtures(), got)
    assert len(Mixtures().weights(state, 0)) == 2
    nobody = [r._replace(n=0) for r in got]
    assert Mixtures().update(state, nobody) is state


@pytest.mark.parametrize(
    ("server", "text"),
    [
        (Mixtures(alike="*.mine"), r"server.alike '\*.mine' matches none of \['p.local.tokens', 'p.shared.tokens'\]"),
        (Mixtures(own="q.*"), "server.own 'q.*' matches none of"),
        (Mixtures(alike=""), "server.alike is empty; name the parameters"),
        (Mixtures(own="p.*"), "server.own 'p.*' matches all of"),
    ],
)
def test_patterns_without_a_point_are_refused(server, text):
    with pytest.raises(BadInput, match=text):
        server.init(INITIAL)

"""Gaussian: what is evaluated is the bell-weighted mean over rounds, what is trained is FedAvg's model."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.fed.gaussian import Gaussian
from fedray.fed.server import FedAvg
from fedray.types import GLOBAL, Result

INITIAL = {"a": torch.zeros(3), "steps": torch.tensor(0)}


def cohort(round, seed=0):
    rng = np.random.default_rng([seed, round])
    return [
        Result(round, k, k + 1, {"a": torch.from_numpy(rng.normal(size=3)).float(), "steps": torch.tensor(round)}, {})
        for k in range(4)
    ]


def through(server, rounds):
    """State and FedAvg's models after these rounds."""
    state, plain = server.init(INITIAL), []
    for r in rounds:
        state = server.update(state, cohort(r))
        plain.append(FedAvg().update(INITIAL, cohort(r)))
    return state, plain


@given(total=st.integers(1, 12), centre=st.floats(0.5, 20), width=st.floats(0.3, 10))
@settings(max_examples=30, deadline=None)
def test_the_average_is_numpys(total, centre, width):
    server = Gaussian(centre=centre, width=width)
    state, plain = through(server, range(1, total + 1))
    log = -(((np.arange(1, total + 1) - centre) / width) ** 2) / 2
    v = np.exp(log - log.max())
    expected = (v / v.sum()) @ np.stack([p["a"].double().numpy() for p in plain])
    assert np.allclose(server.send(state, GLOBAL, total)[0]["a"].numpy(), expected, atol=1e-6)


def test_the_papers_weights_on_twenty_epochs():
    """PromptSRC: mean 15, deviation 1 of 20 epochs, weights that sum to 1."""
    state, plain = through(Gaussian(), range(1, 21))
    v = np.exp(-((np.arange(1, 21) - 15.0) ** 2) / 2)
    expected = (v / v.sum()) @ np.stack([p["a"].double().numpy() for p in plain])
    assert np.allclose(Gaussian().send(state, GLOBAL, 20)[0]["a"].numpy(), expected, atol=1e-6)


def test_clients_train_on_the_plain_model():
    server = Gaussian(centre=2)
    state, plain = through(server, [1, 2, 3])
    model, inbox = server.send(state, 0, 4)
    assert inbox == {}
    assert torch.equal(model["a"], plain[-1]["a"])
    assert not torch.equal(server.send(state, GLOBAL, 3)[0]["a"], plain[-1]["a"])
    assert torch.equal(server.send(state, GLOBAL, 3)[0]["steps"], torch.tensor(3))


@pytest.mark.parametrize(("centre", "width", "most"), [(1e6, 1e-3, -1), (1e-3, 1e-3, 0)], ids=["late", "early"])
def test_far_from_the_centre_the_nearest_round_counts(centre, width, most):
    """Weights far below the smallest float; the average is still one."""
    state, plain = through(Gaussian(centre=centre, width=width), range(1, 6))
    average = Gaussian().send(state, GLOBAL, 5)[0]["a"]
    assert torch.allclose(average, plain[most]["a"])


def test_rounds_without_results_change_nothing():
    state, _ = through(Gaussian(), [1, 2])
    assert Gaussian().update(state, []) is state

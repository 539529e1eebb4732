"""Robust rules against their definitions written out in numpy, and what all of them keep to."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedray.errors import BadInput
from fedray.fed.robust import Clipped, Krum, Median, MultiKrum, Trimmed
from fedray.fed.server import FedAvg
from fedray.types import GLOBAL, Result

SHAPES = {"b": (2, 3), "a": (4,)}
INITIAL = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
EVERY = [Median(), Trimmed(share=0.25), Krum(f=1), MultiKrum(f=1), Clipped(), Clipped(bound=2.0)]
ROBUST = [Median(), Trimmed(share=0.25), Krum(f=2), MultiKrum(f=2)]
MEANS = [Trimmed(share=0), MultiKrum(f=0), Clipped(bound=1e9)]


def results(seed, count, spread=1.0, about=0.0):
    rng = np.random.default_rng(seed)
    return [
        Result(
            1,
            k,
            int(rng.integers(1, 50)),
            {name: torch.from_numpy(rng.normal(about, spread, shape)).float() for name, shape in SHAPES.items()},
            {},
        )
        for k in range(count)
    ]


def matrix(got):
    return np.stack([flat(r.shared) for r in got])


def flat(params):
    return np.concatenate([params[name].double().numpy().ravel() for name in sorted(params)])


def names(server):
    return f"{server.kind}-{getattr(server, 'bound', '')}"


many = settings(max_examples=25, deadline=None)


@pytest.mark.parametrize("server", EVERY, ids=names)
@given(seed=st.integers(0, 999), count=st.integers(5, 9))
@many
def test_the_order_of_arrival_leaves_no_trace(server, seed, count):
    got = results(seed, count)
    mixed = [got[i] for i in np.random.default_rng(seed).permutation(count)]
    one, two = server.update(INITIAL, got), server.update(INITIAL, mixed)
    assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize("server", [*EVERY[:-1], Clipped(bound=1e9)], ids=names)
@given(seed=st.integers(0, 999), count=st.integers(5, 9))
@many
def test_equal_updates_are_a_fixed_point(server, seed, count):
    (one,) = results(seed, 1)
    state = server.update(INITIAL, [one._replace(client=k, n=k + 1) for k in range(count)])
    assert np.abs(flat(state) - flat(one.shared)).max() <= 1e-6
    assert all(value.dtype == torch.float32 for value in state.values())


@pytest.mark.parametrize("server", [Trimmed(share=0.25, weighting="samples"), Clipped(weighting="samples")], ids=names)
@given(seed=st.integers(0, 999))
@many
def test_weights_are_free_of_scale(server, seed):
    got = results(seed, 7)
    one, two = server.update(INITIAL, got), server.update(INITIAL, [r._replace(n=8 * r.n) for r in got])
    assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize("server", MEANS, ids=names)
@given(seed=st.integers(0, 999), count=st.integers(3, 9))
@many
def test_with_nobody_to_distrust_they_are_the_mean(server, seed, count):
    got = results(seed, count)
    plain = FedAvg(weighting="uniform").update(INITIAL, got)
    assert np.abs(flat(server.update(INITIAL, got)) - flat(plain)).max() <= 1e-7


@pytest.mark.parametrize("server", [Trimmed(share=0, weighting="samples"), Clipped(bound=1e9, weighting="samples")])
def test_with_nobody_to_distrust_they_are_the_weighted_mean(server):
    got = results(3, 6)
    plain = FedAvg(weighting="samples").update(INITIAL, got)
    assert np.abs(flat(server.update(INITIAL, got)) - flat(plain)).max() <= 1e-7


@pytest.mark.parametrize("server", ROBUST, ids=names)
@given(seed=st.integers(0, 999), far=st.sampled_from([10.0, 1e6, -1e12]))
@many
def test_two_of_ten_can_drag_the_model_no_further_than_the_honest_ones_are(server, seed, far):
    honest = results(seed, 8)
    bad = [r._replace(client=8 + i) for i, r in enumerate(results(seed + 1, 2, about=far))]
    state, x = flat(server.update(INITIAL, [*honest, *bad])), matrix(honest)
    assert (state >= x.min(0) - 1e-6).all()
    assert (state <= x.max(0) + 1e-6).all()


@given(seed=st.integers(0, 999), count=st.integers(1, 9))
@many
def test_the_median_is_numpys(seed, count):
    got = results(seed, count)
    assert np.abs(flat(Median().update(INITIAL, got)) - np.median(matrix(got), 0)).max() <= 1e-6


@given(seed=st.integers(0, 999), count=st.integers(1, 9), share=st.floats(0, 0.49))
@many
def test_the_trimmed_mean_is_the_mean_of_the_inner_ones(seed, count, share):
    got = results(seed, count)
    cut = int(np.floor(share * count + 1e-9))
    inner = np.sort(matrix(got), 0)[cut : count - cut]
    assert np.abs(flat(Trimmed(share=share).update(INITIAL, got)) - inner.mean(0)).max() <= 1e-6


@given(seed=st.integers(0, 999), count=st.integers(7, 9), f=st.integers(0, 2), m=st.integers(1, 5))
@many
def test_krum_is_its_definition(seed, count, f, m):
    got = results(seed, count)
    x = matrix(got)
    scores = []
    for i in range(count):
        others = sorted(float(((x[i] - x[j]) ** 2).sum()) for j in range(count) if j != i)
        scores.append(sum(others[: count - f - 2]))
    order = sorted(range(count), key=lambda i: (scores[i], i))
    assert np.array_equal(flat(Krum(f=f).update(INITIAL, got)), x[order[0]])
    assert np.abs(flat(MultiKrum(f=f, m=m).update(INITIAL, got)) - x[order[:m]].mean(0)).max() <= 1e-6


def test_clipping_cuts_to_the_bound_from_where_the_model_was():
    start = {"a": torch.tensor([1.0, 1.0])}
    got = [Result(1, k, 1, {"a": torch.tensor(p)}, {}) for k, p in enumerate([[4.0, 5.0], [1.0, 1.5]])]
    state = Clipped(bound=1.0).update(start, got)
    assert torch.allclose(state["a"], torch.tensor([1 + 0.6 / 2, 1 + (0.8 + 0.5) / 2]))
    middle = Clipped().update(start, [*got, got[0]._replace(client=2, shared={"a": torch.tensor([1.0, 2.0])})])
    assert torch.allclose(middle["a"], torch.tensor([1 + 0.6 / 3, 1 + (0.8 + 0.5 + 1) / 3]))  # lengths 5, 0.5, 1


@pytest.mark.parametrize("count", [2, 10])
def test_the_largest_share_leaves_the_two_in_the_middle(count):
    got = results(1, count)
    state = Trimmed(share=0.49999999999).update(INITIAL, got)
    assert np.abs(flat(state) - np.median(matrix(got), 0)).max() <= 1e-6


def test_weights_of_the_trimmed_mean_go_with_their_clients():
    got = [
        Result(1, k, n, {"a": torch.tensor([v])}, {})
        for k, (n, v) in enumerate([(1, 9.0), (2, 2.0), (6, 1.0), (3, 0.0)])
    ]
    state = Trimmed(share=0.25, weighting="samples").update({"a": torch.zeros(1)}, got)
    assert float(state["a"]) == pytest.approx((2 * 2 + 6 * 1) / 8)


@pytest.mark.parametrize("server", EVERY, ids=names)
def test_whole_numbers_stay_whole(server):
    start = {"a": torch.zeros(2), "steps": torch.tensor(0)}
    got = [
        Result(1, k, 1, {"a": torch.full((2,), float(k)), "steps": torch.tensor(s)}, {})
        for k, s in enumerate([5, 7, 7, 7, 9])
    ]
    state = server.update(start, got)
    assert state["steps"].dtype == torch.int64
    assert int(state["steps"]) in (5, 7, 9)


@pytest.mark.parametrize("server", EVERY, ids=names)
def test_without_results_the_state_stays_and_everyone_receives_it(server):
    state = server.init(INITIAL)
    assert server.update(state, []) is state
    assert server.send(state, 3, 1) == server.send(state, GLOBAL, 9) == (state, {})


@pytest.mark.parametrize(
    ("server", "count", "text"),
    [
        (Krum(f=4), 10, r"server.f 4 needs more than 2 f \+ 2 = 10 clients in a round, got 10; lower server.f"),
        (MultiKrum(f=1), 4, r"server.f 1 needs more than 2 f \+ 2 = 4 clients in a round, got 4"),
        (MultiKrum(f=1, m=5), 5, "server.m 5 of 5 clients in a round leaves no room for server.f 1 dishonest ones; at"),
    ],
)
def test_too_few_clients_are_told(server, count, text):
    with pytest.raises(BadInput, match=text):
        server.update(INITIAL, results(0, count))
    server.update(INITIAL, results(0, server.least))


def test_a_run_with_too_few_clients_does_not_start(made):
    for changes, got in (({"fraction": 0.4}, "got 2"), ({"sampling": "poisson"}, "got any number")):
        with pytest.raises(BadInput, match=f"server.kind krum with f 1 needs 5 clients in every round, {got}; lower"):
            made(method="promptfl", server="krum", **{"server.f": 1}, **changes)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Trimmed(share=0.5), "less than 0.5"),
        (lambda: Krum(f=-1), "greater than or equal to 0"),
        (lambda: MultiKrum(m=0), "greater than or equal to 1"),
        (lambda: Clipped(bound=0), "greater than 0"),
        (lambda: Median(weighting="samples"), "Unexpected keyword argument"),
    ],
)
def test_options_out_of_range_are_refused(make, text):
    with pytest.raises(ValidationError, match=text):
        make()


def test_describing_them_does_not_import_torch():
    code = "import sys, fedray.experiment; assert not {'torch', 'dp_accounting'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

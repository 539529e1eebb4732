"""Client-level privacy: the accountant against one by hand, clipping, noise, the ledger through kills, the budget."""

import math
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.optimize import brentq
from scipy.special import logsumexp
from scipy.stats import norm

from fedray.engine.driver import run, summary
from fedray.errors import BadInput, Unavailable
from fedray.experiment import Experiment
from fedray.fed.loop import cohort, rounds
from fedray.fed.privacy import LEDGER, DPFedAvg, Mechanism, clipped, epsilon
from fedray.learned import from_run
from fedray.method import parameters
from fedray.types import GLOBAL, Result, Scores

accounted = pytest.mark.skipif(find_spec("dp_accounting") is None, reason="pip install 'dp-accounting>=0.6'")
START = {"a": torch.zeros(100, 100), "steps": torch.tensor(3)}


def bound(sampling="fixed", clients=10, fraction=1.0, seed=0, **more):
    return DPFedAvg(**more).bound(clients=clients, fraction=fraction, sampling=sampling, seed=seed)


def by_hand(sigma, count, delta):
    """The Gaussian mechanism, exact: `count` rounds are one with 1 / sqrt(count) of the noise. Balle and Wang, (6)."""
    mu = math.sqrt(count) / sigma

    def excess(eps):
        return norm.cdf(mu / 2 - eps / mu) - math.exp(eps + norm.logcdf(-mu / 2 - eps / mu)) - delta

    return brentq(excess, 0, 5000)


def renyi(q, sigma, count, delta):
    """Poisson sampling, by the definition on a grid: A = E_{z ~ N(0, sigma^2)} (1 - q + q p_1(z) / p_0(z))^order."""
    z = np.linspace(-12 * sigma, 64 + 12 * sigma, 20_000)
    ratio = np.logaddexp(math.log(1 - q), math.log(q) + (2 * z - 1) / (2 * sigma**2))
    orders = np.concatenate([np.arange(1.2, 10, 0.1), np.arange(10, 64)])
    logs = [logsumexp(a * ratio + norm.logpdf(z, scale=sigma)) + math.log(z[1] - z[0]) for a in orders]
    spent = count * np.array(logs) / (orders - 1) + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
    return float(spent.min())


@accounted
@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("count", [1, 10, 50, 400])
def test_without_sampling_epsilon_is_exact(sigma, count):
    for delta in (1e-3, 1e-5, 1e-7):
        of = Mechanism(sigma, 10, 10.0, "fixed")
        assert epsilon(of, count, delta) == pytest.approx(by_hand(sigma, count, delta), rel=1e-6)


@accounted
@pytest.mark.slow
@pytest.mark.parametrize(("q", "sigma"), [(0.01, 0.8), (0.05, 1.0), (0.1, 2.0), (0.3, 3.0)])
def test_poisson_sampling_agrees_with_dp_accounting_and_is_below_renyi_s_bound(q, sigma):
    """More exactly in tests/chaos/test_privacy.py."""
    import dp_accounting as dp

    for count, delta in ((10, 1e-3), (50, 1e-5), (100, 1e-5), (400, 1e-6)):
        ours = epsilon(Mechanism(sigma, 100, 100 * q, "poisson"), count, delta)
        assert 0.2 * renyi(q, sigma, count, delta) < ours < renyi(q, sigma, count, delta)
        assert ours < by_hand(sigma, count, delta)
    theirs = dp.pld.PLDAccountant()
    theirs.compose(dp.PoissonSampledDpEvent(q, dp.GaussianDpEvent(sigma)), count)
    assert ours == pytest.approx(theirs.get_epsilon(delta), rel=1e-3)


@accounted
@pytest.mark.parametrize("sigma", [1e-6, 0.01, 30.0, 1e6, 1e30])
def test_a_noise_of_any_size_is_accounted_in_no_time(sigma):
    of = Mechanism(sigma, 100, 10.0, "poisson")
    one, many = epsilon(of, 1, 1e-5), epsilon(of, 10_000, 1e-5)
    assert 0 <= one <= many < math.inf


@accounted
def test_a_fixed_cohort_is_accounted_as_one_client_for_another():
    """The sum moves by 2 C; for samples of nearly all, the bound is worse than that of no sampling, which holds too."""
    import dp_accounting as dp

    few, many = Mechanism(4.0, 100, 10.0, "fixed"), Mechanism(4.0, 10, 9.0, "fixed")
    theirs = dp.rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    theirs.compose(dp.SampledWithoutReplacementDpEvent(100, 10, dp.GaussianDpEvent(2.0)), 50)
    assert epsilon(few, 50, 1e-5) == pytest.approx(theirs.get_epsilon(1e-5), abs=1e-9)
    assert epsilon(few, 50, 1e-5) > epsilon(Mechanism(4.0, 100, 10.0, "poisson"), 50, 1e-5)
    assert epsilon(many, 50, 1e-5) == pytest.approx(by_hand(2.0, 50, 1e-5), rel=1e-6)


@accounted
def test_epsilon_grows_with_rounds_and_starts_at_nothing():
    of = Mechanism(1.0, 100, 10.0, "poisson")
    spent = [epsilon(of, count, 1e-5) for count in (0, 1, 2, 3, 4, 10, 100, 101, 1000)]
    assert spent[0] == 0
    assert spent == sorted(spent)


def test_ten_thousand_clipped_updates_are_within_the_bound():
    draw = np.random.default_rng(0)
    old = {"a": torch.from_numpy(draw.normal(size=7)).float(), "n": torch.tensor(1)}
    longest, shortest = 0.0, 0
    for scale in 10.0 ** draw.uniform(-6, 12, size=10_000):
        new = {"a": old["a"] + float(scale) * torch.from_numpy(draw.normal(size=7)).float(), "n": torch.tensor(2)}
        got = clipped(old, new, 0.3)
        size = float((got["a"] - old["a"].double()).norm())
        longest = max(longest, size)
        if float((new["a"].double() - old["a"].double()).norm()) <= 0.3:
            shortest += 1
            assert torch.allclose(got["a"], new["a"].double(), atol=1e-12)
    assert longest <= 0.3 * (1 + 1e-6)
    assert shortest > 1000


@accounted
def test_the_noise_has_its_size_and_its_address():
    """10,000 numbers: std within 2 %; sigma C over the expected number, whoever comes."""
    server = bound(clip=0.5, noise=3.0, fraction=0.5, sampling="poisson")
    state = server.update(server.init(START), [])
    noise = state["a"].double()
    assert float(noise.std()) == pytest.approx(3.0 * 0.5 / 5, rel=0.02)
    assert abs(float(noise.mean())) < 4 * 0.3 / 100
    assert torch.equal(state["steps"], START["steps"])
    again = server.update(server.init(START), [])
    assert torch.equal(again["a"], state["a"])
    other = bound(clip=0.5, noise=3.0, fraction=0.5, sampling="poisson", seed=1)
    assert not torch.equal(other.update(other.init(START), [])["a"], state["a"])
    further = server.update(state, [])["a"].double() - noise
    assert abs(float(torch.corrcoef(torch.stack([further.flatten(), noise.flatten()]))[0, 1])) < 0.04


@accounted
def test_the_sum_is_divided_by_the_number_expected_and_everyone_counts_alike():
    server, start = bound(clip=5.0, noise=1e-9, clients=4), {"a": torch.ones(2)}
    got = [Result(1, k, 10**k, {"a": torch.tensor(p)}, {}) for k, p in enumerate([[4.0, 5.0], [7.0, 9.0], [1.0, 1.0]])]
    state = server.update(server.init(start), got)  # updates (3, 4), (6, 8) cut to (3, 4), and none; 4 were expected
    assert torch.allclose(state["a"], torch.tensor([1 + 6 / 4, 1 + 8 / 4]), atol=1e-6)
    mixed = server.update(server.init(start), [got[2], got[0], got[1]])
    assert torch.equal(mixed["a"], state["a"])
    assert server.send(state, 1, 2)[0].keys() == start.keys()
    assert int(state[LEDGER]) == 1


def test_poisson_cohorts_come_by_throws_of_their_own():
    drawn = [cohort(range(20), 0.3, 0, r, "poisson") for r in range(1, 501)]
    assert all(c == sorted(set(c)) for c in drawn)
    assert np.mean([len(c) for c in drawn]) == pytest.approx(6, abs=0.3)
    assert np.var([len(c) for c in drawn]) == pytest.approx(20 * 0.3 * 0.7, rel=0.2)
    assert [] in [cohort(range(2), 0.3, 0, r, "poisson") for r in range(1, 20)]
    assert cohort(range(5), 1.0, 0, 1, "poisson") == [0, 1, 2, 3, 4]


class Up:
    """Every number one more than was sent."""

    def fit(self, jobs):
        assert jobs
        return iter([Result(j.round, j.client, 1, {n: v + 1 for n, v in j.shared.items()}, {}) for j in jobs])

    def score(self, jobs):
        return iter([Scores(j.round, j.client, 1, {"acc1": 1.0}) for j in jobs])


@accounted
def test_a_round_without_clients_is_a_round(caplog):
    server = bound(clients=2, fraction=0.3, sampling="poisson")
    done = list(
        rounds({"a": torch.zeros(2)}, server, Up(), clients=range(2), total=12, fraction=0.3, sampling="poisson")
    )
    empty = [d for d in done if not d.cohort]
    assert empty
    assert all((d.shared["a"] != 0).all() for d in empty)
    assert [r.value for d in done for r in d.rows if r.metric == "dp/rounds"] == list(range(1, 13))
    spent = [r.value for d in done for r in d.rows if r.metric == "dp/epsilon"]
    assert spent == [epsilon(Mechanism(1.0, 2, 0.6, "poisson"), r, 1e-5) for r in range(1, 13)]


@accounted
def test_the_run_ends_before_the_budget_does(caplog):
    server = bound(noise=2.0, epsilon=8.0)
    affordable = max(r for r in range(1, 30) if by_hand(2.0, r, 1e-5) <= 8.0)
    done = list(rounds({"a": torch.zeros(2)}, server, Up(), clients=range(10), total=30, evaluate_every=30))
    assert len(done) == affordable
    assert any(r.metric == "eval/global/acc1" for r in done[-1].rows)  # the last round is scored, whichever it is
    assert caplog.messages == [f"the budget is spent after round {affordable}: the run ends there, not after 30"]
    with pytest.raises(BadInput, match=f"server.epsilon 8.0 is spent after {affordable} rounds; raise it for more"):
        server.update(done[-1].state, [])
    assert list(rounds({}, server, Up(), clients=range(10), total=30, resume=done[-1])) == []


@accounted
def test_a_budget_that_no_round_fits_into_is_told():
    with pytest.raises(
        BadInput, match=r"server.epsilon 1 is less than the first round costs \(4.38\); raise server.no"
    ):
        bound(epsilon=1.0)


def test_without_dp_accounting_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(Unavailable, match=r"which is not installed; pip install 'dp-accounting>=0\.6'"):
        bound()


@accounted
def test_kills_neither_lose_nor_double_a_round(cache, tmp_path):
    """Stopped five times, each time as soon as a round is committed: the same bytes, the same epsilon."""
    fields = {"clip.name": "tiny", "method": "promptfl", "method.n_ctx": 4, "partition.clients": 4, "rounds": 6}
    fields |= {"server": "dpfedavg", "fraction": 0.5, "sampling": "poisson", "evaluate_every": 6}
    experiment = Experiment().override(**fields)
    settings = {"placement": "inline", "cache": cache}
    whole = run(experiment, runs=tmp_path / "whole", **settings)
    through = [summary(done)["dp/epsilon"] for done in whole.rounds]
    pieces = []
    for _ in range(5):
        part = run(experiment, runs=tmp_path / "parts", **settings)
        pieces.append(summary(next(part.rounds))["dp/epsilon"])
        part.rounds.close()
    last = run(experiment, runs=tmp_path / "parts", **settings)
    pieces += [summary(done)["dp/epsilon"] for done in last.rounds]
    assert pieces == through
    assert last.folder.digest() == whole.folder.digest()
    assert [r.value for r in last.folder.rows(client=GLOBAL) if r.metric == "dp/rounds"] == [1, 2, 3, 4, 5, 6]


@accounted
def test_what_was_learned_can_be_taken_out_of_a_run(cache, tmp_path):
    fields = {"clip.name": "tiny", "method": "fedpgp", "method.n_ctx": 4, "partition.clients": 2, "rounds": 1}
    experiment = Experiment().override(**fields, server="dpfedavg")
    started = run(experiment, runs=tmp_path / "runs", placement="inline", cache=cache)
    (done,) = started.rounds
    for client in (None, 1):
        learned = from_run(started.folder.path, client)
        assert torch.equal(parameters(learned.method)["prompts.sigma.tokens"], done.shared["prompts.sigma.tokens"])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"clip": 0}, "greater than 0"),
        ({"noise": 0}, "greater than 0"),
        ({"delta": 1}, "less than 1"),
        ({"epsilon": -1}, "greater than 0"),
        ({"weighting": "samples"}, "Unexpected keyword argument"),
    ],
)
def test_options_out_of_range_are_refused(options, text):
    with pytest.raises(ValidationError, match=text):
        DPFedAvg(**options)

"""What all aggregators keep to, and those that send prompts on or learn weights: inboxes, simplex, bytes, resume."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedray.fed.gaussian import Gaussian
from fedray.fed.loop import Inline, rounds
from fedray.fed.mixtures import Mixtures
from fedray.fed.outliers import Outliers
from fedray.fed.peers import Experts, FedAWA, Peers, gradient, learn
from fedray.fed.server import FedAvg
from fedray.recipe import Recipe
from fedray.track import files
from fedray.types import GLOBAL, Result

SHAPES = {"b": (2, 3), "a": (4,)}
INITIAL = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
ALL = [
    Peers(),
    Experts(k=2),
    Experts(k=2, select="random"),
    FedAWA(lr=0.1, steps=3),
    Mixtures(alike="b", own="b"),
    Outliers(),
    Gaussian(centre=2, width=1),
]


def results(seed, clients, round=1):
    rng = np.random.default_rng(seed)
    got = []
    for k in clients:
        shared = {name: torch.from_numpy(rng.normal(size=shape)).float() for name, shape in SHAPES.items()}
        got.append(Result(round, k, int(rng.integers(1, 50)), shared, {}))
    return got


def flat(params):
    return torch.cat([params[name].double().flatten() for name in sorted(params)])


def senders(inbox):
    return list(dict.fromkeys(int(key.split("/")[1]) for key in inbox))


def equal(one, two):
    return list(one) == list(two) and all(torch.equal(value, two[name]) for name, value in one.items())


def after(server, *cohorts, seed=0):
    """The state after a round for each cohort."""
    state = server.init(INITIAL)
    for i, clients in enumerate(cohorts):
        state = server.update(state, results(seed + i, clients, i + 1))
    return state


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
@pytest.mark.parametrize("kind", [Peers, Experts])
def test_the_mean_is_fedavg_bit_for_bit(kind, weighting):
    got, server = results(0, range(5)), kind(weighting=weighting)
    model, _ = server.send(server.update(server.init(INITIAL), got), GLOBAL, 1)
    assert equal(model, FedAvg(weighting=weighting).update(INITIAL, got))


@pytest.mark.parametrize("server", ALL, ids=lambda s: s.kind)
def test_the_global_model_comes_alone(server):
    state = after(server, range(4))
    model, inbox = server.send(state, GLOBAL, 1)
    assert model.keys() == SHAPES.keys()
    assert inbox == {}
    assert server.send(server.init(INITIAL), 2, 1) == (INITIAL, {})


@pytest.mark.parametrize("server", ALL, ids=lambda s: s.kind)
def test_the_state_is_flat_and_survives_a_checkpoint(server):
    state = after(server, range(11), [3, 10])
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    read = files.from_safetensors(files.to_safetensors(state))
    for client in (2, 3, 10, GLOBAL):
        (model, inbox), (model2, inbox2) = server.send(state, client, 3), server.send(read, client, 3)
        assert equal(inbox, inbox2)
        assert all(torch.equal(value, model2[name]) for name, value in model.items())
    got = results(9, range(4), 3)
    one, two = server.update(state, got), server.update(read, got)
    assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize("server", ALL, ids=lambda s: s.kind)
def test_the_order_of_clients_does_not_matter(server):
    got = results(0, range(6))
    renamed = [r._replace(client=5 - r.client) for r in reversed(got)]
    one, two = (server.send(server.update(server.init(INITIAL), g), GLOBAL, 1)[0] for g in (got, renamed))
    assert all(torch.allclose(value, two[name], atol=1e-6) for name, value in one.items())


@pytest.mark.parametrize("server", ALL, ids=lambda s: s.kind)
def test_without_results_the_state_stays(server):
    state = after(server, range(3))
    assert equal(server.update(state, []), state)


def test_peers_sends_the_last_upload_of_everyone_else():
    first, second = results(0, range(12)), results(1, [2, 10], 2)
    server = Peers()
    state = server.update(server.update(server.init(INITIAL), first), second)
    _, inbox = server.send(state, 3, 3)
    assert senders(inbox) == [0, 1, 2, *range(4, 12)]  # ascending by number, not by text; without 3 itself
    last = {r.client: r.shared for r in [*first, *second]}
    assert all(torch.equal(value, last[int(k.split("/")[1])][k.split("/")[2]]) for k, value in inbox.items())
    assert set(inbox) == {f"peers/{k}/{name}" for k in last if k != 3 for name in SHAPES}


@pytest.mark.parametrize("select", ["nearest", "random"])
@given(seed=st.integers(0, 999), count=st.integers(1, 9), k=st.integers(1, 10))
@settings(max_examples=40, deadline=None)
def test_experts_are_others_and_at_most_k(select, seed, count, k):
    server = Experts(k=k, select=select)
    state = after(server, range(count), seed=seed)
    for client in range(count):
        got = senders(server.send(state, client, 2)[1])
        assert client not in got
        assert len(got) == len(set(got)) == min(k, count - 1)
        assert got == sorted(got)


@given(seed=st.integers(0, 999), k=st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_nearest_experts_are_the_nearest(seed, k):
    got = results(seed, range(7))
    state = Experts(k=k).update(INITIAL, got)
    x = np.stack([flat(r.shared).numpy() for r in got])
    for client in range(7):
        away = np.linalg.norm(x - x[client], axis=1)
        away[client] = np.inf
        assert senders(Experts(k=k).send(state, client, 2)[1]) == sorted(np.argsort(away)[:k].tolist())


def test_equally_near_experts_are_the_first():
    one = {name: torch.ones(shape) for name, shape in SHAPES.items()}
    state = Experts(k=2).update(INITIAL, [Result(1, k, 1, one, {}) for k in range(5)])
    assert [senders(Experts(k=2).send(state, k, 2)[1]) for k in (0, 1, 4)] == [[1, 2], [0, 2], [0, 1]]


def test_random_experts_have_an_address():
    server = Experts(k=3, select="random")
    state = after(server, range(20))
    draw = {(k, r): tuple(senders(server.send(state, k, r)[1])) for k in range(3) for r in range(1, 4)}
    assert draw == {(k, r): tuple(senders(server.send(state, k, r)[1])) for k, r in draw}
    assert len(set(draw.values())) == len(draw)
    assert senders(Experts(k=3, select="random", seed=1).send(state, 0, 1)[1]) != list(draw[0, 1])


def test_a_newcomer_has_no_experts_yet():
    state = after(Experts(k=2), [0, 1, 2])
    assert Experts(k=2).send(state, 7, 2)[1] == {}
    assert senders(Peers().send(after(Peers(), [0, 1, 2]), 7, 2)[1]) == [0, 1, 2]


class Still:
    """Sends back what it received, and scores nothing."""

    def fit(self, jobs):
        for job in jobs:
            yield Result(job.round, job.client, 1, {n: v.clone() for n, v in job.shared.items()}, {})

    def score(self, jobs):
        return iter(())


@pytest.mark.parametrize(
    ("server", "copies"),
    [
        (FedAvg(), [1, 1, 1]),
        (Peers(), [1, 5, 5]),
        (Experts(k=2), [1, 3, 3]),
        (Experts(k=9), [1, 5, 5]),
        (FedAWA(), [1, 1, 1]),
        (Mixtures(alike="b", own="b"), [1, 1, 1]),
        (Outliers(), [1, 1, 1]),
        (Gaussian(), [1, 1, 1]),
    ],
)
def test_bytes_on_the_wire_are_counted(server, copies):
    """METHODS 5.4: FedRSCLIP's downlink is the prompt and |S| - 1 more, pFedMoAP's the prompt and its experts."""
    size = 4 * sum(int(np.prod(shape)) for shape in SHAPES.values())
    done = list(rounds(INITIAL, server, Still(), clients=range(5), total=3))
    down, up = ([r.value for d in done for r in d.rows if r.metric == f"comm/{way}_bytes"] for way in ("down", "up"))
    assert down == [5 * size * n for n in copies]
    assert up == [5 * size] * 3


def objective(old, new, logits):
    """J as the paper writes it, for autograd."""
    p = torch.softmax(logits, 0)
    tau = new - old
    return (p * (1 - torch.cosine_similarity(old, new, dim=-1))).sum() + (p * (tau - p @ tau).norm(dim=1)).sum()


@given(seed=st.integers(0, 999), count=st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_fedawa_slope_is_autograds(seed, count):
    draw = torch.Generator().manual_seed(seed)
    old, new = (torch.randn(*s, generator=draw, dtype=torch.float64) for s in ((7,), (count, 7)))
    logits = torch.randn(count, generator=draw, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(objective(old, new, logits), logits)
    assert torch.allclose(gradient(old, list(new), logits.detach()), slope, atol=1e-10)


def test_fedawa_steps_are_adams():
    draw = torch.Generator().manual_seed(0)
    old, new = (torch.randn(*s, generator=draw, dtype=torch.float64) for s in ((7,), (5, 7)))
    logits = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=0.05, betas=(0.5, 0.999))
    for _ in range(6):
        before = logits.detach().clone()
        adam.zero_grad()
        objective(old, new, logits).backward()
        adam.step()
    got = learn(old, list(new), torch.zeros(5, dtype=torch.float64), 0.05, 6)
    assert torch.allclose(got[0], logits.detach(), atol=1e-9)
    assert torch.allclose(got[1], before, atol=1e-9)


def spread(server, got):
    """Weights by which the server averaged clients whose k-th parameter is 1."""
    ones = [r._replace(shared={"a": torch.eye(len(got))[i]}) for i, r in enumerate(got)]
    return server.update(server.init({"a": torch.full((len(got),), 0.1)}), ones)["a"].double()


@pytest.mark.parametrize("weights", ["after", "before"])
@pytest.mark.parametrize("lr", [0.001, 1.0, 100.0])
def test_fedawa_weights_are_on_the_simplex(lr, weights):
    p = spread(FedAWA(lr=lr, steps=3, weights=weights), results(0, range(6)))
    assert (p >= 0).all()
    assert float(p.sum()) == pytest.approx(1, abs=1e-6)


def test_fedawa_starts_from_shares_of_the_samples():
    got = [r._replace(n=n) for r, n in zip(results(0, range(3)), (10, 30, 60), strict=True)]
    start = torch.softmax(torch.tensor([0.1, 0.3, 0.6]), 0).double()
    assert torch.allclose(spread(FedAWA(weights="before"), got), start, atol=1e-6)
    moved = spread(FedAWA(lr=0.5), got)
    assert not torch.allclose(moved, start, atol=1e-2)


def test_fedawa_distrusts_an_outlier():
    close = [r._replace(n=10) for r in results(0, range(5))]
    odd = [*close[:4], close[4]._replace(shared={n: -30 * torch.ones(s) for n, s in SHAPES.items()})]
    start = {name: torch.ones(shape) for name, shape in SHAPES.items()}
    server = FedAWA(lr=0.5, steps=10)
    state = server.update(server.init(start), odd)
    logits = torch.stack([state[f"fedawa/{k}"] for k in range(5)])
    assert logits.argmin() == 4
    assert float(logits.softmax(0)[4]) < 0.02


def test_fedawa_remembers_logits_by_client():
    server = FedAWA(lr=0.1)
    state = after(server, [0, 1, 2, 3], [1, 3])
    assert sorted(k for k in state if k.startswith("fedawa/")) == [f"fedawa/{k}" for k in range(4)]
    before = after(server, [0, 1, 2, 3])
    kept = [torch.equal(state[f"fedawa/{k}"], before[f"fedawa/{k}"]) for k in range(4)]
    assert kept == [True, False, True, False]


def test_fedawa_of_equal_clients_is_their_model():
    one = {name: torch.randn(s, generator=torch.Generator().manual_seed(0)) for name, s in SHAPES.items()}
    got = [Result(1, k, k + 1, one, {}) for k in range(7)]
    model, _ = FedAWA(lr=0.5, steps=3).send(FedAWA(lr=0.5, steps=3).update(INITIAL, got), GLOBAL, 1)
    assert all(torch.allclose(value, one[name], atol=1e-7) for name, value in model.items())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Experts(k=0), "greater than or equal to 1"),
        (lambda: Experts(select="far"), "'nearest' or 'random'"),
        (lambda: FedAWA(lr=0), "greater than 0"),
        (lambda: FedAWA(steps=0), "greater than or equal to 1"),
        (lambda: Peers(k=3), "Unexpected keyword argument"),
        (lambda: Mixtures(tau=0), "greater than 0"),
        (lambda: Outliers(share=1), "less than 1"),
        (lambda: Outliers(drop="both"), "'bottom' or 'top'"),
        (lambda: Gaussian(width=0), "greater than 0"),
    ],
)
def test_options_out_of_range_are_refused(make, text):
    with pytest.raises(ValidationError, match=text):
        make()


def test_describing_a_server_does_not_import_torch():
    names = ("Peers", "Experts", "FedAWA", "Mixtures", "Outliers", "Gaussian")
    code = f"import sys; from fedray.experiment import {', '.join(names)}; {'(), '.join(names)}(); "
    code += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("method", "server"),
    [
        (Recipe("fedrsclip"), Peers()),
        (Recipe("pfedmoap", n_ctx=4), Experts(k=2)),
        (Recipe("fedtpg"), FedAWA(lr=0.1)),
        (Recipe("dp2fl", n_ctx=4), Mixtures()),
        (Recipe("fedawa_ofl"), Outliers()),
        (Recipe("promptsrc"), Gaussian(centre=2)),
    ],
    ids=["fedrsclip", "pfedmoap", "fedtpg", "dp2fl", "fedawa_ofl", "promptsrc"],
)
def test_a_run_is_reproducible_and_resumes(made, method, server):
    options = {f"method.{k}": v for k, v in method.options.items()}
    experiment, built = made(**{"rounds": 2, "method": method.name, "server": server.kind, **options})
    settings = {"clients": built.clients, "total": experiment.rounds, "seed": 0}
    through = list(rounds(built.shared, server, Inline(built.setup), **settings))
    executor = Inline(built.setup)
    iterator = rounds(built.shared, server, executor, **settings)
    last = next(iterator)
    last = last._replace(state=files.from_safetensors(files.to_safetensors(last.state)))
    rest = list(rounds(built.shared, server, executor, resume=last, **settings))
    for one, two in zip(through[1:], rest, strict=True):
        assert all(torch.equal(value, two.shared[name]) for name, value in one.shared.items())
        plain = [[row for row in done.rows if not row.metric.startswith("time/")] for done in (one, two)]
        assert plain[0] == plain[1]


def test_fedawa_keeps_whole_numbers_whole():
    start = {"w": torch.zeros(2), "steps": torch.tensor(0)}
    got = [Result(1, k, 1, {"w": torch.full((2,), 1.0 + k), "steps": torch.tensor(5 - k)}, {}) for k in range(3)]
    state = FedAWA().update(FedAWA().init(start), got)
    assert torch.equal(state["steps"], torch.tensor(5))
    without = [r._replace(shared={"w": r.shared["w"]}) for r in got]
    assert torch.equal(state["w"], FedAWA().update({"w": torch.zeros(2)}, without)["w"])

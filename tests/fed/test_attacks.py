"""Simulated attacks: who, what they send, that it is off by default, and that rules and checks stand up to them."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fedray.experiment import Experiment
from fedray.fed.attacks import Attack, Attacked, attacked, attackers, flipped, spoiled
from fedray.fed.checks import BadUpdate
from fedray.fed.loop import Inline, rounds
from fedray.fed.robust import Clipped, Krum, Median, MultiKrum, Trimmed
from fedray.fed.server import FedAvg
from fedray.types import GLOBAL, Job, Result, Scores

SENT = {"p": torch.ones(4), "steps": torch.tensor(3)}


class Quadratic:
    """Client k walks half the way to its optimum, which is near the one of all; scores are what they should be."""

    def __init__(self, clients, spread=0.1, seed=0):
        draw = np.random.default_rng(seed)
        self.best = [torch.from_numpy(3 + spread * draw.normal(size=4)).float() for _ in range(clients)]

    def fit(self, jobs):
        for j in jobs:
            moved = {n: v + 0.5 * (self.best[j.client] - v) if n == "p" else v + 1 for n, v in j.shared.items()}
            yield Result(j.round, j.client, 1, moved, {"train/loss": 1.0})

    def score(self, jobs):
        for j in jobs:
            yield Scores(j.round, j.client, 1, {"acc1": float(j.client)})


def results(count=5):
    draw = np.random.default_rng(0)
    return [
        Result(1, k, 1, {"p": torch.from_numpy(draw.normal(2, 1, 4)).float(), "steps": torch.tensor(4)}, {})
        for k in range(count)
    ]


def sent_by(kind, scale=None, client=4, round=1):
    got = [r._replace(round=round) for r in results()]
    shared = spoiled(Attack(kind=kind, scale=scale), dict.fromkeys(range(5), SENT), got[client], got[:4], seed=0)
    assert shared["p"].dtype == torch.float32
    assert int(shared["steps"]) == 4  # whole numbers as trained
    return (
        shared["p"].double(),
        got[client].shared["p"].double(),
        torch.stack([r.shared["p"] for r in got[:4]]).double(),
    )


def test_sign_flip_goes_the_other_way():
    shared, own, _ = sent_by("sign_flip", 3.0)
    assert torch.allclose(shared - 1, -3 * (own - 1), atol=1e-5)
    assert torch.allclose(sent_by("sign_flip")[0] - 1, -10 * (own - 1), atol=1e-5)


def test_gaussian_is_noise_as_long_as_it_says_at_an_address():
    theta = {"p": torch.zeros(10_000)}
    own = Result(1, 0, 1, {"p": torch.full((10_000,), 0.5)}, {})
    noise = spoiled(Attack(kind="gaussian", scale=2.0), {0: theta}, own, [], 0)["p"]
    assert float(noise.norm()) == pytest.approx(2 * float(own.shared["p"].norm()), rel=0.03)
    draws = [sent_by("gaussian", client=k, round=r)[0] for k, r in ((4, 1), (4, 1), (3, 1), (4, 2))]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[3])


def test_alie_stays_just_inside():
    shared, _, honest = sent_by("alie", 0.5)
    assert torch.allclose(shared, honest.mean(0) - 0.5 * honest.std(0, correction=0), atol=1e-6)


@pytest.mark.parametrize(("kind", "value"), [("nan", math.nan), ("inf", math.inf), ("huge", 1e30)])
def test_nonsense_is_nonsense(kind, value):
    assert torch.allclose(sent_by(kind)[0], torch.full((4,), value).double(), equal_nan=True)


def test_labels_are_turned_round_for_attackers_alone():
    labels, shards = np.array([0, 1, 2, 3, 0, 1]), [np.array([0, 2]), np.array([1, 3]), np.array([4, 5])]
    assert flipped(labels, Attack(kind="label_flip"), shards, [0, 2], 4).tolist() == [3, 1, 1, 3, 3, 2]
    assert labels.tolist() == [0, 1, 2, 3, 0, 1]
    assert flipped(labels, Attack(kind="nan"), shards, [0, 2], 4) is labels
    several = np.array([[1, 0, -1], [0, 1, 1]], np.int8)
    assert flipped(several, Attack(kind="label_flip"), [np.array([0])], [0], 3).tolist() == [[0, 1, -1], [0, 1, 1]]


def test_attackers_are_few_fixed_and_nested():
    clients = range(3, 23)
    few, more = (attackers(Attack(kind="nan", share=s), clients, 1) for s in (0.1, 0.4))
    assert (len(few), len(more)) == (2, 8)
    assert set(few) < set(more) <= set(clients)
    assert more == sorted(more) == attackers(Attack(kind="inf", share=0.4), clients, 1)
    assert more != attackers(Attack(kind="nan", share=0.4), clients, 2)
    assert attackers(Attack(), clients, 1) == []


def test_off_by_default_and_told_when_on(caplog):
    executor = Quadratic(10)
    assert attacked(executor, Attack(), range(10), 0) is executor
    assert attacked(executor, Attack(kind="nan", share=0.01), range(10), 0) is executor  # rounds to nobody
    assert caplog.messages == []
    wrapped = attacked(executor, Attack(kind="nan"), range(10), 0)
    assert isinstance(wrapped, Attacked)
    (bad,) = caplog.messages
    assert bad == f"attack nan, simulated: by 2 of 10 clients ({', '.join(map(str, sorted(wrapped.bad)))})"


def play(server, attack, clients=10, total=15):
    executor = attacked(Quadratic(clients), attack, range(clients), 0)
    return list(rounds({"p": torch.zeros(4)}, server, executor, clients=range(clients), total=total))


def column(done, name):
    return {r.client: r.value for r in done.rows if r.metric == name}


def test_rows_say_who_attacked_and_means_are_of_the_honest():
    done = play(FedAvg(), Attack(kind="sign_flip", scale=0.1))[-1]
    bad = attackers(Attack(kind="sign_flip"), range(10), 0)
    weights = column(done, "attack/weight")
    assert [k for k, value in weights.items() if value == 1] == bad
    assert weights[GLOBAL] == pytest.approx(0.2)
    honest = [k for k in range(10) if k not in bad]
    assert column(done, "eval/local/acc1")[GLOBAL] == pytest.approx(np.mean(honest))
    assert column(play(FedAvg(), Attack(), total=1)[-1], "attack/weight") == {}


@pytest.mark.parametrize("kind", ["nan", "inf", "huge"])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.4])
def test_nonsense_is_rejected_counted_and_changes_nothing_else(kind, share):
    clients, bad = 100, round(100 * share)
    done = play(FedAvg(), Attack(kind=kind, share=share), clients, total=3)
    assert [column(d, "agg/rejected")[GLOBAL] for d in done] == [bad] * 3
    assert [column(d, "agg/accepted")[GLOBAL] for d in done] == [clients - bad] * 3
    assert column(done[-1], "attack/weight")[GLOBAL] == 0
    reason = "norm" if kind == "huge" else "not_finite"
    assert sorted(column(done[-1], f"agg/rejected/{reason}")) == [
        -1,
        *attackers(Attack(kind=kind, share=share), range(clients), 0),
    ]
    assert float((done[-1].shared["p"] - 3 * (1 - 0.5**3)).norm()) < 0.1


def test_when_all_send_nonsense_the_run_ends():
    with pytest.raises(BadUpdate, match="round 1: 0 of 10 updates are left, 1 needed"):
        play(FedAvg(), Attack(kind="nan", share=0.99))


@pytest.mark.parametrize("kind", ["sign_flip", "gaussian", "alie"])
@pytest.mark.parametrize("server", [Median(), Trimmed(), Krum(), MultiKrum(), Clipped()], ids=lambda s: s.kind)
def test_two_of_ten_do_not_stop_a_robust_rule(server, kind):
    """Where clients want nearly the same, all of them arrive; the mean does not survive a sign flip."""
    away = float((play(server, Attack(kind=kind))[-1].shared["p"] - 3).norm())
    assert away < 1.5
    mean = float((play(FedAvg(), Attack(kind="sign_flip"))[-1].shared["p"] - 3).norm())
    assert mean > 5


def test_a_real_run_is_attacked_through_its_labels_or_its_updates(made):
    """Label-flipping clients train on other labels, the others on theirs; the test set is never touched."""
    plain, flip = (made(method="promptfl", **more)[1].setup for more in ({}, {"attack.kind": "label_flip"}))
    experiment, built = made(method="promptfl", **{"attack.kind": "label_flip"})
    (bad,) = attackers(experiment.attack, built.clients, experiment.seed)
    for k, shard in enumerate(plain.shards):
        turned = 9 - plain.train.labels[shard] if k == bad else plain.train.labels[shard]
        assert np.array_equal(flip.train.labels[shard], turned)
    assert np.array_equal(plain.test.labels, flip.test.labels)
    assert np.array_equal(built.labels, plain.train.labels)  # the partition is written with the true ones
    executor = attacked(Inline(built.setup), Attack(kind="nan"), built.clients, 0)
    job = [Job(1, k, built.shared) for k in built.clients]
    sent = {r.client: all(torch.isfinite(v).all() for v in r.shared.values()) for r in executor.fit(job)}
    assert sent == {k: k != bad for k in built.clients}


def test_it_is_part_of_the_experiment_and_of_its_id():
    plain, bad = Experiment(), Experiment().override(**{"attack.kind": "alie", "attack.share": 0.3})
    assert plain.attack == Attack(kind="none")
    assert plain.id != bad.id
    assert bad.changed()["attack.kind"] == "alie"
    for options in ({"share": 1.0}, {"scale": 0}, {"kind": "ddos"}):
        with pytest.raises(ValidationError):
            Attack(**options)

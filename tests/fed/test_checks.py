"""Updates that may be aggregated and those that may not: each reason by its text, duplicates, latecomers, counts."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fedray.experiment import Experiment
from fedray.fed import checks
from fedray.fed.checks import BadUpdate, Checks, fault, quorum, sift, told
from fedray.fed.loop import rounds
from fedray.fed.server import FedAvg
from fedray.types import GLOBAL, Job, Result, Scores

SENT = {"p": torch.zeros(2), "steps": torch.tensor(3)}
ANY = Checks()


def job(client, round=1):
    return Job(round, client, SENT)


def result(client, p=(1.0, 2.0), round=1, n=3, **more):
    return Result(round, client, n, {"p": torch.tensor(p), "steps": torch.tensor(4)} | more, {"train/loss": 1.0})


def refused(sifted):
    return {r.client: (r.reason, r.text) for r in sifted.refused}


@pytest.mark.parametrize(
    ("shared", "reason", "text"),
    [
        ({}, "names", "parameters [] differ from ['p', 'steps']"),
        ({"p": torch.zeros(3), "steps": torch.tensor(4)}, "shape", "p has shape (3,), not (2,)"),
        ({"p": torch.zeros(2).double(), "steps": torch.tensor(4)}, "type", "p is torch.float64, not torch.float32"),
        ({"p": torch.zeros(2), "steps": torch.tensor(4.0)}, "type", "steps is torch.float32, not torch.int64"),
        ({"p": torch.tensor([1.0, math.inf]), "steps": torch.tensor(4)}, "not_finite", "p is not finite"),
        ({"p": torch.tensor([math.nan, 1.0]), "steps": torch.tensor(4)}, "not_finite", "lower local.lr"),
        ({"p": torch.tensor([1e30, 1.0]), "steps": torch.tensor(4)}, "norm", "its norm 1e+30 is too large to compute"),
    ],
)
def test_a_bad_update_is_left_out_and_says_why(shared, reason, text):
    sifted = sift(1, [job(k) for k in range(3)], [result(0), result(2), Result(1, 1, 3, shared, {})], ANY)
    assert [r.client for r in sifted.accepted] == [0, 2]
    assert refused(sifted)[1][0] == reason
    assert text in refused(sifted)[1][1]


def test_the_norm_is_that_of_the_update():
    """3-4-5, from where the client started; whole numbers don't count."""
    started = Job(1, 0, {"p": torch.tensor([10.0, 10.0]), "steps": torch.tensor(0)})
    got = result(0, (13.0, 14.0))
    assert fault(started, got, Checks(max_norm=5.0)) is None
    wrong = fault(started, got, Checks(max_norm=4.999))
    assert (wrong.reason, wrong.text) == ("norm", "its norm 5 is above checks.max_norm 4.999")


def test_updates_too_large_to_be_looked_at_together_are_looked_at_one_by_one(monkeypatch):
    monkeypatch.setattr(checks, "AT_ONCE", 7)
    jobs, good = [job(0), job(1)], [result(0), result(1)]
    assert len(sift(1, jobs, good, ANY).accepted) == 2
    assert refused(sift(1, jobs, [good[0], result(1, (0.0, math.nan))], ANY)) == {
        1: ("not_finite", "p is not finite; lower local.lr")
    }


def test_large_but_sound_numbers_pass():
    """Beyond what is passed at a glance, below what can't be computed with."""
    assert not sift(1, [job(0)], [result(0, (1e15, 0.0))], ANY).refused


def test_what_comes_twice_counts_once_and_a_forgery_ends_the_run():
    jobs = [job(0), job(1)]
    sifted = sift(1, jobs, [result(1), result(0), result(1), result(0)], ANY)
    assert ([r.client for r in sifted.accepted], sifted.repeated) == ([0, 1], 2)
    nan = result(0, (math.nan, 0.0))
    assert sift(1, jobs, [nan, nan, result(1)], ANY).repeated == 1  # the same bytes, though NaN differs from NaN
    for other in (result(1, (1.0, 2.5)), result(1, n=300)):
        with pytest.raises(BadUpdate, match="round 1, client 1: two updates that differ; a client sends one"):
            sift(1, jobs, [result(0), result(1), other], ANY)


def test_who_is_late_missing_or_was_not_asked():
    jobs = [job(k, 2) for k in (0, 1, 3)]
    arrived = [result(0, round=2), result(1), result(7, round=2), result(0, round=3), result(3, round=2)]
    sifted = sift(2, jobs, arrived, ANY)
    assert ([r.client for r in sifted.accepted], sifted.late) == ([0, 3], 1)
    assert [(r.client, r.reason) for r in sifted.refused] == [(0, "unasked"), (1, "missing"), (7, "unasked")]
    counts = {(r.client, r.metric): r.value for r in told(2, sifted)}
    assert counts == {
        (GLOBAL, "agg/accepted"): 2,
        (GLOBAL, "agg/rejected"): 3,
        (GLOBAL, "agg/rejected/missing"): 1,
        (GLOBAL, "agg/rejected/unasked"): 2,
        (GLOBAL, "agg/late"): 1,
        (1, "agg/rejected/missing"): 1,
    }


def test_too_few_that_are_left_are_told_by_name(caplog):
    jobs = [job(k) for k in range(4)]
    bad = [result(k, (math.nan, 0.0)) for k in range(3)]
    some = sift(1, jobs, [*bad[:2], result(2), result(3, (30.0, 40.0))], Checks(max_norm=9.0))
    assert quorum(1, some) is some
    assert caplog.messages == [
        "round 1: 3 of 4 updates refused: clients 0, 1 (p is not finite; lower local.lr); "
        "client 3 (its norm 50 is above checks.max_norm 9)"
    ]
    with pytest.raises(BadUpdate, match=r"round 1: 1 of 4 updates are left, 2 needed; refused: clients 0, 1 \(p is"):
        quorum(1, some, 2)
    with pytest.raises(BadUpdate, match="round 1: 0 of 3 updates are left, 1 needed"):
        quorum(1, sift(1, jobs[:3], bad, ANY))
    assert quorum(1, sift(1, [], [], ANY), 5).accepted == []  # nobody was asked: a round of Poisson sampling


class Careless:
    """Adds 1 to what it received. Delivers everything twice, some of it once more a round late, in any order."""

    def __init__(self, seed=None, late=()):
        self.seed, self.late, self.kept = seed, late, []

    def fit(self, jobs):
        sent = [Result(j.round, j.client, 1, {n: v + j.client for n, v in j.shared.items()}, {}) for j in jobs]
        if self.seed is None:
            return iter(sent)
        arriving = [*sent, *sent, *self.kept]
        self.kept = [r for r in sent if r.client in self.late]
        return iter([arriving[i] for i in np.random.default_rng(self.seed).permutation(len(arriving))])

    def score(self, jobs):
        return iter([Scores(j.round, j.client, 1, {"acc1": 1.0}) for j in jobs])


def test_a_careless_network_changes_nothing_and_is_counted():
    """30 rounds of 8 clients: every update twice, one in eight also a round late."""
    start = {"p": torch.zeros(3)}
    settings = {"clients": range(8), "total": 30}
    plain = list(rounds(start, FedAvg(), Careless(), **settings))
    messy = list(rounds(start, FedAvg(), Careless(seed=1, late=(5,)), **settings))
    assert all(torch.equal(a.shared["p"], b.shared["p"]) for a, b in zip(plain, messy, strict=True))
    for name, count in (("agg/late", 29), ("agg/repeated", 240), ("agg/accepted", 240), ("agg/rejected", 0)):
        assert sum(r.value for d in messy for r in d.rows if r.metric == name) == count
    assert not [r for d in plain for r in d.rows if r.metric in ("agg/late", "agg/repeated")]


def test_the_norm_is_a_field_of_the_experiment():
    assert Experiment().checks == Checks(max_norm=None)
    assert Experiment().override(**{"checks.max_norm": 2}).changed()["checks.max_norm"] == 2
    with pytest.raises(ValidationError, match="greater than 0"):
        Checks(max_norm=0)

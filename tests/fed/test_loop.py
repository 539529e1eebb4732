"""Rounds: cohorts, checks, sums, resume. With real clients where it matters, with made-up ones where it does not."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedray.errors import BadInput
from fedray.fed.loop import Inline, cohort, rounds
from fedray.fed.server import FedAvg
from fedray.types import GLOBAL, Result, Scores


class Shuffled:
    """An executor whose results arrive in another order than they were asked for."""

    def __init__(self, inner, seed):
        self.inner, self.rng = inner, np.random.default_rng(seed)

    def _mixed(self, values):
        values = list(values)
        return iter([values[i] for i in self.rng.permutation(len(values))])

    def fit(self, jobs):
        return self._mixed(self.inner.fit(jobs))

    def score(self, jobs):
        return self._mixed(self.inner.score(jobs))

    def save(self, round):
        return self.inner.save(round)

    def load(self, round, manifest):
        return self.inner.load(round, manifest)


class MadeUp:
    """Adds the client's number to what it received; scores are the client's number."""

    def fit(self, jobs):
        for j in jobs:
            yield Result(
                j.round, j.client, j.client + 1, {n: v + j.client for n, v in j.shared.items()}, {"train/loss": 1.0}
            )

    def score(self, jobs):
        for j in jobs:
            yield Scores(j.round, j.client, 10, {"acc1": 10.0 * j.client, "loss": 0.5})

    def save(self, round):
        return {}

    def load(self, round, manifest):
        pass


def metric(done, name, client=GLOBAL):
    (value,) = [r.value for r in done.rows if r.metric == name and r.client == client]
    return value


def run(made, wrap=lambda e: e, resume=None, executor=None, **changes):
    experiment, built = made(**changes)
    executor = executor or wrap(Inline(built.setup))
    settings = {
        "clients": built.clients,
        "total": experiment.rounds,
        "fraction": experiment.fraction,
        "evaluate_every": experiment.evaluate_every,
        "seed": experiment.seed,
    }
    return list(rounds(built.shared, built.server, executor, resume=resume, **settings)), executor


def same(one, two):
    timeless = [[r for r in d.rows if not r.metric.startswith("time/")] for d in (one, two)]
    return timeless[0] == timeless[1] and all(torch.equal(v, two.shared[n]) for n, v in one.shared.items())


@pytest.mark.parametrize("seed", range(3))
def test_order_of_completion_leaves_no_trace(made, seed):
    plain, _ = run(made, fraction=0.6)
    mixed, _ = run(made, lambda e: Shuffled(e, seed), fraction=0.6)
    assert all(same(a, b) for a, b in zip(plain, mixed, strict=True))


@pytest.mark.parametrize("stop", [1, 2])
def test_resume_equals_running_through(made, stop):
    through, _ = run(made, rounds=3)
    _, built = made(rounds=3)
    executor = Inline(built.setup)
    iterator = rounds(built.shared, built.server, executor, clients=built.clients, total=3, seed=0)
    last = [next(iterator) for _ in range(stop)][-1]
    rest, _ = run(made, resume=last, executor=executor, rounds=3)
    assert [r.round for r in rest] == list(range(stop + 1, 4))
    assert all(same(a, b) for a, b in zip(through[stop:], rest, strict=True))


def test_the_sum_is_fedavg_and_the_numbers_are_right():
    (done,) = rounds({"p": torch.zeros(2)}, FedAvg(), MadeUp(), clients=range(4), total=1)
    assert torch.allclose(done.shared["p"], torch.full((2,), (0 * 1 + 1 * 2 + 2 * 3 + 3 * 4) / 10))
    assert metric(done, "comm/up_bytes") == metric(done, "comm/down_bytes") == 4 * 2 * 4
    assert metric(done, "eval/local/acc1") == 15.0
    assert metric(done, "eval/local/acc1_std") == pytest.approx(np.std([0, 10, 20, 30]))
    assert metric(done, "eval/local/acc1_min") == 0
    assert metric(done, "eval/local/acc1", client=3) == 30
    assert metric(done, "eval/global/acc1") == -10
    assert metric(done, "agg/accepted") == 4


def test_the_headline_is_the_same_whoever_has_no_images_to_be_asked_about():
    """Of several labels, images that show no class have a loss alone: no reason to say how the loss spreads."""

    class Several(MadeUp):
        def score(self, jobs):
            for j in jobs:
                known = {"map": 10.0 * j.client} if j.client > 0 else {}
                yield Scores(j.round, j.client, 1, {**known, "loss": 1.0})

    (done,) = rounds({"p": torch.zeros(2)}, FedAvg(), Several(), clients=range(4), total=1)
    assert metric(done, "eval/local/map") == 20.0
    assert metric(done, "eval/local/map_min") == 10.0
    assert not [r for r in done.rows if r.metric.startswith("eval/local/loss_")]


def test_evaluation_has_a_cadence_and_an_end():
    made_up = list(rounds({"p": torch.zeros(1)}, FedAvg(), MadeUp(), clients=range(2), total=5, evaluate_every=2))
    assert [any(r.metric == "eval/global/acc1" for r in d.rows) for d in made_up] == [False, True, False, True, True]


@given(
    clients=st.integers(1, 50),
    fraction=st.floats(0.001, 1.0, allow_nan=False),
    seed=st.integers(0, 99),
    r=st.integers(1, 9),
)
def test_cohorts(clients, fraction, seed, r):
    got = cohort(range(clients), fraction, seed, r)
    assert len(got) == max(1, math.floor(fraction * clients + 0.5))
    assert got == sorted(set(got)) == cohort(range(clients), fraction, seed, r)
    assert set(got) <= set(range(clients))


def test_cohorts_differ_between_rounds_and_seeds():
    drawn = {tuple(cohort(range(100), 0.1, s, r)) for s in range(3) for r in range(1, 4)}
    assert len(drawn) == 9


@pytest.mark.parametrize("fraction", [0, -0.5, 1.5])
def test_a_fraction_out_of_range_is_told(fraction):
    with pytest.raises(BadInput, match=rf"fraction must be in \(0, 1\], got {fraction:g}"):
        cohort(range(3), fraction, 0, 1)


def test_no_clients_is_told():
    with pytest.raises(BadInput, match="no client holds a training image"):
        cohort([], 1.0, 0, 1)


class Eager(MadeUp):
    """As actors do: at work as soon as it is asked. Writes down what it is asked."""

    def __init__(self):
        self.asked = []

    def fit(self, jobs):
        self.asked.append(("fit", jobs[0].round))
        return iter(list(super().fit(jobs)))

    def score(self, jobs):
        self.asked.append(("score", jobs[0].round))
        return iter(list(super().score(jobs)))


def test_the_next_round_is_under_way_while_the_caller_has_this_one():
    eager = Eager()
    made_up = rounds({"p": torch.zeros(1)}, FedAvg(), eager, clients=range(2), total=3)
    seen = []
    for done in made_up:
        seen.append((done.round, list(eager.asked)))
        eager.asked.clear()
    assert seen == [
        (1, [("fit", 1), ("score", 1), ("fit", 2)]),
        (2, [("score", 2), ("fit", 3)]),
        (3, [("score", 3)]),
    ]
    plain = list(rounds({"p": torch.zeros(1)}, FedAvg(), MadeUp(), clients=range(2), total=3))
    assert torch.equal(done.shared["p"], plain[-1].shared["p"])


def test_local_training_shares_nothing(made, tmp_path):
    path = tmp_path / "alone.py"
    path.write_text(
        '"""Alone."""\n'
        "from fedray.method import PromptMethod\n"
        "from fedray.nn.heads import Cosine\n"
        "from fedray.nn.prompts import TextContext\n\n\n"
        "def alone(clip):\n    return PromptMethod(TextContext(clip, n=4), Cosine(), private=['*'])\n"
    )
    done, executor = run(made, method=str(path), rounds=2)
    assert metric(done[-1], "comm/up_bytes") == 0
    one, two = (executor.clients.vault.before(k, 3)["prompts.tokens"] for k in (0, 1))
    assert not torch.equal(one, two)


def test_zero_shot_is_a_round_in_which_nobody_trains(made):
    (done,), _ = run(made, method="zeroshot", rounds=1)
    assert metric(done, "comm/up_bytes") == 0
    assert 0 <= metric(done, "eval/global/acc1") <= 100

"""Who comes, how far each gets, and what becomes of a round in which clients fail."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fedray.build import build
from fedray.errors import BadInput, Unavailable
from fedray.experiment import Experiment
from fedray.fed import client, participation
from fedray.fed import clients as hosted
from fedray.fed.attacks import Attack, attacked
from fedray.fed.checks import BadUpdate
from fedray.fed.client import Diverged
from fedray.fed.loop import Inline, rounds
from fedray.fed.participation import Conduct, Failure, Participation, lightened, read_trace, turnout, work
from fedray.fed.server import FedAvg
from fedray.types import GLOBAL, Job, Result, Scores

ODD = Participation(dropout=0.3, stragglers=0.4)


def conduct(*, there=None, who=None, **failure):
    return Conduct(Failure(**failure), who or Participation(), there)


class MadeUp:
    """Adds the client's number to what it received."""

    def fit(self, jobs):
        for j in jobs:
            yield Result(j.round, j.client, 1, {n: v + j.client for n, v in j.shared.items()}, {"train/loss": 1.0})

    def score(self, jobs):
        return iter([Scores(j.round, j.client, 1, {"acc1": 1.0}) for j in jobs])


def played(conduct, clients=range(8), total=12, **more):
    return list(
        rounds({"p": torch.zeros(1)}, FedAvg(), MadeUp(), clients=clients, total=total, conduct=conduct, **more)
    )


def values(done, metric):
    return {r.client: r.value for r in done.rows if r.metric == metric}


def run(made, conduct, executor=None, total=1, wrap=lambda e: e, **changes):
    experiment, built = made(**changes)
    executor = executor or Inline(built.setup, conduct=conduct)
    settings = {"clients": built.clients, "total": total, "seed": experiment.seed}
    done = rounds(built.shared, built.server, wrap(executor), conduct=conduct, faults=executor.faults, **settings)
    return list(done), executor


def breaks(monkeypatch, whose, error, times=99):
    """Let these clients' training raise, the first so many times; returns who was trained."""
    real, tried = hosted.fit, []

    def fit(world, job, private):
        tried.append(job.client)
        if job.client in whose and tried.count(job.client) <= times:
            raise error
        return real(world, job, private)

    monkeypatch.setattr(hosted, "fit", fit)
    return tried


# ---- simulated ----


def test_every_draw_has_an_address():
    chosen = list(range(1000))
    one = turnout(Conduct(participation=ODD), chosen, seed=3, round=7)
    some = turnout(Conduct(participation=ODD), chosen[::2], seed=3, round=7)
    assert set(some.come) == set(one.come) & set(chosen[::2])
    assert sorted([*one.come, *one.dropped]) == chosen
    assert [work(ODD, 3, 7, k) for k in one.come] == list(one.work)
    assert one.come != turnout(Conduct(participation=ODD), chosen, seed=3, round=8).come
    assert 0.25 < len(one.dropped) / 1000 < 0.35
    assert 0.35 < sum(share == 0.5 for share in one.work) / len(one.come) < 0.45
    assert turnout(Conduct(), chosen, 3, 7).come == tuple(chosen)


def test_who_drops_out_is_told_and_weighs_nothing():
    who = Participation(dropout=0.5)
    for done in played(conduct(who=who), seed=1):
        gone = values(done, "participation/dropped")
        assert gone.pop(GLOBAL) == len(gone) == 8 - len(done.cohort)
        assert not gone.keys() & set(done.cohort)
        assert values(done, "agg/accepted") == {GLOBAL: len(done.cohort)}
    assert len({done.cohort for done in played(conduct(who=who), seed=1)}) > 6
    plain = played(conduct())
    assert not [r for done in plain for r in done.rows if r.metric.startswith("participation/")]


def test_a_straggler_does_whole_batches_of_its_own_and_counts_as_ever(made, monkeypatch):
    _, built = made(**{"split.shots": 16, "local.batch": 2, "local.epochs": 2})
    slow = Participation(stragglers=1.0, work=0.4)
    jobs = [Job(1, k, built.shared) for k in built.clients]
    light = lightened(built.setup, jobs, slow)
    for k in built.clients:
        whole, part = built.setup.shards[k], light.shards[k]
        steps, batches = -(-len(part) // 2), -(-len(whole) // 2)
        assert set(part) <= set(whole)
        assert steps == max(1, -(-batches * 4 // 10))
    again = lightened(built.setup, [job._replace(round=2) for job in jobs], slow)
    assert any(set(a) != set(b) for a, b in zip(light.shards, again.shards, strict=True))
    results = list(Inline(built.setup, conduct=conduct(who=slow)).fit(jobs))
    assert {r.client: r.n for r in results} == {k: len(built.setup.shards[k]) for k in built.clients}
    quick = list(Inline(built.setup, conduct=conduct(who=Participation(stragglers=1.0, work=1.0))).fit(jobs))
    plain = list(Inline(built.setup).fit(jobs))
    assert all(torch.equal(a.shared[n], b.shared[n]) for a, b in zip(quick, plain, strict=True) for n in a.shared)
    assert not all(torch.equal(a.shared[n], b.shared[n]) for a, b in zip(results, plain, strict=True) for n in a.shared)


def test_a_straggler_trains_against_all_classes_that_it_holds(made, monkeypatch):
    changes = {"method": "promptfl", "partition": "iid", "local.label_space": "own", "local.batch": 4}
    _, built = made(**changes)
    real, seen = client._label_space, []

    def label_space(*args):
        task, own = real(*args)
        seen.append(len(task.names))
        return task, own

    monkeypatch.setattr(client, "_label_space", label_space)
    slow = Participation(stragglers=1.0, work=0.1)  # one batch of 4 images, of clients with 16
    list(Inline(built.setup, conduct=conduct(who=slow)).fit([Job(1, k, built.shared) for k in built.clients]))
    assert seen == [len(set(built.labels[built.parts[k]])) for k in built.clients]
    assert min(seen) > 4


def test_stragglers_are_told():
    for done in played(conduct(who=ODD), seed=2):
        slow = values(done, "participation/work")
        assert values(done, "participation/stragglers") == {GLOBAL: len(slow)}
        assert slow == {k: 0.5 for k in done.cohort if work(ODD, 2, done.round, k) < 1}


@pytest.mark.parametrize("sampling", ["fixed", "poisson"])
def test_only_who_is_there_can_be_chosen(sampling):
    there = {1: (0, 5), 2: (1, 2, 3, 4, 6), 4: (7,)}
    done = played(conduct(there=there), total=4, fraction=0.5, sampling=sampling)
    assert all(set(d.cohort) <= set(there.get(d.round, ())) for d in done)
    assert [values(d, "participation/there")[GLOBAL] for d in done] == [2, 5, 0, 1]
    if sampling == "fixed":  # half of 8, or all that are there
        assert [len(d.cohort) for d in done] == [2, 4, 0, 1]
    assert torch.equal(done[2].shared["p"], done[1].shared["p"])


# ---- traces ----


def test_a_trace_is_read_from_either_kind_of_file(tmp_path):
    (tmp_path / "a.csv").write_text("client,round\n2,1\n0,3\n1,1\n1,1\n0,9\n")
    table = pa.table({"round": [1, 3, 1, 9], "client": [2, 0, 1, 0], "note": ["", "", "", ""]})
    pq.write_table(table, tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        assert read_trace(tmp_path / name, clients=3, rounds=3).there == {1: (1, 2), 3: (0,)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("round,who\n1,2\n", r"can't be read \(no column client\); give a .csv or .parquet file with columns round"),
        ("round,client\n1,a\n", r"can't be read \(not all of column client are whole numbers\)"),
        ("round,client\n1,\n2,1\n", r"can't be read \(not all of column client are whole numbers\)"),
        ("", "can't be read"),
        ("round,client\n1,3\n", r"round 1, client 3; rounds start at 1, and clients are 0\.\.2"),
        ("round,client\n0,1\n", r"round 0, client 1; rounds start at 1"),
        ("round,client\n1,1\n2,1\n", "ends with round 2, the run with 3; lower rounds to it"),
    ],
)
def test_a_trace_that_can_not_be_is_told(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(BadInput, match=rf"^participation.trace .*/a.csv:? {message}"):
        read_trace(tmp_path / "a.csv", clients=3, rounds=3)


def test_a_trace_that_is_missing_or_no_parquet_is_told(tmp_path):
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    for name in ("a.csv", "b.parquet"):
        with pytest.raises(BadInput, match=r"can't be read \(.*\); give a .csv or .parquet file"):
            read_trace(tmp_path / name, clients=3, rounds=3)


# ---- what does not fit together ----


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"server": "dpfedavg", "participation.dropout": 0.2},
            r"participation.dropout 0.2 changes who is in a round, and server.kind dpfedavg accounts for fraction and "
            r"sampling alone; leave it out \(sampling poisson with a lower fraction is dropout that is accounted for\)",
        ),
        ({"server": "dpfedavg", "failure.deadline_s": 2}, "failure.deadline_s 2 changes who is in a round"),
        ({"failure.min_fit": 4, "fraction": 0.6}, "failure.min_fit 4 is more than the 3 clients of a round; lower it"),
        (
            {"server": "krum", "server.f": 1, "participation.dropout": 0.1},
            "server.kind krum with f 1 needs 5 clients in every round, and participation.dropout 0.1 leaves any number",
        ),
    ],
)
def test_what_does_not_fit_together_is_told(changes, text, cache):
    base = {"clip.name": "tiny", "partition.clients": 5, **changes}
    with pytest.raises(BadInput, match=text):
        build(Experiment().override(**base), cache=cache)


# ---- real ----


def test_by_default_an_error_ends_the_run(made, monkeypatch):
    breaks(monkeypatch, {2}, Diverged("round 1, client 2: the loss is not finite"))
    with pytest.raises(Diverged, match="round 1, client 2: the loss is not finite"):
        run(made, conduct())


@pytest.mark.parametrize("error", [Diverged("round 1, client 2: no number"), MemoryError(), ZeroDivisionError("x\ny")])
def test_who_fails_is_left_out_and_the_rest_weighs_as_alone(made, monkeypatch, error):
    tried = breaks(monkeypatch, {2}, error)
    (done,), executor = run(made, conduct(policy="drop"))
    clients = list(done.cohort)
    assert 2 in clients
    assert tried == clients
    assert values(done, "agg/failed") == {GLOBAL: 1, 2: 1}
    assert values(done, "agg/failed/error") == {GLOBAL: 1}
    assert values(done, "agg/accepted") == {GLOBAL: len(clients) - 1}
    assert values(done, "agg/rejected") == {GLOBAL: 0}
    (fault,) = executor.faults
    words = {Diverged: "Diverged: no number", MemoryError: "MemoryError", ZeroDivisionError: "ZeroDivisionError: x y"}
    assert str(fault) == f"round 1, client 2: {words[type(error)]}; left out"
    assert fault.trace.startswith("Traceback (most recent call last):\n")
    _, built = made()
    rest = [k for k in clients if k != 2]
    (alone,) = rounds(built.shared, built.server, Inline(built.setup), clients=rest, total=1)
    assert all(torch.equal(value, alone.shared[name]) for name, value in done.shared.items())


def test_who_fails_keeps_the_private_state_it_had(made, monkeypatch):
    breaks(monkeypatch, {1}, ZeroDivisionError())
    _, executor = run(made, conduct(policy="drop"), total=2)
    assert executor.clients.vault.versions(1) == []
    assert executor.clients.vault.versions(0) == [1, 2]


def test_a_second_attempt_starts_from_the_same_state(made, monkeypatch):
    (plain,), _ = run(made, conduct())
    tried = breaks(monkeypatch, {1, 3}, OSError("flaky"), times=1)
    (done,), executor = run(made, conduct(policy="retry"))
    assert [tried.count(k) for k in done.cohort] == [2 if k in (1, 3) else 1 for k in done.cohort]
    assert values(done, "agg/retried") == {GLOBAL: 2, 1: 1, 3: 1}
    assert not values(done, "agg/failed")
    assert [str(f) for f in executor.faults] == [
        f"round 1, client {k}: OSError: flaky; trained once more" for k in (1, 3)
    ]
    assert all(torch.equal(value, plain.shared[name]) for name, value in done.shared.items())


def test_what_comes_after_a_second_failure(made, monkeypatch):
    tried = breaks(monkeypatch, {3}, OSError("broken"))
    (done,), _ = run(made, conduct(policy="retry", then="drop"))
    assert values(done, "agg/failed") == {GLOBAL: 1, 3: 1}
    assert tried.count(3) == 2
    with pytest.raises(OSError, match="broken"):
        run(made, conduct(policy="retry"))


def test_too_few_updates_end_the_run_by_name(made, monkeypatch):
    breaks(monkeypatch, {1, 3}, Diverged("no number"))
    text = "round 1: 3 of 5 updates are left, 4 needed; failed: clients 1, 3 (Diverged: no number)"
    with pytest.raises(BadUpdate) as error:
        run(made, conduct(policy="drop", min_fit=4))
    assert str(error.value) == text
    (done,), _ = run(made, conduct(policy="drop", min_fit=3))
    assert values(done, "agg/accepted") == {GLOBAL: 3}


def test_surroundings_that_fail_are_nobodys_fault(made, monkeypatch):
    breaks(monkeypatch, {1}, Unavailable("disk full"))
    with pytest.raises(Unavailable, match="disk full"):
        run(made, conduct(policy="drop"))


def test_of_those_who_train_together_only_the_one_that_fails_is_left_out(made, monkeypatch):
    def together(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(hosted.batched, "fit", together)
    tried = breaks(monkeypatch, {2}, ZeroDivisionError())
    (done,), _ = run(made, conduct(policy="drop"), method="promptfl", **{"local.group": 5})
    assert tried == list(done.cohort)
    assert values(done, "agg/failed") == {GLOBAL: 1, 2: 1}


def test_a_deadline_leaves_out_who_has_not_begun(made, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(participation, "monotonic", lambda: now[0])
    real = hosted.fit

    def fit(world, job, private):
        now[0] += 1
        return real(world, job, private)

    monkeypatch.setattr(hosted, "fit", fit)
    (first, second), executor = run(made, conduct(deadline_s=2.5), total=2)
    late = dict.fromkeys(first.cohort[2:], 1.0)  # the third is stopped before its first step
    assert late
    assert values(first, "agg/failed") == {GLOBAL: len(late), **late}
    assert values(first, "agg/failed/deadline") == {GLOBAL: len(late)}
    assert values(second, "agg/accepted") == {GLOBAL: 2}  # each round has a deadline of its own
    assert {f.text for f in executor.faults} == {"not done within 2.5 s"}


@pytest.mark.parametrize("group", [1, 5])
def test_a_deadline_is_looked_at_between_steps(made, monkeypatch, group):
    now = [0.0]

    def later():
        now[0] += 1
        return now[0]

    monkeypatch.setattr(participation, "monotonic", later)
    _, built = made(method="promptfl", **{"local.group": group, "local.batch": 2, "split.shots": 16})
    executor = Inline(built.setup, conduct=conduct(deadline_s=4.5))
    jobs = [Job(1, k, built.shared) for k in built.clients]
    assert max(len(built.setup.shards[job.client]) for job in jobs) > 10  # so many steps that none of 5 ends in time
    assert list(executor.fit(jobs[-1:] if group == 1 else jobs)) == []
    assert {fault.why for fault in executor.faults} == {"late"}


def test_attackers_may_fail_too(made, monkeypatch):
    breaks(monkeypatch, {0, 1}, ZeroDivisionError())
    attack = Attack(kind="sign_flip", share=0.4)
    (done,), _ = run(made, conduct(policy="drop"), wrap=lambda e: attacked(e, attack, range(5), 0))
    assert values(done, "agg/accepted") == {GLOBAL: 3}


def test_resumed_rounds_have_the_same_clients(made):
    settings = conduct(who=ODD)
    through, _ = run(made, settings, total=4)
    _, built = made()
    executor = Inline(built.setup, conduct=settings)
    more = {"clients": built.clients, "total": 4, "seed": 0, "conduct": settings}
    begun = rounds(built.shared, built.server, executor, **more)
    last = [next(begun) for _ in range(2)][-1]
    rest = list(rounds(built.shared, built.server, executor, resume=last, **more))
    for one, two in zip(through[2:], rest, strict=True):
        assert one.cohort == two.cohort
        assert all(torch.equal(v, two.shared[n]) for n, v in one.shared.items())

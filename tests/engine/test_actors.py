"""Hosts: which run they answer for, what a crash changes (nothing), what they import, what they choose to run on."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import ray
import torch

from fedray.build import Built, build
from fedray.engine import actors, nodes, wire
from fedray.engine.actors import Host, Lease, RayActors
from fedray.engine.driver import claimed, drive, open_folder, run
from fedray.engine.placement import place
from fedray.errors import Unavailable
from fedray.experiment import Experiment
from fedray.fed.clients import Clients
from fedray.fed.loop import Executor, Inline
from fedray.fed.vault import Vault
from fedray.types import GLOBAL, Job, Result, Scores

Make = Callable[..., Experiment]


class Shuffled:
    """An executor whose results come in another order."""

    def __init__(self, inner: Executor, seed: int) -> None:
        self.inner, self.random = inner, random.Random(seed)
        self.save, self.load = inner.save, inner.load

    def fit(self, jobs: Sequence[Job]) -> Iterator[Result]:
        yield from self._mix(list(self.inner.fit(self._mix(jobs))))

    def score(self, jobs: Sequence[Job]) -> Iterator[Scores]:
        yield from self._mix(list(self.inner.score(self._mix(jobs))))

    def _mix(self, values: Sequence) -> list:
        return self.random.sample(values, len(values))


def digest(e: Experiment, runs: Path, cache: Path) -> str:
    started = run(e, runs=runs, placement="inline", cache=cache)
    assert len(list(started.rounds)) == e.rounds
    return started.folder.digest()


def pids(hosts: RayActors) -> list[int]:
    return ray.get([host.__ray_call__.remote(lambda _: os.getpid()) for host in hosts.hosts])


def kill(pid: int) -> None:
    """End an actor's process that this test started."""
    os.kill(pid, signal.SIGKILL)


def shared_of(built: Built, round: int = 1) -> list[Job]:
    return [Job(round, k, built.shared) for k in built.clients]


# ---- order ----


def test_completion_order_leaves_no_trace(make: Make, tmp_path: Path, cache: Path) -> None:
    e = make()
    expected, built = digest(e, tmp_path / "plain", cache), build(e, cache=cache)
    for seed in range(5):
        folder = open_folder(e, study="single", runs=tmp_path / str(seed))
        with claimed(folder):
            list(drive(e, built, folder, Shuffled(Inline(built.setup, folder.private_dir), seed)))
        assert folder.digest() == expected


@pytest.mark.ray
@pytest.mark.parametrize("count", [1, 4])
def test_actors_and_order_leave_no_trace(
    count: int, make: Make, tmp_path: Path, cache: Path, cluster: None, workers: object
) -> None:
    e = make()
    expected, built = digest(e, tmp_path / "plain", cache), build(e, cache=cache)
    folder = open_folder(e, study="single", runs=tmp_path / "actors")
    with closing(RayActors(place("packed", 5, cpus=2, actors=count))) as hosts, claimed(folder):
        hosts.open(built.setup, folder.private_dir)
        list(drive(e, built, folder, Shuffled(hosts, count)))
    assert folder.digest() == expected


# ---- crashes ----


@pytest.mark.ray
@pytest.mark.chaos
def test_killed_hosts_change_nothing(make: Make, tmp_path: Path, cache: Path, cluster: None, workers: object) -> None:
    e = make(rounds=4, **{"local.epochs": 4})
    expected, built = digest(e, tmp_path / "plain", cache), build(e, cache=cache)
    folder = open_folder(e, study="single", runs=tmp_path / "killed")
    with closing(RayActors(place("packed", 5, cpus=2, actors=2))) as hosts, claimed(folder):
        hosts.open(built.setup, folder.private_dir)
        first = pids(hosts)
        during = threading.Timer(0.05, kill, [first[0]])
        for done in drive(e, built, folder, hosts):
            if done.round == 1:
                during.start()  # amid the next fit
            if done.round == 3:
                kill(first[1])  # between two rounds
        during.join()
        assert not set(first) & set(pids(hosts))
    assert folder.digest() == expected


@pytest.mark.ray
@pytest.mark.chaos
def test_a_restarted_host_serves_the_run_that_asks(
    make: Make, tmp_path: Path, cache: Path, cluster: None, workers: object
) -> None:
    first, second = build(make(), cache=cache), build(make(seed=1, **{"method.n_ctx": 3}), cache=cache)
    with closing(RayActors(place("packed", 5, cpus=2, actors=1))) as hosts:
        hosts.open(first.setup, tmp_path / "first")
        assert list(hosts.fit(shared_of(first)))
        before = pids(hosts)
        hosts.open(second.setup, tmp_path / "second")
        assert pids(hosts) == before  # warm: the same process
        kill(before[0])
        (got,) = list(hosts.fit(shared_of(second)[:1]))
    (want,) = Clients(second.setup).fit(shared_of(second)[:1])
    assert torch.equal(got.shared["prompts.shared.tokens"], want.shared["prompts.shared.tokens"]), got.shared.keys()
    assert list(Vault(tmp_path / "second").places) == [second.clients[0]]


def test_a_new_process_keeps_what_the_checkpoint_before_needs(
    make: Make, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build(make(), cache=cache)
    monkeypatch.setattr(ray, "get", lambda setup: setup)
    monkeypatch.setattr(actors, "device", lambda: "cpu")
    lease = Lease("a", [built.setup], (str(tmp_path), nodes.mark(tmp_path)))  # type: ignore[list-item]
    client = built.clients[0]
    host = Host()
    host.fit(lease, wire.pack_jobs([Job(1, client, built.shared)]))
    host = Host()  # killed in round 2
    host.fit(lease, wire.pack_jobs([Job(2, client, built.shared)]))  # and the driver dies before it commits round 2
    host = Host()
    host.fit(lease, wire.pack_jobs([Job(3, client, built.shared)]))
    assert Vault(tmp_path).versions(client) == [1, 2, 3]


@pytest.mark.ray
def test_actors_that_find_no_place(
    make: Make, cache: Path, cluster: None, workers: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors, "PATIENCE", 0.5)
    hosts = RayActors(place("packed", 5, cpus=2, actors=1))
    hosts.close()
    hosts.hosts = [ray.remote(Host).options(num_cpus=3).remote()]
    with closing(hosts), pytest.raises(Unavailable, match=r"1 actors of .* found no place within 0.5 s \(free: "):
        hosts.open(build(make(), cache=cache).setup, None)


# ---- what a host is ----


@pytest.mark.ray
def test_a_host_imports_no_more_than_it_needs(
    make: Make, tmp_path: Path, cache: Path, cluster: None, workers: object
) -> None:
    built = build(make(), cache=cache)
    with closing(RayActors(place("packed", 5, cpus=2, actors=1))) as hosts:
        hosts.open(built.setup, tmp_path)
        assert list(hosts.fit(shared_of(built)[:1]))
        assert list(hosts.score([Job(1, GLOBAL, built.shared)]))
        (found,) = ray.get([hosts.hosts[0].__ray_call__.remote(lambda _: list(sys.modules))])
    heavy = {"open_clip", "torchvision", "mlflow", "sklearn", "ray.tune", "optuna", "ot", "timm"}
    assert heavy & set(found) == set()
    assert {"torch", "fedray.nn.towers"} <= set(found)


def test_device_is_the_cpu_without_cuda_and_limits_memory_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Context:
        def get_assigned_resources(self) -> dict[str, float]:
            return {"GPU": 0.25}

    limits: list[float] = []
    monkeypatch.setattr(ray, "get_runtime_context", Context)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert actors.device() == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limits.append)
    assert actors.device() == "cuda"
    assert limits == [0.25]
    monkeypatch.setattr(Context, "get_assigned_resources", lambda _: {"CPU": 1.0})
    assert actors.device() == "cpu"


def test_large_payloads_go_through_the_object_store_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[wire.Jobs] = []
    monkeypatch.setattr(ray, "put", lambda message: stored.append(message) or "reference")
    one = {"a": torch.zeros(20_000)}  # 80 kB
    same = wire.pack_jobs([Job(1, k, one) for k in range(5)])
    assert actors._sendable(same) is same
    different = wire.pack_jobs([Job(1, k, {"a": torch.zeros(20_000)}) for k in range(5)])
    assert actors._sendable(different) == "reference"
    assert stored == [different]

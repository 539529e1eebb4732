"""Ray underneath: hosts, orders and nodes that come and go leave no trace in the result."""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedray import run
from fedray.build import build
from fedray.engine.cluster import attached
from fedray.engine.driver import claimed, drive, open_folder
from fedray.engine.placement import place
from fedray.experiment import Experiment
from fedray.types import GLOBAL, Job, Result, Scores

pytestmark = [pytest.mark.chaos, pytest.mark.ray]

SMALL = {
    "clip.name": "tiny",
    "method": "fedotp",
    "method.n_ctx": 2,
    "split.shots": 4,
    "partition.clients": 8,
    "fraction": 0.6,
    "rounds": 6,
    "evaluate_every": 3,
}


def made(**changes: object) -> Experiment:
    return Experiment().override(**{**SMALL, **changes})


def finish(experiment: Experiment, runs: Path, cache: Path) -> str:
    started = run(experiment, runs=runs, placement="inline", cache=cache)
    list(started.rounds)
    assert started.folder.status["state"] == "done"
    return started.folder.digest()


class Shuffled:
    """An executor whose jobs and results come in another order."""

    def __init__(self, inner: Any, seed: int) -> None:
        self.inner, self.random = inner, random.Random(seed)
        self.save, self.load = inner.save, inner.load

    def fit(self, jobs: Sequence[Job]) -> Iterator[Result]:
        yield from self._mix(list(self.inner.fit(self._mix(jobs))))

    def score(self, jobs: Sequence[Job]) -> Iterator[Scores]:
        yield from self._mix(list(self.inner.score(self._mix(jobs))))

    def _mix(self, values: Sequence[Any]) -> list[Any]:
        return self.random.sample(list(values), len(values))


# ---- a run that is killed with its Ray ----

RUN = """
    import json, sys
    from pathlib import Path
    from fedray import Experiment, run

    if __name__ == "__main__":
        runs, cache, changes = sys.argv[1:]
        experiment = Experiment().override(**json.loads(changes))
        for done in run(experiment, runs=runs, placement="packed", actors=2, cache=Path(cache)).rounds:
            print("done", done.round, flush=True)
"""


def test_a_run_on_actors_killed_with_all_that_is_its_own(killer: Any, tmp_path: Path, cache: Path, tally: Any) -> None:
    changes = {**SMALL, "rounds": 12}
    with tempfile.TemporaryDirectory(prefix="fr", dir="/tmp", ignore_cleanup_errors=True) as short:
        life = killer.start(RUN, tmp_path / "killed", cache, json.dumps(changes), RAY_TMPDIR=short)
        assert life.wait(lambda said: len(said) >= 2), life.errors
        family = psutil.Process(life.process.pid).children(recursive=True)
        agents = [p for p in family if "Agent" in " ".join(p.cmdline())]
        life.kill()
        left = psutil.wait_procs([p for p in family if p not in agents], timeout=30)[1]
        for agent in psutil.wait_procs(agents, timeout=1)[1]:
            agent.kill()  # Ray's agents end by themselves, a minute later
    equal = finish(made(rounds=12), tmp_path / "killed", cache) == finish(made(rounds=12), tmp_path / "plain", cache)
    tally("1", "kills of a driver whose Ray dies with it: no process left", 1, not left)
    tally("1", "runs, killed with their Ray, with equal hash", 1, equal)


# ---- hosts ----


@pytest.mark.timeout(1800)
def test_hosts_killed_amid_training(long_only: None, tmp_path: Path, cache: Path, tally: Any) -> None:
    """The short form is tests/engine/test_actors.py."""
    from fedray.engine.actors import RayActors

    kills, draw, rows = 20, random.Random(2), Counter[tuple[int, int, str]]()
    e = made(rounds=kills + 2, **{"local.epochs": 3})
    folder = open_folder(e, study="single", runs=tmp_path / "killed")
    with attached(num_cpus=2):
        import ray

        built = build(e, cache=cache)
        with closing(RayActors(place("packed", 8, cpus=2, actors=2))) as hosts, claimed(folder):
            hosts.open(built.setup, folder.private_dir)
            timers, dead = [], 0
            for done in drive(e, built, folder, hosts):
                rows.update((row.round, row.client, row.metric) for row in done.rows)
                if done.round <= kills:  # the next round's training has begun
                    (pid,) = ray.get([draw.choice(hosts.hosts).__ray_call__.remote(lambda _: os.getpid())])
                    timers.append(threading.Timer(draw.uniform(0, 0.3), os.kill, [pid, signal.SIGKILL]))
                    timers[-1].start()
            for timer in timers:
                timer.join()
                dead += 1
    assert dead == kills
    trained = {(r, k) for r, k, metric in rows if metric == "train/loss" and k != GLOBAL}
    assert len(trained) == e.rounds * 5
    tally(
        "2",
        "hosts killed: each client of each cohort in the ledger once",
        len(trained),
        sum(rows[r, k, "train/loss"] == 1 for r, k in trained),
    )
    tally("2", "runs with 20 hosts killed, with equal hash", 1, folder.digest() == finish(e, tmp_path / "plain", cache))


@pytest.mark.timeout(1200)
def test_any_number_of_hosts_and_any_order(long_only: None, tmp_path: Path, cache: Path, tally: Any) -> None:
    """The short form is tests/engine/test_actors.py."""
    from fedray.engine.actors import RayActors

    e, found, orders = made(rounds=3), Counter[str](), 10
    with attached(num_cpus=2):
        built = build(e, cache=cache)
        for count in (1, 2, 4):
            with closing(RayActors(place("packed", 8, cpus=2, actors=count))) as hosts:
                for seed in range(orders):
                    folder = open_folder(e, study=f"hosts-{count}", runs=tmp_path / str(seed))
                    hosts.open(built.setup, folder.private_dir)
                    with claimed(folder):
                        list(drive(e, built, folder, Shuffled(hosts, seed)))
                    found[folder.digest()] += 1
    tally("4", "hosts (1, 2, 4) x orders of completion with one hash", 30, found[finish(e, tmp_path / "plain", cache)])


# ---- nodes ----

NODES = """
    import json, sys, time
    from contextlib import closing
    from dataclasses import replace
    from pathlib import Path
    from fedray.engine.cluster import QUIET
    import os
    os.environ.update(QUIET)
    import ray
    from ray.cluster_utils import Cluster
    from fedray.build import build
    from fedray.engine.actors import RayActors
    from fedray.engine.driver import claimed, drive, open_folder
    from fedray.engine.placement import place
    from fedray.experiment import Experiment

    def main() -> None:
        runs, cache, changes, lost = sys.argv[1:]
        e = Experiment().override(**json.loads(changes))
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        others = [nodes.add_node(num_cpus=1) for _ in range(2)]
        ray.init(nodes.address, logging_level="ERROR", log_to_driver=False)
        try:
            built = build(e, cache=Path(cache))
            total = ray.cluster_resources()["CPU"]
            with closing(RayActors(replace(place("packed", 8, cpus=3, actors=3), num_cpus=0.5))) as hosts:
                folder = open_folder(e, study="single", runs=Path(runs))
                hosts.open(built.setup, folder.private_dir)
                with claimed(folder):
                    for done in drive(e, built, folder, hosts):
                        if done.round == 2:  # the next round's training has begun
                            nodes.remove_node(others[int(lost)], allow_graceful=False)
                        print("done", done.round, flush=True)
            deadline = time.monotonic() + 30
            while ray.available_resources().get("CPU", 0) != total - 1 and time.monotonic() < deadline:
                time.sleep(0.2)
            print("back", ray.available_resources().get("CPU", 0) == total - 1, flush=True)
        finally:
            ray.shutdown()
            nodes.shutdown()

    if __name__ == "__main__":
        main()
"""


@pytest.mark.timeout(1200)
def test_a_node_is_lost_amid_training(long_only: None, killer: Any, tmp_path: Path, cache: Path, tally: Any) -> None:
    """Three nodes that are processes of this machine; their hosts start again on those left."""
    changes, times = {**SMALL, "rounds": 5, "local.epochs": 3}, 3
    expected, back, equal = finish(made(**changes), tmp_path / "plain", cache), 0, 0
    for lost in range(times):
        with tempfile.TemporaryDirectory(prefix="fr", dir="/tmp", ignore_cleanup_errors=True) as short:
            runs = tmp_path / f"lost-{lost}"
            life = killer.start(NODES, runs, cache, json.dumps(changes), lost % 2, RAY_TMPDIR=short)
            assert life.end() == 0, life.errors
        back += "back True\n" in life.said
        equal += finish(made(**changes), runs, cache) == expected
    tally("6", "losses of 1 of 3 nodes amid training with equal hash", times, equal)
    tally("6", "losses of a node after which all resources come back", times, back)

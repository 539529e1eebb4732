"""Kill it and go on: the end is the same, byte for byte, as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from fedray import run
from fedray.experiment import Experiment

pytestmark = pytest.mark.chaos

SMALL = {
    "clip.name": "tiny",
    "method": "fedotp",
    "method.n_ctx": 2,
    "split.shots": 4,
    "partition.clients": 5,
    "fraction": 0.6,
    "rounds": 12,
}

RUN = """
    import json, os, signal, sys
    from pathlib import Path
    from fedray import Experiment, run
    from fedray.track import checkpoint, run as folders

    def die(*args, **options):
        os.kill(os.getpid(), signal.SIGKILL)

    def plant(where):
        # die at a point of round 3's commit
        room, name = {
            "before the rows": (folders.RunFolder, "commit"),
            "before the checkpoint": (checkpoint, "write"),
            "before the status": (folders.RunFolder, "_set"),
        }[where]
        real, calls = getattr(room, name), []

        def counted(*args, **options):
            calls.append(1)
            if options.get("round") == 3 if name == "_set" else len(calls) == 3:
                die()
            return real(*args, **options)

        setattr(room, name, counted)

    if __name__ == "__main__":
        runs, cache, placement, where = sys.argv[1:5]
        if where:
            plant(where)
        experiment = Experiment().override(**json.loads(sys.argv[5]))
        actors = 2 if placement == "packed" else None
        for done in run(experiment, runs=runs, placement=placement, actors=actors, cache=Path(cache)).rounds:
            print(done.round, flush=True)
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> str:
    """The digest of a run that nobody disturbed."""
    return finish(tmp_path_factory.mktemp("plain"), cache)


def finish(runs: Path, cache: Path) -> str:
    started = run(Experiment().override(**SMALL), runs=runs, placement="inline", cache=cache)
    list(started.rounds)
    assert started.folder.status["state"] == "done"
    return started.folder.digest()


@contextmanager
def running(
    tmp_path: Path, cache: Path, *, placement: str = "inline", where: str = ""
) -> Iterator[subprocess.Popen[str]]:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(RUN))
    command = [sys.executable, str(script), str(tmp_path / "runs"), str(cache), placement, where, json.dumps(SMALL)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    with tempfile.TemporaryDirectory(prefix="fr", dir="/tmp") as short:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment | {"RAY_TMPDIR": short}
        ) as process:
            yield process
            family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            agents = [p for p in family if "Agent" in " ".join(p.cmdline())]
            process.send_signal(signal.SIGKILL)
            process.wait(30)
        assert psutil.wait_procs([p for p in family if p not in agents], timeout=30)[1] == [], "processes left behind"
        for agent in psutil.wait_procs(agents, timeout=1)[1]:
            agent.kill()  # Ray's agents end by themselves, a minute later


def rounds_of(process: subprocess.Popen[str], until: int) -> int:
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= until:
            return int(line)
    raise AssertionError(f"ended before round {until}")


def test_a_driver_killed_at_any_time(tmp_path: Path, cache: Path, expected: str) -> None:
    reached = 0
    for kill in range(3):
        with running(tmp_path, cache) as process:
            seen = rounds_of(process, min(reached + 2, 11))
            assert seen <= reached + 2 + 1  # it went on where it was: at most one round is done again
            time.sleep(random.Random(kill).uniform(0, 0.15))
        (folder,) = (tmp_path / "runs" / "single").glob("fedotp-*")
        assert json.loads((folder / "status.json").read_text())["state"] == "running"
        reached = json.loads((folder / "status.json").read_text())["round"]
        assert reached >= seen - 1
    assert finish(tmp_path / "runs", cache) == expected


@pytest.mark.parametrize("where", ["before the rows", "before the checkpoint", "before the status"])
def test_a_driver_killed_between_fit_and_commit(where: str, tmp_path: Path, cache: Path, expected: str) -> None:
    with running(tmp_path, cache, where=where) as process:
        assert process.wait(120) == -signal.SIGKILL
        assert process.stdout is not None
        assert process.stdout.read().split() == ["1", "2"]
    assert finish(tmp_path / "runs", cache) == expected


@pytest.mark.ray
def test_a_run_on_actors_killed_with_all_that_is_its_own(tmp_path: Path, cache: Path, expected: str) -> None:
    with running(tmp_path, cache, placement="packed") as process:
        rounds_of(process, 2)
    # what is left of it may still be writing: it writes the same bytes
    assert finish(tmp_path / "runs", cache) == expected

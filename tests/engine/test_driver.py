"""A run from its start to its end, wherever it runs, and whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedray import Experiment, run
from fedray.engine import driver
from fedray.engine.driver import claimed, open_folder, summary
from fedray.errors import BadInput, Unavailable
from fedray.fed.client import Diverged

Make = Callable[..., Experiment]
Find = Callable[[str], set[int]]


def finish(e: Experiment, runs: Path, cache: Path) -> str:
    started = run(e, runs=runs, placement="inline", cache=cache)
    list(started.rounds)
    return started.folder.digest()


# ---- here ----


def test_a_finished_run_is_left_alone(make: Make, tmp_path: Path, cache: Path) -> None:
    before = finish(make(), tmp_path, cache)
    again = run(make(), runs=tmp_path, placement="packed", cache=cache)  # not even Ray is started
    assert list(again.rounds) == []
    assert again.folder.digest() == before


def test_summary_holds_what_belongs_to_no_client(make: Make, tmp_path: Path, cache: Path) -> None:
    (last,) = list(run(make(rounds=1), runs=tmp_path, placement="inline", cache=cache).rounds)
    metrics = summary(last)
    assert {"train/loss", "eval/local/acc1", "eval/global/acc1", "comm/up_bytes"} <= metrics.keys()
    assert metrics["agg/accepted"] == 3


def test_a_listener_that_goes_interrupts_and_the_next_goes_on(make: Make, tmp_path: Path, cache: Path) -> None:
    started = run(make(), runs=tmp_path, placement="inline", cache=cache)
    next(started.rounds)
    started.rounds.close()  # type: ignore[attr-defined]
    assert started.folder.status["state"] == "interrupted"
    assert [r.round for r in run(make(), runs=tmp_path, placement="inline", cache=cache).rounds] == [2, 3]
    assert started.folder.digest() == finish(make(), tmp_path / "plain", cache)


def test_a_run_that_cannot_be_built_says_so_in_its_status(make: Make, tmp_path: Path, cache: Path) -> None:
    e = make(**{"split.shots": 100_000})
    started = run(e, runs=tmp_path, placement="inline", cache=cache)
    with pytest.raises(BadInput):
        next(started.rounds)
    status = started.folder.status
    assert status["state"] == "failed"
    assert status["error"].startswith("BadInput: ")


def test_two_processes_cannot_run_the_same(
    make: Make, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "LOCK_S", 0.1)
    folder = open_folder(make(), study="single", runs=tmp_path)
    hold = "import sys, filelock\nwith filelock.FileLock(sys.argv[1]):\n    print(1, flush=True)\n    sys.stdin.read()"
    lock = str(folder.path / ".lock")
    with subprocess.Popen([sys.executable, "-c", hold, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(BadInput) as error, claimed(folder):
            pass
        assert other.stdin is not None
        other.stdin.close()
    text = f"run {folder.run_id} is being run by another process; wait for it, or stop it"
    assert str(error.value) == text
    assert folder.status["state"] == "running"  # the other's


def test_a_wrong_placement_makes_no_folder(make: Make, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"actors must be in 1\.\.5"):
        run(make(), runs=tmp_path / "runs", placement="packed", actors=9)
    assert not (tmp_path / "runs").exists()


def test_other_data_is_refused(make: Make, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = run(make(), runs=tmp_path, placement="inline", cache=cache)
    next(started.rounds)
    started.rounds.close()  # type: ignore[attr-defined]
    real = driver.build

    def changed(*args: object, **options: object) -> object:
        built = real(*args, **options)  # type: ignore[arg-type]
        return built._replace(parts=[part[:-1] for part in built.parts])

    monkeypatch.setattr(driver, "build", changed)
    with pytest.raises(Unavailable, match="was started on other data: its clients' images differ"):
        next(run(make(), runs=tmp_path, placement="inline", cache=cache).rounds)


# ---- on Ray ----


@pytest.mark.ray
@pytest.mark.parametrize(("placement", "actors"), [("packed", 2), ("exclusive", None)])
def test_placements_give_the_same_bytes(
    placement: str, actors: int | None, make: Make, tmp_path: Path, cache: Path, cluster: None, workers: Find
) -> None:
    started = run(make(), runs=tmp_path / "ray", placement=placement, actors=actors, cache=cache)  # type: ignore[arg-type]
    assert [r.round for r in started.rounds] == [1, 2, 3]
    assert len(started.placement.hosts) == (actors or 5)
    assert started.folder.status["state"] == "done"
    assert started.folder.digest() == finish(make(), tmp_path / "inline", cache)


@pytest.mark.ray
def test_an_error_of_a_client_arrives_as_what_it_was(
    make: Make, tmp_path: Path, cache: Path, cluster: None, workers: Find
) -> None:
    e = make(method="promptfl", **{"local.lr": 1e30, "local.epochs": 5})
    started = run(e, runs=tmp_path, placement="packed", actors=1, cache=cache)
    with pytest.raises(Diverged, match=r"round \d, client \d: the loss is not finite .* lower local.lr") as error:
        list(started.rounds)
    assert type(error.value) is Diverged
    assert started.folder.status["error"].startswith("Diverged: round ")


@pytest.mark.ray
@pytest.mark.chaos
def test_a_killed_driver_tells_how_to_go_on(
    make: Make, tmp_path: Path, cache: Path, cluster: None, workers: Find
) -> None:
    e = make(rounds=20, **{"split.shots": 2})
    started = run(e, runs=tmp_path / "killed", placement="packed", actors=1, cache=cache)
    next(started.rounds)
    (pid,) = workers("Driver")
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(Unavailable) as error:
        list(started.rounds)
    text = str(error.value)
    assert text.startswith(f"the driver of run {started.folder.run_id} died (")
    assert text.endswith(f"finished rounds are kept, go on with: fedray resume {started.folder.path}")
    assert started.folder.status["state"] == "interrupted"
    assert finish(e, tmp_path / "killed", cache) == finish(e, tmp_path / "plain", cache)


@pytest.mark.ray
def test_a_listener_that_goes_ends_the_actors(
    make: Make, tmp_path: Path, cache: Path, cluster: None, workers: Find
) -> None:
    e = make(rounds=20, **{"split.shots": 2})
    started = run(e, runs=tmp_path / "left", placement="packed", actors=1, cache=cache)
    next(started.rounds)
    started.rounds.close()  # type: ignore[attr-defined]
    assert not workers("Driver")
    assert started.folder.status["state"] == "interrupted"
    assert finish(e, tmp_path / "left", cache) == finish(e, tmp_path / "plain", cache)

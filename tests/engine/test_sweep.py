"""Grids: which cells there are, that each runs once, and that one that fails is only one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from fedray import Experiment, run
from fedray.engine import locks
from fedray.engine.sweep import Progress, sweep
from fedray.errors import BadInput, Unavailable
from fedray.experiment import grid

Make = Callable[..., Experiment]


def digests(cells: list[Experiment], runs: Path, cache: Path) -> list[str]:
    found = []
    for cell in cells:
        started = run(cell, runs=runs, placement="inline", cache=cache)
        list(started.rounds)
        found.append(started.folder.digest())
    return found


# ---- the grid ----


def test_the_last_axis_changes_fastest(make: Make) -> None:
    cells = grid(make(), {"partition.alpha": [0.1, 1.0], "seed": [0, 1, 2]})
    assert [(c.partition.alpha, c.seed) for c in cells] == [(a, s) for a in (0.1, 1.0) for s in (0, 1, 2)]  # type: ignore[union-attr]


def test_equal_cells_are_one(make: Make) -> None:
    assert len(grid(make(), {"seed": [0, 0, 1]})) == 2


def test_mistakes(make: Make, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="axis seed is empty; give it at least one value"):
        grid(make(), {"seed": []})
    with pytest.raises(BadInput, match=r"partition.alhpa is not a field. Did you mean partition.alpha\?"):
        grid(make(), {"partition.alhpa": [1]})
    with pytest.raises(BadInput, match="actors and concurrent must be >= 1, got 0 and None"):
        sweep([make()], study="s", runs=tmp_path, actors=0)


def test_nothing_to_do_starts_nothing(make: Make, tmp_path: Path, cache: Path) -> None:
    list(run(make(), study="s", runs=tmp_path, placement="inline", cache=cache).rounds)
    news: list[Progress] = []
    done = sweep([make()], study="s", runs=tmp_path, show=news.append)
    assert (done.skipped, done.failed) == ([0], {})
    assert news == [Progress(0, 3, {}, True)]


def test_a_cell_that_another_process_runs_stays_its_own(
    make: Make, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "LOCK_S", 0.1)
    started = run(make(), study="s", runs=tmp_path, placement="inline", cache=cache)
    next(started.rounds)
    done = sweep([make()], study="s", runs=tmp_path, placement="inline", concurrent=1, cache=cache)
    assert "is being run by another process" in done.failed[0]
    assert started.folder.status["state"] == "running"
    started.rounds.close()


# ---- on Ray ----


@pytest.mark.ray
def test_a_grid_runs_warm_and_once_and_survives_a_cell_that_fails(
    make: Make, tmp_path: Path, cache: Path, cluster: None, workers: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedray.engine.tuner import Reporter

    cells = grid(make(method="promptfl", rounds=2), {"local.lr": [0.05, 1e30], "seed": [0, 1]})
    pids, hosts, news = set(), set(), list[Progress]()
    real = Reporter.on_trial_result

    def watch(self: Reporter, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **i: Any) -> None:
        pids.add(result["pid"])
        hosts.update(workers("Host"))  # type: ignore[operator]
        real(self, iteration, trials, trial, result, **i)

    monkeypatch.setattr(Reporter, "on_trial_result", watch)
    options: dict[str, Any] = {"study": "s", "runs": tmp_path / "grid", "concurrent": 1, "cache": cache}
    done = sweep(cells, **options, show=news.append)
    assert (len(pids), len(hosts)) == (1, 1)  # one driver and one host served all
    assert sorted(done.failed) == [2, 3]
    assert all("lower local.lr" in text for text in done.failed.values()), done.failed
    assert [f.status["state"] for f in done.folders] == ["done", "done", "failed", "failed"]
    assert [f.digest() for f in done.folders[:2]] == digests(cells[:2], tmp_path / "plain", cache)
    assert {p.round for p in news if p.cell == 0} == {1, 2}
    assert not list((tmp_path / "grid" / ".tune").iterdir())

    again = sweep(cells[:2], **options, show=news.append)
    assert (again.skipped, again.failed) == ([0, 1], {})


@pytest.mark.ray
def test_a_relative_path_means_the_same_in_a_trial(make: Make, tmp_path: Path, cache: Path, cluster: None) -> None:
    for name, shade in (("dark", 20), ("light", 220)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (16, 16), (shade + i,) * 3).save(tmp_path / "images" / name / f"{i}.png")
    root = os.path.relpath(tmp_path / "images")
    cell = make(**{"data.name": "folder", "data.root": root, "partition.clients": 2, "rounds": 1, "fraction": 1.0})
    done = sweep([cell], study="s", runs=tmp_path / "runs", cache=cache)
    assert (done.failed, done.folders[0].status["state"]) == ({}, "done")


@pytest.mark.ray
def test_a_host_that_died_for_good_fails_one_cell_and_not_those_to_come(
    make: Make, tmp_path: Path, cache: Path, cluster: None, workers: object
) -> None:
    import ray

    from fedray.engine.trial import Site, Warm

    (tmp_path / ".tune").mkdir()
    warm = Warm(Site("s", tmp_path, cache, inline=False, actors=1, num_cpus=1))
    cells = grid(make(method="promptfl", rounds=1), {"seed": [0, 1, 2]})
    with closing(warm):
        assert len(list(warm.rounds(cells[0]))) == 1
        assert warm.hosts is not None
        ray.kill(warm.hosts.hosts[0])  # as after too many crashes
        with pytest.raises(Unavailable, match="died for good"):
            list(warm.rounds(cells[1]))
        assert len(list(warm.rounds(cells[2]))) == 1


SWEEP = """
    import sys
    from pathlib import Path
    from fedray.engine.sweep import sweep
    from fedray.experiment import Experiment, grid

    if __name__ == "__main__":
        small = {"clip.name": "tiny", "method": "fedotp", "method.n_ctx": 2, "split.shots": 4,
                 "partition.clients": 5, "rounds": 8}
        cells = grid(Experiment().override(**small), {"seed": [0, 1, 2]})
        sweep(cells, study="s", runs=Path(sys.argv[1]), placement="inline", concurrent=1, cache=Path(sys.argv[2]),
              show=lambda p: print(p.cell, p.round, p.done, flush=True))
"""


@pytest.mark.ray
@pytest.mark.chaos
def test_an_interrupted_sweep_goes_on(make: Make, tmp_path: Path, cache: Path, cluster: None, workers: object) -> None:
    script = tmp_path / "cells.py"
    script.write_text(textwrap.dedent(SWEEP))
    cells = grid(make(rounds=8, fraction=1.0), {"seed": [0, 1, 2]})
    with subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "runs"), str(cache)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        seen = [process.stdout.readline() for _ in range(10)]  # amid the second cell
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert "KeyboardInterrupt" in errors, errors
        assert process.returncode != 0
    assert psutil.wait_procs(family, timeout=15)[1] == []
    assert seen[8].split() == ["1", "1", "False"], seen
    news: list[Progress] = []
    done = sweep(
        cells, study="s", runs=tmp_path / "runs", placement="inline", concurrent=1, cache=cache, show=news.append
    )
    assert done.skipped == [0]
    assert done.failed == {}
    assert min(p.round for p in news if p.cell == 1) > 1  # went on, did not start anew
    assert [p.round for p in news if p.cell == 2] == list(range(1, 9))
    assert [f.digest() for f in done.folders] == digests(cells, tmp_path / "plain", cache)


@pytest.mark.ray
@pytest.mark.chaos
def test_a_trial_whose_process_dies_goes_on(
    make: Make, tmp_path: Path, cache: Path, cluster: None, workers: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedray.engine.tuner import Reporter

    seen: list[tuple[int, int]] = []
    real = Reporter.on_trial_result

    def kill_once(
        self: Reporter, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if len(seen) == 1:
            os.kill(result["pid"], signal.SIGKILL)
        seen.append((result["pid"], result["round"]))
        real(self, iteration, trials, trial, result, **info)

    monkeypatch.setattr(Reporter, "on_trial_result", kill_once)
    cells = [make(rounds=20)]
    done = sweep(cells, study="s", runs=tmp_path / "runs", placement="inline", concurrent=2, cache=cache)
    assert done.failed == {}
    assert len({pid for pid, _ in seen}) == 2
    assert seen[2][1] > 1  # went on
    assert done.folders[0].digest() == digests(cells, tmp_path / "plain", cache)[0]

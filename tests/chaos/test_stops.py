"""Asked to stop: the exit code says so, the line below says how to go on, and no process stays behind."""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedray.engine.search import judged, open_study
from fedray.experiment import Experiment, grid
from fedray.track.run import runs

pytestmark = pytest.mark.chaos

SMALL = {
    "clip.name": "tiny",
    "method": "fedotp",
    "method.n_ctx": 2,
    "split.shots": 4,
    "partition.clients": 5,
    "evaluate_every": 5,
}
COMMAND = """
    import sys
    from fedray.cli import main

    if __name__ == "__main__":
        sys.exit(main())
"""
WAYS = {"SIGINT": (signal.SIGINT, 1, 130), "SIGINT twice": (signal.SIGINT, 2, 130), "SIGTERM": (signal.SIGTERM, 1, 143)}


def words(rounds: int, placement: str = "inline") -> list[str]:
    fields = [f"--{path}={value}" for path, value in {**SMALL, "rounds": rounds}.items()]
    return ["run", *fields, "--placement", placement, "--mlflow", "off"]


def stopped(
    killer: Any, home: Path, how: str, seed: int, placement: str, cache: Path, **more: str
) -> tuple[bool, bool]:
    """Whether code and command are right; whether nothing is left."""
    number, times, code = WAYS[how]
    draw, where = random.Random(seed), home / f"{how.replace(' ', '-')}-{placement}-{seed}"
    where.mkdir()
    command = words(500, placement)
    life = killer.start(COMMAND, *command, cwd=where, FEDRAY_CACHE=str(cache), **more)
    assert life.wait(lambda said: any(line.startswith("r ") for line in said)), life.errors
    family = psutil.Process(life.process.pid).children(recursive=True)
    time.sleep(draw.uniform(0, 0.3))
    for _ in range(times):
        with suppress(ProcessLookupError):  # the first one may have been enough
            os.kill(life.process.pid, number)
        time.sleep(draw.uniform(0, 0.05))
    ended = life.end()
    (folder,) = runs(where / "runs")
    again = f"interrupted: what is done is kept; go on with: fedray resume {folder.path}"
    # the second one may cut the writing of the status short: its lock is free, so that it is known to have stopped
    noted = folder.state in (("interrupted",) if times == 1 else ("interrupted", "stopped"))
    told = ended == code and again in life.errors.splitlines() and noted
    if not told:
        print(how, placement, ended, life.errors, folder.status)
    left = psutil.wait_procs([p for p in family if p.is_running()], timeout=10)[1]
    for process in left:
        print("left:", " ".join(process.cmdline())[:200])
    return told, not left


@pytest.mark.timeout(900)
def test_a_run_that_is_asked_to_stop(killer: Any, tmp_path: Path, cache: Path, often: Any, tally: Any) -> None:
    for how in WAYS:
        times = often(2, 10)
        ended = [stopped(killer, tmp_path, how, seed, "inline", cache) for seed in range(times)]
        tally("9", f"{how}: exit code {WAYS[how][2]}, and the command to go on with", times, sum(e[0] for e in ended))


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_run_on_actors_that_is_asked_to_stop(
    long_only: None, killer: Any, tmp_path: Path, cache: Path, tally: Any
) -> None:
    times, ended = 2, list[tuple[bool, bool]]()
    with tempfile.TemporaryDirectory(prefix="fr", dir="/tmp", ignore_cleanup_errors=True) as short:
        for how in WAYS:
            ended += [stopped(killer, tmp_path, how, seed, "packed", cache, RAY_TMPDIR=short) for seed in range(times)]
    tally("9", "all three, on actors: exit code and command", len(ended), sum(e[0] for e in ended))
    tally("9", "all three, on actors: no process left after 10 s", len(ended), sum(e[1] for e in ended))


# ---- sweeps and searches ----

SWEEP = """
    import json, sys
    from pathlib import Path
    from fedray.engine.sweep import sweep
    from fedray.experiment import Experiment, grid

    if __name__ == "__main__":
        runs, cache, changes = sys.argv[1:]
        cells = grid(Experiment().override(**json.loads(changes)), {"seed": list(range(12))})
        done = sweep(cells, study="s", runs=Path(runs), placement="inline", cache=Path(cache),
                     show=lambda p: print(p.cell, p.round, p.done, flush=True))
        print("ended", len(done.failed), flush=True)
"""

SEARCH = """
    import json, sys
    from pathlib import Path
    from optuna.distributions import FloatDistribution
    from fedray.engine.search import search
    from fedray.experiment import Experiment, grid

    if __name__ == "__main__":
        runs, cache, changes = sys.argv[1:]
        cells = grid(Experiment().override(**json.loads(changes)), {"seed": [0, 1, 2]})
        search(cells, {"local.lr": FloatDistribution(0.01, 0.2, log=True)}, trials=12, study="s", runs=Path(runs),
               placement="inline", cache=Path(cache), show=lambda j: print("cell", j.cells_done, j.done, flush=True))
        print("ended 0", flush=True)
"""


def interrupted(
    killer: Any, script: str, runs: Path, cache: Path, changes: dict[str, Any], when: list[int]
) -> list[Any]:
    """Ctrl-C after so many lines, for each of them, then to the end; returns the lives."""
    lives = []
    for line in when:
        life = killer.start(script, runs, cache, json.dumps(changes))
        life.wait(lambda said, line=line: len(said) >= line)
        os.kill(life.process.pid, signal.SIGINT)
        life.end()
        lives.append(life)
    lives.append(killer.start(script, runs, cache, json.dumps(changes)))
    assert lives[-1].end() == 0, lives[-1].errors
    assert "ended 0\n" in lives[-1].said, lives[-1].said
    return lives


@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_a_study_of_twelve_cells(long_only: None, killer: Any, tmp_path: Path, cache: Path, tally: Any) -> None:
    """The short form is tests/engine/test_sweep.py."""
    changes, whole, once = {**SMALL, "rounds": 4}, 0, 0
    cells = grid(Experiment().override(**changes), {"seed": list(range(12))})
    draw = random.Random(12)
    for turn in range(3):
        lives = interrupted(killer, SWEEP, tmp_path / str(turn), cache, changes, [draw.randrange(3, 30)])
        rounds = Counter(line for life in lives for line in life.said if line.endswith("False\n"))
        again = [line for line, count in rounds.items() if count > 1]  # a round that was done, told, and done again
        found = {folder.run_id: folder.status["state"] for folder in runs(tmp_path / str(turn), "s")}
        whole += found == {cell.run_id: "done" for cell in cells}
        once += not again
    tally("12", "studies of 12 cells, stopped by Ctrl-C: the same cells, all done", 3, whole)
    tally("12", "studies of 12 cells, stopped by Ctrl-C: no round of a cell twice", 3, once)


@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_a_search_of_twelve_points(long_only: None, killer: Any, tmp_path: Path, cache: Path, tally: Any) -> None:
    """The short form is tests/engine/test_search.py."""
    changes, draw, good, seeds = {**SMALL, "rounds": 1}, random.Random(13), 0, 0
    for turn in range(3):
        home = tmp_path / str(turn)
        interrupted(killer, SEARCH, home, cache, changes, [draw.randrange(4, 16)])
        study = open_study(home, "s")
        trials = study.get_trials(deepcopy=False)
        unique = [trial.number for trial in trials] == list(range(len(trials)))
        good += unique and judged(study) == 12 and all(trial.state.is_finished() for trial in trials)
        complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
        seeds += bool(complete) and all(sorted(trial.intermediate_values) == [1, 2, 3] for trial in complete)
    tally("12", "searches of 12 points, stopped by Ctrl-C: numbers unique, 12 judged, none left open", 3, good)
    tally("12", "searches of 12 points, stopped by Ctrl-C: every complete point has all its seeds", 3, seeds)

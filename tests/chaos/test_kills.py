"""Kill it and go on: the end is the same, byte for byte, as if nothing had happened."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from fedray import run
from fedray.experiment import Experiment
from fedray.track.run import RunFolder
from fedray.types import GLOBAL

pytestmark = pytest.mark.chaos

SMALL = {
    "clip.name": "tiny",
    "method": "fedotp",
    "method.n_ctx": 2,
    "split.shots": 4,
    "partition.clients": 8,
    "fraction": 0.6,
    "rounds": 30,
    "evaluate_every": 5,
}
PRIVATE = {"method": "promptfl", "server": "dpfedavg", "sampling": "poisson", "fraction": 0.5}

RUN = """
    import json, sys
    from pathlib import Path
    from fedray import Experiment, run
    from fedray.fed.loop import Inline

    fit = Inline.fit

    def told(self, jobs):
        print("fit", jobs[0].round, flush=True)
        yield from fit(self, jobs)

    if __name__ == "__main__":
        Inline.fit = told
        runs, cache, changes = sys.argv[1:]
        experiment = Experiment().override(**json.loads(changes))
        for done in run(experiment, runs=runs, placement="inline", cache=Path(cache)).rounds:
            print("done", done.round, flush=True)
"""


def made(**changes: object) -> Experiment:
    return Experiment().override(**{**SMALL, **changes})


def finish(experiment: Experiment, runs: Path, cache: Path) -> RunFolder:
    started = run(experiment, runs=runs, placement="inline", cache=cache)
    list(started.rounds)
    assert started.folder.status["state"] == "done"
    return started.folder


def fits(said: list[str]) -> list[int]:
    """Rounds that were begun."""
    return [int(line.split()[1]) for line in said if line.startswith("fit ")]


def killed(killer: Any, runs: Path, cache: Path, changes: dict[str, object], kills: int, seed: int) -> int:
    """Kill a run so often at random moments; returns how many times it went on where it was, one round done again."""
    draw, went_on, last = random.Random(seed), 0, 1
    for _ in range(kills):
        life = killer.start(RUN, runs, cache, json.dumps({**SMALL, **changes}))
        until = last + draw.choice([0, 0, 1, 1, 2])
        if life.wait(lambda said, until=until: max(fits(said), default=0) >= until):
            time.sleep(draw.uniform(0, 0.08))
        life.kill()
        begun = fits(life.said)
        assert begun, life.errors  # else the kill would have hit nothing
        went_on += begun[0] >= last and begun == list(range(begun[0], begun[-1] + 1))
        last = begun[-1]
    return went_on


@pytest.mark.timeout(3000)
def test_a_driver_killed_at_any_time(killer: Any, tmp_path: Path, cache: Path, often: Any, tally: Any) -> None:
    seeds, kills, rounds = often(1, 3), often(4, 20), often(12, 30)
    equal = went_on = 0
    for seed in range(seeds):
        changes = {"seed": seed, "rounds": rounds}
        went_on += killed(killer, tmp_path / "killed", cache, changes, kills, seed)
        folder = finish(made(**changes), tmp_path / "killed", cache)
        equal += folder.digest() == finish(made(**changes), tmp_path / "plain", cache).digest()
    tally("1", "kills of the driver after which at most one round is done again", seeds * kills, went_on)
    tally("1", "runs, killed so often, with equal hash", seeds, equal)


@pytest.mark.timeout(1800)
def test_a_private_run_neither_loses_nor_doubles_a_round(
    killer: Any, tmp_path: Path, cache: Path, often: Any, tally: Any
) -> None:
    pytest.importorskip("dp_accounting")
    kills, changes = often(2, 5), {**PRIVATE, "rounds": often(6, 20)}
    went_on = killed(killer, tmp_path / "killed", cache, changes, kills, 0)
    one, other = (finish(made(**changes), tmp_path / name, cache) for name in ("killed", "plain"))
    found = one.latest()
    assert found is not None
    assert int(found[0].state["dp/rounds"]) == changes["rounds"]
    ledger = [row[3] for row in one.records(client=GLOBAL) if row[2] == "dp/rounds"]
    assert ledger == list(range(1, changes["rounds"] + 1))
    assert one.digest() == other.digest()
    tally("25", "kills of a private run: the ledger neither loses nor doubles a round", kills, went_on)

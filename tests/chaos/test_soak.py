"""Anything in any order: runs are started, killed, resumed, forked, given more seeds, changed, damaged, and robbed.

After each step every folder loads, and what is done has the hash of a run that nobody disturbed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from fedray import run
from fedray.errors import BadInput
from fedray.experiment import Experiment, as_dict, from_dict
from fedray.track import checkpoint
from fedray.track.run import RunFolder, runs

pytestmark = pytest.mark.chaos

SMALL = {
    "clip.name": "tiny",
    "method": "fedotp",
    "method.n_ctx": 2,
    "split.shots": 2,
    "partition.clients": 4,
    "fraction": 0.5,
    "rounds": 6,
    "evaluate_every": 3,
}

RUN = """
    import json, sys
    from pathlib import Path
    from fedray import run
    from fedray.experiment import from_dict

    if __name__ == "__main__":
        runs, cache, config = sys.argv[1:]
        for done in run(from_dict(json.loads(config)), runs=runs, placement="inline", cache=Path(cache)).rounds:
            print("done", done.round, flush=True)
"""


class Soak:
    """The disturbed runs in one folder, and beside it each of them undisturbed."""

    def __init__(self, home: Path, killer: Any, seed: int) -> None:
        self.killer, self.draw = killer, random.Random(seed)
        self.runs, self.plain, self.cache = home / "runs", home / "plain", home / "cache"
        self.known: dict[str, Experiment] = {}
        self.expected: dict[str, str] = {}
        self.steps: dict[str, int] = {}
        self.seeds = 0

    def step(self) -> None:
        """One of what can be done now."""
        can = [self.start]
        if self.known:
            can += [self.add_seed, self.kill, self.kill, self.resume, self.change, self.spoil]
            can += [self.fork] * bool(self._forkable()) + [self.lose_cache] * self.cache.exists()
        do = self.draw.choice(can)
        self.steps[do.__name__] = self.steps.get(do.__name__, 0) + 1
        do()
        self.check()

    def start(self) -> None:
        """A new one, with a configuration of its own, killed at some time."""
        fields = {"local.lr": self.draw.choice([0.02, 0.05]), "rounds": self.draw.choice([3, 6])}
        fields["method"] = self.draw.choice(["fedotp", "promptfl"])
        self._add(Experiment().override(**{**SMALL, **fields, "method.n_ctx": 2, "seed": self._seed()}))

    def add_seed(self) -> None:
        """One like another one."""
        base = self.known[self._any()]
        if not base.forked_from:
            self._add(base.override(seed=self._seed()))

    def kill(self) -> None:
        """Go on with one, and kill it amid it."""
        if self.known:
            self._life(self.known[self._any()], dies=True)

    def resume(self) -> None:
        """Let one run to its end."""
        self._life(self.known[self._any()], dies=False)

    def change(self) -> None:
        """The same run with another configuration is refused, and nothing of it changes."""
        name = self._any()
        tree = as_dict(self.known[name])
        tree["rounds"] += 1
        before = self._folder(name).status
        with pytest.raises(BadInput, match=r"was started with rounds \d, now \d"):
            RunFolder.create(self.runs, "s", name, tree)
        assert self._folder(name).status == before

    def spoil(self) -> None:
        """One bit of a file flips; the run goes on to its end nevertheless."""
        name = self._any()
        folder = self._folder(name)
        kept = checkpoint.found(folder.path / "ckpt")
        files = [folder.path / "status.json"]
        files += [folder.prompts_path] if folder.status["state"] == "done" else []
        files += [kept[0] / "state.safetensors"] if folder.status["state"] != "done" and len(kept) > 1 else []
        path = self.draw.choice(files)
        raw = bytearray(path.read_bytes())
        raw[self.draw.randrange(len(raw))] ^= 1 << self.draw.randrange(8)
        path.write_bytes(raw)
        self._life(self.known[name], dies=False)

    def fork(self) -> None:
        """Go on from where one is with another rate; undisturbed, from the same place, it ends in the same way."""
        name = self.draw.choice(self._forkable())
        source = self._folder(name)
        at = checkpoint.found(source.path / "ckpt")[0].name
        base = self.known[name]
        fork = base.override(rounds=8, forked_from=f"s/{name}@{int(at[1:])}", **{"local.lr": 0.03})
        if fork.run_id not in self.known:
            aside = self.plain / fork.run_id
            shutil.copytree(source.path, aside / "s" / name)
            self._expect(fork, aside)
            self._add(fork)

    def lose_cache(self) -> None:
        """Everything that can be made again is gone."""
        shutil.rmtree(self.cache)

    def check(self) -> None:
        """Whatever happened: all folders load, and what is done is what it should be."""
        assert {folder.run_id for folder in runs(self.runs, "s")} <= set(self.known)
        for folder in runs(self.runs, "s"):
            assert from_dict(folder.config).run_id == folder.run_id
            found = RunFolder.open(folder.path).latest()
            state = folder.status
            assert state["round"] <= (found[0].round if found else 0) <= state["round"] + 1
            if state["state"] == "done":
                assert folder.digest() == self.expected[folder.run_id], folder.run_id

    def end(self) -> int:
        """Let all runs end; how many there are."""
        for name in list(self.known):
            self._life(self.known[name], dies=False)
        self.check()
        assert all(self._folder(name).status["state"] == "done" for name in self.known)
        return len(self.known)

    def _add(self, experiment: Experiment) -> None:
        self.known[experiment.run_id] = experiment
        if experiment.run_id not in self.expected:
            self._expect(experiment, self.plain)
        self._life(experiment, dies=True)

    def _expect(self, experiment: Experiment, root: Path) -> None:
        started = run(experiment, study="s", runs=root, placement="inline", cache=self.plain / "cache")
        list(started.rounds)
        self.expected[experiment.run_id] = started.folder.digest()

    def _life(self, experiment: Experiment, *, dies: bool) -> None:
        config = json.dumps(as_dict(experiment))
        life = self.killer.start(RUN.replace("runs=runs,", 'runs=runs, study="s",'), self.runs, self.cache, config)
        if dies:
            rounds = self.draw.randint(0, 3)
            life.wait(lambda said: len(said) >= rounds)
            time.sleep(self.draw.uniform(0, 0.1))
            life.kill()
        else:
            assert life.end() == 0, life.errors

    def _seed(self) -> int:
        self.seeds += 1
        return self.seeds

    def _any(self) -> str:
        return self.draw.choice(sorted(self.known))

    def _folder(self, name: str) -> RunFolder:
        return RunFolder.create(self.runs, "s", name, as_dict(self.known[name]))

    def _forkable(self) -> list[str]:
        folders = {name: self.runs / "s" / name / "ckpt" for name in sorted(self.known)}
        return [name for name, path in folders.items() if checkpoint.found(path) and not self.known[name].forked_from]


@pytest.mark.timeout(3000)
def test_soak(killer: Any, tmp_path: Path, often: Any, tally: Any) -> None:
    steps = often(10, 200)
    soak = Soak(tmp_path, killer, int(os.environ.get("FEDRAY_CHAOS_SEED", "0")))
    for _ in range(steps):
        soak.step()
    count = soak.end()
    print(soak.steps)
    if steps >= 100:
        wanted = {"start", "add_seed", "kill", "resume", "change", "spoil", "fork", "lose_cache"}
        assert set(soak.steps) == wanted, wanted - set(soak.steps)
    tally("soak", "steps after which all folders load, and what is done is as if undisturbed", steps, steps)
    tally("soak", "runs and forks at the end with equal hash", count, count)

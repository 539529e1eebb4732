"""Killed at each point of a round's commit: what is found is this round or the one before, and the end is the same."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from fedray import run
from fedray.experiment import Experiment
from fedray.track.run import RunFolder

pytestmark = pytest.mark.chaos

SMALL = {
    "clip.name": "tiny",
    "method": "fedotp",
    "method.n_ctx": 2,
    "split.shots": 4,
    "partition.clients": 8,
    "fraction": 0.6,
    "rounds": 21,
    "evaluate_every": 5,
}

POINTS = (
    "private states in a file that is not in its place",
    "private states in place",
    "half of the rows",
    "rows, and no checkpoint",
    "a state without a manifest",
    "a checkpoint beside its place",
    "a checkpoint in place",
    "an old checkpoint half removed",
    "everything but the status",
)

RUN = '''
    import json, os, shutil, signal, sys
    from pathlib import Path
    from fedray import Experiment, run
    from fedray.fed import vault
    from fedray.track import checkpoint, files, run as folders

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    class Watch:
        """The round that is being committed, and what of it is under way."""

        def __init__(self, round):
            self.round, self.now, self.inside = round, 0, []

        def there(self, part=None):
            return self.now == self.round and (part is None or part in self.inside)

        def around(self, room, name, part):
            real = getattr(room, name)

            def call(*args, **options):
                if part == "save":
                    self.now = args[1]
                self.inside.append(part)
                try:
                    return real(*args, **options)
                finally:
                    self.inside.remove(part)

            setattr(room, name, call)

        def before(self, room, name, when, first=lambda *_: None):
            real = getattr(room, name)

            def call(*args, **options):
                if when(*args, **options):
                    first(*args)
                    die()
                return real(*args, **options)

            setattr(room, name, call)

    def half(path, data, **_):
        with path.open("ab") as file:
            file.write(data[: len(data) // 2])

    def one_file(path, **_):
        next(path.iterdir()).unlink()

    def plant(point, watch):
        watch.around(vault.Vault, "save", "save")
        watch.around(vault.Vault, "_write", "private")
        watch.around(checkpoint, "write", "checkpoint")
        watch.around(checkpoint, "prune", "prune")
        {
            0: lambda: watch.before(os, "fsync", lambda *_: watch.there("private")),
            1: lambda: watch.before(folders.RunFolder, "commit", lambda *_: watch.there()),
            2: lambda: watch.before(files, "append", lambda *_, **__: watch.there(), half),
            3: lambda: watch.before(checkpoint, "write", lambda *_: watch.there()),
            4: lambda: watch.before(
                files, "write", lambda path, *_, **__: watch.there("checkpoint") and path.name == "manifest.json"
            ),
            5: lambda: watch.before(
                files, "sync_folder", lambda path: watch.there("checkpoint") and path.name.startswith(".tmp")
            ),
            6: lambda: watch.before(checkpoint, "prune", lambda *_: watch.there()),
            7: lambda: watch.before(shutil, "rmtree", lambda *_, **__: watch.there("prune"), one_file),
            8: lambda: watch.before(
                folders.RunFolder, "_set", lambda *_, **new: watch.there() and new.get("round") == watch.round
            ),
        }[point]()

    if __name__ == "__main__":
        runs, cache, changes, point, round = sys.argv[1:]
        plant(int(point), Watch(int(round)))
        experiment = Experiment().override(**json.loads(changes))
        for done in run(experiment, runs=runs, placement="inline", cache=Path(cache)).rounds:
            print("done", done.round, flush=True)
'''


def finish(experiment: Experiment, runs: Path, cache: Path) -> str:
    started = run(experiment, runs=runs, placement="inline", cache=cache)
    list(started.rounds)
    return started.folder.digest()


@pytest.mark.timeout(3000)
def test_killed_at_each_point_of_a_commit(killer: Any, tmp_path: Path, cache: Path, often: Any, tally: Any) -> None:
    """One run after the other is killed once at each point, in a round of its own and in another order."""
    tried = loaded = equal = clean = 0
    for seed in range(repeats := often(1, 5)):
        points = random.Random(seed).sample(range(len(POINTS)), len(POINTS))
        changes = {**SMALL, "seed": seed}
        experiment = Experiment().override(**changes)
        for step, point in enumerate(points):
            round = 3 + 2 * step
            life = killer.start(RUN, tmp_path / "killed", cache, json.dumps(changes), point, round)
            assert life.end() == -signal.SIGKILL, (POINTS[point], life.errors)
            found = RunFolder.open(tmp_path / "killed" / "single" / experiment.run_id).latest()
            tried += 1
            # the round is there once its checkpoint is in its place
            loaded += found is not None and found[0].round == (round if point > 5 else round - 1)
        equal += finish(experiment, tmp_path / "killed", cache) == finish(experiment, tmp_path / "plain", cache)
        folder = tmp_path / "killed" / "single" / experiment.run_id
        clean += not [*folder.rglob("*.partial"), *folder.glob("ckpt/.tmp-*")]
    tally("3", "kills amid a commit after which its round, or the one before, is loaded", tried, loaded)
    tally("3", "runs killed at all nine points with equal hash", repeats, equal)
    tally("3", "runs killed at all nine points that keep nothing half written", repeats, clean)

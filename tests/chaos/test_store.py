"""MLflow that is locked, ill or away while a run goes on: the run does not notice, and later nothing is missing."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fedray import run
from fedray.experiment import Experiment
from fedray.track import stores
from fedray.track.export import final
from fedray.track.mlflow import Mlflow
from fedray.track.run import GLOBAL, RunFolder

pytestmark = [pytest.mark.chaos, pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")]

SMALL = {
    "clip.name": "tiny",
    "method": "fedotp",
    "method.n_ctx": 2,
    "split.shots": 4,
    "partition.clients": 5,
    "fraction": 0.6,
    "evaluate_every": 5,
}
CALLS = ("create_run", "log_batch", "get_run", "get_metric_history", "set_tag", "log_artifact", "set_terminated")


def patched(answer: Callable[[str, Any], Any]) -> Any:
    """Every call to the store goes through `answer(name, real)`."""
    from mlflow import MlflowClient

    patch = pytest.MonkeyPatch()
    for name in CALLS:
        real = getattr(MlflowClient, name)
        patch.setattr(MlflowClient, name, lambda *a, _n=name, _r=real, **o: answer(_n, lambda: _r(*a, **o)))
    return patch


@contextmanager
def half_of_the_calls_fail(uri: str) -> Iterator[None]:
    """Half of them with an error of the server's, some after it has done what it was asked."""
    draw = random.Random(3)

    def answer(name: str, real: Callable[[], Any]) -> Any:
        from mlflow.exceptions import RestException

        luck = draw.random()
        result = real() if luck < 0.75 else None
        if luck >= 0.5:
            raise RestException({"error_code": "INTERNAL_ERROR", "message": "500"})
        return result

    patch = patched(answer)
    yield
    patch.undo()


@contextmanager
def down(uri: str) -> Iterator[None]:
    """Nobody answers."""

    def answer(name: str, real: Callable[[], Any]) -> Any:
        raise ConnectionError("connection refused")

    patch = patched(answer)
    yield
    patch.undo()


@contextmanager
def locked(uri: str) -> Iterator[None]:
    """Another process writes, and does not end."""
    held = sqlite3.connect(str(stores.database(uri)), isolation_level=None, timeout=60)
    held.execute("BEGIN EXCLUSIVE")
    yield
    held.execute("ROLLBACK")
    held.close()


WAYS = {"is locked": locked, "fails in half of the calls": half_of_the_calls_fail, "is down": down}


def sent(uri: str, study: str) -> Counter[tuple[str, int]]:
    """How often the store has each (key, step) of the study's one cell."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = client.search_runs([client.get_experiment_by_name(f"fedray/{study}").experiment_id])
    cells = [one for one in found if one.data.tags["fedray.kind"] == "cell"]
    assert [one.info.status for one in cells] == ["FINISHED"]
    return Counter(
        (metric.key, metric.step)
        for one in cells
        for key in one.data.metrics
        for metric in client.get_metric_history(one.info.run_id, key)
    )


@pytest.mark.timeout(900)
def test_a_store_that_fails_all_through_a_run(
    tmp_path: Path, cache: Path, often: Any, tally: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedray.track import background

    total, ways = often(6, 30), list(WAYS)[often(1, 0) :]  # waiting for a lock takes its time
    monkeypatch.setattr(background, "FIRST_S", 0.2)
    monkeypatch.setattr(background, "MOST_S", 0.5)
    e = Experiment().override(**SMALL, rounds=total)
    plain = run(e, runs=tmp_path / "plain", placement="inline", cache=cache)
    list(plain.rounds)
    expected = plain.folder.digest()
    uri = stores.default_uri(tmp_path)
    with Mlflow(uri, "plain") as writer:
        writer.sync(plain.folder)  # makes the tables
    equal = whole = 0
    for number, way in enumerate(ways):
        study = f"s{number}"
        started = run(e, runs=tmp_path, study=study, placement="inline", cache=cache)
        with WAYS[way](uri):
            writer = Mlflow(uri, study)
            for _ in started.rounds:
                writer.sync(started.folder)
            writer.sync(started.folder)
            writer.close(60)
        assert started.folder.status["state"] == "done"
        equal += started.folder.digest() == expected
        for _ in range(2):  # later, and once more for good measure
            with Mlflow(uri, study) as writer:
                writer.sync(RunFolder.open(started.folder.path))
        rows = started.folder.records(client=GLOBAL)
        want = Counter((metric, r) for r, _, metric, _, _ in [*rows, *final(rows)])
        whole += sent(uri, study) == want
    tally("10", f"runs of {total} rounds whose store {' or '.join(ways)}, with equal hash", len(ways), equal)
    tally("10", "the same, synced later: no (key, step) missing, none twice", len(ways), whole)


START = """
import sys
from fedray.track.mlflow import Mlflow
from fedray.track.run import RunFolder
root, uri, name = sys.argv[1:]
folder = RunFolder.create(root, "race", name, {"seed": 1, "rounds": 1})
writer = Mlflow(uri, "race")
writer.sync(folder)
sys.exit(len(writer.close()))
"""


@pytest.mark.timeout(1200)
def test_four_processes_open_a_fresh_store(long_only: None, tmp_path: Path, tally: Any) -> None:
    """The short form is tests/track/test_mlflow.py."""
    fine, times = 0, 10
    for turn in range(times):
        root = tmp_path / str(turn)
        uri = stores.default_uri(root)
        command = [sys.executable, "-c", START, str(root), uri]
        started = [subprocess.Popen([*command, f"cell-{i}"]) for i in range(4)]
        fine += sum(process.wait(timeout=200) == 0 for process in started)
    tally("11", "processes, four at a time, that open a store that is not there yet", 4 * times, fine)

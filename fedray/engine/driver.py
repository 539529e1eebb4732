"""The driver: owns the server's state, runs the rounds, checkpoints each. It sees shared parameters and metrics only.

    started = run(experiment, placement="packed")
    for round in started.rounds: ...

`drive` is the whole of it, as a generator; `run` lets it live in this process (inline) or in a Ray actor of its own.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeAlias

from filelock import FileLock, Timeout

from fedray.build import Built, build
from fedray.data import partition
from fedray.engine.placement import Kind, Placement, place
from fedray.errors import BadInput, Unavailable
from fedray.experiment import Experiment, as_dict
from fedray.fed.loop import Executor, Inline, rounds
from fedray.track import files
from fedray.track.run import RunFolder
from fedray.types import GLOBAL, Round

LOCK_S = 10.0
"""Seconds to wait for a run's lock: a driver that has just been killed may take a moment to be gone."""


Rounds: TypeAlias = Generator[Round, None, None]
"""Closing it ends the run cleanly; iterating again later goes on."""


class Started(NamedTuple):
    """A run under way: iterate over `rounds` to let it go on."""

    folder: RunFolder
    placement: Placement
    rounds: Rounds


def open_folder(experiment: Experiment, *, study: str, runs: Path) -> RunFolder:
    """The experiment's run folder, new or as it was left."""
    return RunFolder.create(runs, study, experiment.run_id, as_dict(experiment))


@contextmanager
def claimed(folder: RunFolder) -> Iterator[None]:
    """Be the only process at work on a run, and write into its status how the block ended, if not well.

    Raises:
        BadInput: another process is at work on it.
    """
    lock = FileLock(folder.path / ".lock", mode=0o600)
    try:
        lock.acquire(timeout=LOCK_S)
    except Timeout:
        raise BadInput(f"run {folder.run_id} is being run by another process; wait for it, or stop it") from None
    try:
        yield
    except (GeneratorExit, KeyboardInterrupt):
        folder.interrupt()
        raise
    except Exception as error:
        folder.fail(error)
        raise
    finally:
        lock.release()


def drive(experiment: Experiment, built: Built, folder: RunFolder, executor: Executor) -> Rounds:
    """Run what is left of an experiment, one committed round after the other; the caller has `claimed` the folder.

    Killed at any point and driven again, it ends with the same bytes: a round counts once its checkpoint is complete,
    and starts from the private states that the checkpoint before it names.
    """
    _same_partition(folder, built)
    if built.dropped:
        files.replace(folder.path / "dropped.json", files.to_json(list(built.dropped)))
    found = folder.latest()
    if found is None:
        folder.begin()
    resume, manifest = found if found else (None, {})
    executor.load(resume.round if resume else 0, manifest)
    shared = resume.shared if resume else built.shared
    for done in rounds(
        built.shared,
        built.server,
        executor,
        clients=built.clients,
        total=experiment.rounds,
        fraction=experiment.fraction,
        evaluate_every=experiment.evaluate_every,
        exams=[exam.name for exam in built.setup.exams],
        personal=bool(built.setup.method.private),
        seed=experiment.seed,
        resume=resume,
    ):
        folder.commit(done, done.rows, executor.save(done.round))
        shared = done.shared
        yield done
    folder.finish(shared)


def run(
    experiment: Experiment,
    *,
    study: str = "single",
    runs: str | Path = "runs",
    placement: Kind = "auto",
    actors: int | None = None,
    cache: Path | None = None,
) -> Started:
    """Start, or continue, one experiment; one that is done yields no rounds.

    With Ray, the driver does not wait for its listener; when the listener goes (a ``break``, Ctrl-C), it is ended.

    Args:
        experiment: what to run.
        study: folder and MLflow experiment that it belongs to.
        runs: root of the run folders.
        placement: "inline", "packed", "exclusive" or "auto". All give the same bytes.
        actors: number of actors for "packed".
        cache: backbone and features; ``$FEDRAY_CACHE`` if None.

    Raises:
        BadInput: the experiment can't be what it says.
        Unavailable: data, weights, disk or Ray are missing.
    """
    clients = experiment.partition.clients
    chosen = place(placement, clients, cpus=1, actors=actors)  # a mistake is told before anything is made
    folder = open_folder(experiment, study=study, runs=Path(runs))
    if folder.status["state"] == "done":
        return Started(folder, chosen, _nothing())
    if placement == "inline":
        return Started(folder, chosen, inline(experiment, folder, cache))
    from fedray.engine.remote import remotely  # ray only where it is used

    return remotely(experiment, folder, placement, actors, cache)


def inline(experiment: Experiment, folder: RunFolder, cache: Path | None) -> Rounds:
    """Run in this process, on its GPU if it has one."""
    import torch

    with claimed(folder):
        built = build(experiment, cache=cache)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        yield from drive(experiment, built, folder, Inline(built.setup, folder.private_dir, device))


def _same_partition(folder: RunFolder, built: Built) -> None:
    path, parts = folder.partition_path, built.parts
    if not path.exists():
        partition.save(path, parts, built.labels)
    elif partition.digest(partition.load(path)[0]) != partition.digest(parts):
        raise Unavailable(
            f"run {folder.run_id} was started on other data: its clients' images differ from today's; "
            "bring the data back, or use another study"
        )


def summary(done: Round) -> dict[str, float]:
    """The numbers of a round that belong to no client, by metric."""
    return {row.metric: row.value for row in done.rows if row.client == GLOBAL}


def _nothing() -> Rounds:
    yield from ()

"""The driver: owns the server's state, runs the rounds, checkpoints each. It sees shared parameters and metrics only.

    started = run(experiment, placement="packed")
    for round in started.rounds: ...

`drive` is the whole of it, as a generator; `run` lets it live in this process (inline) or in a Ray actor of its own.
"""

from __future__ import annotations

import json
import logging
import os
import traceback
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import NamedTuple, TypeAlias

from fedray.build import Built, build
from fedray.data import partition
from fedray.engine import samedata
from fedray.engine.fork import fork
from fedray.engine.locks import alone
from fedray.engine.meters import metered
from fedray.engine.placement import Kind, Placement, place
from fedray.errors import BadInput, Unavailable
from fedray.experiment import Experiment, as_dict
from fedray.fed.attacks import attacked
from fedray.fed.loop import Executor, Inline, rounds
from fedray.fed.participation import Conduct, Fault
from fedray.track import files, layout
from fedray.track.checkpoint import Private
from fedray.track.export import without_secrets
from fedray.track.run import RunFolder
from fedray.types import GLOBAL, Round

LOG = "log.txt"
"""What went wrong in a run, with tracebacks; nothing uploads it."""

log = logging.getLogger("fedray")

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
def claimed(folder: RunFolder, *, wait: bool = False) -> Iterator[None]:
    """Be the only process at work on a run, and write into its status how the block ended, if not well.

    Args:
        folder: the run.
        wait: for whoever is at work on it, however long that takes.

    Raises:
        BadInput: another process is at work on it.
    """
    with alone(folder, wait=wait):
        try:
            yield
        except (GeneratorExit, KeyboardInterrupt):
            folder.interrupt()
            raise
        except Exception as error:
            noted(folder, f"{type(error).__name__}: {error}", traceback.format_exc())
            folder.fail(error)
            raise


def conduct(experiment: Experiment) -> Conduct:
    """What whoever trains an experiment's clients needs to know of failures, real and simulated."""
    return Conduct(experiment.failure, experiment.participation)


def drive(
    experiment: Experiment, built: Built, folder: RunFolder, executor: Executor, faults: list[Fault] | None = None
) -> Rounds:
    """Run what is left of an experiment, one committed round after the other; the caller has `claimed` the folder.

    Killed at any point and driven again, it ends with the same bytes: a round counts once its checkpoint is complete,
    and starts from the private states that the checkpoint before it names.

    Args:
        experiment: what to run.
        built: the same, made real.
        folder: where it goes.
        executor: who trains, by the experiment's `conduct`.
        faults: where the executor writes down which clients failed.

    Raises:
        BadInput: the data are others than those that the run was begun with.
    """
    faults = [] if faults is None else faults
    found = _opened(experiment, built, folder)
    resume, private = found if found else (None, {})
    executor.load(resume.round if resume else 0, private)
    meter = metered(folder, experiment.rounds)
    shared = resume.shared if resume else built.shared
    for done in rounds(
        built.shared,
        built.server,
        attacked(executor, experiment.attack, built.clients, experiment.seed),
        clients=built.clients,
        total=experiment.rounds,
        fraction=experiment.fraction,
        sampling=experiment.sampling,
        checks=experiment.checks,
        conduct=conduct(experiment)._replace(there=built.trace and built.trace.there),
        faults=faults,
        evaluate_every=experiment.evaluate_every,
        exams=[exam.name for exam in built.setup.exams],
        personal=bool(built.setup.method.private),
        seed=experiment.seed,
        resume=resume,
    ):
        private |= executor.save(done.round)
        start = perf_counter()
        folder.commit(done, done.rows, private)
        meter(done, perf_counter() - start)
        shared = done.shared
        for fault in [fault for fault in faults if fault.round <= done.round]:
            noted(folder, str(fault), fault.trace)
            faults.remove(fault)
        warned(folder, done)
        yield done
    folder.finish(shared)


def _opened(experiment: Experiment, built: Built, folder: RunFolder) -> tuple[Round, Private] | None:
    """Where a run was left, or was forked; None at its start."""
    samedata.begun(folder, built.digests)
    _same_partition(folder, built)
    _same_trace(folder, built)
    if built.dropped:
        files.replace(folder.path / "dropped.json", files.to_json(list(built.dropped)))
    found = folder.latest()
    if found is None:
        folder.begin(experiment.forked_from or None)
        if experiment.forked_from:
            fork(experiment, built, folder)
            found = folder.latest()
    return found


def noted(folder: RunFolder, line: str, details: str = "") -> None:
    """Add a line, and indented ones below it, to a run's log.txt; where that can't be written a warning must do."""
    text = f"{layout.now()} {' '.join(line.split())}\n" + "".join(f"    {row}\n" for row in details.splitlines())
    try:
        with os.fdopen(
            os.open(folder.path / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600), "w"
        ) as to:
            to.write(without_secrets(text))
    except OSError as error:
        log.warning("can't write %s: %s", folder.path / LOG, error.strerror)


def warned(folder: RunFolder, done: Round) -> None:
    """Say of the clients that failed in a round what its log says."""
    if not {"agg/failed", "agg/retried"} & {row.metric for row in done.rows} or not (folder.path / LOG).exists():
        return
    for line in (folder.path / LOG).read_text().splitlines():
        if (text := line.partition(" ")[2]).startswith(f"round {done.round}, client "):
            log.warning("%s", text)


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
        BadInput: the experiment can't be what it says, or its data have changed since it was begun.
        Unavailable: data, weights, disk or Ray are missing.
    """
    clients = experiment.partition.clients
    chosen = place(placement, clients, cpus=1, actors=actors)  # a mistake is told before anything is made
    folder = open_folder(experiment, study=study, runs=Path(runs))
    if folder.status["state"] == "done":
        samedata.unchanged([folder], cache)
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
        executor = Inline(built.setup, folder.private_dir, device, conduct(experiment))
        yield from drive(experiment, built, folder, executor, executor.faults)


def _same_partition(folder: RunFolder, built: Built) -> None:
    path, parts = folder.partition_path, built.parts
    if not path.exists():
        partition.save(path, parts, built.labels)
    elif partition.digest(partition.load(path)[0]) != partition.digest(parts):
        raise Unavailable(
            f"run {folder.run_id} was started on other data: its clients' images differ from today's; "
            "bring the data back, or use another study"
        )


def _same_trace(folder: RunFolder, built: Built) -> None:
    path, now = folder.path / "trace.json", {"sha256": built.trace.sha256 if built.trace else ""}
    if built.trace is not None and not path.exists():
        files.replace(path, files.to_json(now))
    if path.exists() and files.read_mapping(path, json.loads) != now:
        raise BadInput(
            f"run {folder.run_id} was begun with another participation.trace; bring that file back, or use another "
            "study"
        )


def said(error: Exception) -> str:
    """An error in one line; those that are not meant for users with their kind."""
    text = " ".join(str(error).split())[:500]
    return text if type(error).__module__.startswith("fedray.") else f"{type(error).__name__}: {text}"


def summary(done: Round) -> dict[str, float]:
    """The numbers of a round that belong to no client, by metric."""
    return {row.metric: row.value for row in done.rows if row.client == GLOBAL}


def _nothing() -> Rounds:
    yield from ()

"""A grid of experiments, placed by Ray Tune on warm actors. The cells are enumerated by us: a paper's grid is a list.

A finished cell, known by the hash of its resolved configuration, is never run twice; one that was cut short goes on
from its last checkpoint. So stopping a sweep costs nothing: give the same command again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedray.engine import samedata
from fedray.engine.cluster import attached
from fedray.engine.driver import open_folder, run, said, summary
from fedray.engine.placement import Kind
from fedray.errors import BadInput
from fedray.experiment import Experiment
from fedray.track import layout
from fedray.track.run import RunFolder


class Progress(NamedTuple):
    """News of a cell, as the sweep's process hears it."""

    cell: int
    round: int
    metrics: dict[str, float]
    done: bool
    error: str = ""


class Done(NamedTuple):
    """A sweep's end: the folders of all cells, in the grid's order."""

    folders: list[RunFolder]
    skipped: list[int]  # cells that were finished before
    failed: dict[int, str]  # what went wrong, by cell


def sweep(
    cells: Sequence[Experiment],
    *,
    study: str,
    runs: Path,
    placement: Kind = "auto",
    actors: int = 1,
    concurrent: int | None = None,
    cache: Path | None = None,
    show: Callable[[Progress], None] = lambda _: None,
) -> Done:
    """Run every cell that is not finished yet.

    Args:
        cells: the grid.
        study: folder and MLflow experiment of the cells.
        runs: root of the run folders.
        placement: of the clients of a cell; "auto" is "packed"; "inline", one cell at a time, needs no Ray.
        actors: host actors of a cell.
        concurrent: cells at a time; None: as many as there are CPUs (GPUs) for their hosts.
        cache: backbone and features; ``$FEDRAY_CACHE`` if None.
        show: told of every round of every cell, in this process.

    Raises:
        BadInput: two cells claim the same folder with different configurations, a value is out of range, or data have
            changed since a cell was begun.
        Unavailable: the run root or Ray can't be used.
    """
    if actors < 1 or (concurrent is not None and concurrent < 1):
        raise BadInput(f"actors and concurrent must be >= 1, got {actors} and {concurrent}")
    if placement == "exclusive":
        actors = max((cell.partition.clients for cell in cells), default=1)
    places = [layout.place(runs, study, cell.run_id) for cell in cells]
    samedata.unchanged([RunFolder(path) for path in places if layout.is_run(path)], cache)  # before any is touched
    folders = [open_folder(cell, study=study, runs=runs) for cell in cells]
    skipped = [i for i, folder in enumerate(folders) if folder.status["state"] == "done"]
    for i in skipped:
        show(Progress(i, cells[i].rounds, {}, True))
    todo = [i for i in range(len(cells)) if i not in set(skipped)]
    if not todo:
        return Done(folders, skipped, {})
    place = Place(study, runs, cache, placement == "inline", actors)
    try:
        if place.inline and concurrent == 1:
            failed = _here(cells, todo, place, show)
        else:
            failed = _tune(cells, todo, place, concurrent, show)
    finally:
        for i in todo:
            _left(folders[i])
    return Done(folders, skipped, failed)


class Place(NamedTuple):
    """Where cells run, in words that need no Ray."""

    study: str
    runs: Path
    cache: Path | None
    inline: bool
    actors: int


def _here(
    cells: Sequence[Experiment], todo: list[int], where: Place, show: Callable[[Progress], None]
) -> dict[int, str]:
    """One cell after the other in this process."""
    failed: dict[int, str] = {}
    for i in todo:
        try:
            started = run(cells[i], study=where.study, runs=where.runs, placement="inline", cache=where.cache)
            for done in started.rounds:
                show(Progress(i, done.round, summary(done), done.round == cells[i].rounds))
        except Exception as error:
            failed[i] = said(error)
            show(Progress(i, 0, {}, True, failed[i]))
    return failed


def _tune(
    cells: Sequence[Experiment],
    todo: list[int],
    where: Place,
    concurrent: int | None,
    show: Callable[[Progress], None],
) -> dict[int, str]:
    failed: dict[int, str] = {}

    def news(result: dict[str, Any]) -> None:
        metrics = {k: float(v) for k, v in result.items() if "/" in k and isinstance(v, int | float)}
        if result["error"]:
            failed[result["cell"]] = result["error"]
        show(Progress(result["cell"], result["round"], metrics, result["done"], result["error"]))

    with attached():  # ray and tune are slow to import: only when there is something to do
        from ray import tune

        from fedray.engine.trial import Cell, Site
        from fedray.engine.tuner import absolute, fit

        site = Site(*where._replace(runs=absolute(where.runs), cache=where.cache and absolute(where.cache)))
        space = {"cell": tune.grid_search(todo)}
        died = fit(Cell, {"cells": list(cells)}, site, concurrent, tune.TuneConfig(), space, news)
    for config, error in died:
        failed[config["cell"]] = error
        show(Progress(config["cell"], 0, {}, True, error))
    return dict(sorted(failed.items()))


def _left(folder: RunFolder) -> None:
    """Say of a cell that nobody is at work on any more that it was cut short; what another process runs is its own."""
    if folder.state == "stopped":
        folder.interrupt()

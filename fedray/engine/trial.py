"""Warm trials: a Tune trial's actor is the driver of its cells, and outlives each of them.

Tune reuses the actor for the next cell (``reset_config``), and the actor reuses its host actors: a cell then starts in
about a second in place of ten. Nothing is kept in Tune: a cell that was cut short goes on from its run folder.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from pathlib import Path
from statistics import fmean as mean
from typing import Any, NamedTuple

from ray import tune

from fedray.build import Built, build
from fedray.engine.actors import RayActors
from fedray.engine.driver import claimed, conduct, drive, open_folder, said, summary
from fedray.engine.nodes import must_see
from fedray.engine.placement import Placement, place
from fedray.engine.seats import device
from fedray.errors import BadInput
from fedray.experiment import Experiment
from fedray.fed.loop import Inline
from fedray.track.names import headline
from fedray.track.run import RunFolder
from fedray.types import GLOBAL, Round


class Site(NamedTuple):
    """Where a sweep's cells run and what they leave."""

    study: str
    runs: Path
    cache: Path | None
    inline: bool  # clients inside the trial's own process
    actors: int  # host actors of a trial
    num_cpus: float = 0  # of each host actor
    num_gpus: float = 0
    accelerator: str = ""  # type of GPU; "": any


class Warm:
    """A driver that stays: its host actors serve one cell after the other."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.hosts: RayActors | None = None

    def rounds(self, experiment: Experiment, *, wait: bool = False) -> Generator[Round, None, None]:
        """Drive one cell, from wherever its run folder was left; with `wait` by whoever is at work on it now."""
        must_see(self.site.runs / ".tune")  # which the sweep's process made
        folder = open_folder(experiment, study=self.site.study, runs=self.site.runs)
        if folder.status["state"] == "done":
            return
        with claimed(folder, wait=wait):
            folder = open_folder(experiment, study=self.site.study, runs=self.site.runs)  # as that one left it
            if folder.status["state"] == "done":
                return
            built = build(experiment, cache=self.site.cache)
            try:
                executor = self._executor(experiment, built, folder.private_dir)
                yield from drive(experiment, built, folder, executor, executor.faults)
            except (BadInput, ArithmeticError):  # the cell's own fault
                raise
            except Exception:  # hosts that died for good, or whose GPU did, would fail all cells to come
                self.close()
                raise

    def score(self, experiment: Experiment, metric: str) -> tuple[RunFolder, float]:
        """Drive one cell to its end, unless it is there, and read its last value of a metric.

        Two points of a search may be the same: the later one waits for what the other finds.

        Raises:
            BadInput: the run has no such metric.
        """
        for _ in self.rounds(experiment, wait=True):
            pass
        folder = open_folder(experiment, study=self.site.study, runs=self.site.runs)
        rows = folder.rows(client=GLOBAL)
        names = {row.metric: row for row in rows}
        metric = metric if metric in names else headline(names, metric.removeprefix("eval/")) or metric
        values = [(row.round, row.value) for row in rows if row.metric == metric]
        if not values:
            raise BadInput(f"metric {metric!r} was not measured; take one of {sorted({row.metric for row in rows})}")
        return folder, max(values)[1]

    def close(self) -> None:
        """End the host actors."""
        if self.hosts is not None:
            self.hosts.close()
            self.hosts = None

    def _executor(self, experiment: Experiment, built: Built, private: Path) -> Inline | RayActors:
        if self.site.inline:
            return Inline(built.setup, private, device(), conduct(experiment))
        placement = self._placement(len(built.setup.shards))
        if self.hosts is not None and len(self.hosts.hosts) != len(placement.hosts):
            self.close()
        if self.hosts is None:
            self.hosts = RayActors(placement)
        self.hosts.open(built.setup, private, clients=placement, conduct=conduct(experiment))
        return self.hosts

    def _placement(self, clients: int) -> Placement:
        actors = min(self.site.actors, clients)
        pinned = place("packed", clients, cpus=actors, actors=actors)
        site = self.site
        return Placement(
            "packed", pinned.hosts, site.num_cpus, site.num_gpus, pinned.reason, accelerator=site.accelerator
        )


class Cell(tune.Trainable):
    """A cell of a grid; `step` is one round.

    An exception is a result, not the trial's end: it would come again, and the actor is as good as before (its hosts
    may not be, and are started anew). What Tune retries is a process that died.
    """

    def setup(self, config: dict[str, Any], cells: Sequence[Experiment] = (), site: Site | None = None) -> None:
        """Open the first cell."""
        self.cells, self.warm = cells, Warm(_bound(site))
        self._take(config["cell"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Open the next cell in the same process."""
        self.rounds.close()
        self._take(new_config["cell"])
        return True

    def step(self) -> dict[str, Any]:
        """Advance by one round; the last step also finishes the run folder."""
        result: dict[str, Any] = {"cell": self.cell, "round": 0, "done": False, "error": ""}
        try:
            done = next(self.rounds, None)
            if done is not None:
                result |= {"round": done.round, **summary(done)}
            if done is None or done.round == self.cells[self.cell].rounds:
                next(self.rounds, None)
                result["done"] = True
        except Exception as error:
            result |= {"done": True, "error": said(error)}
        return result

    def cleanup(self) -> None:
        """End the host actors with the trial's."""
        self.rounds.close()
        self.warm.close()

    def _take(self, cell: int) -> None:
        self.cell = cell
        self.rounds = self.warm.rounds(self.cells[cell])


class Candidate(tune.Trainable):
    """A point of a search space, judged by the mean over its cells (alphas, seeds); `step` is one whole cell.

    The cells come in the same order for every candidate, so running means of equal length can be compared by a pruner.
    """

    def setup(
        self, config: dict[str, Any], cells: Sequence[Experiment] = (), metric: str = "", site: Site | None = None
    ) -> None:
        """Open the first candidate."""
        self.cells, self.metric, self.warm = cells, metric, Warm(_bound(site))
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Judge the next candidate in the same process."""
        self.point, self.scores, self.sent = new_config, list[float](), list[float]()
        return True

    def step(self) -> dict[str, Any]:
        """Run the next cell to its end, or read what it gave when it was run before."""
        result: dict[str, Any] = {"objective": math.nan, "sent": math.nan, "error": "", "folder": ""}
        try:
            experiment = self.cells[len(self.scores)].override(**self.point)
            folder, score = self.warm.score(experiment, self.metric)
            self.scores.append(score)
            self.sent.append(uploaded(folder))
            means = {"objective": mean(self.scores), "sent": mean(self.sent)}
            result |= {"folder": str(folder.path), **means}
        except Exception as error:
            result["error"] = said(error)
        ended = bool(result["error"]) or len(self.scores) == len(self.cells)
        return result | {"cells_done": max(1, len(self.scores)), "done": ended}

    def cleanup(self) -> None:
        """End the host actors with the trial's."""
        self.warm.close()


def uploaded(folder: RunFolder) -> float:
    """Bytes that a client sent up in a round, the mean over all visits of a run."""
    rows = [row for row in folder.rows(client=GLOBAL) if row.metric == "comm/up_bytes"]
    return sum(row.value for row in rows) / max(sum(row.n for row in rows), 1)


def _bound(site: Site | None) -> Site:
    if site is None:
        raise TypeError("the site is bound by tune.with_parameters")
    return site

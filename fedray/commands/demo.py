"""`fedray demo`: what a sweep looks like."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from fedray import news
from fedray.commands import options
from fedray.commands.options import Json, Runs
from fedray.commands.run import told
from fedray.experiment import Experiment
from fedray.study import resumable
from fedray.where import Where

DEMO: dict[str, object] = {"partition.clients": 5, "rounds": 5}
"""What the demo's cells have in common."""


@dataclass(frozen=True)
class Demo:
    """A small sweep without download or Ray, with its table and figures.

    fedray demo
    """

    runs: Runs = None
    json: Json = False

    def __call__(self) -> int:
        """Do it."""
        return demo(options.place(self))


def demo(at: Where) -> int:
    """Three methods, two skews, no download and no Ray: what a sweep looks like, in less than a minute."""
    cells = [
        Experiment().override(**DEMO | {"method": name, "partition.alpha": alpha})
        for name in ("zeroshot", "promptfl", "fedotp")
        for alpha in (0.1, 10.0)
    ]
    if at.decided["runs"] == "default":
        at = replace(at, runs=Path(tempfile.mkdtemp(prefix="fedray-demo-")))
    home = at.root / "demo"
    news.plan(cells, 0, 0, home, "one after the other in this process", json=at.json)
    folders = []
    with resumable(f"fedray demo --runs {at.root}"), told(), news.board(cells, json=at.json) as board:
        from fedray.engine import driver

        for i, cell in enumerate(cells):
            started = driver.run(cell, study="demo", runs=at.root, placement="inline")
            if started.folder.status["state"] == "done":
                board(i, cell.rounds, {}, True)
            for round in started.rounds:
                board(i, round.round, driver.summary(round), round.round == cell.rounds)
            folders.append(started.folder)
    following = [f"fedray ls --runs {at.root}", "fedray sweep --method promptfl fedotp --partition.alpha 0.1 10"]
    news.end(folders, home, following, json=at.json)
    return 0

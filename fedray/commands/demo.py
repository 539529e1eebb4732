"""`fedray demo`: what a sweep looks like."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

from fedray import news
from fedray.commands import options
from fedray.commands.options import Json, Runs
from fedray.experiment import Experiment
from fedray.study import resumable
from fedray.where import Where

DEMO: dict[str, object] = {"partition.clients": 5, "rounds": 12}
"""What the demo's cells have in common; fewer rounds are too few for prompts to pass zero-shot."""


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
    with resumable(f"fedray demo --runs {quote(str(at.root))}"), news.board(cells, json=at.json) as board:
        from fedray.engine.sweep import sweep

        done = sweep(cells, study="demo", runs=at.root, placement="inline", concurrent=1, show=lambda one: board(*one))
    for cell, reason in done.failed.items():
        news.failed(cells[cell], reason, done.folders[cell].path)
    following = [
        f"fedray report demo --runs {quote(str(at.root))}",
        "fedray sweep --method promptfl fedotp --partition.alpha 0.1 10",
    ]
    news.end(done.folders, home, following, json=at.json, failed=len(done.failed))
    return 3 if done.failed else 0

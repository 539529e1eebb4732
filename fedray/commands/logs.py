"""`fedray logs`: a run's last rounds, and what went wrong in it."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from fedray.commands import options
from fedray.commands.found import find
from fedray.commands.options import Json, Runs
from fedray.commands.status import state
from fedray.console import round_line, say, tell
from fedray.errors import BadInput
from fedray.track.run import GLOBAL, RunFolder

PAUSE = 1.0
"""Seconds between two looks."""


@dataclass(frozen=True)
class Logs:
    """The last rounds of a run, and what went wrong in it.

    fedray logs otdpp-1f2e --lines 50 --follow
    """

    run: Annotated[Positional[str], arg(metavar="RUN", help="its folder, or the beginning of its id")]
    lines: Annotated[int, arg(metavar="N", help="lines of each of the two")] = 20
    follow: Annotated[bool, arg(help="go on as long as somebody is at work on the run")] = False
    runs: Runs = None
    json: Json = False

    def __call__(self) -> int:
        """Do it."""
        if self.lines < 1:
            raise BadInput(f"--lines must be >= 1, got {self.lines}")
        folder = find(self.run, options.place(self).root)
        told, noted = rounds(folder), notes(folder)
        self._say(told[-self.lines :], noted[-self.lines :])
        while self.follow and state(folder).state == "running":
            time.sleep(PAUSE)
            past, told = len(told), rounds(folder)
            before, noted = len(noted), notes(folder)
            self._say(told[past:], noted[before:])
        if not self.json and not told and not noted:
            say(f"nothing yet: {folder.run_id} is {state(folder).state}")
        return 0

    def _say(self, told: list[str], noted: list[str]) -> None:
        for line in (*told, *noted):
            if self.json:
                tell("log" if line in noted else "round", line=line)
            else:
                say(line)


def rounds(folder: RunFolder) -> list[str]:
    """A line for each round that is committed, as it was printed."""
    found: dict[int, dict[str, float]] = {}
    cohorts: dict[int, int] = {}
    for round, _, metric, value, n in folder.records(client=GLOBAL):
        found.setdefault(round, {})[metric] = value
        if metric == "comm/down_bytes":
            cohorts[round] = n
    total = folder.status.get("rounds") or max(found, default=0)
    return [round_line(r, total, cohorts.get(r, 0), metrics) for r, metrics in sorted(found.items())]


def notes(folder: RunFolder) -> list[str]:
    """The lines of the run's log.txt; letters that could steer a terminal are taken out."""
    path = folder.path / "log.txt"
    if path.is_symlink() or not path.is_file():
        return []
    return [
        re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", line) for line in path.read_text(errors="replace").splitlines()
    ]

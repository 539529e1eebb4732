"""The live view of `fedray status --watch`: what the run folders say, again and again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fedray.console import duration, say, tell
from fedray.track import status
from fedray.track.files import Record
from fedray.track.names import headline
from fedray.track.run import RunFolder

if TYPE_CHECKING:
    from rich.console import Group

    from fedray.commands.status import State

EVERY_S = 2.0
"""Seconds between two looks."""
QUIET_S = 20.0
"""Seconds without anybody at work after which nothing more is expected: cells may wait for their turn."""
WORST, ROWS, BAR = 5, 24, 12
"""Clients told one by one; runs on a screen; characters of a bar."""
OVER = ("done", "failed", "interrupted", "damaged")

Client = tuple[int, float]
"""Number, and score in percent."""


class Seen(NamedTuple):
    """One run at one moment."""

    one: State
    a_minute: float | None  # rounds
    worst: tuple[Client, ...]  # the worst first


def watch(look: Callable[[], Sequence[Seen]], *, json: bool, wait: Callable[[float], None] = time.sleep) -> int:
    """Show what `look` finds until all runs are over, or nobody has been at work for a while; then 0.

    In a terminal the view is drawn anew; elsewhere a line is printed for each run that has got further.

    Args:
        look: reads the runs.
        json: print objects instead of lines.
        wait: sleeps between two looks.

    Raises:
        KeyboardInterrupt: Ctrl-C; whoever calls ends with 130.
    """
    looks = _looks(look, wait)
    if json or not sys.stdout.isatty():
        told: dict[str, tuple[str, int]] = {}
        for found in looks:
            for seen in found:
                if told.get(seen.one.path) != (now := (seen.one.state, seen.one.round)):
                    told[seen.one.path] = now
                    _told(seen, json)
        return 0
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(markup=False, highlight=False), auto_refresh=False) as screen:
        for found in looks:
            screen.update(view(found), refresh=True)
    return 0


def _looks(look: Callable[[], Sequence[Seen]], wait: Callable[[float], None]) -> Iterator[Sequence[Seen]]:
    quiet = 0.0
    while True:
        found = look()
        yield found
        quiet = 0.0 if any(seen.one.state == "running" for seen in found) else quiet + EVERY_S
        if all(seen.one.state in OVER for seen in found) or quiet > QUIET_S:
            return
        wait(EVERY_S)


def _told(seen: Seen, json: bool) -> None:
    if json:
        worst = [{"client": client, "score": score} for client, score in seen.worst]
        tell("status", **seen.one._asdict(), rounds_a_minute=seen.a_minute, worst=worst)
        return
    one = seen.one
    parts = [one.run, _state(one), f"round {one.round}/{one.rounds or '?'}"]
    parts += [
        f"{name} {score:.1f}" for name, score in (("local", one.local), ("global", one.whole)) if score is not None
    ]
    parts += [f"{one.failures} lost"] if one.failures else []
    parts += [f"{seen.a_minute:.1f} a minute"] if seen.a_minute and one.state == "running" else []
    parts += [f"{duration(one.seconds_left)} left"] if one.seconds_left is not None else []
    say(" · ".join([*parts, *([one.error] if one.error else [])]))


def view(found: Sequence[Seen]) -> Group:
    """The screen: runs, those at work first, and below them the worst clients of each of these."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table("run", "state", "", "round", "local", "global", "a minute", "left", "lost", box=None, pad_edge=False)
    order = sorted(found, key=lambda seen: (seen.one.state != "running", seen.one.state in OVER))
    for seen in order[:ROWS]:
        one = seen.one
        left = "" if one.seconds_left is None else duration(one.seconds_left)
        pace = f"{seen.a_minute:.1f}" if seen.a_minute and one.state == "running" else ""
        row = (
            one.run,
            _state(one),
            _bar(one),
            f"{one.round}/{one.rounds or '?'}",
            _score(one.local),
            _score(one.whole),
        )
        table.add_row(
            *(Text(cell, style=STYLES.get(one.state, "")) for cell in (*row, pace, left, str(one.failures or "")))
        )
    lines = [Text(f"... and {len(found) - ROWS} more")] if len(found) > ROWS else []
    for seen in order[:ROWS]:
        if seen.worst and seen.one.state == "running":
            worst = ", ".join(f"{client} ({score:.1f})" for client, score in seen.worst)
            lines.append(Text(f"worst clients · {seen.one.run} · {worst}"))
        if seen.one.error:
            lines.append(Text(f"{seen.one.state} · {seen.one.run} · {seen.one.error}", style="red"))
    return Group(table, *lines, Text(_sum(found), style="bold"))


STYLES = {"running": "bold", "failed": "red", "stopped": "yellow", "interrupted": "yellow", "done": "green"}


def _state(one: State) -> str:
    """A cell of a study that has not begun says running, too."""
    return "waits" if one.state == "stopped" and one.round == 0 else one.state


def _bar(one: State) -> str:
    full = round(BAR * min(1.0, one.round / one.rounds)) if one.rounds else 0
    return "█" * full + "░" * (BAR - full)


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _sum(found: Sequence[Seen]) -> str:
    over = sum(seen.one.state == "done" for seen in found)
    left = [seen.one.seconds_left for seen in found if seen.one.seconds_left is not None]
    lost = sum(seen.one.failures for seen in found)
    parts = [f"{over} of {len(found)} done", f"{lost} updates lost"]
    return " · ".join(parts + ([f"{duration(max(left))} for those at work"] if left else []))


class Known(NamedTuple):
    """What was read of a run, and when its status last changed before that."""

    stamp: object
    own: list[Record]  # rows of the server
    seen: Seen


class Watched:
    """Reads a run's rows again only when its status has changed: those of thousands of clients take a while."""

    def __init__(self, state: Callable[[RunFolder, list[Record]], State]) -> None:
        self.state = state
        self.known: dict[str, Known] = {}

    def __call__(self, folder: RunFolder) -> Seen:
        """What a run's folder says now."""
        stamp, old = status.told(folder.path), self.known.get(str(folder.path))
        if old is None or old.stamp != stamp:
            own, seen = self._read(folder, damaged=stamp.state == "damaged")
        else:  # nothing new
            return old.seen
        self.known[str(folder.path)] = Known(stamp, own, seen)
        return seen

    def _read(self, folder: RunFolder, *, damaged: bool) -> tuple[list[Record], Seen]:
        own, latest = list[Record](), dict[str, float]()
        clients: dict[str, dict[int, float]] = {}
        times, lost = [], 0.0
        for row in () if damaged else folder.records():
            _, client, metric, value, _ = row
            if client >= 0:
                clients.setdefault(metric, {})[client] = value
                continue
            own.append(row)
            latest[metric] = value
            times += [value] if metric == "time/round_s" else []
            lost += value if metric in ("agg/failed", "agg/rejected") else 0
        scores = clients.get(headline(latest, "local") or "", {})
        worst = sorted(scores.items(), key=lambda one: (one[1] == one[1], one[1], one[0]))[:WORST]  # NaN first
        recent = times[-5:]
        pace = 60 * len(recent) / sum(recent) if sum(recent) else None
        one = self.state(folder, own)
        return own, Seen(one._replace(failures=max(one.failures, int(lost))), pace, tuple(worst))

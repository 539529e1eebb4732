"""`fedray status`: how far a run or a study is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from shlex import quote
from typing import Annotated, Any, NamedTuple

from tyro.conf import Positional, arg

from fedray.commands import options
from fedray.commands.found import several
from fedray.commands.options import Json, Runs
from fedray.commands.watching import Watched, watch
from fedray.console import columns, duration, say, tell
from fedray.track import status
from fedray.track.files import Record
from fedray.track.names import headline
from fedray.track.run import GLOBAL, RunFolder


@dataclass(frozen=True)
class Status:
    """How far a run or a study is: state, round, last scores, time left.

    fedray status sweep --watch
    """

    what: Annotated[Positional[str], arg(metavar="RUN|STUDY", help="a folder, a name, or the beginning of a run's id")]
    watch: Annotated[bool, arg(help="look again every two seconds, until all is done")] = False
    runs: Runs = None
    json: Json = False

    def __call__(self) -> int:
        """Do it."""
        if self.watch:
            read, root = Watched(state), options.place(self).root
            return watch(lambda: [read(folder) for folder in several(self.what, root)], json=self.json)
        found = [state(folder) for folder in several(self.what, options.place(self).root)]
        if self.json:
            for one in found:
                tell("status", **one._asdict())
            return 0
        rows = [(s.run, s.state, f"{s.round}/{s.rounds or '?'}", s.local, s.whole, _left(s), s.error) for s in found]
        say(columns(("run", "state", "round", "local", "global", "left", "error"), [_short(row) for row in rows]))
        for line in _next(found):
            say(line)
        return 0


class State(NamedTuple):
    """One run."""

    study: str
    run: str
    path: str
    state: str  # running, done, failed, interrupted, stopped or damaged, as `fedray.track.status` has it
    round: int
    rounds: int | None
    local: float | None  # the last scores, in percent
    whole: float | None
    seconds_left: float | None
    failures: int  # updates that were left out
    error: str  # why it failed, or what is damaged


def state(folder: RunFolder, rows: Iterable[Record] | None = None) -> State:
    """Read from the run's folder alone; `rows` of the server, where they have been read already."""
    told = status.told(folder.path)
    if rows is None:
        rows = () if told.state == "damaged" else folder.records(client=GLOBAL)
    scores: dict[str, float] = {}
    times = []
    for _, _, metric, value, _ in rows:
        scores[metric] = value  # rows come in the order of rounds, so that the last one stays
        times += [value] if metric == "time/round_s" else []
    recent = times[-5:]
    timed = told.state == "running" and recent and told.rounds
    left = sum(recent) / len(recent) * ((told.rounds or 0) - told.round) if timed else None
    local, whole = (_score(scores, view) for view in ("local", "global"))
    where = (folder.study, folder.run_id, str(folder.path))
    return State(*where, told.state, told.round, told.rounds, local, whole, left, told.failures, told.error)


def _score(scores: Mapping[str, float], view: str) -> float | None:
    name = headline(scores, view)
    return None if name is None else scores[name]


def _left(one: State) -> str | None:
    return None if one.seconds_left is None else duration(one.seconds_left)


def _short(row: Sequence[Any]) -> list[Any]:
    return [f"{value:.1f}" if isinstance(value, float) else value for value in row]


def _next(found: Sequence[State]) -> list[str]:
    """How many are done, and what to go on with."""
    lines = []
    if len(found) > 1:
        done = sum(one.state == "done" for one in found)
        left = [one.seconds_left for one in found if one.seconds_left is not None]
        lines.append(f"done · {done} of {len(found)}" + (f" · {duration(max(left))} for those at work" if left else ""))
    lines += [f"next · fedray resume {quote(one.path)}" for one in found if one.state not in ("running", "done")]
    return lines[:5]

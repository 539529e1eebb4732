"""What a run or a sweep tells while it goes on: the plan first, then rounds or cells, then the table and what is next.

Every function takes `json`: an object per line for programs, or a line for people.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedray import console
from fedray.console import say, tell
from fedray.experiment import Experiment, as_dict, flatten
from fedray.track.run import LOST

if TYPE_CHECKING:
    from fedray.engine.placement import Placement
    from fedray.outcome import Outcome
    from fedray.track.run import RunFolder
    from fedray.types import Round


def plan(cells: Sequence[Experiment], done: int, rounds: int, home: Path, how: str, *, json: bool) -> None:
    """The first output: how many cells, what is done already, where and how the rest will run.

    Args:
        cells: all of them.
        done: number of cells that are finished.
        rounds: number of rounds that unfinished cells have behind them.
        home: folder of the results.
        how: the placement, in words.
        json: for programs.
    """
    total = sum(cell.rounds for cell in cells)
    if json:
        tell("plan", cells=len(cells), done=done, rounds=total, rounds_done=rounds, path=home, placement=how)
        return
    what = f"{len(cells)} cell{'s' * (len(cells) != 1)}"
    ahead = f"{total} round{'s' * (total != 1)}"
    past = "already done" if done == len(cells) else f"{done} already done" if done else ahead
    past += f", {rounds} of them behind" if rounds and not done else ""
    say(f"plan · {what} · {past} · {how} · {home}")
    shown = titles(cells)[:4]
    say(f"cells · {'; '.join(shown)}{'; ...' if len(cells) > 4 else ''}")


def titles(cells: Sequence[Experiment]) -> list[str]:
    """A line for each cell; those that would read alike add the fields in which they differ, ``, split.shots 4``."""
    told = [console.describe(cell) for cell in cells]
    alike = {title: [i for i, other in enumerate(told) if other == title] for title in dict.fromkeys(told)}
    for same in alike.values():
        leaves = {i: flatten(as_dict(cells[i])) for i in same} if len(same) > 1 else {}
        paths = [p for p in leaves.get(same[0], ()) if len({repr(mine.get(p)) for mine in leaves.values()}) > 1]
        for i, mine in leaves.items():
            told[i] += "".join(f", {path} {mine.get(path)}".lower() for path in paths)
    return told


def placement(chosen: Placement, *, json: bool) -> None:
    """Where the clients are, and why."""
    if json:
        tell("placement", kind=chosen.kind, hosts=len(chosen.hosts), reason=chosen.reason)
    else:
        say(f"placement · {chosen.kind}: {chosen.reason}")


def one_round(done: Round, rounds: int, metrics: dict[str, float], *, json: bool) -> None:
    """A finished round."""
    if json:
        tell("round", round=done.round, rounds=rounds, cohort=done.cohort, metrics=metrics)
    else:
        say(console.round_line(done.round, rounds, len(done.cohort), metrics))


@contextmanager
def board(cells: Sequence[Experiment], *, json: bool) -> Iterator[Callable[..., None]]:
    """Yield ``show(cell, round, metrics, done, error)``."""
    named = titles(cells)
    if not json:
        with console.live(named, [cell.rounds for cell in cells]) as show:
            yield show
        return

    def line(cell: int, round: int, metrics: dict[str, float], done: bool, error: str = "") -> None:
        tell("cell", cell=cell, title=named[cell], round=round, metrics=metrics, done=done, error=error)

    yield line


def searching(name: str, points: int, cells: int, fields: Sequence[str], *, json: bool) -> None:
    """What a search is about to try."""
    if json:
        tell("search", study=name, points=points, cells=cells, fields=fields)
    else:
        say(f"search · {name} · {points} points, {cells} cells each · {', '.join(fields)}")


def point(
    what: str,
    params: Mapping[str, Any],
    score: float,
    sent: float | None,
    *,
    error: str = "",
    journal: Path | None = None,
    json: bool,
) -> None:
    """A point of a search.

    Args:
        what: point, as it was judged, or best, in the end.
        params: its fields, by dotted path.
        score: of it, in percent.
        sent: bytes up per client and round, where few are looked for too.
        error: why it could not be judged.
        journal: the search's file.
        json: for programs.
    """
    if json:
        tell(what, params=params, score=score, up_bytes=sent, error=error, **({"journal": journal} if journal else {}))
        return
    told = error or f"{score:.2f}" + ("" if sent is None else f" · {sent / 1e3:.2f} kB up")
    fields = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in params.items())
    say(f"{what} · {told} · {fields}" + (f" · journal {journal}" if journal else ""))


def failed(cell: Experiment, reason: str, folder: Path) -> None:
    """Say which cell did not reach its end, and why."""
    console.complain(f"{console.describe(cell)}: {reason or 'did not finish'} ({folder})", kind="failed")


def lost(folder: RunFolder, *, json: bool) -> int:
    """Say how many updates a finished run had to do without, and whose; returns the exit code, 0 or 3."""
    count = folder.status.get("failures", 0)
    if not count:
        return 0
    who = sorted({client for _, client, metric, _, _ in folder.records() if metric == LOST and client >= 0})
    if json:
        tell("failures", count=count, clients=who, log=folder.path / "log.txt")
    console.complain(f"{missed(count, who)}; see {folder.path / 'log.txt'}", kind="failed")
    return 3


def missed(count: int, who: Sequence[int]) -> str:
    """``2 updates failed and were left out, of clients 3, 5``."""
    named = ", ".join(map(str, who[:8])) + (", ..." if len(who) > 8 else "")
    plural = "s were" if count > 1 else " was"
    return f"{count} update{plural} left out, of client{'s' * (len(who) > 1)} {named}"


def end(
    folders: Sequence[RunFolder],
    home: Path,
    following: Sequence[str],
    *,
    json: bool,
    axes: Sequence[str] = (),
    x: str | None = None,
    costs: Sequence[str] = (),
    failed: int = 0,
) -> Outcome:
    """Make the final table and the figures, show the table, then the paths and the next commands.

    Args:
        folders: the runs; those not finished are left out.
        home: folder of the results.
        following: commands to go on with.
        json: for programs.
        axes: fields that differ between the runs, by dotted path.
        x: the field to draw accuracy against; None: alpha, or the one further axis.
        costs: columns of what a run cost, to show too.
        failed: number of cells that failed.

    Returns:
        What was made.
    """
    if not json and len(folders) > 1:
        say("drawing · tables and figures")  # some seconds in which nothing else would be seen
    from fedray.outcome import outcome  # pandas is slow to import

    made = outcome(folders, home, axes=axes, x=x, costs=costs, draw=len(folders) > 1)
    if json:
        rows = [] if made.table is None else made.table.to_dict("records")
        tell("end", path=home, failed=failed, results=rows, files=made.saved)
        return made
    if made.table is not None:
        from rich.console import Console

        from fedray.report import tables

        for sheet in made.sheets:
            tables.show(sheet, Console(markup=False, highlight=False))
    say(f"results · {home}")
    for name, paths in groupby(made.saved, key=lambda path: path.with_suffix("")):
        say(f"saved · {name}{{{','.join(path.suffix for path in paths)}}}")
    for command in following:
        say(f"next · {command}")
    return made

"""`fedray ls`: runs, studies, methods and data sets, without importing torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, Literal, TypeAlias

from tyro.conf import Positional

from fedray import console, recipe, shipped
from fedray.commands import options
from fedray.commands.options import Json, Runs
from fedray.data import sources
from fedray.track import status
from fedray.track.run import runs

What: TypeAlias = Literal["runs", "studies", "methods", "data"]


@dataclass(frozen=True)
class Ls:
    """List what there is.

    fedray ls [runs | studies | methods | data]
    """

    what: Positional[What] = "runs"
    runs: Runs = None
    json: Json = False

    def __call__(self) -> int:
        """Do it."""
        return ls(self.what, options.place(self).root, json=self.json)


def ls(what: What, root: Path, *, json: bool) -> int:
    """Print a table; an empty one says how to fill it."""
    header, rows = {"runs": _runs, "studies": _studies, "methods": _methods, "data": _data}[what](root)
    if json:
        for row in rows:
            console.tell(what, **dict(zip(header, row, strict=True)))
    elif rows:
        console.say(console.columns(header, rows))
    else:
        console.say(f"nothing below {root} yet; make some with: fedray demo --runs {quote(str(root))}")
    return 0


def _runs(root: Path) -> tuple[Sequence[str], list[list[Any]]]:
    rows = []
    for folder in runs(root):
        told = status.told(folder.path)
        if told.state == "damaged":
            console.complain(told.error, kind="warning")
        progress = f"{told.round}/{told.rounds or '?'}"
        rows.append([folder.study, folder.run_id, told.state, progress, told.updated[:19], told.error])
    return ("study", "run", "state", "round", "updated (UTC)", "error"), rows


def _studies(root: Path) -> tuple[Sequence[str], list[list[Any]]]:
    """Those that have runs, then those that come along and have none yet."""
    known = shipped.studies()
    found: dict[str, list[str]] = {}
    for folder in runs(root):
        found.setdefault(folder.study, []).append(folder.state)
    found |= {name: [] for name in known if name not in found}
    rows: list[list[Any]] = [
        [
            name,
            len(states),
            states.count("done"),
            states.count("failed"),
            shipped.question(known[name]) if name in known else "",
        ]
        for name, states in found.items()
    ]
    return ("study", "runs", "done", "failed", "what it asks"), rows


def _methods(_: Path) -> tuple[Sequence[str], list[list[Any]]]:
    known = recipe.known().items()
    rows = [[name, recipe.card(file).fidelity, recipe.summary(file)] for name, file in known]
    return ("method", "fidelity", "what it is"), rows


def _data(_: Path) -> tuple[Sequence[str], list[list[Any]]]:
    docs = {name: (sources.find(name).__doc__ or "").partition("\n")[0] for name in sources.names()}
    return ("data", "what it is"), [[name, doc] for name, doc in docs.items()]

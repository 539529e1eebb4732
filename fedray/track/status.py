"""status.json: what a run says of itself, and whether that is still so.

    state      running | done | failed | interrupted, with round, rounds, started, updated, error
    failures   updates of clients that failed         forked_from   study/run@round
    config     SHA-256 of config.yaml as fedray wrote it, self that of all the rest here
    files      SHA-256 of what a finished run leaves: tables and prompts

Two states are told and never written: stopped, where it says running and nobody is at work on it; damaged, where the
file can't be read. Whoever shows a run's state shows `told`, so that all say the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from filelock import FileLock

from fedray.errors import Unavailable
from fedray.track import files, layout

NAME = "status.json"
STATES = ("running", "done", "failed", "interrupted")


class Told(NamedTuple):
    """What there is to say of a run."""

    state: str  # one of `STATES`, stopped or damaged
    round: int
    rounds: int | None
    updated: str
    failures: int  # updates that were left out
    error: str  # why it failed, or what is damaged


def read(run: Path) -> dict[str, Any]:
    """A run's status.json.

    Raises:
        Unavailable: it is damaged; `fedray resume` makes it anew from the run's checkpoints.
    """
    try:
        found: Any = json.loads((run / NAME).read_bytes())
        if not isinstance(found, dict):
            raise ValueError("no mapping")
        if {"self", "config"} & set(found):  # not of before it vouched for itself
            found = files.unsealed(found)
        if found.get("state") not in STATES or not isinstance(found.get("round"), int):
            raise ValueError("no state or no round")
    except (OSError, ValueError) as error:
        wrong = files.one_line(error)
        remedy = f"make it anew with: fedray resume {quote(str(run))}"
        raise Unavailable(f"{run / NAME} can't be read ({wrong}); {remedy}") from None
    return dict(found)


def write(run: Path, old: Mapping[str, Any], *, sync: bool = True, **fields: Any) -> None:
    """Puts `old` with these fields changed in place; a field that is None goes, but for rounds.

    Without `sync` a crash of the machine may leave a damaged one, which a resume makes anew.

    Raises:
        Unavailable: the place can't be written.
    """
    status = {**old, "updated": layout.now(), **fields}
    kept = {key: value for key, value in status.items() if value is not None or key == "rounds"}
    files.replace(run / NAME, files.to_json(files.sealed(kept)), sync=sync)


def told(run: Path) -> Told:
    """What to say of a run; of damage, too."""
    try:
        status = read(run)
    except Unavailable as error:
        return Told("damaged", 0, None, "", 0, str(error))
    state = str(status["state"])
    if state == "running" and not at_work(run):
        state = "stopped"
    return Told(
        state,
        status["round"],
        status.get("rounds"),
        str(status.get("updated", "")),
        status.get("failures", 0),
        str(status.get("error", "")),
    )


def at_work(run: Path) -> bool:
    """Whether a process holds the run's lock."""
    lock = run / ".lock"
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0, mode=0o600):
            return False
    except OSError:  # a `Timeout`, or not ours to ask
        return True

"""`fedray data get | verify | ls | cache`: data sets on this machine, and what was computed from them."""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from tyro.conf import Positional, arg

from fedray import console
from fedray.commands.options import Json
from fedray.data import sources
from fedray.data.cache import OTHER, default_cache, shrink, usage
from fedray.data.download import Progress
from fedray.data.origins import ALIAS, ORIGINS
from fedray.data.trees import home, origin, way
from fedray.errors import BadInput
from fedray.study import resumable

if TYPE_CHECKING:
    from fedray.data.verify import Report

Do: TypeAlias = Literal["get", "verify", "ls", "cache"]
UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
NAMED = 3
"""Files that a line names."""


@dataclass(frozen=True)
class Data:
    """Download data sets, look whether they are whole, list them, and bound the cache.

    fedray data get dtd | verify dtd | ls | cache --max 10GB
    """

    do: Positional[Do]
    names: Annotated[Positional[tuple[str, ...]], arg(metavar="NAME ...", help="data sets")] = ()
    root: Annotated[
        Path | None, arg(metavar="DIR", help="the set's folder ($FEDRAY_DATA/NAME, else ~/.cache/fedray/data/NAME)")
    ] = None
    max: Annotated[str | None, arg(metavar="SIZE", help="of the cache: what was used longest ago goes")] = None
    json: Json = False

    def __call__(self) -> int:
        """Do it."""
        return data(self.do, self.names, self.root, self.max, json=self.json)


def data(do: Do, names: Sequence[str], root: Path | None, limit: str | None, *, json: bool) -> int:
    """Do one of the four.

    Raises:
        BadInput: options that don't go together, or no such data set.
        Unavailable: what is asked for isn't there and can't be had.
    """
    if do == "cache" and names:
        raise BadInput(f"fedray data cache takes no name, got {names[0]!r}; it is one cache for all")
    if do == "cache" and root:
        raise BadInput("--root is a data set's folder; where the cache lies, $FEDRAY_CACHE says")
    if do != "cache" and limit is not None:
        raise BadInput(f"--max is for fedray data cache, not for {do}; leave it out")
    if do in ("get", "verify") and not names:
        raise BadInput(f"fedray data {do} needs a name, e.g. fedray data {do} dtd; see: fedray data ls")
    if root and len(names) != 1:
        raise BadInput(f"--root is the folder of one data set, got {len(names)} names; give one name")
    for name in names:
        sources.find(name)
    if do == "cache":
        return cache(limit, json=json)
    if do == "ls":
        return ls(names, root, json=json)
    again = shlex.join(["fedray", "data", do, *names, *(["--root", str(root)] if root else [])])
    with resumable(again):
        return get(names, root, json=json) if do == "get" else verify(names, root, json=json)


def get(names: Sequence[str], root: Path | None, *, json: bool) -> int:
    """Download; the first set that can't be had ends it."""
    from fedray.data import fetch

    for name in names:
        with _shown(json) as show:
            folder = fetch.get(name, root, show)
        here = str(folder) if folder.exists() else None
        if json:
            console.tell("got", data=name, folder=here)
        else:
            console.say(f"{name} · {here or 'comes along with fedray, there is nothing to get'}")
    return 0


def verify(names: Sequence[str], root: Path | None, *, json: bool) -> int:
    """Look at each; 4 if anything is missing, changed or broken."""
    from fedray.data import verify as inspect

    worst = 0
    for name in names:
        with _shown(json) as show:
            report = inspect.verify(name, root, show)
        if json:
            console.tell("verified", sound=report.sound, **report._asdict())
        else:
            for line in told(report):
                console.say(line)
        if not report.sound:
            worst = 4
            console.complain(f"{name}: {wrong(report)}")
    return worst


def told(report: Report) -> list[str]:
    """A report for people."""
    lines = [f"{report.name} · {report.folder}"]
    if report.hashed:
        strange = f", {report.unlisted:,} images more than were downloaded" if report.unlisted else ""
        lines.append(f"files · {report.hashed:,} hashed and compared with the download{strange}")
    else:
        lines.append("files · not downloaded by fedray: there are no hashes to compare with")
    lines.append(f"images · {report.train:,} train, {report.test:,} test, {report.classes} classes")
    if report.odd:
        lines.append("unusual · " + ", ".join(f"{count:,} {what}" for what, count in report.odd.items()))
    if report.note:
        lines.append(f"split · {report.note}")
    return lines


def wrong(report: Report) -> str:
    """What is wrong, and what helps."""
    broken = [f"{path} ({why})" for path, why in report.broken.items()]
    kinds = {"missing": report.missing, "changed": report.changed, "can't be read": broken}
    parts = [f"{len(found):,} {what}: {_some(found)}" for what, found in kinds.items() if found]
    if report.error:
        parts.append(report.error)
    if report.missing or report.changed:
        remove = "remove what changed, then " if report.changed else ""
        parts.append(f"{remove}fedray data get {report.name} brings the set anew")
    elif report.broken:
        parts.append("replace them, or leave them out with --data.bad skip")
    return "; ".join(parts)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def ls(names: Sequence[str], root: Path | None, *, json: bool) -> int:
    """Every data set, with the folder that it is in or the way to get it; opens no file."""
    rows = []
    for name in names or sources.names():
        known = ORIGINS.get(name) or origin(name)
        about = (sources.find(name).__doc__ or "").partition("\n")[0]
        counts = (known.classes, known.images or None) if known else (None, None)
        rows.append([name, *counts, *where(name, root), about])
    header = ("data", "classes", "images", "here", "where", "what it is")
    if json:
        for row in rows:
            console.tell("data", **dict(zip(header, row, strict=True)))
    else:
        shown = [[name, c, n, place, about] for name, c, n, _, place, about in rows]
        console.say(console.columns([word for word in header if word != "here"], shown))
        if any(row[4].startswith("by hand") for row in rows):
            console.say("by hand · where from, and where to put it, says: fedray data get NAME")
    return 0


def where(name: str, root: Path | None = None) -> tuple[bool, str]:
    """Whether a set is here, and its folder or how to get it; opens no file."""
    known = origin(name)
    if known is None or not (known.parts or known.page):
        return known is not None, "comes along" if known else way(name)
    folders = [home(ALIAS.get(name, name), root)]
    if root is None:
        folders += [folders[0].parent / other for other in known.also]
    for folder in folders:
        if any(not path.name.startswith(".") for path in folder.glob("*")):
            return True, str(folder)
    return False, way(name)


def cache(limit: str | None, *, json: bool) -> int:
    """What the cache holds, by kind; with a limit, what was used longest ago goes first."""
    root = default_cache()
    removed = shrink(root, amount(limit)) if limit is not None else []
    entries = usage(root)
    kinds = sorted({entry.kind for entry in entries})
    rows: list[list[Any]] = []
    for kind in kinds:
        mine = [entry for entry in entries if entry.kind == kind]
        rows.append([kind, len(mine), sum(e.size for e in mine), sum(e.held for e in mine)])
    whole, freed = sum(entry.size for entry in entries), sum(entry.size for entry in removed)
    if json:
        for row in rows:
            console.tell("cache", **dict(zip(("kind", "files", "bytes", "in_use"), row, strict=True)))
        console.tell("cache_total", folder=root, bytes=whole, removed=len(removed), freed=freed)
    else:
        if rows:
            shown = [[kind, files, console.size(total), held] for kind, files, total, held in rows]
            console.say(console.columns(("kind", "files", "size", "in use"), shown))
        gone = f" · {len(removed)} removed, {console.size(freed)}" if limit is not None else ""
        console.say(f"cache · {root} · {console.size(whole)}{gone}")
    if limit is not None and whole > amount(limit):
        foreign = sum(entry.size for entry in entries if entry.kind == OTHER)
        more = f", nor are {console.size(foreign)} that fedray didn't put there" if foreign else ""
        used = "in use now or within the last hour"
        console.complain(f"{console.size(whole)} stay: what is {used} isn't removed{more}", kind="warning")
    return 0


@contextmanager
def _shown(json: bool) -> Iterator[Progress]:
    """Progress: on a terminal a line that keeps itself up to date, else one for each tenth."""
    last: dict[str, float] = {}
    live = sys.stdout.isatty() and not json

    def show(file: str, done: int, whole: int) -> None:
        step = time.monotonic() // 0.2 if live else 10 * done // whole if whole else done // 10**9
        if last.setdefault(file, -1 if whole else 0) == step:
            return
        last[file] = step
        far, goal = (f"{n:,}" if file == "images decoded" else console.size(n) for n in (done, whole))
        line = f"{file} · {far}{f' of {goal}' if whole else ''}"
        if json:
            console.tell("progress", file=file, done=done, whole=whole or None)
        elif live:
            sys.stdout.write(f"\r{line}\x1b[K")
            sys.stdout.flush()
        else:
            console.say(line)

    try:
        yield show
    finally:
        if live and last:
            sys.stdout.write("\r\x1b[K")


def amount(text: str) -> int:
    """Bytes in ``10GB``, ``500 MB``, ``1.5e9`` or ``2GiB``; BadInput for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:e\d{1,2})?)\s*([a-z]*)\s*", text.lower())
    if not found or found[2] not in UNITS:
        raise BadInput(f"--max can't be {text!r}; give a size, e.g. 10GB or 500MB")
    return int(float(found[1]) * UNITS[found[2]])

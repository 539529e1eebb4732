"""What a report holds: which figures and tables a set of runs has the numbers for.

settings    columns that differ between runs of the same method and data: alpha, and fields by dotted path
a slice     runs that agree in all of them and in the data: only methods and seeds are left to tell apart
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from fedray.data import sources
from fedray.data.exams import posed
from fedray.errors import BadInput, Unavailable
from fedray.report import tables
from fedray.report.page import Piece, Section
from fedray.report.style import Drawing
from fedray.report.words import short, told, word
from fedray.track.names import cell, flatten
from fedray.track.run import RunFolder

SCORES = ("acc_local", "acc_global", "map_local", "map_global", "cf1_global", "of1_global")
COORDINATES = ("method", "data.name", "data.root", "partition.alpha", "seed", "forked_from", "evaluate_every")
"""Fields that every table has a place for, or that change no result."""
HARMS = ("attack.kind", "attack.share", "server.kind")
"""Fields that the figures of robustness read, whether they differ or not."""
MOST = 4
"""Slices that get figures of their own."""


class Matter(NamedTuple):
    """Finished runs, and how they differ."""

    folders: list[RunFolder]
    frame: pd.DataFrame  # `tables.cells`, with the fields that differ, and epsilon where it was accounted
    axes: list[str]  # fields that differ
    settings: list[str]  # columns that differ: data and alpha among them
    scores: list[str]
    left_out: list[str]  # filled as sections are made

    @property
    def harmed(self) -> list[str]:
        """Columns of what runs suffer from: attacks and the rules against them, the price of privacy; where any do."""
        attacks = HARMS if (self.frame["attack.kind"].fillna("none") != "none").any() else ()
        return [*attacks, *(("server.kind", "server.noise", "epsilon") if "epsilon" in self.frame else ())]

    def tried(self, what: str, make: Callable[..., Sequence[Piece]], *args: Any, **options: Any) -> list[Piece]:
        """The pieces, or none with a line on why."""
        try:
            return list(make(*args, **options))
        except (BadInput, Unavailable) as error:
            self.left_out.append(f"{what}: {error}")
            return []

    def figure(self, name: str, title: str, draw: Callable[..., Drawing], *args: Any, **options: Any) -> list[Piece]:
        """The figure, or none with a line on why."""
        return self.tried(title, lambda: [Piece(name, title, draw(*args, **options))])


def matter(folders: Sequence[RunFolder]) -> Matter:
    """Sort out what runs are there.

    Raises:
        BadInput: none is finished.
        Unavailable: a file of theirs is damaged.
    """
    done = [folder for folder in folders if folder.state == "done"]
    if not done:
        states = sorted({f.state for f in folders})
        remedy = "wait for it" if "running" in states else "finish one with: fedray resume RUN"
        raise BadInput(f"no finished run ({', '.join(states) or 'none there'}); {remedy}")
    axes = differing(done)
    frame = tables.cells(done, fields=[*axes, *(name for name in HARMS if name not in axes)])
    for axis in axes:
        if frame[axis].map(lambda v: v is None or isinstance(v, str)).any() and not _numeric(frame[axis]):
            frame[axis] = frame[axis].map(lambda v: "none" if v is None or v != v else str(v))
    frame, axes = _told_apart(frame, axes)
    settings = [name for name in ("data", "alpha", *axes) if frame[name].nunique(dropna=False) > 1]
    missing = (
        [f"{len(folders) - len(done)} of {len(folders)} runs are not finished"] if len(done) < len(folders) else []
    )
    return Matter(done, frame, axes, settings, scored(frame), missing)


def _told_apart(frame: pd.DataFrame, axes: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """Fields in which few methods differ are no settings: they become part of those methods' names.

    Few are less than half of the methods that have such a field, as where runs of one at another learning rate are left
    over. The plain name stays in a column `base`.
    """
    groups = frame.groupby("method")[[*axes]]
    several, known = groups.nunique(dropna=False) > 1, groups.count() > 0
    own = [axis for axis in axes if 2 * several[axis].sum() < known[axis].sum()]

    def name(row: pd.Series) -> str:
        more = [told(axis, row[axis]) for axis in own if several.loc[row["method"], axis]]
        return ", ".join([row["method"], *more])

    named = [name(row) for _, row in frame.iterrows()]
    frame = frame.assign(base=frame["method"], method=named).sort_values(["method", "data", "alpha", "seed", "run"])
    return frame.reset_index(drop=True), [axis for axis in axes if axis not in own]


def differing(folders: Sequence[RunFolder]) -> list[str]:
    """Fields in which runs of the same method and data differ, beside seed and alpha, and what comes with a kind."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for folder in folders:
        known = cell(folder.config)
        groups.setdefault((known.method, known.data), []).append(flatten(folder.config))
    found: dict[str, None] = {}
    for configs in groups.values():
        for path in dict.fromkeys(path for config in configs for path in config):
            if path not in COORDINATES and len({repr(config.get(path)) for config in configs}) > 1:
                found[path] = None
    return [path for path in found if not _follows(path, found, groups.values())]


def _follows(path: str, found: Iterable[str], groups: Iterable[Sequence[Mapping[str, Any]]]) -> bool:
    """Whether a field's value is known from its part's kind, as ``server.f`` of rules that differ."""
    kind = f"{path.rpartition('.')[0]}.kind"
    if path == kind or kind not in found:
        return False
    return all(
        len({repr(config.get(path)) for config in configs if config.get(kind) == value}) == 1
        for configs in groups
        for value in {config.get(kind) for config in configs}
    )


def scored(frame: pd.DataFrame) -> list[str]:
    """Columns of scores that any run has: the two views', and those of exams."""
    exams = [name for name in frame.columns if name.startswith("acc_") and name not in tables.METRICS]
    return [name for name in (*SCORES, *exams) if frame[name].notna().any()]


class Slice(NamedTuple):
    """Runs that differ in method and seed alone."""

    name: str  # for files
    title: str
    folders: list[RunFolder]


def slices(of: Matter) -> list[Slice]:
    """For each data set and alpha the runs that differ in method and seed alone, at most `MOST`.

    Where fields differ too: those of the fields' values with most methods, among these with the best mean score; of a
    method that differs alone, its best.
    """
    folders = {folder.run_id: folder for folder in of.folders}
    found = []
    for _, part in of.frame.groupby(["data", "alpha"], dropna=False, sort=True):
        groups = [group for _, group in part.groupby(of.axes, dropna=False, sort=True)] if of.axes else [part]
        best = max(groups, key=lambda group: (group["base"].nunique(), *_worth(group, of.scores)))
        kinds = [max((k for _, k in one.groupby("method")), key=lambda k: _worth(k, of.scores))
                 for _, one in best.groupby("base")]  # fmt: skip
        best = pd.concat(kinds)
        fixed = {name: best[name].iloc[0] for name in ("data", "alpha", *of.axes) if name in of.settings}
        free = ("attack.share",) if fixed.get("attack.kind") == "none" else ()
        fixed = {name: value for name, value in fixed.items() if value == value and name not in free}
        words = {name: told(name, value) for name, value in fixed.items()}
        words |= {name: name for name in best["method"] if name not in {*best["base"]}}
        coordinates = [words[name] for name in fixed if name not in of.axes]
        found.append(Slice(slug(coordinates), ", ".join(words.values()), [folders[run] for run in best["run"]]))
    return found[:MOST]


def _worth(group: pd.DataFrame, scores: Sequence[str]) -> list[float]:
    return [float(group[score].fillna(0).mean()) for score in scores[:1]]


def class_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The classes of a run by label, from its data set; None where that is not here."""
    data, split = config.get("data") or {}, config.get("split") or {}
    try:
        root = data.get("root")
        whole = sources.find(str(data.get("name")))(root=Path(root) if root else None)
        source, _ = posed(whole, {}, classes=split.get("classes", "all"), leave_out=split.get("leave_out", ""))
    except (BadInput, Unavailable):
        return None
    return source.names


def held_out(config: Mapping[str, Any]) -> bool:
    """Whether a run left classes out for an exam."""
    return bool((config.get("split") or {}).get("classes", "all") != "all")


def facts(of: Matter) -> dict[str, str]:
    """What stands at the top of the page."""
    frame, first = of.frame, of.folders[0]
    seeds = sorted({word(seed) for seed in frame["seed"]})
    env = first.path / "env.json"
    told = {
        "Runs": f"{len(frame)} finished",
        "Methods": ", ".join(dict.fromkeys(frame["base"])),
        "Data": ", ".join(dict.fromkeys(frame["data"])),
        "Seeds": ", ".join(seeds),
        "Differ in": ", ".join(_field(name) for name in of.settings)
        or ("nothing, it is one run" if len(frame) == 1 else "method and seed alone"),
        "Backbone": ", ".join(dict.fromkeys(str((f.config.get("clip") or {}).get("name", "?")) for f in of.folders)),
    }
    return told | ({"Made on": _made_on(env)} if env.is_file() else {})


def _field(name: str) -> str:
    """What a setting is called, and its field where the word is not the end of its path."""
    word = short(name)
    return word if word == name.rpartition(".")[2] else f"{word} ({name})"


def _made_on(env: Path) -> str:
    import json

    from fedray.track import files

    found = files.read_mapping(env, json.loads)
    return ", ".join(f"{name} {found[name]}" for name in ("fedray", "torch", "python", "platform") if found.get(name))


def section(title: str, *groups: Iterable[Piece]) -> Section:
    """A section of all their pieces."""
    return Section(title, [piece for group in groups for piece in group])


def _numeric(column: pd.Series) -> bool:
    return bool(pd.api.types.is_numeric_dtype(column.dropna().infer_objects()))


def slug(words: Sequence[str]) -> str:
    """Words as a file's name."""
    text = "-".join(words).lower().replace(" ", "-")
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in text)


def suffix(one: Slice) -> str:
    """What a slice adds to a file's name."""
    return f"-{one.name}" if one.name else ""

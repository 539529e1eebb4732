"""A published table laid out: for each printed cell the experiments that answer it, one per seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fedray.errors import BadInput, did_you_mean
from fedray.experiment import Experiment, as_dict, flatten
from fedray.flags import canonical, scalar
from fedray.recipe import Recipe
from fedray.reproduce.catalogue import Table
from fedray.reproduce.published import Over, Place, Published, read
from fedray.setting import REAL

RATES = {
    "promptfl": 0.5,
    "fedprox": 0.5,
    "cocoop": 0.1,
    "prograd": 0.5,
    "plot": 0.5,
    "vpt": 0.5,
    "upt": 0.005,
    "maple": 0.1,
    "promptsrc": 0.1,
    "align": 0.1,
    "fedtpg": 0.005,
    "fedotp": 0.1,
    "otdpp": 0.1,
    "fedrsclip": 0.02,
    "fedpgp": 0.5,
    "fedavg": 0.02,
}
"""Learning rates of the embedded default, as `studies/method_table.py` found them."""
WORDS = {"method.words": "a photo of a", "method.n_ctx": 4}
MULTILABEL: dict[str, dict[str, Any]] = {
    "fedawa": {"local.lr": 0.02, **WORDS},
    "fedpgp": {"local.lr": 0.02, **WORDS},
    "maple": {"local.lr": 0.02},
    "tcp": {"local.lr": 0.02},
    "fedtpg": {"local.lr": 0.01},
    "fedmvp_ofl": {"local.lr": 0.01},
    "dualcoop": {"local.lr": 0.005, "method.centre": True},
    "poscoop": {"local.lr": 1.0},
    "scpnet": {"local.lr": 0.005},
    "ram": {"local.lr": 0.1},
    "fedmpt": {"local.lr": 1.0},
}
"""The same with several labels per image, as `studies/multilabel_table.py` found them; fedmvp_ofl's is a guess."""


class Asked(NamedTuple):
    """What of a table, and on what."""

    only: tuple[str, ...] = ()  # methods, as printed or by our name; none: all
    data: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (1, 2, 3)
    embedded: bool = False
    fields: tuple[str, ...] = ()  # path=value, for all experiments


class Cell(NamedTuple):
    """A printed number with what answers it."""

    published: Published
    place: Place | Over | str  # a text says why nothing does
    runs: tuple[Experiment, ...]  # one for each seed


def lay_out(table: Table, asked: Asked) -> list[Cell]:
    """The cells that are asked for, in the order of print.

    Raises:
        BadInput: no such method or data set in the table, no such field, or a value that breaks its rule.
    """
    printed = read(table.name)
    rows, sets = _chosen(table, printed, asked)
    said, cells = _said(asked.fields, asked.embedded), []
    known: dict[tuple[Any, ...], tuple[Experiment, ...]] = {}
    for cell in printed:
        if cell.row not in rows or cell.data not in sets:
            continue
        place = table.where(cell, asked.embedded)
        runs: tuple[Experiment, ...] = ()
        if isinstance(place, Place):
            key = (place.method, *sorted(place.fields.items()))
            if key not in known:
                known[key] = _runs(table, place, asked, said)
            runs = known[key]
        cells.append(Cell(cell, place, runs))
    return cells


def experiments(cells: Sequence[Cell]) -> list[Experiment]:
    """All that the cells need, each once."""
    return list({run.id: run for cell in cells for run in cell.runs}.values())


def axes(runs: Sequence[Experiment]) -> list[str]:
    """Fields in which experiments of one method on one data set differ, beside the seed."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run.method.name, run.data.name), []).append(flatten(as_dict(run)))
    differ: dict[str, None] = {}
    for leaves in groups.values():
        differ |= {path: None for path in leaves[0] if len({repr(one.get(path)) for one in leaves}) > 1}
    return [path for path in differ if path != "seed"]


def _runs(table: Table, place: Place, asked: Asked, said: Mapping[str, Any]) -> tuple[Experiment, ...]:
    own = {f"method.{option}" for option in Recipe(place.method).defaults}
    kept = {path: value for path, value in said.items() if not path.startswith("method.") or path in own}
    ground: Mapping[str, Any] = REAL
    if asked.embedded:
        rates = MULTILABEL if table.name.startswith("fedmpt") else {n: {"local.lr": lr} for n, lr in RATES.items()}
        ground = {**table.small, **rates.get(place.method, {}), **({"rounds": 1} if place.method == "zeroshot" else {})}
    start = Experiment().override(**{"method": place.method, **table.fields, **ground, **place.fields, **kept})
    return tuple(start.override(evaluate_every=start.rounds, seed=seed) for seed in dict.fromkeys(asked.seeds))


def _said(words: Sequence[str], embedded: bool) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for word in words:
        path, equals, value = word.partition("=")
        if not equals:
            raise BadInput(f"--fields takes path=value, got {word!r}; e.g. rounds=50")
        said[canonical(path)] = scalar(value)
    for path in ("method", "method.name", *(() if embedded else ("data.name",))):
        if path in said:
            raise BadInput(f"--fields can't set {path}, which the table says; choose its cells with --only and --data")
    return said


def _chosen(table: Table, printed: Sequence[Published], asked: Asked) -> tuple[set[str], set[str]]:
    """Rows and data sets, as printed."""
    rows: dict[str, list[str]] = {}
    sets: dict[str, list[str]] = {}
    for cell in printed:
        rows.setdefault(cell.row.lower(), []).append(cell.row)
        sets.setdefault(cell.data.lower(), []).append(cell.data)
        place = table.where(cell, False)
        if isinstance(place, Place):
            rows.setdefault(place.method, []).append(cell.row)
            if table.alone:
                sets.setdefault(place.fields["data.name"], []).append(cell.data)
    shown = dict.fromkeys(cell.row for cell in printed), dict.fromkeys(cell.data for cell in printed)
    data = asked.data or (tuple(shown[1])[_first(shown[1]) :][:1] if asked.embedded and table.alone else ())
    return _picked("--only", asked.only, rows, shown[0], table), _picked("--data", data, sets, shown[1], table)


def _first(shown: Mapping[str, None]) -> int:
    """The first column that is a data set, and no mean."""
    return 1 if next(iter(shown)) == "Average" else 0


def _picked(
    flag: str, wanted: Sequence[str], known: Mapping[str, list[str]], shown: Mapping[str, None], table: Table
) -> set[str]:
    what = "method" if flag == "--only" else "data set"
    for word in wanted:
        if word.lower() not in known:
            near = did_you_mean(word, known if word.islower() else shown)
            raise BadInput(f"{flag} {word}: {table.name} has no such {what}. {near}")
    return {name for word in wanted for name in known[word.lower()]} if wanted else set(shown)

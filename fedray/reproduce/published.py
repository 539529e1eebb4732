"""The numbers that papers print, as files: ``assets/published/otdpp-table1.csv``, a line for each printed cell.

    paper,table,row,data,column,metric,value,spread,n_eval,n_from,source

row is the method as printed, data the data set, column the setting; spread the printed standard deviation, if any;
n_eval how many test images stand behind the value, where that can be known, and n_from how it is.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

HOME = Path(__file__).resolve().parents[1] / "assets" / "published"


class Published(NamedTuple):
    """One printed number."""

    paper: str
    table: str
    row: str
    data: str
    column: str
    metric: str
    value: float
    spread: float | None
    n_eval: int | None
    n_from: str
    source: str

    @property
    def share(self) -> bool:
        """Whether it is a share of images, for which a binomial interval can be given."""
        return self.metric == "acc"


class Place(NamedTuple):
    """The experiment that asks what a cell says, and the metric of its last round that answers."""

    method: str
    fields: Mapping[str, Any]
    read: str


class Over(NamedTuple):
    """A cell that its paper computes from others of the same row: those that differ in `across` alone."""

    across: Literal["data", "column", "metric"]
    how: Literal["mean", "harmonic"] = "mean"


def names() -> list[str]:
    """Every table that comes along, sorted."""
    return sorted(path.stem for path in HOME.glob("*.csv"))


def read(name: str) -> list[Published]:
    """The cells of a table, in the order of print."""
    with (HOME / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return [_cell(line) for line in csv.DictReader(file)]


def _cell(line: Mapping[str, str]) -> Published:
    numbers = {
        "value": float(line["value"]),
        "spread": float(line["spread"]) if line["spread"] else None,
        "n_eval": int(line["n_eval"]) if line["n_eval"] else None,
    }
    return Published(**{**line, **numbers})  # type: ignore[arg-type]


def parts(cell: Published, over: Over, cells: list[Published]) -> list[Published]:
    """The cells that a computed one is made of."""
    kept = [name for name in ("row", "data", "column", "metric") if name != over.across]
    return [other for other in cells if other != cell and all(getattr(other, n) == getattr(cell, n) for n in kept)]

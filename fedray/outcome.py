"""What a study comes to: one table and a few figures from its run folders, saved in its own folder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from fedray.errors import BadInput
from fedray.report import tables
from fedray.report.contents import class_names, scored
from fedray.report.words import title
from fedray.track.names import cell
from fedray.track.run import RunFolder

COORDINATES = ("method", "data.name", "partition", "partition.alpha", "seed")
"""Fields that every table has a place for."""


class Outcome(NamedTuple):
    """A table (None: no run is done) and the files made."""

    table: pd.DataFrame | None
    saved: list[Path]
    sheets: list[tables.Sheet]  # the table as printed: one per score with the setting across, or one long one

    @property
    def markdown(self) -> str:
        """The printed tables in Markdown."""
        return "\n".join(map(tables.markdown, self.sheets))

    @property
    def metrics(self) -> dict[str, float]:
        """Means by method, ``final/acc_local/fedotp``: over whatever else the table's rows tell apart."""
        if self.table is None:
            return {}
        scores = [name for name in self.table.columns if f"{name}_std" in self.table.columns]
        means = self.table.groupby("method")[scores].mean()
        return {
            f"final/{score}/{method.lower()}": float(means.loc[method, score])
            for method in means.index
            for score in scores
        }


def outcome(
    folders: Sequence[RunFolder],
    home: Path,
    *,
    axes: Sequence[str] = (),
    x: str | None = None,
    costs: Sequence[str] = (),
    draw: bool = False,
) -> Outcome:
    """Mean and std over seeds of the finished runs, as table and figures in ``home/tables`` and ``home/figures``.

    Args:
        folders: runs; those not finished are left out.
        home: the study's folder.
        axes: fields that differ between the runs, by dotted path.
        x: the field to draw accuracy against; None: alpha where there are several, else the one further axis.
        costs: columns of `tables.COSTS` to show too.
        draw: make figures too: accuracy over rounds, over `x`, and the first partition.

    Raises:
        Unavailable: `home` can't be written.
    """
    more = [path for path in axes if path not in COORDINATES]
    frame = tables.cells(folders, fields=more)
    metrics = scored(frame)
    if not metrics:
        return Outcome(None, [], [])
    table = tables.summary(frame, by=["method", "data", "alpha", *more], metrics=[*metrics, *costs])
    saved = tables.save(table, tables.sheet(table), _made(home / "tables"), "summary")
    column = x if x in more else {"partition.alpha": "alpha", "partition.clients": "clients"}.get(x or "", x)
    sheets = _sheets(table, metrics, column or "alpha")
    if len(sheets) > 1:
        for metric, sheet in zip(metrics, sheets, strict=True):
            saved += tables.save(table, sheet, home / "tables", f"{metric}-{column or 'alpha'}")
    if draw:
        saved += _figures([folder for folder in folders if folder.status["state"] == "done"], home, more, column)
    return Outcome(table, saved, sheets)


def _sheets(table: pd.DataFrame, metrics: Sequence[str], across: str) -> list[tables.Sheet]:
    """Papers print methods down and the setting across; that needs one row per method and value."""
    if across not in table or table[across].nunique() < 2 or table.duplicated(["method", across]).any():
        return [tables.sheet(table)]
    sheets = []
    for metric in metrics:
        grid = tables.grid(table, metric=metric, columns=across)
        sheets.append(grid._replace(header=(title(metric), *grid.header[1:])))
    return sheets


def _figures(done: Sequence[RunFolder], home: Path, more: Sequence[str], x: str | None) -> list[Path]:
    from fedray.report import figures

    frame, into = tables.cells(done, fields=more), _made(home / "figures")
    drawn = {}
    if not more:  # runs that differ in other fields too don't belong in one curve
        alphas = {folder: cell(folder.config).alpha for folder in done}
        for alpha in dict.fromkeys(alphas.values()):
            name = "rounds" if len(set(alphas.values())) == 1 else f"rounds-alpha-{alpha:g}" if alpha else "rounds-iid"
            with suppress(BadInput):  # scored once only: no curve
                drawn[name] = figures.rounds_curve([folder for folder in done if alphas[folder] == alpha])
    x = x or ("alpha" if frame["alpha"].nunique() > 1 else more[0] if more else None)
    if x and x in frame and not set(more) - {x} and pd.api.types.is_numeric_dtype(frame[x]) and frame[x].nunique() > 1:
        for metric in scored(frame):
            drawn[f"{metric}-{x}"] = figures.curve(frame, x=x, y=metric)
    if done[0].partition_path.exists():
        first = done[0]
        names = class_names(first.config)
        drawn["partition"] = figures.partition_bubbles(first.partition_path, names=names, note=cell(first.config).title)
    return [path for name, drawing in drawn.items() for path in figures.save(drawing, into, name)]


def _made(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder

"""Figures of several panels: a score over a setting, a line per rule or method, mean and std over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedray.errors import BadInput
from fedray.report.style import (
    COLOURS,
    MARKERS,
    NARROW,
    ORDER,
    RC,
    WIDE,
    Drawing,
    Style,
    caption,
    grid,
    legend,
    logarithmic,
    styles,
    ticks,
)

ROW = 1.75
"""Height of a row of panels in inches."""
APART = 0.02
"""Share of the axis by which the bars of neighbouring lines are moved, so that none hides another."""


def panels(
    data: pd.DataFrame,
    *,
    x: str,
    score: str,
    line: str,
    column: str | None = None,
    row: str | None = None,
    titles: tuple[str, str],
    log: bool | None = None,
    note: str = "",
) -> Drawing:
    """A grid of panels that share both axes.

    Args:
        data: what `tables.summary` gives: means in column `score`, deviations in ``<score>_std``.
        x: column of the setting; a row without a value of it is a level, drawn through its panel.
        score: column of the score.
        line: column that tells the lines of a panel apart.
        column: column that tells panels of a row apart; None: one panel in each row.
        row: column that tells the rows apart, and is their title; None: one row.
        titles: of the setting and of the score.
        log: logarithmic setting; by default where `style.logarithmic` says so.
        note: the caption.

    Raises:
        BadInput: there is nothing to draw.
    """
    if data.empty:
        raise BadInput(f"no finished run has both {x} and {score}; wait for the runs")
    across = list(dict.fromkeys(data[column])) if column else [""]
    down = list(dict.fromkeys(data[row])) if row else [""]
    looks, known = _looks(list(dict.fromkeys(data[line]))), sorted(set(data[x].dropna()))
    log = logarithmic(x, known) if log is None else log
    with mpl.rc_context(RC):
        width = NARROW if len(across) == 1 else WIDE
        figure = Figure(
            figsize=(width, 0.75 + ROW * len(down) * (1.2 if len(across) == 1 else 1)), layout="constrained"
        )
        places = figure.subplots(len(down), len(across), sharex=True, sharey="row", squeeze=False)
        for axes_row, below in zip(places, down, strict=True):
            for axes, beside in zip(axes_row, across, strict=True):
                part = data[(data[row] == below) if row else slice(None)]
                part = part[(part[column] == beside) if column else slice(None)]
                for name, (style, place) in looks.items():
                    _curve(axes, _moved(part[part[line] == name], x, place, log=log), x, score, name, style)
                ticks(axes, known, log=log)
                grid(axes)
                if axes in places[0]:
                    axes.set_title(str(beside))
            axes_row[0].set_ylabel(f"{below}\n{titles[1]}" if below else titles[1])
        for axes in places[-1]:
            axes.set_xlabel(titles[0])
        caption(figure, note)
        legend(figure, places[0][0], 6 if len(across) > 1 else 3)
    return Drawing(figure, data)


def _looks(names: Sequence[str]) -> dict[str, tuple[Style, float]]:
    """How each line looks, methods as everywhere, and its place left or right of the middle."""
    free = {name: Style(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], "-") for i, name in enumerate(names)}
    found = styles(names) if set(names) <= {*ORDER, "zeroshot"} else free
    return {name: (found[name], i - (len(names) - 1) / 2) for i, name in enumerate(names)}


def _moved(part: pd.DataFrame, x: str, place: float, *, log: bool) -> pd.DataFrame:
    span = part[x].max() - part[x].min()
    return part if log else part.assign(**{x: part[x] + APART * place * span})


def _curve(axes: Axes, part: pd.DataFrame, x: str, score: str, name: str, style: Style) -> None:
    level = part[part[x].isna()]
    for mean in level[score]:
        axes.axhline(mean, color=style.color, linewidth=0.8, linestyle=":")
    part = part.dropna(subset=[x]).sort_values(x)
    if part.empty:
        return
    at, mean, std = (part[c].to_numpy(float) for c in (x, score, f"{score}_std"))
    axes.errorbar(
        at,
        mean,
        np.nan_to_num(std),
        color=style.color,
        linestyle=style.line,
        marker=style.marker,
        label=name,
        elinewidth=0.6,
        capsize=1.5,
        capthick=0.6,
    )

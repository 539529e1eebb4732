"""Figures from run folders: accuracy over a setting, accuracy over rounds, the partition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fedray.data import partition
from fedray.errors import BadInput
from fedray.report import bubbles
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
    over,
    save,
    span,
    styles,
    ticks,
)
from fedray.report.tables import only_seeds, sized, summary
from fedray.report.words import label, told
from fedray.track.names import HEADLINES, Cell, cell
from fedray.track.run import GLOBAL, RunFolder

FEW = 8
"""Points that get bars."""

__all__ = [
    "COLOURS",
    "MARKERS",
    "NARROW",
    "ORDER",
    "RC",
    "WIDE",
    "Drawing",
    "Style",
    "curve",
    "partition_bubbles",
    "partition_panels",
    "rounds_curve",
    "save",
    "styles",
]


def curve(frame: pd.DataFrame, *, x: str = "alpha", y: str = "acc_global", log: bool | None = None) -> Drawing:
    """A score over a setting: one line per method, mean over seeds, bars (a band if many) of one standard deviation.

    Args:
        frame: what `tables.cells` gives.
        x: column of the setting: alpha, clients, or a field that `cells` was asked for.
        y: column of the score.
        log: logarithmic x; by default where `style.logarithmic` says so.

    Raises:
        BadInput: a column is missing, or no run has a value of `x`.
    """
    every = summary(frame, by=["method", x], metrics=[y]).dropna(subset=[y])
    data = every.dropna(subset=[x])
    off = every[every[x].isna()]["method"].isin(data["method"]).any()
    if data.empty:
        raise BadInput(f"no finished run has both {x} and {y}; choose other columns, or wait for the runs")
    log = logarithmic(x, data[x]) if log is None else log
    with mpl.rc_context(RC):
        figure = Figure(figsize=(NARROW, 2.5), layout="constrained")
        axes = figure.add_subplot()
        for name, style in styles(list(data["method"])).items():
            part = data[data["method"] == name].sort_values(x)
            draw = _bars if data[x].nunique() <= FEW else _band
            draw(axes, part[x].to_numpy(float), part[y].to_numpy(), part[f"{y}_std"].to_numpy(), name, style)
        ticks(axes, sorted(set(data[x])), log=log)
        grid(axes)
        axes.set_xlabel(label(x))
        axes.set_ylabel(label(y))
        legend(figure, axes)
        size = data[sized(y, list(data.columns))]
        left_out = f"; {told(x, None)} is off the axis" if off else ""
        caption(figure, f"{over(data['n_seeds'], 'seed')}, n = {span(size)} test images{left_out}")
    return Drawing(figure, data)


def rounds_curve(folders: Sequence[RunFolder]) -> Drawing:
    """Accuracy over rounds, global and local models in panels of their own; mean and std over seeds.

    Raises:
        BadInput: no run has been scored yet, or all were scored once only, or the runs of a method differ in more than
            their seed.
    """
    only_seeds(pd.DataFrame([cell(folder.config) for folder in folders], columns=Cell._fields), ["method"])
    records = [(cell(f.config).method, *record) for f in folders for record in f.records(client=GLOBAL)]
    scored = {metric for _, _, _, metric, _, _ in records}
    head = next((name for name in HEADLINES if f"eval/global/{name}" in scored), HEADLINES[0])
    panels = {f"eval/global/{head}": "Global model", f"eval/local/{head}": "Local models"}
    rows = [(method, metric, r, value) for method, r, _, metric, value, _ in records if metric in panels]
    if not rows:
        raise BadInput("no run has been scored yet; wait for its first evaluation")
    raw = pd.DataFrame(rows, columns=["method", "metric", "round", "score"])
    if raw.groupby("method")["round"].nunique().max() == 1:
        raise BadInput("these runs were scored in one round only, which makes no curve; see evaluate_every")
    groups = raw.groupby(["method", "metric", "round"])["score"]
    data = groups.agg(score="mean", std=lambda values: values.std(ddof=1), n_runs="size").reset_index()
    with mpl.rc_context(RC):
        figure = Figure(figsize=(WIDE, 2.5), layout="constrained")
        pair = figure.subplots(1, 2, sharey=True)
        for axes, (metric, title) in zip(pair, panels.items(), strict=True):
            shown = data[data["metric"] == metric]
            for name, style in styles(list(data["method"])).items():
                part = shown[shown["method"] == name]
                _band(axes, part["round"].to_numpy(), part["score"].to_numpy(), part["std"].to_numpy(), name, style)
            axes.set_title(title)
            axes.set_xlabel("Round")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
            grid(axes)
        pair[0].set_ylabel({"acc1": "Accuracy (%)", "map": "mAP (%)"}[head])
        legend(figure, pair[0])
        caption(figure, over(data["n_runs"], "run"))
    return Drawing(figure, data)


def partition_bubbles(path: Path, *, names: Sequence[str] | None = None, note: str = "") -> Drawing:
    """Who holds what: a bubble per client and class, its area the number of images, totals on the margins.

    Args:
        path: a partition.parquet.
        names: of the classes, in the order of their labels; written where they are few.
        note: what the caption should add, e.g. ``alpha 0.1, seed 1``.

    Raises:
        Unavailable: the partition is missing or damaged.
    """
    parts, labels = partition.load(path)
    of = bubbles.held(parts, labels)
    with mpl.rc_context(RC):
        width = WIDE if of.many or len(parts) > bubbles.ROOM else NARROW
        figure = Figure(figsize=(width, max(3.6, 1.6 + 0.06 * min(of.classes, bubbles.MANY))), layout="constrained")
        text = f"{of.images:,} images, {len(parts):,} clients, {of.classes} classes, largest cell {of.most:,}"
        caption(figure, "\n".join([text, "; ".join(filter(None, [note, f"digest {partition.digest(parts)[:12]}"]))]))
        bubbles.alone(figure, of, names)
    return Drawing(figure, of.cells)


def partition_panels(
    dealt: Mapping[str, Sequence[NDArray[Any]]],
    labels: NDArray[Any],
    *,
    names: Sequence[str] | None = None,
    note: str = "",
) -> Drawing:
    """Several partitions of the same images side by side, four in a row, all on one scale.

    Args:
        dealt: the parts by title, all for the same number of clients.
        labels: of positions 0 .. n-1, (n,) or multi-hot (n, C).
        names: of the classes, in the order of their labels.
        note: what the caption should add.
    """
    of = {title: bubbles.held(parts, labels) for title, parts in dealt.items()}
    with mpl.rc_context(RC):
        figure = Figure(figsize=(WIDE, 0.8 + 1.8 * -(-len(of) // bubbles.ABREAST)), layout="constrained")
        text = f"{len(labels):,} images; bars: images of each client and of each class"
        caption(figure, "; ".join(filter(None, [text, note])))
        bubbles.abreast(figure, of, names)
    data = [one.cells.assign(partition=title) for title, one in of.items()]
    return Drawing(figure, pd.concat(data, ignore_index=True))


def _bars(axes: Axes, x: np.ndarray, mean: np.ndarray, std: np.ndarray, name: str, style: Style) -> None:
    axes.plot(x, mean, color=style.color, linestyle=style.line, marker=style.marker, label=name)
    some = std > 0  # false where there is none
    axes.errorbar(
        x[some], mean[some], std[some], fmt="none", ecolor=style.color, elinewidth=0.7, capsize=2, capthick=0.7
    )


def _band(axes: Axes, x: np.ndarray, mean: np.ndarray, std: np.ndarray, name: str, style: Style) -> None:
    if len(x) == 1 and not style.marker:  # zero-shot has one round, and is a level for all of them
        axes.axhline(mean[0], color=style.color, linestyle=style.line, label=name)
        return
    every = max(1, len(x) // 8)  # of many points, some get a marker: a print in grey must do
    axes.plot(x, mean, color=style.color, linestyle=style.line, marker=style.marker, markevery=every, label=name)
    spread = np.nan_to_num(std)
    axes.fill_between(x, mean - spread, mean + spread, color=style.color, alpha=0.15, linewidth=0)

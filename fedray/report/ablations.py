"""Parts on and off, and what each is worth: bars with their deltas, and the tick-mark table of papers.

And new classes: base, new and their harmonic mean, of means over seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from fedray.errors import BadInput
from fedray.report.style import NARROW, RC, WIDE, Drawing, caption, over, span, styles
from fedray.report.tables import Sheet, sized, summary
from fedray.report.words import label, named, shorts, title, told

MOST, ABREAST = 12, 3
"""Variants in a figure, and methods."""


def variants(frame: pd.DataFrame, *, axes: Sequence[str], score: str) -> pd.DataFrame:
    """One row per method and combination of `axes`: the score's mean and std, and its delta to the method's best.

    Args:
        frame: what `tables.cells` gives, of one data set and alpha.
        axes: columns that tell the variants apart.
        score: column of the score.

    Raises:
        BadInput: no finished run has the score.
    """
    data = summary(frame.dropna(subset=[score]), by=["method", *axes], metrics=[score])
    if data.empty:
        raise BadInput(f"no finished run has {score}; wait for the runs")
    data["delta"] = data[score] - data.groupby("method")[score].transform("max")
    names = shorts(axes)
    data["variant"] = [", ".join(told(axis, row[axis], names[axis]) for axis in axes) for _, row in data.iterrows()]
    return data


def bars(data: pd.DataFrame, *, score: str, note: str = "") -> Drawing:
    """A bar for each of `variants`, and beside it how far it is below the best of its method."""
    methods, shown = list(dict.fromkeys(data["method"])), data.groupby("method").head(MOST)
    low = float((shown[score] - shown[f"{score}_std"].fillna(0)).min())
    high = float((shown[score] + shown[f"{score}_std"].fillna(0)).max())
    with mpl.rc_context(RC):
        figure = Figure(figsize=(NARROW if len(methods) == 1 else WIDE, 0.9 + 0.24 * len(shown) / len(methods) + 0.2),
                        layout="constrained")  # fmt: skip
        panels = figure.subplots(1, len(methods), sharex=True, squeeze=False)[0]
        for i, (axes, method) in enumerate(zip(panels, methods, strict=True)):
            part, looks = shown[shown["method"] == method].reset_index(drop=True), styles(methods)[method]
            std = part[f"{score}_std"].fillna(0)
            axes.barh(part.index, part[score], 0.7, xerr=std, color=looks.color, alpha=0.8,
                      error_kw={"elinewidth": 0.7, "capsize": 2})  # fmt: skip
            for y, (value, delta, spread) in enumerate(zip(part[score], part["delta"], std, strict=True)):
                text = "  best" if delta == 0 else f"  {delta:+.1f}"
                axes.text(value + spread, y, text, va="center", fontsize=6, color="#444444")
            axes.set_yticks(part.index, part["variant"], fontsize=6)
            axes.invert_yaxis()
            axes.tick_params(axis="y", length=0)
            room = high - max(0.0, low - 0.6 * (high - low)) or 1.0  # equal scores, too, are drawn on some axis
            axes.set(title=method, xlabel=label(score), xlim=(high - room, high + 0.2 * room))
            if i and list(part["variant"]) == list(shown[shown["method"] == methods[0]]["variant"]):
                axes.tick_params(labelleft=False)
        size = span(data[sized(score, list(data.columns))])
        text = f"{over(data['n_seeds'], 'seed')}, n = {size} test images; delta to the method's best"
        caption(
            figure, "; ".join(filter(None, [text + ("; the axis does not start at 0" if room < high else ""), note]))
        )
    return Drawing(figure, data)


def ticks(data: pd.DataFrame, *, axes: Sequence[str], score: str) -> Sheet:
    """`variants` as a table: a tick where a part is on, its value where it is more than on or off."""
    rows, ranks = [], []
    for _, row in data.iterrows():
        std = row[f"{score}_std"]
        text = f"{row[score]:.2f}" + ("" if std != std else f" ± {std:.2f}")
        rows.append((row["method"], *(_tick(axis, row[axis]) for axis in axes), text, f"{row['delta']:+.2f}"))
        others = data[data["method"] == row["method"]][score].round(2)
        place = sorted(set(others), reverse=True).index(round(row[score], 2)) + 1
        ranks.append((0,) * (len(axes) + 1) + (place if place <= 2 and others.nunique() > 1 else 0, 0))
    header = ("Method", *shorts(axes).values(), title(score), "Delta")
    return Sheet(header, tuple(rows), tuple(ranks))


def base_new(frame: pd.DataFrame, by: Sequence[str]) -> tuple[pd.DataFrame, Sheet]:
    """Base, new, H = 2 base new / (base + new) of the means over seeds, of runs that sat the exam of new classes.

    Raises:
        BadInput: no run did.
    """
    if "acc_new" not in frame or frame["acc_new"].isna().all():
        raise BadInput("no run was examined on new classes; add split.classes base and exams new")
    data = summary(frame.dropna(subset=["acc_new"]), by=["method", *by], metrics=["acc_global", "acc_new"])
    data["h"] = 2 * data["acc_global"] * data["acc_new"] / (data["acc_global"] + data["acc_new"]).where(lambda s: s > 0)
    header = ("Method", *map(title, by), "Seeds", "n base", "n new", "Base", "New", "H")
    columns, rows, ranks = ("acc_global", "acc_new", "h"), [], []
    for _, row in data.iterrows():
        texts = [_with(row[c], row.get(f"{c}_std", float("nan"))) for c in columns]
        sizes = (f"{row['n_seeds']}", f"{int(row['n_eval'])}", f"{int(row['n_new'])}")
        rows.append((row["method"], *(named(b, row[b], "none") for b in by), *sizes, *texts))
        same = data[(data[list(by)] == row[list(by)]).all(axis=1)] if by else data
        places = [sorted(set(same[c].round(2)), reverse=True).index(round(row[c], 2)) + 1 for c in columns]
        ranks.append((0,) * (len(by) + 4) + tuple(p if p <= 2 and len(same) > 1 else 0 for p in places))
    return data, Sheet(header, tuple(rows), tuple(ranks))


def _tick(axis: str, value: Any) -> str:
    return "✓" if value is True else "-" if value is False else named(axis, value, "none")


def _with(mean: float, std: float) -> str:
    return "-" if mean != mean else f"{mean:.2f}" + ("" if std != std else f" ± {std:.2f}")

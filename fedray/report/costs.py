"""What accuracy costs: bytes that were measured on the way, parameters, seconds; and who is worth it."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from fedray.errors import BadInput
from fedray.report.style import NARROW, RC, Drawing, caption, grid, over, span, styles
from fedray.report.tables import Sheet, sized, summary
from fedray.report.words import label, named, short, title
from fedray.track import whole
from fedray.track.run import RunFolder


def shared_parameters(folder: RunFolder) -> int:
    """Numbers that the method shares, counted in the header of its prompts' file.

    Raises:
        Unavailable: the file is missing or damaged.
    """
    image = whole.prompts(folder.path)
    header = json.loads(image[8 : 8 + struct.unpack("<Q", image[:8])[0]])
    return sum(_product(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def table(folders: Sequence[RunFolder], frame: pd.DataFrame, by: Sequence[str]) -> tuple[pd.DataFrame, Sheet]:
    """Shared parameters, bytes of a client and round, MB of a run, seconds of a round: means over seeds.

    Args:
        folders: finished runs.
        frame: what `tables.cells` gives of them.
        by: columns of a setting, beside the method.
    """
    shared = {f.run_id: shared_parameters(f) for f in folders}
    frame = frame.assign(shared=frame["run"].map(shared).astype(float))
    numbers = ["shared", "up_kb", "down_kb", "up_mb", "down_mb", "fit_s"]
    found = summary(frame, by=["method", *by], metrics=numbers).drop(columns="n_eval")
    header = ("Method", *map(title, by), "Shared numbers", *map(title, numbers[1:]))
    rows = [
        (row["method"], *(named(name, row[name]) for name in by), f"{row['shared']:,.0f}",
         *(f"{row[name]:.2f}" for name in numbers[1:]))
        for _, row in found.iterrows()
    ]  # fmt: skip
    return found, Sheet(header, tuple(rows), ((0,) * len(header),) * len(rows))


def pareto(frame: pd.DataFrame, *, by: Sequence[str], score: str, note: str = "") -> Drawing:
    """A score over the MB that a run moved, both ways; the line joins what nothing beats in both.

    Args:
        frame: what `tables.cells` gives.
        by: columns of a setting, beside the method.
        score: column of the score.
        note: what the caption should add.

    Raises:
        BadInput: no run has the score, or none moved anything.
    """
    frame = frame.assign(moved=frame["up_mb"] + frame["down_mb"]).dropna(subset=[score])
    data = summary(frame[frame["moved"] > 0], by=["method", *by], metrics=[score, "moved"])
    if data.empty:
        raise BadInput(f"no finished run has {score} and has sent anything; wait for the runs")
    if data["moved"].nunique() == 1:
        raise BadInput(f"all runs have moved the same {data['moved'].iloc[0]:.3g} MB, so there is nothing to trade")
    data["front"] = _front(data["moved"].tolist(), data[score].tolist())
    with mpl.rc_context(RC):
        figure = Figure(figsize=(NARROW, 2.7), layout="constrained")
        axes = figure.subplots()
        front = data[data["front"]].sort_values("moved")
        axes.step(front["moved"], front[score], where="post", color="#999999", linewidth=0.9, zorder=1)
        for name, style in styles(list(data["method"])).items():
            part = data[data["method"] == name]
            axes.plot(part["moved"], part[score], style.marker or "o", color=style.color, label=name, linestyle="none")
        for _, row in data.iterrows() if len(by) == 1 else ():
            axes.annotate(named(by[0], row[by[0]]), (row["moved"], row[score]), (4, 0), textcoords="offset points",
                          fontsize=6, va="center", color="#555555")  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        if data["moved"].max() < 8 * data["moved"].min():  # less than a decade: no tick would be labelled
            axes.set_xscale("linear")
        axes.set(xlabel="Sent and received in a run, all clients (MB)", ylabel=label(score))
        grid(axes)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4)
        size = span(data[sized(score, list(data.columns))])
        text = f"{over(data['n_seeds'], 'seed').replace(' ± std', '')}, n = {size} test images; grey: the front"
        words = f"beside the points: {short(by[0])}" if len(by) == 1 else ""
        caption(figure, "\n".join(filter(None, [text, "; ".join(filter(None, [words, note]))])))
    return Drawing(figure, data)


def _front(costs: Sequence[float], scores: Sequence[float]) -> list[bool]:
    """Whether no other has a better score for no more, or the same for less."""
    both = list(zip(costs, scores, strict=True))
    return [not any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in both) for cost, score in both]


def _product(shape: Sequence[int]) -> int:
    total = 1
    for length in shape:
        total *= int(length)
    return total

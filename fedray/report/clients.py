"""What the mean hides: every client's own accuracy, who is left behind, how clients move over the rounds."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fedray.errors import BadInput
from fedray.report.compare import last_of_clients
from fedray.report.style import NARROW, RC, WIDE, Drawing, caption, grid, legend, styles
from fedray.report.tables import Sheet
from fedray.report.words import label
from fedray.track.names import cell
from fedray.track.run import GLOBAL, RunFolder

WIDELY = 20.0
"""Lengths that differ by this factor get a logarithmic axis."""
TAIL = 0.1
"""The share of clients that are called the worst."""


def scores(folders: Sequence[RunFolder]) -> pd.DataFrame:
    """The last local score of every client of every run: method, seed, client, score, n.

    Raises:
        BadInput: no client has been scored.
    """
    rows = [
        (cell(folder.config).method, cell(folder.config).seed, client, score, n)
        for folder in folders
        for client, (score, n) in last_of_clients(folder).items()
    ]
    if not rows:
        raise BadInput("no client has been scored yet; wait for the first evaluation")
    return pd.DataFrame(rows, columns=["method", "seed", "client", "score", "n"])


def distribution(folders: Sequence[RunFolder], *, note: str = "") -> Drawing:
    """Clients by rising score, worst 10 % shaded; beside it the share of clients at or below a score (ECDF).

    Clients of all seeds count together. Raises BadInput where no client has been scored.
    """
    data = scores(folders).sort_values(["method", "score", "seed", "client"], ignore_index=True)
    several = any(row[2] == "eval/local/map" for row in folders[0].records(client=GLOBAL))
    what = label("map_local" if several else "acc_local")
    with mpl.rc_context(RC):
        figure = Figure(figsize=(WIDE, 2.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        for name, style in styles(list(data["method"])).items():
            values = data.loc[data["method"] == name, "score"].to_numpy()
            rank = 100 * (np.arange(len(values)) + 0.5) / len(values)
            looks = {"color": style.color, "linestyle": style.line, "label": name}
            left.plot(rank, values, marker=style.marker, markevery=max(1, len(values) // 10), **looks)
            right.ecdf(values, **looks)
        left.axvspan(0, 100 * TAIL, color="#000000", alpha=0.07, linewidth=0)
        left.text(100 * TAIL / 2, 0.98, "worst 10 %", transform=left.get_xaxis_transform(), rotation=90, fontsize=6,
                  ha="center", va="top", color="#555555")  # fmt: skip
        left.set(xlabel="Clients, by rising score (%)", ylabel=what, xlim=(0, 100), ylim=(-2, 102))
        right.set(xlabel=what, ylabel="Share of clients at or below", xlim=(-2, 102))
        grid(left)
        grid(right)
        legend(figure, left, 6)
        each = data.groupby("method").size()
        count = f"{each.min()}" if each.nunique() == 1 else f"{each.min()} to {each.max()}"
        tests = f"{data['n'].min()} to {data['n'].max()} test images each"
        caption(figure, "; ".join(filter(None, [f"{count} clients per method, all seeds together, {tests}", note])))
    return Drawing(figure, data)


def fairness(data: pd.DataFrame) -> tuple[pd.DataFrame, Sheet]:
    """Of each method: mean, std, minimum, worst 10 %, best 10 %, Gini and Jain index of its clients' scores.

    Args:
        data: what `scores` gives.
    """
    rows = [{"method": name, **_numbers(part["score"].to_numpy())} for name, part in data.groupby("method")]
    frame = pd.DataFrame(rows)
    header = ("Method", "Clients", "Mean", "Std", "Min", "Worst 10 %", "Best 10 %", "Gini", "Jain")
    text = [
        (row["method"], f"{row['clients']}", *(f"{row[c]:.2f}" for c in ("mean", "std", "min", "worst", "best")),
         f"{row['gini']:.3f}", f"{row['jain']:.3f}")
        for row in rows
    ]  # fmt: skip
    up, down = ("mean", "min", "worst", "best", "jain"), ("std", "gini")
    ranks = {c: frame[c].round(3).rank(method="min", ascending=c in down) for c in (*up, *down)}
    columns = ("mean", "std", "min", "worst", "best", "gini", "jain")
    marks = [(0, 0, *(int(ranks[c][i]) if ranks[c][i] <= 2 and len(rows) > 1 else 0 for c in columns))
             for i in range(len(rows))]  # fmt: skip
    return frame, Sheet(header, tuple(text), tuple(marks))


def _numbers(values: NDArray[np.float64]) -> dict[str, float | int]:
    """Gini: mean absolute difference of two clients over twice the mean; Jain: (sum x)^2 / (K sum x^2)."""
    ordered, k = np.sort(values), len(values)
    tail, total = max(1, round(TAIL * k)), float(values.sum())
    gini = float(((2 * np.arange(1, k + 1) - k - 1) * ordered).sum()) / (k * total) if total else 0.0
    jain = total**2 / (k * float((values**2).sum())) if total else 1.0
    return {
        "clients": k, "mean": float(values.mean()), "std": float(values.std(ddof=1)) if k > 1 else 0.0,
        "min": float(ordered[0]), "worst": float(ordered[:tail].mean()), "best": float(ordered[-tail:].mean()),
        "gini": gini, "jain": jain,
    }  # fmt: skip


def over_rounds(folders: Sequence[RunFolder], metric: str, *, note: str = "") -> Drawing:
    """A metric of clients over rounds: the median client, and the band from the 10th to the 90th percentile.

    Raises:
        BadInput: no run has the metric.
    """
    rows = [
        (cell(folder.config).method, r, client, value)
        for folder in folders
        for r, client, name, value, _ in folder.records()
        if client != GLOBAL and name == metric
    ]
    if not rows:
        raise BadInput(f"no run has {metric} of its clients; take a metric that they log")
    raw = pd.DataFrame(rows, columns=["method", "round", "client", "value"])
    groups = raw.groupby(["method", "round"])["value"]
    data = groups.quantile([0.1, 0.5, 0.9]).unstack().reset_index()
    data.columns = ["method", "round", "low", "median", "high"]
    with mpl.rc_context(RC):
        figure = Figure(figsize=(NARROW, 2.5), layout="constrained")
        axes = figure.subplots()
        for name, style in styles(list(data["method"])).items():
            part = data[data["method"] == name]
            axes.plot(part["round"], part["median"], color=style.color, linestyle=style.line, marker=style.marker,
                      markevery=max(1, len(part) // 8), label=name)  # fmt: skip
            axes.fill_between(part["round"], part["low"], part["high"], color=style.color, alpha=0.12, linewidth=0)
        axes.set(xlabel="Round", ylabel=label(metric))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        grid(axes)
        legend(figure, axes)
        caption(figure, "; ".join(filter(None, ["median client, band from 10th to 90th percentile", note])))
    return Drawing(figure, data)


def pulls(folders: Sequence[RunFolder], *, note: str = "") -> Drawing:
    """How clients' updates of a round agree with their mean, and how long they are; bands: one std over clients.

    Lines and bands are means over seeds. Raises BadInput where no run has told of drift, as with one client.
    """
    wanted = {f"drift/{name}{end}": f"{name}{end}" for name in ("cosine", "norm") for end in ("", "_std")}
    rows = [
        (cell(folder.config).method, r, wanted[metric], value)
        for folder in folders
        for r, _, metric, value, _ in folder.records(client=GLOBAL)
        if metric in wanted
    ]
    if not rows:
        raise BadInput("no run has told how its clients drift; that takes two clients in a round that share something")
    raw = pd.DataFrame(rows, columns=["method", "round", "metric", "value"])
    data = raw.pivot_table(index=["method", "round"], columns="metric", values="value", aggfunc="mean").reset_index()
    data.columns.name = None
    with mpl.rc_context(RC):
        figure = Figure(figsize=(WIDE, 2.5), layout="constrained")
        pair = figure.subplots(1, 2)
        for axes, metric in zip(pair, ("cosine", "norm"), strict=True):
            for name, style in styles(list(data["method"])).items():
                part = data[data["method"] == name].dropna(subset=[metric])
                every = max(1, len(part) // 8)
                axes.plot(part["round"], part[metric], color=style.color, linestyle=style.line, marker=style.marker,
                          markevery=every, label=name)  # fmt: skip
                low, high = part[metric] - part[f"{metric}_std"], part[metric] + part[f"{metric}_std"]
                low = low if metric == "cosine" else np.maximum(low, part[metric] / 10)  # a length may have a log axis
                axes.fill_between(part["round"], low, high, color=style.color, alpha=0.12, linewidth=0)
            axes.set(xlabel="Round", ylabel=label(f"drift/{metric}"))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
            grid(axes)
        pair[0].set_ylim(top=1.02)
        if data["norm"].min() > 0 and data["norm"].max() >= WIDELY * data["norm"].min():
            pair[1].set_yscale("log")
            pair[1].yaxis.set_major_formatter("{x:g}")
        legend(figure, pair[0], 6)
        caption(
            figure, "; ".join(filter(None, ["updates of the clients of a round, bands: one std over clients", note]))
        )
    return Drawing(figure, data)

"""Pictures made of cells: clients against classes with their numbers, and a score over two settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fedray.data import partition
from fedray.errors import BadInput
from fedray.report import bubbles
from fedray.report.style import NARROW, RC, WIDE, Drawing, caption, over
from fedray.report.tables import Sheet, summary
from fedray.report.words import label, word

ROOM = 24
"""Clients or classes up to which cells have their numbers written in."""


def partition_heat(path: Path, *, names: Sequence[str] | None = None, note: str = "") -> Drawing:
    """Who holds what as a heat map: clients across (by size), classes down, the numbers in the cells where few.

    Raises:
        Unavailable: the partition is missing or damaged.
    """
    parts, labels = partition.load(path)
    of = bubbles.held(parts, labels)
    image = np.zeros((of.classes, len(parts)), int)
    image[of.cells["label"], of.cells["client"]] = of.cells["n"]
    order = np.argsort(-of.sizes, kind="stable")
    image, few = image[:, order], max(of.classes, len(parts)) <= ROOM
    with mpl.rc_context(RC):
        width = WIDE if len(parts) > ROOM / 2 else NARROW
        figure = Figure(figsize=(width, min(7.0, 1.3 + 0.2 * min(of.classes, 30))), layout="constrained")
        axes = figure.subplots()
        shown = axes.imshow(np.ma.masked_equal(image, 0), bubbles.COLOURS, LogNorm(1, max(of.most, 2)), aspect="auto",
                            interpolation="nearest")  # fmt: skip
        if few:
            _written(axes, image, [f"{n}" if n else "" for n in image.ravel()], shown.norm)
            axes.set_xticks(range(len(parts)), [f"{k}" for k in order])
        axes.set_xlabel("Client, by falling number of images" if few else "Clients, by falling number of images")
        if names is not None and of.classes <= ROOM:
            axes.set_yticks(range(of.classes), list(names)[: of.classes])
        else:
            axes.set_ylabel("Class")
        steps = sorted({*(10**i for i in range(len(f"{of.most}"))), of.most})
        bar = figure.colorbar(shown, ax=axes, shrink=0.8, pad=0.02, label="Images", ticks=steps, format="{x:,.0f}")
        bar.minorticks_off()
        _bare(axes)
        caption(figure, "; ".join(filter(None, [note, f"digest {partition.digest(parts)[:12]}"])))
    return Drawing(figure, of.cells)


def counts(
    path: Path, tests: dict[int, int], *, names: Sequence[str] | None = None, most: int = 40
) -> tuple[pd.DataFrame, Sheet]:
    """Per client: training images, test images, classes held, its largest class and that one's share.

    Args:
        path: a partition.parquet.
        tests: test images by client, where known.
        names: of the classes.
        most: rows printed; the frame has them all.

    Raises:
        Unavailable: the partition is missing or damaged.
    """
    parts, labels = partition.load(path)
    of, rows = bubbles.held(parts, labels), []
    for client, size in enumerate(of.sizes.tolist()):
        own = of.cells[of.cells["client"] == client]
        top = own.loc[own["n"].idxmax()] if len(own) else None
        name = "-" if top is None else str(names[int(top["label"])]) if names else f"{int(top['label'])}"
        share = 100 * float(top["n"]) / size if top is not None else 0.0
        rows.append((client, size, tests.get(client, 0), len(own), name, share))
    frame = pd.DataFrame(rows, columns=["client", "train", "test", "classes", "largest_class", "largest_share"])
    header = ("Client", "Train", "Test", "Classes", "Largest class", "Its share (%)")
    text = [(f"{k}", f"{n}", f"{t}", f"{c}", name, f"{share:.0f}") for k, n, t, c, name, share in rows[:most]]
    if len(rows) > most:
        text.append((f"... {len(rows) - most} more", *("",) * 5))
    text.append(("All", f"{frame['train'].sum()}", f"{frame['test'].sum()}", f"{of.classes}", "", ""))
    return frame, Sheet(header, tuple(text), ((0,) * 6,) * len(text))


def settings(frame: pd.DataFrame, *, x: str, y: str, score: str, note: str = "") -> Drawing:
    """A score over two settings, a panel for each method, one colour scale, the best cell of each framed.

    Args:
        frame: what `tables.cells` gives.
        x: column across.
        y: column down.
        score: column of the score.
        note: what the caption should add.

    Raises:
        BadInput: there is nothing to draw.
    """
    data = summary(frame.dropna(subset=[score]), by=["method", x, y], metrics=[score])
    if data.empty:
        raise BadInput(f"no finished run has {x}, {y} and {score}; wait for the runs")
    methods = list(dict.fromkeys(data["method"]))
    norm = Normalize(data[score].min(), max(data[score].max(), data[score].min() + 1e-9))
    columns, rows = sorted(set(data[x])), sorted(set(data[y]), reverse=True)
    with mpl.rc_context(RC):
        width = NARROW if len(methods) == 1 else WIDE
        figure = Figure(figsize=(width, 1.2 + 0.32 * len(rows)), layout="constrained")
        panels = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
        for axes, method in zip(panels, methods, strict=True):
            table = data[data["method"] == method].pivot(index=y, columns=x, values=score)
            image = table.reindex(index=rows, columns=columns).to_numpy(float)
            shown = axes.imshow(np.ma.masked_invalid(image), "viridis", norm, aspect="auto")
            texts = ["" if value != value else f"{value:.1f}" for value in image.ravel()]
            _written(axes, image, texts, norm)
            best = np.unravel_index(np.nanargmax(image), image.shape)
            axes.add_patch(
                mpl.patches.Rectangle((best[1] - 0.5, best[0] - 0.5), 1, 1, fill=False, ec="#D55E00", lw=1.6)
            )
            axes.set_xticks(range(len(columns)), [word(v) for v in columns])
            axes.set_yticks(range(len(rows)), [word(v) for v in rows])
            axes.set(xlabel=label(x), title=method)
            _bare(axes)
        panels[0].set_ylabel(label(y))
        figure.colorbar(shown, ax=list(panels), label=label(score), shrink=0.9, pad=0.02)
        caption(figure, "; ".join(filter(None, [over(data["n_seeds"], "seed"), "framed: the best", note])))
    return Drawing(figure, data)


def _written(axes: Axes, image: NDArray[Any], texts: Sequence[str], norm: Any) -> None:
    """Numbers into cells, light on dark and dark on light."""
    dark = bubbles.COLOURS is not None and isinstance(norm, LogNorm)
    for i, text in enumerate(texts):
        row, column = divmod(i, image.shape[1])
        if text:
            level = float(norm(image[row, column]))
            light = level > 0.45 if dark else level < 0.6
            axes.text(column, row, text, ha="center", va="center", fontsize=6, color="white" if light else "#222222")


def _bare(axes: Axes) -> None:
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)

"""Who holds what, drawn: clients across, classes down, a bubble for each cell, totals on both margins.

    diameter = max(DOT, D sqrt(n / most)) points,   D = TIGHT x the distance of neighbours, at most WIDEST

so that an area is in proportion to its number, the largest bubbles don't touch, and one image can be seen beside ten
thousand; colour tells dots apart, on a logarithmic scale. Where clients or classes are too many for bubbles, every
cell is a rectangle of that colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from fedray.data import partition

DOT = 1.8
"""Points: the diameter of the smallest bubble."""
TIGHT = 0.94
WIDEST = 16.0
"""Points: no bubble is larger, however few there are."""
MANY = 64
"""Clients or classes that get bubbles."""
FEW = 24
"""Classes that are named, and totals that are written."""
ABREAST = 4
"""Partitions in a row."""
ROOM = 36
"""Clients that one column of a page has room for."""
NUMBER = 0.28
"""Room for a digit of a total, over the length of the longest bar."""
COLOURS = ListedColormap(mpl.colormaps["viridis_r"](np.linspace(0.3, 1, 256)))
GREY = "#8a8a8a"
KEY = "Images of a class that a client holds"


class Held(NamedTuple):
    """A partition as the picture needs it."""

    cells: pd.DataFrame  # client, label, n; empty cells left out
    sizes: NDArray[np.int64]  # images of each client (K,)
    classes: int
    images: int

    @property
    def most(self) -> int:
        """Of the largest cell."""
        return int(self.cells["n"].max()) if len(self.cells) else 1

    @property
    def many(self) -> bool:
        """Whether there is no room for bubbles."""
        return max(len(self.sizes), self.classes) > MANY


class Panel(NamedTuple):
    """One picture, and its bubbles with their numbers."""

    axes: Axes
    bubbles: PathCollection | None  # none where there are too many
    n: NDArray[Any]


def held(parts: Sequence[NDArray[Any]], labels: NDArray[Any]) -> Held:
    """Count; `labels` are those of positions 0 .. n-1, (n,) or multi-hot (n, C)."""
    classes = labels.shape[1] if labels.ndim == 2 else int(labels.max(initial=0)) + 1
    cells = pd.DataFrame(partition.table(parts, labels), columns=["client", "label", "n"])
    return Held(cells, np.array([len(part) for part in parts], np.int64), classes, len(labels))


def alone(figure: Figure, of: Held, names: Sequence[str] | None = None) -> None:
    """Fill a figure with one partition; `names` of the classes, by label, are written where they are few."""
    width, height = figure.get_size_inches()
    sides = {"width_ratios": (1.36 * width, 1), "height_ratios": (1, 1.25 * height)}
    (top, corner), (axes, side) = figure.subplots(2, 2, sharex="col", sharey="row", gridspec_kw=sides)
    corner.set_axis_off()
    drawn = _panel(axes, of, of.most, names)
    _bars(top, of.sizes, int(of.sizes.max()), "vertical", gaps=not of.many)
    _classes(side, of)
    axes.set(xlabel="Client", ylabel="Class")
    top.set_ylabel("Images")
    side.set_xlabel("Images")
    _finish(figure, [drawn], of.most)


def abreast(figure: Figure, of: Mapping[str, Held], names: Sequence[str] | None = None) -> None:
    """Fill a figure with partitions of the same images, by title, on one scale."""
    most, longest = max(one.most for one in of.values()), max(int(one.sizes.max()) for one in of.values())
    rows = -(-len(of) // ABREAST)
    sides = {"width_ratios": (5.0,) * ABREAST + (1.4,), "height_ratios": (1.5, 5) * rows}
    grid, drawn = figure.add_gridspec(2 * rows, ABREAST + 1, **sides), []
    for i, (title, one) in enumerate(of.items()):
        row, column = 2 * (i // ABREAST), i % ABREAST
        axes = figure.add_subplot(grid[row + 1, column])
        drawn.append(_panel(axes, one, most, names))
        first, lowest = column == 0, i + ABREAST >= len(of)
        axes.set(xlabel="Client" if lowest else "", ylabel="Class" if first and names is None else "")
        axes.tick_params(left=first, labelleft=first, bottom=lowest, labelbottom=lowest)
        top = figure.add_subplot(grid[row, column], sharex=axes, title=title)
        _bars(top, one.sizes, longest, "vertical", gaps=not one.many)
        top.yaxis.set_visible(False)
        if column + 1 == ABREAST or i + 1 == len(of):  # the same images, so the same classes in each
            _classes(figure.add_subplot(grid[row + 1, column + 1], sharey=axes), one)
    _finish(figure, drawn, most)


def _panel(axes: Axes, of: Held, most: int, names: Sequence[str] | None = None) -> Panel:
    """Draw one partition, on a scale up to `most`; bubbles have no size until `_finish`."""
    clients, norm, bubbles = len(of.sizes), LogNorm(1, max(most, 2)), None
    across, down, n = (of.cells[name].to_numpy() for name in ("client", "label", "n"))
    if of.many:
        image = np.zeros((of.classes, clients))
        image[down, across] = n
        axes.imshow(np.ma.masked_equal(image, 0), COLOURS, norm, aspect="auto", interpolation="nearest")
    else:
        bubbles = axes.scatter(across, down, s=0, c=n, cmap=COLOURS, norm=norm, linewidths=0)
        axes.grid(linewidth=0.3, color="#e4e4e4")
        axes.set_axisbelow(True)
    axes.set(xlim=(-0.6, clients - 0.4), ylim=(of.classes - 0.4, -0.6))
    for axis, length in ((axes.xaxis, clients), (axes.yaxis, of.classes)):
        few = FixedLocator(range(length))
        axis.set_major_locator(few if length <= 16 else MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    if names is not None and of.classes <= FEW:
        axes.set_yticks(range(of.classes), list(names)[: of.classes])
    return Panel(axes, bubbles, n)


def _classes(axes: Axes, of: Held) -> None:
    totals = of.cells.groupby("label")["n"].sum().reindex(range(of.classes), fill_value=0).to_numpy()
    _bars(axes, totals, int(totals.max()), "horizontal", gaps=not of.many)


def _bars(axes: Axes, totals: NDArray[Any], most: int, way: Literal["vertical", "horizontal"], *, gaps: bool) -> None:
    """The totals of a margin; few of them as numbers too."""
    upright = way == "vertical"
    edges = np.arange(len(totals) + 1) - 0.5
    axes.stairs(totals, edges, baseline=0, orientation=way, fill=True, color=GREY, linewidth=0)
    for edge in edges[1:-1] if gaps else ():
        (axes.axvline if upright else axes.axhline)(edge, color="white", linewidth=0.6)
    axes.tick_params(labelbottom=not upright, labelleft=upright, length=0)
    along, numbered = axes.yaxis if upright else axes.xaxis, len(totals) <= FEW
    (axes.set_ylim if upright else axes.set_xlim)(0, max(most, 1) * (1.05 + NUMBER * numbered * len(f"{most:,}")))
    along.set_major_locator(NullLocator() if numbered else MaxNLocator(2, integer=True))
    along.set_major_formatter("{x:,.0f}")
    axes.spines[:].set_visible(False)
    for i, total in enumerate(totals if numbered else ()):
        x, y, turned = (i, total, 90) if upright else (total, i, 0)
        axes.text(
            x, y, f" {total:,}", fontsize=5, color="#444444", rotation=turned,
            ha="center" if upright else "left", va="bottom" if upright else "center",
        )  # fmt: skip


def _finish(figure: Figure, panels: Sequence[Panel], most: int) -> None:
    """Say what sizes mean, and give the bubbles theirs, once the layout has settled how far apart they are.

    All panels have one scale.
    """
    drawn = [one for one in panels if one.bubbles]
    steps = [10**i for i in range(len(str(most)))]
    steps += [most] if most > 2 * steps[-1] else []
    if not drawn:
        shown, below = panels[0].axes.images[0], [one.axes for one in panels]
        bar = figure.colorbar(shown, ax=below, location="bottom", shrink=0.6, aspect=40, label=KEY, ticks=steps)
        bar.ax.xaxis.set_major_formatter("{x:,.0f}")
        bar.minorticks_off()
        return
    colours = COLOURS(LogNorm(1, max(most, 2))(np.array(steps, float)))
    marks = [Line2D([], [], marker="o", linestyle="", color=colour, markeredgewidth=0) for colour in colours]
    legend = figure.legend(
        marks, [f"{n:,}" for n in steps], loc="outside upper center", ncols=len(steps), title=KEY, title_fontsize=7,
        columnspacing=1.2, handletextpad=0.5, handleheight=1.8, handlelength=1.8, borderpad=0,
    )  # fmt: skip
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    pixels = min(float(np.abs(np.diff(one.axes.transData.transform([(0, 0), (1, 1)]), axis=0)).min()) for one in drawn)
    widest = min(TIGHT * pixels * 72 / figure.dpi, WIDEST)
    for one in drawn:
        if one.bubbles:
            one.bubbles.set_sizes(_diameters(one.n, most, widest) ** 2)
    for mark, size in zip(legend.legend_handles, _diameters(np.array(steps), most, widest), strict=True):
        if isinstance(mark, Line2D):
            mark.set_markersize(float(size))


def _diameters(n: NDArray[Any], most: int, widest: float) -> NDArray[np.float64]:
    return np.asarray(np.maximum(min(DOT, widest), widest * np.sqrt(n / most)))

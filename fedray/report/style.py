"""How figures look, and how they are written: PDF, PNG and CSV together, equal data, equal bytes.

Widths of one and two columns (3.3 and 6.9 in), 8 pt, embedded fonts. A method has its own colour (Okabe and Ito's, then
Tol's, safe for the colour-blind), marker and line, the same in every figure. No dates in the files.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from PIL import Image

from fedray.track import files

NARROW, WIDE = 3.3, 6.9
"""Widths in inches: one column, two columns."""
ORDER = (
    "promptfl", "fedotp", "otdpp", "fedrsclip", "fedmpt", "align", "promptot",
    "fedpgp", "fedtpg", "pfedmoap", "maple", "promptsrc", "coop", "plot",
)  # fmt: skip
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#332288", "#999933", "#882255", "#44AA99",
)  # fmt: skip
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*", "<", ">", "p")
LINES = ("-", "--", ":", "-.")
ALIKE = 7
"""Methods in a row with the same kind of line; a colour comes again later, with another marker and line."""
PER_INCH = 21
"""Letters of a caption."""
UNDATED: dict[str, dict[str, None]] = {
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    "png": {"Software": None},
}
RC: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "savefig.dpi": 300,
}


class Drawing(NamedTuple):
    """A figure and the numbers in it."""

    figure: Figure
    data: pd.DataFrame


class Style(NamedTuple):
    """How a method looks."""

    color: str
    marker: str
    line: str


def styles(methods: Sequence[str]) -> dict[str, Style]:
    """A style per method: known ones always the same, others those that are left, in colours that are left if any."""
    names = sorted(set(methods) - {"zeroshot"}, key=lambda name: (ORDER.index(name) if name in ORDER else 99, name))
    place: dict[str, int] = {}
    for name in names:  # known ones come first
        free = [i for i in range(len(ORDER), len(ORDER) + len(COLOURS) + len(names)) if i not in place.values()]
        taken = {i % len(COLOURS) for i in place.values()}
        unlike = [i for i in free if i % len(COLOURS) not in taken]
        place[name] = ORDER.index(name) if name in ORDER else (unlike or free)[0]
    found = {
        name: Style(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], LINES[i // ALIKE % len(LINES)])
        for name, i in place.items()
    }
    return found | ({"zeroshot": Style("#777777", "", "--")} if "zeroshot" in methods else {})


def save(drawing: Drawing, folder: Path, name: str, *, dpi: int = 300) -> list[Path]:
    """Writes ``name.pdf``, ``.png`` (of so many dots per inch) and ``.csv`` (the numbers drawn) together.

    Raises:
        Unavailable: the folder can't be written.
    """
    images = {ending: image(drawing, ending, dpi=dpi) for ending in ("pdf", "png")}
    images["csv"] = drawing.data.to_csv(index=False).encode()
    for ending, content in images.items():
        files.replace(folder / f"{name}.{ending}", content)
    return [folder / f"{name}.{ending}" for ending in images]


def image(drawing: Drawing, ending: Literal["pdf", "png"], *, dpi: int = 300) -> bytes:
    """The figure as a file's bytes."""
    buffer, what = io.BytesIO(), drawing.figure
    with mpl.rc_context(RC):
        FigureCanvasAgg(what)
        what.savefig(buffer, format=ending, metadata=UNDATED[ending], dpi=dpi)
    if ending == "png":
        plain = Image.open(buffer).convert("RGB")
        pictures = any(axes.images for axes in what.axes)  # else 256 look the same and take a third of the bytes
        kept = plain if pictures else plain.quantize(256, dither=Image.Dither.NONE)
        kept.save(buffer := io.BytesIO(), "PNG", optimize=True, dpi=(dpi, dpi))
    return buffer.getvalue()


def grid(axes: Axes, which: Literal["both", "y"] = "y") -> None:
    """Thin lines behind the data, at round numbers."""
    axes.yaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10]))
    axes.grid(axis=which, linewidth=0.3, color="#dddddd")
    axes.set_axisbelow(True)


def logarithmic(x: str, values: Iterable[float]) -> bool:
    """Whether a setting is drawn on a logarithmic axis: alpha, powers of two, and what grows by factors, not by steps.

    The last where the largest value is 8 times the least or more, and the ratios of neighbours differ less than their
    distances do: ranks 2, 16, 128, but not shares of 10, 50 and 90 %.
    """
    known = np.unique(np.asarray(list(values), float))
    if len(known) < 2 or not known[0] > 0:
        return False
    if x in ("alpha", "partition.alpha") or all(math.frexp(value)[0] == 0.5 for value in known):
        return True
    steps, ratios = np.diff(known), np.diff(np.log(known))
    return bool(known[-1] >= 8 * known[0] and ratios.std() / ratios.mean() <= steps.std() / steps.mean())


def ticks(axes: Axes, values: Sequence[float], *, log: bool) -> None:
    """Ticks where the runs are, if they are few."""
    if log:
        axes.set_xscale("log")
    if len(values) <= 8:
        axes.xaxis.set_major_locator(FixedLocator(values))
        axes.set_xticklabels([f"{value:g}" for value in values])
        axes.xaxis.set_minor_locator(NullLocator())


def legend(figure: Figure, axes: Axes, columns: int = 4) -> None:
    """Above the panels, for all of them."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), columns))


def caption(figure: Figure, text: str) -> None:
    """What the figure rests on, in small print below it."""
    room = int(PER_INCH * figure.get_figwidth())
    lines = [part for line in text.split("\n") for part in textwrap.wrap(line, room)]
    figure.supxlabel("\n".join(lines), fontsize=6, color="#555555")


def over(counts: pd.Series, what: str) -> str:
    """``mean ± std over 3 seeds``, or that there is one of each."""
    return f"one {what} each" if counts.max() == 1 else f"mean ± std over {span(counts)} {what}s"


def span(values: pd.Series) -> str:
    """``3``, or ``3 to 5``."""
    low, high = int(values.min()), int(values.max())
    return f"{low}" if low == high else f"{low} to {high}"

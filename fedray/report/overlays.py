"""Pictures with what models make of them: where prompts look, and what clients answer."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

from fedray.errors import BadInput
from fedray.report.seen import Attended, Looks, Said
from fedray.report.style import RC, WIDE, Drawing, caption

ABREAST = 9
"""Maps in a row beside the image; further methods get a figure of their own."""
DIM = (-180, 550)
"""What black and white would be below a map: between them an image is of middle greys, and colours stay the bar's."""
WRONG, RIGHT = "#D55E00", "#009E73"


def batches(attended: Sequence[Attended]) -> list[list[Attended]]:
    """The methods that fit side by side, in order."""
    groups: list[list[Attended]] = [[]]
    for one in attended:
        if groups[-1] and sum(a.mass.shape[1] for a in [*groups[-1], one]) > ABREAST:
            groups.append([])
        groups[-1].append(one)
    return [group for group in groups if group]


def overlay(looks: Looks, attended: Sequence[Attended]) -> Drawing:
    """Images down, a map over patches across for each prompt of each method, all on one colour scale.

    The number under a map is the sum of its weights: of a plan, the mass that the prompt moves.

    Raises:
        BadInput: there is no map.
    """
    if not attended:
        raise BadInput("no method of these runs has a map over patches; draw one with transport, as fedotp")
    prompts = [a.mass.shape[1] for a in attended]
    shown, patches = attended[0].at, attended[0].mass.shape[-1]
    most = max(float(a.mass.max()) for a in attended)
    norm = PowerNorm(0.5, 0, most * patches)  # what is spread over all patches is seen beside what is not
    with mpl.rc_context(RC):
        cells = 1 + sum(prompts)
        across = min(1.0, (WIDE - 0.5) / cells)
        figure = Figure(figsize=(across * cells + 0.7, len(shown) * (across + 0.15) + 0.4), layout=_tight())
        grid = figure.subplots(len(shown), cells, squeeze=False)
        rows, drawn = [], None
        for i, place in enumerate(shown.tolist()):
            picture, label = looks.pictures[place], looks.names[int(attended[0].labels[i])]
            _bare(grid[i][0]).imshow(picture, interpolation="nearest")
            grid[i][0].set_xlabel(label, fontsize=6, labelpad=1)
            panels = iter(grid[i][1:])
            for a in attended:
                for n, mass in enumerate(a.mass[i]):
                    axes = _bare(next(panels))
                    drawn = _laid(axes, picture, mass * patches, norm)
                    axes.set_xlabel(f"{mass.sum():.2f}", fontsize=6, labelpad=1)
                    axes.set_title(f"{a.method} {n + 1}" if i == 0 else "", fontsize=6, pad=2)
                    rows += [(a.method, a.client, place, label, n, p, m) for p, m in enumerate(mass.tolist())]
        if drawn is not None:
            bar = figure.colorbar(drawn, ax=grid, shrink=0.6, aspect=30, pad=0.01)
            bar.set_label("Weight of a patch x number of patches", fontsize=6)
            bar.ax.tick_params(labelsize=6)
        caption(figure, _words(looks, attended))
    columns = ["method", "client", "image", "class", "prompt", "patch", "mass"]
    return Drawing(figure, pd.DataFrame(rows, columns=columns))


def _words(looks: Looks, attended: Sequence[Attended]) -> str:
    kinds: dict[str, list[str]] = {}
    for a in attended:
        kinds.setdefault(a.kind, []).append(a.method)
    told = "; ".join(f"{', '.join(methods)}: {kind}" for kind, methods in kinds.items())
    return (
        f"what patches count for the image's own class, prompt by prompt, client {attended[0].client}, {looks.title}; "
        f"under each map its sum; {told}"
    )


def _laid(axes: Axes, picture: np.ndarray, mass: np.ndarray, norm: Normalize) -> mpl.cm.ScalarMappable:
    """Patches of colour over the image in grey."""
    side, (height, width) = round(len(mass) ** 0.5), picture.shape[:2]
    axes.imshow(picture.mean(-1), cmap="gray", vmin=DIM[0], vmax=DIM[1], interpolation="nearest")
    return axes.imshow(
        mass.reshape(side, side), cmap="inferno", norm=norm, alpha=0.7, interpolation="nearest",
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
    )  # fmt: skip


def answers(looks: Looks, own: Sequence[Said], columns: int = 10) -> Drawing:
    """A row of test images for each client, with what its own model says; errors are outlined.

    Raises BadInput where no client has test images.
    """
    rows = [said for said in own if len(said.at)]
    if not rows:
        raise BadInput("no client has test images; nothing to show")
    columns = min(columns, max(len(said.at) for said in rows))
    data = []
    with mpl.rc_context(RC):
        side = (WIDE - 0.6) / 10
        figure = Figure(figsize=(side * columns + 0.6, len(rows) * (side + 0.22) + 0.35), layout=_tight())
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for line, said in zip(grid, rows, strict=True):
            for axes in line:
                _bare(axes).set_visible(False)
            line[0].set_ylabel(f"client {said.client}", fontsize=7)
            for axes, place, true, guess in zip(line, said.at, said.labels, said.predicted, strict=False):
                axes.set_visible(True)
                axes.imshow(looks.pictures[int(place)], interpolation="nearest")
                right = true == guess
                edge = Rectangle((0, 0), 1, 1, fill=False, transform=axes.transAxes, clip_on=False,
                                 edgecolor=RIGHT if right else WRONG, linewidth=0.6 if right else 2.2)  # fmt: skip
                axes.add_patch(edge)
                axes.set_xlabel(looks.names[int(guess)][:14], fontsize=6, labelpad=2, color="black" if right else WRONG)
                data.append((said.client, int(place), looks.names[int(true)], looks.names[int(guess)]))
        text = f"{rows[0].method}, {looks.title}: below each image what its client's own model says; orange: an error"
        caption(figure, text)
    return Drawing(figure, pd.DataFrame(data, columns=["client", "image", "class", "predicted"]))


def _tight() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(w_pad=0.025, h_pad=0.01, wspace=0.02, hspace=0.02)


def _bare(axes: Axes) -> Axes:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return axes

"""How far answers can be trusted: reliability and calibration error, who is taken for whom, features on a plane."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fedray.errors import BadInput
from fedray.report.seen import Said
from fedray.report.style import COLOURS, RC, WIDE, Drawing, caption, grid, styles

BINS = 10
NAMED = 20
"""Classes whose names are written at a confusion matrix."""
CLOUDS = 10
"""Classes shown on a plane."""
PERPLEXITY = 30.0
DOTS = 300
"""Images on a plane."""
ABREAST = 4


def calibration(said: Said) -> tuple[pd.DataFrame, float]:
    """Per bin of confidence: n, mean confidence, accuracy (%); and the ECE (%), sum n_b |acc_b - conf_b| / n."""
    shifted = np.exp(said.logits.astype(float) - said.logits.max(1, keepdims=True))
    confidence = (shifted / shifted.sum(1, keepdims=True)).max(1)
    right = said.predicted == said.labels
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    rows = [
        (b, int(m.sum()), 100 * float(confidence[m].mean()), 100 * float(right[m].mean()))
        for b in range(BINS)
        if (m := place == b).any()
    ]
    frame = pd.DataFrame(rows, columns=["bin", "n", "confidence", "accuracy"])
    gaps = (frame["accuracy"] - frame["confidence"]).abs() * frame["n"]
    return frame, float(gaps.sum() / max(len(confidence), 1))


def reliability(whole: Sequence[Said], *, note: str = "") -> Drawing:
    """Accuracy against confidence in ten bins, a panel for each method, with its ECE; below, how many images.

    Raises BadInput where nothing was said.
    """
    several = _some(whole)
    frames = []
    with mpl.rc_context(RC):
        figure = Figure(figsize=(_width(several), 2.7), layout="constrained")
        panels = figure.subplots(2, len(several), sharex=True, sharey="row", squeeze=False, height_ratios=(4, 1))
        looks = styles([said.method for said in several])
        for (axes, below), said in zip(panels.T, several, strict=True):
            data, error = calibration(said)
            left, colour = 10 * data["bin"], looks[said.method].color
            axes.plot((0, 100), (0, 100), color="#777777", linewidth=0.7, linestyle="--")
            axes.bar(
                left, data["accuracy"], 10, align="edge", color=colour, alpha=0.75, edgecolor="white", linewidth=0.6
            )
            gap = data["confidence"] - data["accuracy"]
            axes.bar(left, gap, 10, bottom=data["accuracy"], align="edge", fill=False, edgecolor=colour, hatch="////",
                     linewidth=0.5, alpha=0.5)  # fmt: skip
            axes.set(title=f"{said.method} (ECE {error:.1f} %)", xlim=(0, 100), ylim=(0, 100))
            below.bar(left, 100 * data["n"] / data["n"].sum(), 10, align="edge", color="#8a8a8a", edgecolor="white",
                      linewidth=0.6)  # fmt: skip
            below.set(xlabel="Confidence (%)", xticks=(0, 50, 100))
            grid(axes)
            frames.append(data.assign(method=said.method, ece=error))
        panels[0][0].set_ylabel("Accuracy (%)")
        panels[1][0].set_ylabel("Images (%)")
        caption(
            figure, "; ".join(filter(None, [f"global model, n = {len(several[0].labels)}, hatched: the gap", note]))
        )
    return Drawing(figure, pd.concat(frames, ignore_index=True))


def confusion(whole: Sequence[Said], names: Sequence[str], *, note: str = "") -> Drawing:
    """Shares of each class (rows add up to 100 %) by what the global model says, a panel for each method.

    Raises BadInput where nothing was said.
    """
    several, classes, rows = _some(whole), len(names), []
    with mpl.rc_context(RC):
        width = _width(several)
        figure = Figure(figsize=(width, min(6.0, width / len(several)) + 0.6), layout="constrained")
        panels = figure.subplots(1, len(several), sharey=True, squeeze=False)[0]
        for axes, said in zip(panels, several, strict=True):
            table = np.zeros((classes, classes))
            np.add.at(table, (said.labels, said.predicted), 1)
            share = 100 * table / np.maximum(table.sum(1, keepdims=True), 1)
            shown = axes.imshow(share, "Blues", vmin=0, vmax=100, interpolation="nearest")
            accuracy = 100 * float((said.labels == said.predicted).mean())
            axes.set(title=f"{said.method} ({accuracy:.1f} %)", xlabel="Predicted")
            axes.tick_params(length=0)
            if classes <= NAMED:
                axes.set_xticks(range(classes), list(names), rotation=90, fontsize=6)
                axes.set_yticks(range(classes), list(names), fontsize=6)
            rows += [
                (said.method, names[i], names[j], int(table[i, j])) for i in range(classes) for j in range(classes)
            ]
        panels[0].set_ylabel("Class")
        figure.colorbar(shown, ax=list(panels), shrink=0.7, pad=0.02, label="Share of the class (%)")
        caption(figure, "; ".join(filter(None, [f"global model, n = {len(several[0].labels)}", note])))
    return Drawing(figure, pd.DataFrame(rows, columns=["method", "class", "predicted", "n"]))


def plane(whole: Sequence[Said], names: Sequence[str], *, seed: int = 0, note: str = "") -> Drawing:
    """Image features and the methods' text features on a plane (t-SNE), dots and stars, classes by colour.

    Images and texts are centred apart, else the gap between the two kinds is all that one sees. Raises BadInput where
    nothing was said.
    """
    several, frames = _some(whole), []
    kept = np.unique(several[0].labels)[:CLOUDS]
    rows = np.flatnonzero(np.isin(several[0].labels, kept))
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(DOTS, len(rows))).astype(int))]
    perplexity = min(PERPLEXITY, (len(rows) + len(kept) - 1) / 3)
    with mpl.rc_context(RC):
        figure = Figure(figsize=(_width(several), _width(several) / len(several) + 0.75), layout="constrained")
        panels = figure.subplots(1, len(several), squeeze=False)[0]
        for axes, said in zip(panels, several, strict=True):
            at = _embedded(said, rows, kept, perplexity, seed)
            labels = said.labels[rows]
            for i, c in enumerate(kept):
                own = at[: len(rows)][labels == c]
                axes.scatter(*own.T, s=3, color=COLOURS[i], linewidths=0, alpha=0.6)
                x, y = at[len(rows) + i]
                axes.scatter(x, y, s=55, marker="*", color=COLOURS[i], edgecolors="black", linewidths=0.5, zorder=3,
                             label=names[c])  # fmt: skip
            axes.set(title=said.method, xticks=[], yticks=[])
            axes.spines[:].set_visible(True)
            kinds = ["image"] * len(rows) + ["text"] * len(kept)
            classes = [names[c] for c in [*labels, *kept]]
            frames.append(
                pd.DataFrame({"method": said.method, "kind": kinds, "class": classes, "x": at[:, 0], "y": at[:, 1]})
            )
        handles, titles = panels[0].get_legend_handles_labels()
        columns = min(len(titles), 5 if len(several) == 1 else 10)
        figure.legend(handles, titles, loc="outside upper center", ncols=columns, handletextpad=0.1, columnspacing=0.8)
        text = f"t-SNE, perplexity {perplexity:g}, seed {seed}; dots: {len(rows)} test images, stars: classes' texts"
        caption(figure, "; ".join(filter(None, [text + ", centred apart", note])))
    return Drawing(figure, pd.concat(frames, ignore_index=True))


def _embedded(
    said: Said, rows: NDArray[np.int64], kept: NDArray[np.int64], perplexity: float, seed: int
) -> NDArray[np.float64]:
    from sklearn.manifold import TSNE

    def centred(x: NDArray[np.float64]) -> NDArray[np.float64]:
        x = x / np.linalg.norm(x, axis=-1, keepdims=True)
        x = x - x.mean(0)
        return np.asarray(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12))

    images = centred(said.pooled.astype(float))[rows]
    texts = said.texts.astype(float)
    texts = centred((texts / np.linalg.norm(texts, axis=-1, keepdims=True)).mean(0))[kept]
    made = TSNE(perplexity=perplexity, random_state=seed, init="pca", n_jobs=1)
    return np.asarray(made.fit_transform(np.concatenate([images, texts])), float)


def _some(whole: Sequence[Said]) -> list[Said]:
    several = list(whole)[:ABREAST]
    if not several or not len(several[0].labels):
        raise BadInput("no model has answered anything; nothing to draw")
    return several


def _width(several: Sequence[Said]) -> float:
    return min(WIDE, 2.6 + 1.6 * (len(several) - 1) + (0.3 if len(several) == 1 else 0))

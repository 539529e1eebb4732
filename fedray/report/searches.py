"""What a search has found, from its journal alone: history, parallel coordinates, importance, Pareto front."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import optuna
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from fedray.errors import BadInput, Unavailable
from fedray.report.style import COLOURS, NARROW, RC, WIDE, Drawing, caption, grid
from fedray.report.tables import Sheet
from fedray.report.words import label, shorts, title

DONE = "#0072B2"
SCORE, BYTES = "Mean local score (%)", "Up per client and round (kB)"
"""What every search looks for: much of the first, and if it weighs two things, little of the second."""
LEAST = 4
"""Points that an importance needs."""


def opened(journal: Path) -> optuna.Study:
    """A search's study, to read.

    Raises:
        Unavailable: the journal is missing or damaged.
        BadInput: no point is complete.
    """
    if not journal.is_file():
        raise Unavailable(f"{journal} does not exist; run the search, or give the root of its runs with --runs")
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.ERROR)
    try:
        storage = JournalStorage(JournalFileBackend(str(journal)))
        study = optuna.load_study(study_name=None, storage=storage)
    except (KeyError, ValueError, OSError) as error:
        raise Unavailable(f"{journal} is damaged or empty ({type(error).__name__}); run the search again") from None
    finally:
        optuna.logging.set_verbosity(before)
    if not complete(study):
        raise BadInput(f"no point of the search {study.study_name} is complete; let it go on")
    return study


def complete(study: optuna.Study) -> list[FrozenTrial]:
    """Its points that were judged to the end."""
    return list(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def paths(study: optuna.Study) -> list[str]:
    """The fields that it varies, in the order of their first use."""
    return list(dict.fromkeys(name for trial in complete(study) for name in trial.params))


def points(study: optuna.Study) -> tuple[pd.DataFrame, Sheet]:
    """All points, best first; the ten best as a table, in bold those that none beats."""
    names, values = paths(study), ["score", "up_kb"][: len(study.directions)]
    rows = []
    for trial in study.get_trials(deepcopy=False):
        told = _values(trial) or [math.nan] * len(values)
        rows.append({"number": trial.number, "state": trial.state.name.lower(),
                     **dict(zip(values, told, strict=True)), **{n: trial.params.get(n) for n in names}})  # fmt: skip
    up = study.directions[0] == optuna.study.StudyDirection.MINIMIZE
    frame = pd.DataFrame(rows).sort_values(values[0], ascending=up, ignore_index=True, kind="stable")
    best = frame[frame["state"] == "complete"].head(10)
    text = [
        (f"{r['number']}", *(f"{r[v]:.2f}" for v in values), *(_word(r[n]) for n in names)) for _, r in best.iterrows()
    ]
    header = ("Point", *(SCORE, BYTES)[: len(values)], *map(title, names))
    first = {trial.number for trial in study.best_trials}
    marks = [(0, *(int(number in first),) * len(values), *(0,) * len(names)) for number in best["number"]]
    return frame, Sheet(header, tuple(text), tuple(marks))


def history(study: optuna.Study) -> Drawing:
    """Each point's objective, and the best so far. Raises BadInput where there are several objectives."""
    _single(study)
    trials = [t for t in study.get_trials(deepcopy=False) if t.value is not None or t.intermediate_values]
    rows = [
        (
            t.number,
            t.state.name.lower(),
            t.value if t.value is not None else t.intermediate_values[max(t.intermediate_values)],
        )
        for t in trials
    ]
    data = pd.DataFrame(rows, columns=["number", "state", "score"]).sort_values("number", ignore_index=True)
    done = data[data["state"] == "complete"]
    up = study.direction == optuna.study.StudyDirection.MAXIMIZE
    with mpl.rc_context(RC):
        figure = Figure(figsize=(NARROW, 2.3), layout="constrained")
        axes = figure.subplots()
        best = done["score"].cummax() if up else done["score"].cummin()
        axes.step(done["number"], best, where="post", color="#D55E00", label="best so far")
        axes.plot(done["number"], done["score"], "o", color=DONE, label="complete")
        rest = data[data["state"] != "complete"]
        if len(rest):
            axes.plot(rest["number"], rest["score"], "x", color="#999999", label="given up early")
        axes.set(xlabel="Point", ylabel=SCORE)
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        grid(axes)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3)
        caption(figure, f"search {study.study_name}, {len(done)} of {len(study.trials)} points complete")
    return Drawing(figure, data)


def coordinates(study: optuna.Study) -> Drawing:
    """A line for each complete point through its fields to its objective, coloured by that; the best is thick."""
    _single(study)
    names, trials = paths(study), complete(study)
    trials = sorted(trials, key=lambda t: t.value or 0, reverse=study.direction == optuna.study.StudyDirection.MINIMIZE)
    columns = {name: [t.params.get(name) for t in trials] for name in names}
    values = np.array([t.value for t in trials], float)
    scaled = {name: _scaled(column, trials[0].distributions.get(name)) for name, column in columns.items()}
    heights = np.column_stack([*(s[0] for s in scaled.values()), _unit(values)])
    with mpl.rc_context(RC):
        figure = Figure(figsize=(WIDE, 2.8), layout="constrained")
        axes = figure.subplots()
        lines = [np.column_stack([np.arange(len(names) + 1), row]) for row in heights]
        drawn = LineCollection(lines, cmap="viridis", norm=Normalize(values.min(), values.max()), alpha=0.75)
        drawn.set_array(values)
        drawn.set_linewidth([0.8] * (len(lines) - 1) + [2.4])
        axes.add_collection(drawn)
        marks = [
            *(s[1] for s in scaled.values()),
            [(h, f"{values.min() + h * np.ptp(values):.1f}") for h in (0, 0.5, 1)],
        ]
        for x, told in enumerate(marks):
            axes.axvline(x, color="#555555", linewidth=0.6, zorder=0)
            for height, text in told:
                axes.text(x + 0.03, height, text, fontsize=6, va="center",
                          bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6})  # fmt: skip
        axes.set(xlim=(-0.15, len(names) + 0.4), ylim=(-0.06, 1.06), yticks=[])
        axes.set_xticks(range(len(names) + 1), [*shorts(names).values(), "score"])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        figure.colorbar(drawn, ax=axes, label=SCORE, pad=0.01)
        caption(figure, f"search {study.study_name}, {len(trials)} complete points; thick: the best")
    return Drawing(figure, pd.DataFrame({**columns, "score": values}))


def importance(study: optuna.Study, *, seed: int = 0) -> Drawing:
    """How much of the objective's variance each field explains, by fANOVA and by PED-ANOVA, both Optuna's.

    Raises BadInput with fewer than 4 complete points, several objectives, or one value throughout.
    """
    _single(study)
    if len(complete(study)) < LEAST or len({t.value for t in complete(study)}) < 2:
        raise BadInput(f"importance needs {LEAST} complete points of different worth; let the search go on")
    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances

    found: dict[str, dict[str, float]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        makers: dict[str, Any] = {
            "fANOVA": lambda: FanovaImportanceEvaluator(seed=seed),
            "PED-ANOVA": PedAnovaImportanceEvaluator,
        }
        for name, make in makers.items():
            try:
                found[name] = get_param_importances(study, evaluator=make())
            except (ValueError, RuntimeError):  # an evaluator may need more points than there are
                continue
    if not found:
        raise BadInput(
            f"the {len(complete(study))} complete points are too few for an importance; let the search go on"
        )
    first = next(iter(found.values()))
    names = sorted(first, key=lambda name: (first[name], name))
    with mpl.rc_context(RC):
        figure = Figure(figsize=(NARROW, 0.9 + 0.28 * len(names)), layout="constrained")
        axes = figure.subplots()
        for i, (kind, shares) in enumerate(found.items()):
            _bars(axes, names, shares, (i - (len(found) - 1) / 2) * 0.38, COLOURS[i], kind)
        axes.set_yticks(range(len(names)), map(label, names))
        axes.set(xlabel="Share of importance", xlim=(0, 1.12))
        axes.tick_params(axis="y", length=0)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
        caption(figure, f"search {study.study_name}, {len(complete(study))} complete points, seed {seed}")
    rows = [(kind, name, share) for kind, shares in found.items() for name, share in shares.items()]
    return Drawing(figure, pd.DataFrame(rows, columns=["evaluator", "field", "importance"]))


def front(study: optuna.Study) -> Drawing:
    """Complete points by score and bytes, and those that none beats. Raises BadInput unless both were looked for."""
    if len(study.directions) != 2:
        raise BadInput(f"search {study.study_name} has {len(study.directions)} objective(s); a front is drawn of two")
    best = {trial.number for trial in study.best_trials}
    rows = [(t.number, *_values(t), t.number in best) for t in complete(study)]
    data = pd.DataFrame(rows, columns=["number", "score", "up_kb", "front"])
    with mpl.rc_context(RC):
        figure = Figure(figsize=(NARROW, 2.5), layout="constrained")
        axes = figure.subplots()
        kept = data[data["front"]].sort_values("up_kb")
        axes.step(kept["up_kb"], kept["score"], where="post", color="#999999", linewidth=0.9)
        axes.plot(data["up_kb"], data["score"], "o", color="#999999", label="complete", markersize=3)
        axes.plot(kept["up_kb"], kept["score"], "D", color="#D55E00", label="none is better in both")
        axes.set(xlabel=BYTES, ylabel=SCORE)
        grid(axes)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
        caption(figure, f"search {study.study_name}, {len(data)} complete points")
    return Drawing(figure, data)


def _bars(axes: Axes, names: Sequence[str], shares: dict[str, float], shift: float, colour: str, kind: str) -> None:
    for y, name in enumerate(names):
        share = shares.get(name, 0.0)
        axes.barh(y - shift, share, 0.34, color=colour, alpha=0.85, label=kind if y == 0 else None)
        axes.text(share + 0.01, y - shift, f"{share:.2f}", va="center", fontsize=6)


def _values(trial: FrozenTrial) -> list[float]:
    """A point's score, and kB where bytes were looked at too; none where it was not judged."""
    score, *sent = trial.values or [math.nan]
    return [score, *(value / 1e3 for value in sent)] if trial.values else []


def _scaled(column: Sequence[Any], distribution: Any) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Heights from 0 to 1 of a field's values, and where to write which."""
    if any(not isinstance(v, int | float) or isinstance(v, bool) for v in column):
        kinds = sorted({str(v) for v in column})
        places = {kind: i / max(len(kinds) - 1, 1) for i, kind in enumerate(kinds)}
        return np.array([places[str(v)] for v in column]), [(h, kind) for kind, h in places.items()]
    raw = np.array(column, float)
    values = np.log(raw) if getattr(distribution, "log", False) else raw
    middle = (values.min() + values.max()) / 2
    ends = [(0.0, raw.min()), (0.5, math.exp(middle) if values is not raw else middle), (1.0, raw.max())]
    if all(isinstance(v, int) for v in column):
        ends = [(height, value) for height, value in ends if value == round(value)]
    return _unit(values), [(h, f"{v:.3g}") for h, v in (ends if np.ptp(values) else [(0.5, raw.min())])]


def _unit(values: np.ndarray) -> np.ndarray:
    span = np.ptp(values)
    return (values - values.min()) / span if span else np.full(len(values), 0.5)


def _single(study: optuna.Study) -> None:
    if len(study.directions) > 1:
        raise BadInput(f"search {study.study_name} has several objectives; draw its front")


def _word(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

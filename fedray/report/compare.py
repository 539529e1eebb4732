"""The main table: methods against settings, with what a reader needs to doubt it.

interval   Wilson's, 95 %: of the mean accuracy as a share of `n_eval` images. It says what a test set of this size
           can tell, not how seeds vary (the std does).
delta      points below the best of the same setting
p          Wilcoxon's signed-rank test of the best method against this one, over pairs of (seed, client) local
           scores, two-sided, Holm-corrected within the setting. Clients of a run share a model, so it is a mark.
tie        where there are no pairs: the intervals of the two overlap
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fedray.report.tables import LOWER_IS_BETTER, Sheet, grid, sized, summary
from fedray.report.words import in_words, named, title
from fedray.track.names import HEADLINES, cell
from fedray.track.run import GLOBAL, RunFolder

Z = 1.959963984540054
"""Of 95 %, two-sided."""
SIGNIFICANT = 0.05
LEAST = 6
"""Pairs: with fewer, no result of the test could be below 0.05."""


class Pair(NamedTuple):
    """A client's local score at the end of a run."""

    method: str
    setting: tuple[Any, ...]
    seed: Any
    client: int
    score: float
    n: int


def wilson(percent: float, n: float) -> tuple[float, float]:
    """95 % interval of a share in percent, seen on `n` images; (nan, nan) without images."""
    if not n or percent != percent:
        return math.nan, math.nan
    p, z2 = percent / 100, Z * Z
    middle, half = (p + z2 / (2 * n)), Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return 100 * (middle - half) / (1 + z2 / n), 100 * (middle + half) / (1 + z2 / n)


def last_of_clients(folder: RunFolder) -> dict[int, tuple[float, int]]:
    """Each client's newest own score in percent, and its test images."""
    heads = {f"eval/local/{head}" for head in HEADLINES}
    rows = sorted(row for row in folder.records() if row[1] != GLOBAL and row[2] in heads and row[4])
    return {client: (value, n) for _, client, _, value, n in rows}


def pairs(folders: Sequence[RunFolder], by: Sequence[str], frame: pd.DataFrame) -> list[Pair]:
    """Local scores by method, setting (columns `by` of the `frame`), seed and client, of finished runs."""
    where = {row["run"]: (row["method"], tuple(row[column] for column in by)) for _, row in frame.iterrows()}
    return [
        Pair(*where[folder.run_id], cell(folder.config).seed, client, score, n)
        for folder in folders
        if folder.run_id in where
        for client, (score, n) in last_of_clients(folder).items()
    ]


def compared(frame: pd.DataFrame, metric: str, *, by: Sequence[str], scores: Sequence[Pair] = ()) -> pd.DataFrame:
    """One row per method and setting: mean, std, n_seeds, n_eval, low, high, delta, p, mark.

    Args:
        frame: what `tables.cells` gives.
        metric: column of the score.
        by: columns that make a setting.
        scores: `pairs`, for local scores.
    """
    table = summary(frame.dropna(subset=[metric]), by=["method", *by], metrics=[metric])
    size = sized(metric, list(frame.columns))
    out = table.rename(columns={metric: "mean", f"{metric}_std": "std", size: "n_eval"})
    share = metric.startswith("acc_")
    out["low"], out["high"] = (
        [wilson(mean, n)[end] if share else math.nan for mean, n in zip(out["mean"], out["n_eval"], strict=True)]
        for end in (0, 1)
    )
    parts = [_judged(part, metric, by, scores) for _, part in out.groupby(list(by), dropna=False, sort=True)]
    return pd.concat(parts, ignore_index=True) if parts else out.assign(delta=[], p=[], mark=[])


def _judged(part: pd.DataFrame, metric: str, by: Sequence[str], scores: Sequence[Pair]) -> pd.DataFrame:
    """Each method of a setting against its best."""
    lower = metric in LOWER_IS_BETTER
    best = part["mean"].idxmin() if lower else part["mean"].idxmax()
    setting = tuple(part.loc[best, column] for column in by)
    at = [pair for pair in scores if _same(pair.setting, setting)]
    part = part.assign(delta=part["mean"] - part.loc[best, "mean"])
    raw = {i: _paired(at, part.loc[best, "method"], part.loc[i, "method"]) for i in part.index if i != best}
    p = _holm(raw)
    part["p"] = [p.get(i, math.nan) for i in part.index]
    part["mark"] = [_mark(part, i, best) for i in part.index]
    return part


def _mark(part: pd.DataFrame, i: Any, best: Any) -> str:
    if i == best:
        return "best"
    row, top = part.loc[i], part.loc[best]
    if row["p"] == row["p"]:
        return "worse" if row["p"] < SIGNIFICANT else "tie"
    if row["low"] != row["low"]:
        return ""
    spans = [[(r["low"], r["high"]), (r["mean"] - r["std"], r["mean"] + r["std"])] for r in (row, top)]
    meet = any(one[0] <= other[1] and other[0] <= one[1] for one, other in zip(*spans, strict=True))
    return "tie" if meet else "worse"


def _same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return all(a == b or (a != a and b != b) or (a is None and b != b) for a, b in zip(one, other, strict=True))


def _paired(at: Sequence[Pair], best: str, other: str) -> float:
    from scipy.stats import wilcoxon

    found = {name: {(p.seed, p.client): p.score for p in at if p.method == name} for name in (best, other)}
    both = sorted(found[best].keys() & found[other].keys())
    gaps = np.array([found[best][key] - found[other][key] for key in both])
    if np.count_nonzero(gaps) < LEAST:
        return math.nan
    return float(wilcoxon(gaps).pvalue)


def _holm(raw: dict[Any, float]) -> dict[Any, float]:
    """Holm's step-down: the k-th smallest of m counts m - k + 1 times, and none less than one before it."""
    tested = sorted((p, key) for key, p in raw.items() if p == p)
    out, worst = {}, 0.0
    for k, (p, key) in enumerate(tested):
        worst = max(worst, min(1.0, (len(tested) - k) * p))
        out[key] = worst
    return out


def main_sheet(table: pd.DataFrame, metric: str, across: str) -> Sheet:
    """Methods down, a setting across: mean ± std, best bold, second underlined, = where it ties with the best.

    Below, how far the best is ahead of the second.
    """
    table = table.assign(**{across: in_words(across, table[across])})
    places = list(dict.fromkeys(table.sort_values(across, kind="stable")[across]))
    text = table.rename(columns={"mean": metric, "std": f"{metric}_std", "n_eval": sized(metric, ["n_eval"])})
    sheet = grid(text, metric=metric, columns=across, places=places)
    ties = {(row["method"], row[across]) for _, row in table.iterrows() if row["mark"] == "tie"}
    rows = [
        (name, *(f"{value} =" if (name, place) in ties else value for value, place in zip(values, places, strict=True)))
        for name, *values in sheet.rows
    ]
    ahead: list[str] = []
    if len(sheet.rows) < 2:
        return sheet._replace(header=(title(metric), *sheet.header[1:]))
    for place in places:
        gaps = sorted(-table[table[across] == place]["delta"].abs(), reverse=True)
        ahead.append(f"+{abs(gaps[1]):.2f}" if len(gaps) > 1 else "-")
    header = (title(metric), *sheet.header[1:])
    return Sheet(header, (*rows, ("best - second", *ahead)), (*sheet.ranks, (0,) * len(header)))


def details(table: pd.DataFrame, metric: str, by: Sequence[str]) -> Sheet:
    """The long form: every number behind the main table."""
    header = (
        "Method", *map(title, by), "Seeds", "n eval", title(metric), "95 % interval", "Delta to best", "p (Holm)", "",
    )  # fmt: skip
    rows = []
    for _, row in table.iterrows():
        std = "" if row["std"] != row["std"] else f" ± {row['std']:.2f}"
        rows.append((
            row["method"], *(named(column, row[column]) for column in by), f"{row['n_seeds']}", f"{int(row['n_eval'])}",
            f"{row['mean']:.2f}{std}",
            "-" if row["low"] != row["low"] else f"{row['low']:.1f} to {row['high']:.1f}",
            f"{row['delta']:.2f}", "-" if row["p"] != row["p"] else f"{row['p']:.3g}", row["mark"],
        ))  # fmt: skip
    return Sheet(header, tuple(rows), ((0,) * len(header),) * len(rows))

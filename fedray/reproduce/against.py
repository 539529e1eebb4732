"""Published against ours: intervals of 95 %, and whether they overlap.

one seed          Wilson's interval of our share of n eval images
several seeds     Student's t over the seeds' scores, within 0 to 100
the paper         Wilson's interval of its value on its likely n eval; where it prints a spread over three seeds, t of
                  that too, and the wider of both
computed cells    of a mean of D cells: half the width is the root of the sum of their squares, over D; of a harmonic
                  mean: from the lower ends and the upper ends
no interval       mAP and F1 of one seed, and of a paper that prints no spread; a point then, that must lie in the
                  other's interval

Overlap is a weak word: two intervals can overlap and differ, but two that don't hardly agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, harmonic_mean, stdev
from typing import Any, NamedTuple

import pandas as pd
from scipy.stats import t as student

from fedray.report.compare import wilson
from fedray.report.tables import Sheet
from fedray.reproduce.layout import Cell
from fedray.reproduce.published import Over, Place, Published, parts
from fedray.track import layout as folders
from fedray.track.run import GLOBAL, RunFolder

OVERLAP, APART, NOT_RUN, NOT_COMPARABLE = "overlap", "no overlap", "not run", "not comparable"
PAPER_SEEDS = 3
ROUNDING = 0.0151
"""Of parts and result to two decimals each, at most."""


class Estimate(NamedTuple):
    """A score in percent with its interval; without one, both ends are the value's own, and `sure` is false."""

    value: float
    low: float
    high: float
    sure: bool
    n: int | None = None  # images
    seeds: int = 1


class Line(NamedTuple):
    """A printed cell beside ours."""

    published: Published
    theirs: Estimate
    ours: Estimate | None
    verdict: str
    why: str


def printed(cell: Published) -> Estimate:
    """The paper's number with what interval can be given it."""
    ends = [wilson(cell.value, cell.n_eval)] if cell.share and cell.n_eval else []
    if cell.spread is not None:
        half = _t(PAPER_SEEDS) * cell.spread / math.sqrt(PAPER_SEEDS)
        ends.append((cell.value - half, cell.value + half))
    low, high = min((e[0] for e in ends), default=cell.value), max((e[1] for e in ends), default=cell.value)
    return Estimate(cell.value, low, high, bool(ends), cell.n_eval, PAPER_SEEDS)


def _t(seeds: int) -> float:
    return float(student.ppf(0.975, seeds - 1))


def measured(scores: Sequence[tuple[float, int]], *, share: bool) -> Estimate:
    """Ours, of one (score, images) for each seed."""
    values, n = [score for score, _ in scores], min(n for _, n in scores)
    mean = fmean(values)
    if len(values) > 1:
        half = _t(len(values)) * stdev(values) / math.sqrt(len(values))
        return Estimate(mean, max(mean - half, 0.0), min(mean + half, 100.0), True, n, len(values))
    low, high = wilson(mean, n) if share else (mean, mean)
    return Estimate(mean, low, high, share, n, 1)


def combined(found: Sequence[Estimate], how: str) -> Estimate:
    """What a computed cell comes to."""
    sure, seeds = all(e.sure for e in found), min(e.seeds for e in found)
    if how == "harmonic":
        value, low, high = (harmonic_mean([max(end, 0.0) for end in ends]) for ends in _ends(found))
        return Estimate(value, low, high, sure, None, seeds)
    mean = fmean(e.value for e in found)
    below, above = (math.hypot(*(e.value - e.low for e in found)), math.hypot(*(e.high - e.value for e in found)))
    return Estimate(mean, mean - below / len(found), mean + above / len(found), sure, None, seeds)


def _ends(found: Sequence[Estimate]) -> tuple[list[float], list[float], list[float]]:
    return [e.value for e in found], [e.low for e in found], [e.high for e in found]


def compare(cells: Sequence[Cell], study: Path, *, comparable: bool, missing: Mapping[str, str]) -> list[Line]:
    """Each cell beside what the runs in the study's folder say; `missing`: run id -> why it is not there."""
    scores = Scores(study)
    ours = {cell.published: _ours(cell, scores) for cell in cells if isinstance(cell.place, Place)}
    printed_cells = [cell.published for cell in cells]
    lines: list[Line] = []
    known: dict[Published, Estimate] = {}
    for cell in _computed_last(cells):
        theirs, odd = printed(cell.published), ""
        if isinstance(cell.place, Over):
            needed = parts(cell.published, cell.place, printed_cells)
            theirs, odd = _from_parts(theirs, [known[p] for p in needed if p in known], cell.place.how)
            found = [ours.get(p) for p in needed]
            have = [e for e in found if e is not None]
            ours[cell.published] = combined(have, cell.place.how) if have and len(have) == len(found) else None
        known[cell.published], mine = theirs, ours.get(cell.published)
        verdict, why = _verdict(cell, theirs, mine, comparable, missing)
        lines.append(Line(cell.published, theirs, mine, verdict, "; ".join(word for word in (why, odd) if word)))
    order = {cell: i for i, cell in enumerate(printed_cells)}
    return sorted(lines, key=lambda line: order[line.published])


def _from_parts(theirs: Estimate, found: Sequence[Estimate], how: str) -> tuple[Estimate, str]:
    """The interval of a cell that the paper computed, around what it prints; and what its parts give, if not that."""
    if not found or theirs.sure:
        return theirs, ""
    whole = combined(found, how)
    shift = theirs.value - whole.value
    odd = f"the paper's own parts give {whole.value:.2f}" if abs(shift) > ROUNDING else ""
    return theirs._replace(low=whole.low + shift, high=whole.high + shift, sure=whole.sure), odd


def _computed_last(cells: Sequence[Cell]) -> list[Cell]:
    """A mean over data sets may be part of a harmonic mean over columns."""
    return sorted(cells, key=lambda c: (isinstance(c.place, Over), isinstance(c.place, Over) and c.place.how != "mean"))


def _ours(cell: Cell, scores: Scores) -> Estimate | None:
    assert isinstance(cell.place, Place)  # noqa: S101 (the caller looked)
    found = [scores.last(run.run_id, cell.place.read) for run in cell.runs]
    known = [one for one in found if one is not None]
    return measured(known, share=cell.published.share) if known and len(known) == len(found) else None


class Scores:
    """Last scores of finished runs, each folder read once."""

    def __init__(self, study: Path) -> None:
        self.study, self.known = study, dict[str, dict[str, tuple[float, int]]]()

    def last(self, run_id: str, metric: str) -> tuple[float, int] | None:
        """The score of this name and its images, after the last round; None if there is none."""
        if run_id not in self.known:
            path, found = folders.place(self.study.parent, self.study.name, run_id), {}
            if folders.is_run(path) and (folder := RunFolder(path)).status["state"] == "done":
                found = {m: (value, n) for _, _, m, value, n in sorted(folder.records(client=GLOBAL))}
            self.known[run_id] = found
        return self.known[run_id].get(metric)


def _verdict(
    cell: Cell, theirs: Estimate, ours: Estimate | None, comparable: bool, missing: Mapping[str, str]
) -> tuple[str, str]:
    if isinstance(cell.place, str):
        return NOT_RUN, cell.place
    if ours is None and isinstance(cell.place, Over):
        return NOT_RUN, "made of cells that are not all there"
    if ours is None:
        why = next((missing[run.run_id] for run in cell.runs if run.run_id in missing), "")
        return NOT_RUN, why or "not all runs of it are done"
    if not comparable:
        return NOT_COMPARABLE, "other data, backbone and rounds"
    if not theirs.sure and not ours.sure:
        return NOT_COMPARABLE, "no interval on either side; take two seeds or more"
    return (OVERLAP if ours.low <= theirs.high and theirs.low <= ours.high else APART), ""


def frame(lines: Sequence[Line]) -> pd.DataFrame:
    """Every number, as columns."""
    return pd.DataFrame([record(line) for line in lines])


def record(line: Line) -> dict[str, Any]:
    """A line as plain values; what is not known is None."""
    p, theirs, ours = line.published, line.theirs, line.ours
    return {
        "method": p.row,
        "data": p.data,
        "setting": p.column,
        "metric": p.metric,
        "published": p.value,
        "published_low": theirs.low if theirs.sure else None,
        "published_high": theirs.high if theirs.sure else None,
        "published_n_eval": p.n_eval,
        "published_n_from": p.n_from,
        "ours": ours.value if ours else None,
        "ours_low": ours.low if ours and ours.sure else None,
        "ours_high": ours.high if ours and ours.sure else None,
        "ours_n_eval": ours.n if ours else None,
        "seeds": ours.seeds if ours else None,
        "verdict": line.verdict,
        "why": line.why,
        "source": p.source,
    }


def sheet(lines: Sequence[Line], stands: str = "") -> Sheet:
    """As printed; `stands` is the data set that ours come from where it is another."""
    ours = f"Ours on {stands}" if stands else "Ours"
    header = ("Method", "Data", "Setting", "Score", "Published", "n eval", ours, "n eval", "Seeds", "Verdict")
    rows = [
        (
            p.row, p.data, p.column, p.metric, _shown(theirs), _count(p.n_eval),
            _shown(mine) if mine else "-", _count(mine.n if mine else None), _count(mine.seeds if mine else None), word,
        )
        for p, theirs, mine, word, _ in lines
    ]  # fmt: skip
    return Sheet(header, tuple(rows), ((0,) * len(header),) * len(rows))


def _shown(e: Estimate) -> str:
    return f"{e.value:.2f} ({e.low:.1f} to {e.high:.1f})" if e.sure else f"{e.value:.2f}"


def _count(n: int | None) -> str:
    return "-" if n is None else str(n)

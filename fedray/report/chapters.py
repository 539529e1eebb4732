"""The sections of a report, in the order in which one asks: who wins, when, where, at whose cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from fedray.errors import BadInput
from fedray.report import ablations, clients, compare, costs, figures, heat, panels, searches, tables
from fedray.report.compare import last_of_clients
from fedray.report.contents import Matter, Slice, class_names, held_out, section, slices, suffix
from fedray.report.page import Piece, Section
from fedray.report.style import Drawing, label
from fedray.track.run import GLOBAL, RunFolder

READING = (
    "Bold: best; underlined: second; =: not told apart from the best (Wilcoxon's signed-rank test over pairs of seed "
    "and client for local scores, Holm-corrected, 5 %; else overlapping intervals). Intervals: Wilson, 95 %, of the "
    "mean on the test images. ± is one standard deviation over seeds."
)

SHEETS = 6
"""Main tables of a score, one for each combination of what is not set across."""
SPENT = 1000.0
"""An epsilon above it hides nothing, and would only stretch the axis."""


def chapters(of: Matter) -> list[Section]:
    """All sections that the runs have numbers for; why others are missing goes into `of.left_out`."""
    made = [
        section("Results", results(of)),
        section("Rounds", *(_rounds(of, s) for s in slices(of))),
        section("Settings", over_settings(of)),
        section("Parts", parts(of)),
        section("New classes", new_classes(of)),
        section("Clients", *(fair(of, s) for s in slices(of))),
        section("Data", *(data(of, s) for s in slices(of))),
        section("Costs", cost(of)),
        section("Privacy and robustness", harm(of)),
    ]
    return [one for one in made if one.pieces]


def results(of: Matter) -> list[Piece]:
    """The main tables: a sheet per score and per what is left beside the setting across; and the long form."""
    by = ["data", "alpha", *of.axes]
    across = next((name for name in (*of.axes, "alpha", "data") if name in of.settings), "data")
    pairs = compare.pairs(of.folders, by, of.frame)
    pieces: list[Piece] = []
    for score in of.scores:
        local = pairs if score == "acc_local" else ()
        table = compare.compared(of.frame, score, by=by, scores=local)
        rest = [name for name in of.settings if name != across]
        groups = list(_split(table, rest))
        if len(groups) > SHEETS:
            of.left_out.append(
                f"{score} side by side: {len(groups)} combinations of {', '.join(rest)}; see the details"
            )
        for told, part in groups if len(groups) <= SHEETS else ():
            shown = part.dropna(subset=[across])
            if len(shown) and not shown.duplicated(["method", across]).any():
                name = "-".join([score, across.rpartition(".")[2], *told.values()])
                text = ", ".join([tables.title(score), *(f"{k} {v}" for k, v in told.items())])
                pieces.append(Piece(name, text, sheet=compare.main_sheet(shown, score, across), frame=shown))
        shown_by = [name for name in by if name in of.settings]
        long = compare.details(table, score, shown_by)
        pieces.append(
            Piece(
                f"{score}-details",
                f"{tables.title(score)}, in detail",
                sheet=long,
                frame=table,
                note=READING if score == of.scores[0] else "",
            )
        )
    return pieces


def _rounds(of: Matter, one: Slice) -> list[Piece]:
    title = _titled("Score over rounds", one)
    return of.figure(f"rounds{suffix(one)}", title, figures.rounds_curve, one.folders)


def over_settings(of: Matter) -> list[Piece]:
    """Scores over each setting of numbers; over two of them a heat map and panels too."""
    pieces: list[Piece] = []
    numbers = [name for name in of.settings if name != "data" and pd.api.types.is_numeric_dtype(of.frame[name])]
    numbers = [name for name in numbers if of.frame[name].dtype != bool and of.frame[name].nunique() > 1]
    for x in numbers:
        rest = [name for name in of.settings if name != x]
        for score in of.scores[:4]:
            what, name = f"{tables.title(score)} over {x}", f"{score}-over-{x.rpartition('.')[2]}"
            if not rest:
                pieces += of.figure(name, what, figures.curve, of.frame, x=x, y=score)
            elif len(rest) == 1:
                pieces += of.figure(name, what, _panels, of, x, score, rest[0])
    if len(numbers) == 2 and len(of.settings) == 2:
        x, y = numbers
        for score in of.scores[:4]:
            what = f"{tables.title(score)} over {x} and {y}"
            pieces += of.figure(f"{score}-map", what, heat.settings, of.frame, x=x, y=y, score=score)
    if len(of.settings) > 2 and numbers:
        of.left_out.append(f"curves: runs differ in {', '.join(of.settings)}, and a figure shows two settings at most")
    return pieces


def _panels(of: Matter, x: str, score: str, column: str) -> Drawing:
    frame = of.frame.dropna(subset=[score, x])
    seeds = frame["seed"].nunique()
    data = tables.summary(frame, by=["method", x, column], metrics=[score])
    data[column] = [f"{column.rpartition('.')[2]} {value}" for value in data[column]]
    size = int(data[tables.sized(score, list(data.columns))].min())
    note = f"{'one seed' if seeds == 1 else f'mean ± std over {seeds} seeds'}, n = {size} test images"
    log = bool(x == "alpha" or (frame[x].min() > 0 and frame[x].max() >= 50 * frame[x].min()))
    if data[column].nunique() > 5:
        raise BadInput(f"{column} has {data[column].nunique()} values, more panels than a page is wide")
    return panels.panels(data, x=x, score=score, line="method", column=column,
                         titles=(label(x), label(score)), log=log, note=note)  # fmt: skip


def parts(of: Matter) -> list[Piece]:
    """Ablations: where fields that are no numbers differ."""
    kinds = [
        axis for axis in of.axes if of.frame[axis].dtype == bool or not pd.api.types.is_numeric_dtype(of.frame[axis])
    ]
    pieces: list[Piece] = []
    for told, frame in _split(of.frame, [n for n in ("data", "alpha") if n in of.settings]) if kinds else ():
        for score in of.scores[:2]:
            data = ablations.variants(frame, axes=of.axes, score=score)
            if data["variant"].nunique() > ablations.MOST:
                of.left_out.append(
                    f"{score} by parts: {data['variant'].nunique()} variants, more than {ablations.MOST}"
                )
                continue
            more = ", ".join(f"{k} {v}" for k, v in told.items())
            name, what = "-".join([f"{score}-parts", *told.values()]), f"{tables.title(score)} by parts"
            what = f"{what}, {more}" if more else what
            pieces.append(Piece(name, what, ablations.bars(data, score=score, note=more)))
            pieces.append(Piece(name, what, sheet=ablations.ticks(data, axes=of.axes, score=score), frame=data))
    return pieces


def new_classes(of: Matter) -> list[Piece]:
    """Base, new and H, where runs left classes out."""
    if not any(held_out(folder.config) for folder in of.folders):
        return []

    def made() -> list[Piece]:
        frame, sheet = ablations.base_new(of.frame, of.settings)
        return [Piece("base-new", "Base and new classes", sheet=sheet, frame=frame, note="H is made of the means.")]

    return of.tried("base and new classes", made)


def fair(of: Matter, one: Slice) -> list[Piece]:
    """How clients fare in a slice."""
    made = of.tried(_titled("clients", one), _spread, one)
    logged = {row[2] for folder in one.folders for row in folder.records() if row[1] != GLOBAL}
    for metric in sorted(name for name in logged if name.startswith("drift/") or name == "train/loss"):
        name, what = f"{metric.replace('/', '-')}{suffix(one)}", _titled(f"{label(metric)} of clients", one)
        made += of.figure(name, what, clients.over_rounds, one.folders, metric, note=one.title)
    return made


def _spread(one: Slice) -> list[Piece]:
    data, sheet = clients.fairness(clients.scores(one.folders))
    drawing = clients.distribution(one.folders, note=one.title)
    note = "Scores of clients in percent, all seeds together; a low Gini and a high Jain index are even."
    return [
        Piece(f"clients{suffix(one)}", _titled("Clients' own accuracy", one), drawing),
        Piece(f"fairness{suffix(one)}", _titled("Fairness", one), sheet=sheet, frame=data, note=note),
    ]


def data(of: Matter, one: Slice) -> list[Piece]:
    """Who holds what, in the run of the first seed."""
    folder = min(one.folders, key=lambda f: (f.config.get("seed") or 0, f.run_id))
    if not folder.partition_path.exists():
        of.left_out.append(f"partition of {folder.run_id}: the run folder has none")
        return []
    note = ", ".join(filter(None, [one.title, f"seed {folder.config.get('seed')}"]))
    return of.tried(f"partition, {note}", _held, folder, suffix(one), note)


def _held(folder: RunFolder, end: str, note: str) -> list[Piece]:
    path, names = folder.partition_path, class_names(folder.config)
    frame, sheet = heat.counts(path, {k: n for k, (_, n) in last_of_clients(folder).items()}, names=names)
    bubbles = figures.partition_bubbles(path, names=names, note=note)
    cells = heat.partition_heat(path, names=names, note=note)
    text = "Test images are dealt in the proportions of a client's training classes; one may be in several tests."
    return [
        Piece(f"partition{end}", f"Who holds what, {note}", bubbles),
        Piece(f"partition-heat{end}", f"Images of each class, {note}", cells),
        Piece(f"clients-count{end}", f"Images of clients, {note}", sheet=sheet, frame=frame, note=text),
    ]


def cost(of: Matter) -> list[Piece]:
    """Bytes as measured, and accuracy against them."""
    pieces = of.tried("costs", _costs, of)
    for score in [s for s in of.scores if s in ("acc_local", "acc_global", "map_local", "map_global")]:
        what = f"{tables.title(score)} against communication"
        pieces += of.figure(f"{score}-pareto", what, costs.pareto, of.frame, by=of.settings, score=score)
    return pieces


def _costs(of: Matter) -> list[Piece]:
    frame, sheet = costs.table(of.folders, of.settings, of.axes)
    note = (
        "Bytes of tensors as they were sent: per client and round in kB, of the whole run in MB; shared: numbers that "
        "travel; seconds are of a round's training, wherever it ran."
    )
    return [Piece("costs", "Costs of a run", sheet=sheet, frame=frame, note=note)]


def harm(of: Matter) -> list[Piece]:
    """Accuracy against epsilon, and against the share of clients that attack."""
    pieces: list[Piece] = []
    scores = [score for score in ("acc_global", "acc_local") if score in of.scores]
    for score in scores if "epsilon" in of.frame else ():
        frame = of.frame.assign(epsilon=of.frame["epsilon"].round(2))
        frame = frame[frame["epsilon"].isna() | (frame["epsilon"] <= SPENT)]
        what = f"{tables.title(score)} against epsilon"
        pieces += of.figure(f"{score}-epsilon", what, _harmed, frame, "epsilon", score, "method")
    for score in scores if "attack.share" in of.axes else ():
        what, line = f"{tables.title(score)} under attack", "server.kind" if "server.kind" in of.axes else "method"
        pieces += of.figure(f"{score}-attacked", what, _harmed, of.frame, "attack.share", score, line)
    return pieces


def _harmed(frame: pd.DataFrame, x: str, score: str, line: str) -> Drawing:
    column = "attack.kind" if x == "attack.share" and "attack.kind" in frame else None
    by = list(dict.fromkeys(["method", x, line, *([column] if column else [])]))
    data = tables.summary(frame.dropna(subset=[score]), by=by, metrics=[score])
    size = int(data[tables.sized(score, list(data.columns))].min())
    if column and (data[column] == "none").any() and (data[column] != "none").any():  # the same start for each attack
        honest, attacks = data[data[column] == "none"], [name for name in data[column].unique() if name != "none"]
        data = pd.concat([part for a in attacks for part in (honest.assign(**{column: a}), data[data[column] == a])])
    titles = ("$\\varepsilon$" if x == "epsilon" else "Share that attacks", label(score))
    note = f"mean ± std over seeds, n = {size} test images" + ("; dotted: without privacy" if x == "epsilon" else "")
    row, log = None if line == "method" else "method", x == "epsilon"
    lines = {"x": x, "score": score, "line": line}
    return panels.panels(data, **lines, column=column, row=row, titles=titles, log=log, note=note)


def searched(journals: Sequence[Path], left_out: list[str]) -> list[Section]:
    """A section for each search.

    Raises:
        Unavailable: a journal is damaged.
    """
    made = []
    for journal in journals:
        study = searches.opened(journal)
        frame, sheet = searches.points(study)
        stem, pieces = journal.stem, []
        pieces.append(Piece(f"{stem}-points", "The best points", sheet=sheet, frame=frame))
        drawings = {"history": searches.history, "coordinates": searches.coordinates, "importance": searches.importance}
        titles = {
            "history": "Over time",
            "coordinates": "Points",
            "importance": "What matters",
            "front": "Pareto front",
        }
        for name, draw in (drawings if len(study.directions) == 1 else {"front": searches.front}).items():
            try:
                pieces.append(Piece(f"{stem}-{name}", titles[name], draw(study)))
            except BadInput as error:
                left_out.append(f"{name} of search {stem}: {error}")
        made.append(Section(f"Search {stem}", pieces))
    return made


def _split(frame: pd.DataFrame, by: Sequence[str]) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    if not by:
        yield {}, frame
        return
    for key, part in frame.groupby(list(by), dropna=False, sort=True):
        words = [f"{v:g}" if isinstance(v, int | float) and not isinstance(v, bool) else str(v) for v in key]
        yield dict(zip(by, words, strict=True)), part


def _titled(what: str, one: Slice) -> str:
    return f"{what}, {one.title}" if one.title else what

"""The sections of a report, in the order in which one asks: who wins, when, where, at whose cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from fedray.errors import BadInput
from fedray.report import ablations, clients, compare, costs, figures, harm, heat, panels, searches, tables, words
from fedray.report.compare import last_of_clients
from fedray.report.contents import Matter, Slice, class_names, held_out, section, slices, slug, suffix
from fedray.report.page import Piece, Section
from fedray.report.style import Drawing, over, span
from fedray.report.words import label, short, title
from fedray.track.run import GLOBAL, RunFolder

READING = (
    "Bold: best; underlined: second; =: not told apart from the best (Wilcoxon's signed-rank test over pairs of seed "
    "and client for local scores, Holm-corrected, 5 %; else overlapping intervals). Intervals: Wilson, 95 %, of the "
    "mean on the test images. ± is one standard deviation over seeds."
)

ALONE = {
    "history": ("Point by point", searches.history),
    "coordinates": ("Points, field by field", searches.coordinates),
    "importance": ("What matters", searches.importance),
}
BOTH = {"front": ("Score against bytes", searches.front)}
"""What is drawn of a search for a score, and of one for few bytes too."""
SHEETS = 6
"""Main tables of a score, one for each combination of what is not set across."""
DETAILS = "-details"
"""The end of the names of tables that hold every number."""
HEADS = ("acc_local", "acc_global", "map_local", "map_global")
"""Scores that costs and harm are weighed against."""


def chapters(of: Matter) -> list[Section]:
    """All sections that the runs have numbers for; why others are missing goes into `of.left_out`."""
    scores = results(of)
    long = [piece for piece in scores if piece.name.endswith(DETAILS)]
    made = [
        section("Results", [piece for piece in scores if piece not in long]),
        section("Privacy and robustness", harmed(of)),
        section("Rounds", *(_rounds(of, s) for s in slices(of))),
        section("Settings", over_settings(of)),
        section("Parts", parts(of)),
        section("New classes", new_classes(of)),
        section("Clients", *(fair(of, s) for s in slices(of))),
        section("Data", *(data(of, s) for s in slices(of))),
        section("Costs", cost(of)),
        section("In detail", long),
    ]
    return [one for one in made if one.pieces]


def results(of: Matter) -> list[Piece]:
    """The main tables: a sheet per score and per what is left beside the setting across; and the long form."""
    by = ["data", "alpha", *of.axes]
    across = next((name for name in (*of.axes, "alpha", "data") if name in of.settings), "data")
    wide = not {*of.harmed} & {*of.settings}  # harm has tables of its own
    pairs = compare.pairs(of.folders, by, of.frame)
    pieces: list[Piece] = []
    for score in of.scores:
        local = pairs if score == "acc_local" else ()
        table = compare.compared(of.frame, score, by=by, scores=local)
        rest = [name for name in of.settings if name != across]
        having = table.loc[table[across].notna(), "method"]  # of these no value is one too; others lack the field
        groups = list(_split(table, rest)) if wide else []
        if len(groups) > SHEETS:
            of.left_out.append(
                f"{score} side by side: {len(groups)} combinations of {', '.join(map(short, rest))}; see the details"
            )
        for told, part in groups if len(groups) <= SHEETS else ():
            shown = part[part["method"].isin(having)]
            if len(shown) and not shown.duplicated(["method", across]).any():
                name = slug([score, across.rpartition(".")[2], *told.values()])
                text = ", ".join([title(score), *told.values()])
                note = READING if not pieces and table["method"].nunique() > 1 else ""
                pieces.append(Piece(name, text, sheet=compare.main_sheet(shown, score, across), frame=shown, note=note))
        shown_by = [name for name in by if name in of.settings]
        long = compare.details(table, score, shown_by)
        pieces.append(
            Piece(
                f"{score}{DETAILS}",
                f"{title(score)}, in detail",
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
    known = [name for name in of.settings if name != "data" and name not in of.harmed]
    numbers = [name for name in known if pd.api.types.is_numeric_dtype(of.frame[name])]
    numbers = [name for name in numbers if of.frame[name].dtype != bool and of.frame[name].nunique() > 1]
    for x in numbers:
        rest = [name for name in of.settings if name != x]
        for score in of.scores[:4]:
            what, name = f"{title(score)} over {short(x)}", f"{score}-over-{x.rpartition('.')[2]}"
            if not rest:
                pieces += of.figure(name, what, figures.curve, varied(of.frame, x), x=x, y=score)
            elif len(rest) == 1:
                pieces += of.figure(name, what, _panels, of, x, score, rest[0])
    if len(numbers) == 2 and len(of.settings) == 2:
        x, y = numbers
        for score in of.scores[:4]:
            what = f"{title(score)} over {short(x)} and {short(y)}"
            pieces += of.figure(f"{score}-map", what, heat.settings, of.frame, x=x, y=y, score=score)
    if len(of.settings) > 2 and numbers:
        names = ", ".join(map(short, of.settings))
        of.left_out.append(f"curves: runs differ in {names}, and a figure shows two settings at most")
    return pieces


def varied(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The runs of methods that differ in any of these columns."""
    counts = frame.groupby("method")[[*columns]].nunique(dropna=False).max(axis=1)
    return frame[frame["method"].map(counts) > 1]


def _panels(of: Matter, x: str, score: str, column: str) -> Drawing:
    frame = varied(of.frame, x).dropna(subset=[score, x])
    data = tables.summary(frame, by=["method", x, column], metrics=[score])
    data[column] = [words.told(column, value) for value in data[column]]
    note = f"{over(data['n_seeds'], 'seed')}, n = {span(data[tables.sized(score, list(data.columns))])} test images"
    if data[column].nunique() > 5:
        raise BadInput(f"{short(column)} has {data[column].nunique()} values, more panels than a page is wide")
    return panels.panels(data, x=x, score=score, line="method", column=column,
                         titles=(label(x), label(score)), note=note)  # fmt: skip


def parts(of: Matter) -> list[Piece]:
    """Ablations: where fields that are no numbers differ."""
    kinds = [
        axis
        for axis in of.axes
        if axis not in of.harmed and (of.frame[axis].dtype == bool or not pd.api.types.is_numeric_dtype(of.frame[axis]))
    ]
    pieces: list[Piece] = []
    runs = varied(of.frame, *kinds) if kinds else of.frame[:0]
    for told, frame in _split(runs, [n for n in ("data", "alpha") if n in of.settings]) if len(runs) else ():
        for score in of.scores[:2]:
            data = ablations.variants(frame, axes=of.axes, score=score)
            if data["variant"].nunique() > ablations.MOST or data["method"].nunique() > ablations.ABREAST:
                counts = f"{data['variant'].nunique()} variants of {data['method'].nunique()} methods"
                of.left_out.append(f"{title(score)} by parts: {counts}, more than a figure has room for")
                continue
            more = ", ".join(told.values())
            name, what = slug([f"{score}-parts", *told.values()]), f"{title(score)} by parts"
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
    metric = "train/loss"
    if any(row[1] != GLOBAL and row[2] == metric for folder in one.folders for row in folder.records()):
        what = _titled(f"{label(metric)} of clients", one)
        made += of.figure(f"train-loss{suffix(one)}", what, clients.over_rounds, one.folders, metric, note=one.title)
    what = _titled("How far clients pull apart", one)
    return made + of.figure(f"drift{suffix(one)}", what, clients.pulls, one.folders, note=one.title)


def _spread(one: Slice) -> list[Piece]:
    data, sheet = clients.fairness(clients.scores(one.folders))
    drawing = clients.distribution(one.folders, note=one.title)
    note = "Scores of clients in percent, all seeds together; a low Gini and a high Jain index are even."
    return [
        Piece(f"clients{suffix(one)}", _titled("Clients' own scores", one), drawing),
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
    for score in [score for score in of.scores if score in HEADS]:
        what = f"{title(score)} against communication"
        pieces += of.figure(f"{score}-pareto", what, costs.pareto, of.frame, by=of.settings, score=score)
    return pieces


def _costs(of: Matter) -> list[Piece]:
    frame, sheet = costs.table(of.folders, of.frame, of.settings)
    note = (
        "Bytes of tensors as they were sent: per client and round in kB, of the whole run in MB; shared: numbers that "
        "travel; seconds are of a round's training, wherever it ran."
    )
    return [Piece("costs", "Costs of a run", sheet=sheet, frame=frame, note=note)]


def harmed(of: Matter) -> list[Piece]:
    """Scores against the share of clients that attack, rule by rule, and against epsilon; and the tables of both."""
    pieces: list[Piece] = []
    for score in [score for score in of.scores if score in HEADS]:
        if "epsilon" in of.harmed:
            pieces += of.tried(f"{title(score)} against epsilon", harm.of_privacy, of.frame, score)
        if "attack.kind" in of.harmed:
            pieces += of.tried(f"{title(score)} under attack", harm.of_attacks, of.frame, score)
    return pieces


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
        note = "Bold: no other point is better" + ("." if len(study.directions) == 1 else " in both.")
        pieces.append(Piece(f"{stem}-points", "The best points", sheet=sheet, frame=frame, note=note))
        for name, (what, draw) in (ALONE if len(study.directions) == 1 else BOTH).items():
            try:
                pieces.append(Piece(f"{stem}-{name}", what, draw(study)))
            except BadInput as error:
                left_out.append(f"{name} of search {stem}: {error}")
        made.append(Section("Search" if len(journals) == 1 else f"Search {stem}", pieces))
    return made


def _split(frame: pd.DataFrame, by: Sequence[str]) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    if not by:
        yield {}, frame
        return
    for key, part in frame.groupby(list(by), dropna=False, sort=True):
        yield {name: words.told(name, value) for name, value in zip(by, key, strict=True)}, part


def _titled(what: str, one: Slice) -> str:
    return f"{what}, {one.title}" if one.title else what

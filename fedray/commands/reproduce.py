"""`fedray reproduce`: a published table, the experiments that answer it, and both side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from fedray import study
from fedray.commands import options
from fedray.commands.data import where
from fedray.commands.options import Actors, Address, Copy, Json, Placed, Runs, Store
from fedray.console import columns, say, tell
from fedray.data.exams import elsewhere
from fedray.errors import BadInput, Unavailable
from fedray.experiment import Experiment
from fedray.reproduce import catalogue, needs
from fedray.reproduce.catalogue import Table
from fedray.reproduce.layout import Asked, Cell, axes, experiments, lay_out
from fedray.reproduce.published import Place, read
from fedray.setting import REAL

if TYPE_CHECKING:
    from fedray.reproduce.against import Line

STEM = "against"


@dataclass(frozen=True)
class Reproduce:
    """A published table: what it needs, its experiments, and its numbers beside ours.

    fedray reproduce otdpp-table1 --only OTDPP FedOTP --data EuroSAT
    """

    table: Annotated[Positional[str | None], arg(metavar="TABLE", help="as otdpp-table1; see --list")] = None
    list: Annotated[bool, arg(help="every table of the papers")] = False
    only: Annotated[tuple[str, ...], arg(metavar="METHOD ...", help="rows, as printed or by our name")] = ()
    data: Annotated[tuple[str, ...], arg(metavar="SET ...", help="data sets, as printed or by our name")] = ()
    seeds: tuple[int, ...] = (1, 2, 3)
    embedded: Annotated[bool, arg(help="on what comes along, in minutes; compares with nothing published")] = False
    fields: Annotated[tuple[str, ...], arg(metavar="PATH=VALUE ...", help="of all experiments: local.lr=0.002")] = ()
    dry: Annotated[bool, arg(help="say what is needed and what would run, and stop")] = False
    placement: Placed = "auto"
    actors: Actors = None
    concurrent: Annotated[int | None, arg(metavar="N", help="runs at a time")] = None
    runs: Runs = None
    mlflow: Store = None
    address: Address = None
    copy: Copy = None
    json: Json = False

    def __call__(self) -> int:
        """Do it."""
        if self.list:
            return listing(json=self.json)
        if self.table is None:
            raise BadInput("name a table, e.g. fedray reproduce otdpp-table1; see them with: fedray reproduce --list")
        if not self.seeds:
            raise BadInput("--seeds is empty; give at least one, e.g. --seeds 1 2 3")
        table = catalogue.find(self.table)
        asked = Asked(self.only, self.data, self.seeds, self.embedded, self.fields)
        cells = lay_out(table, asked)
        missing = lacking(cells)
        plan(table, cells, asked, missing, json=self.json)
        if self.dry:
            return 0
        at = options.place(self)
        at = replace(at, runs=at.root / "reproduce")
        name = table.name + ("-embedded" if self.embedded else "")
        ready = [run for run in experiments(cells) if run.run_id not in missing]
        code = study.sweep(ready, at, name=name, axes=axes(ready)) if ready else 0
        tell_apart(cells, at.root / name, missing, asked, json=self.json)
        if not ready:
            raise Unavailable(nothing(table, cells, missing))
        return code


def listing(*, json: bool) -> int:
    """Every table: its cells, data sets and methods, and what of them there is."""
    rows = []
    for name, table in catalogue.TABLES.items():
        cells = read(name)
        places = {cell: table.where(cell, False) for cell in cells}
        methods = dict.fromkeys(cell.row for cell in cells)
        have = {cell.row for cell, place in places.items() if isinstance(place, Place)}
        found = [place.fields for place in places.values() if isinstance(place, Place)]
        sets = {name for fields in found for name in (fields["data.name"], *elsewhere(fields.get("exams", "")))}
        facts = f"{sum(where(name)[0] for name in sets)} of {len(sets)}", f"{len(have)} of {len(methods)}"
        rows.append([name, len(cells), *facts, table.protocol, table.title, table.paper])
    header = ("table", "cells", "data here", "rows we have", "protocol", "title", "paper")
    if json:
        for row in rows:
            tell("published", **{word.replace(" ", "_"): value for word, value in zip(header, row, strict=True)})
        return 0
    say(columns(header, rows))
    for name, why in catalogue.OTHERS.items():
        say(f"{name} · {why}")
    return 0


def lacking(cells: Sequence[Cell]) -> dict[str, str]:
    """Run id -> what it lacks here, for those that can't be run."""
    runs = experiments(cells)
    absent = {need.name: need.how for need in needs.data(runs) if not need.here}
    found = {run.run_id: [name for name in needs.sets(run) if name in absent] for run in runs}
    return {run_id: f"data missing: {', '.join(names)}" for run_id, names in found.items() if names}


def plan(table: Table, cells: Sequence[Cell], asked: Asked, missing: Mapping[str, str], *, json: bool) -> None:
    """The first output: what is laid out, what it needs, what is missing, what the paper leaves open."""
    runs = experiments(cells)
    sets = needs.data(runs)
    without = Counter(cell.place for cell in cells if isinstance(cell.place, str))
    if json:
        facts = {"data": [need._asdict() for need in sets], "notes": table.notes, "missing": len(missing)}
        tell("reproduce", table=table.name, paper=table.paper, cells=len(cells), runs=len(runs), **facts)
        for run in runs:
            about = {"run": run.run_id, "method": run.method.name, "data": run.data.name, "seed": run.seed}
            tell("laid_out", **about, fields=run.changed(), lacks=missing.get(run.run_id), gpu_hours=_hours(run, asked))
        return
    say(f"{table.name} · {table.paper} · {table.title}")
    say(f"protocol · {table.protocol} · {', '.join(f'{path} {value}' for path, value in table.fields.items())}")
    rows = {cell.published.row for cell in cells if cell.runs}
    answered = sum(not isinstance(cell.place, str) and cell.published.row in rows for cell in cells)
    say(f"cells · {len(cells)} printed, {answered} laid out as {len(runs)} runs, seeds {_list(asked.seeds)}")
    if asked.fields:
        say(f"changed · {', '.join(asked.fields)} · not the paper's protocol")
    for why, count in without.items():
        lone = dict.fromkeys(cell.published.row for cell in cells if cell.place == why)
        say(f"published only · {count} cells of {', '.join(lone)} · {why}")
    if asked.embedded:
        small = ", ".join(f"{path} {value}" for path, value in table.small.items())
        say(f"embedded · compares with nothing published: the small backbone, {small}")
    else:
        say("weights · OpenAI's CLIP ViT-B/16, some 600 MB, fetched at first use; or --fields clip.weights=FILE")
        cost = f"about {_figure(sum(map(needs.hours, runs)))} GPU hours by measured CPU steps"
        say(f"time · {cost}, a GPU taken as {needs.FASTER:.0f} cores; none was measured")
    for need in sets:
        say(f"data · {need.name} · {'here, ' if need.here else 'missing, '}{need.how}")
    _groups(runs, asked, missing)
    for note in table.notes:
        say(f"note · {note}")


def _groups(runs: Sequence[Experiment], asked: Asked, missing: Mapping[str, str]) -> None:
    """A line for each method."""
    groups: dict[str, list[Experiment]] = {}
    for run in runs:
        groups.setdefault(run.method.name, []).append(run)
    for method, found in groups.items():
        lost = sum(run.run_id in missing for run in found)
        rounds = " or ".join(str(n) for n in sorted({run.rounds for run in found}))
        time = "" if asked.embedded else f" · {_figure(sum(map(needs.hours, found)))} GPU hours"
        state = "all can run" if not lost else "none can run" if lost == len(found) else f"{lost} can't run"
        say(f"runs · {method} · {len(found)} of {rounds} rounds{time} · {state}")


def _figure(hours: float) -> str:
    return f"{hours:.0f}" if hours >= 10 else f"{hours:.1g}"


def _comparable(cells: Sequence[Cell]) -> bool:
    return all(run.clip.name == REAL["clip.name"] for run in experiments(cells))


def _hours(run: Experiment, asked: Asked) -> float | None:
    return None if asked.embedded else needs.hours(run)


def _list(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def nothing(table: Table, cells: Sequence[Cell], missing: Mapping[str, str]) -> str:
    """Why no experiment could be run, and what helps."""
    if not missing:
        return f"nothing of {table.name} that was asked for can be run; see why above, and the rows with --list"
    first = next(need for need in needs.data(experiments(cells)) if not need.here)
    return (
        f"nothing of {table.name} can be run: {first.name} is missing ({first.how}); "
        f"see the machinery at work with: fedray reproduce {table.name} --embedded"
    )


def tell_apart(
    cells: Sequence[Cell], home: Path, missing: Mapping[str, str], asked: Asked, *, json: bool
) -> list[Line]:
    """Print published against ours, and save both as CSV, Markdown and LaTeX in the study's folder."""
    from rich.console import Console

    from fedray.report import tables
    from fedray.reproduce import against

    lines = against.compare(cells, home, comparable=_comparable(cells), missing=missing)
    stands = next((run.data.name for run in experiments(cells)), "") if asked.embedded else ""
    sheet = against.sheet(lines, stands)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    (home / "tables").mkdir(mode=0o700, exist_ok=True)
    saved = tables.save(against.frame(lines), sheet, home / "tables", STEM)
    count = Counter(line.verdict for line in lines)
    if json:
        for line in lines:
            tell("compared", **against.record(line))
        tell("reproduced", **{word.replace(" ", "_"): n for word, n in count.items()}, files=saved)
        return lines
    tables.show(sheet, Console(markup=False, highlight=False, soft_wrap=True))
    for why, n in Counter(line.why for line in lines if line.why).items():
        say(f"{n} · {why}")
    say(f"verdict · {', '.join(f'{word} {n}' for word, n in count.items())} · brackets hold intervals of 95 %")
    for path in saved:
        say(f"saved · {path}")
    return lines

"""What every study does around its question: read options, say the plan, sweep, track, tell, and end with an exit code.

    @dataclass(frozen=True)
    class Options:
        alphas: tuple[float, ...] = (0.1, 1.0, 10.0)
        on: study.On = study.DEFAULT  # --real, --methods, --seeds, --data, --root, --fields, --smoke
        at: study.At = study.HERE  # --runs, --mlflow, --placement, --actors, --concurrent, --json

    def main(o: Options) -> int:
        cells = study.cells(o.on, {"partition.alpha": o.alphas}, embedded=EMBEDDED, real=REAL)
        return study.sweep(cells, o.at, name="mine", x="partition.alpha")

`study.main(Options, main)` runs it; `fedray.setting` says what EMBEDDED and REAL are.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tyro

from fedray import console, news
from fedray.data import exams, sources
from fedray.engine.cluster import cpus
from fedray.engine.placement import Kind, place
from fedray.errors import BadInput, Unavailable
from fedray.experiment import Experiment, grid
from fedray.flags import one_line
from fedray.setting import DEFAULT, FEW_SCENES, Fields, Ground, On, Setting, cells, elsewhere, scenes
from fedray.track import layout
from fedray.track.run import RunFolder
from fedray.where import HERE, At, Where, following, mirrored, present, reached, settled

if TYPE_CHECKING:
    import pandas as pd
    from optuna.distributions import BaseDistribution

    from fedray.engine.search import Judged
    from fedray.engine.sweep import Progress
    from fedray.report.figures import Drawing
    from fedray.report.tables import Sheet

__all__ = [
    "DEFAULT", "FEW_SCENES", "HERE", "At", "Failed", "Fields", "Ground", "On", "Setting",
    "cells", "elsewhere", "frame", "grid", "guarded", "main", "publish", "scenes", "search", "sweep", "transfer",
]  # fmt: skip

Options = TypeVar("Options")


def frame(cells: Sequence[Experiment], at: Where, name: str, fields: Sequence[str] = ()) -> pd.DataFrame:
    """One row per finished cell of a study, as `report.tables.cells` makes it."""
    from fedray.report import tables

    paths = [layout.place(at.root, name, cell.run_id) for cell in cells]
    return tables.cells([RunFolder(path) for path in paths if layout.is_run(path)], fields=fields)


def publish(
    at: Where, name: str, stem: str, table: pd.DataFrame, sheet: Sheet | None = None, drawing: Drawing | None = None
) -> None:
    """Print a table of a study, and save it and its figure beside the runs."""
    from rich.console import Console

    from fedray.report import figures, tables

    saved = tables.save(table, sheet, at.root / name / "tables", stem) if sheet else []
    saved += figures.save(drawing, at.root / name / "figures", stem) if drawing else []
    if at.json:
        console.tell("table", name=stem, results=table.to_dict("records"), files=saved)
        return
    if sheet:
        tables.show(sheet, Console(markup=False, highlight=False))
    for path in saved:
        console.say(f"saved · {path}")


class Failed(RuntimeError):
    """The request was run, and did not reach its end (exit code 3)."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends as Ctrl-C does, with another exit code."""


def main(options: type[Options], body: Callable[[Options], int]) -> int:
    """Read the command line into `options`, run `body`, and return the exit code."""
    return guarded(lambda: body(settled(_parsed(options))))


def _parsed(options: type[Options]) -> Options:
    caught = io.StringIO()
    try:
        with contextlib.redirect_stderr(caught):
            return tyro.cli(options, config=(tyro.conf.FlagCreatePairsOff,))
    except SystemExit as stop:
        if not stop.code:
            raise
        raise BadInput(one_line(caught.getvalue(), f"python {sys.argv[0]} --help")) from None


def guarded(body: Callable[[], int]) -> int:
    """Run `body` to an exit code; what a user can mend is one line on stderr.

    0 done, 2 bad input, 3 finished with failures, 4 surroundings, 130/143 interrupted.
    """
    console.bear()
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.addLevelName(logging.WARNING, "warning")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return body()
    except BadInput as error:
        console.complain(str(error))
        return 2
    except Failed as error:
        console.complain(str(error))
        return 3
    except Unavailable as error:
        console.complain(str(error))
        return 4
    except KeyboardInterrupt as stop:
        return 143 if isinstance(stop, Terminated) else 130


def transfer(cells: Sequence[Experiment], at: Where, name: str) -> None:
    """Print and save what the global models score on their own test set and in each exam, side by side."""
    import pandas as pd

    from fedray.report import tables

    data = frame(cells, at, name, ["split.leave_out"])
    if data.empty:
        return
    exams = [c[4:] for c in data if c.startswith("acc_") and c not in tables.METRICS and not c.endswith("_local")]
    own = [f"without {domain}" if domain else "own" for domain in data["split.leave_out"]]
    parts = [data.assign(asked=own, score=data["acc_global"])]
    parts += [data.assign(asked=exam, score=data[f"acc_{exam}"], n_eval=data[f"n_{exam}"]) for exam in exams]
    table = tables.summary(pd.concat(parts).dropna(subset=["score"]), by=["method", "asked"], metrics=["score"])
    sheet = tables.grid(table, metric="score", columns="asked", places=list(dict.fromkeys([*own, *exams])))
    publish(at, name, "transfer", table, sheet)


def sweep(
    cells: Sequence[Experiment],
    at: Where,
    *,
    name: str,
    axes: Sequence[str] = (),
    x: str | None = None,
    costs: Sequence[str] = (),
) -> int:
    """Run a grid and tell of it: plan, live table, MLflow, final table, figure.

    Args:
        cells: the experiments.
        at: where they run and results go.
        name: of the study: its folder and MLflow experiment.
        axes: fields that differ between cells, by dotted path: columns of the table.
        x: the axis to draw accuracy against.
        costs: what a run cost, as further columns: up_kb, down_kb (per client and round), fit_s (per round).

    Returns:
        0, or 3 when a cell failed, or went on without clients that did.

    Raises:
        BadInput, Unavailable: see `fedray.engine.sweep.sweep`.
    """
    possible(cells, at.placement, None)
    home, actors = at.root / name, at.actors or 1
    paths = [layout.place(at.root, name, cell.run_id) for cell in cells]
    done = [layout.is_run(path) and RunFolder(path).state == "done" for path in paths]
    news.plan(cells, sum(done), 0, home, _how(at, actors), json=at.json)
    present([cell for cell, ended in zip(cells, done, strict=True) if not ended], at, ray=True)
    with resumable(again()), reached(at, [] if all(done) else cells), mirrored(at, name) as mirror:
        from fedray.engine import sweep as engine

        with news.board(cells, json=at.json) as board:

            def show(progress: Progress) -> None:
                board(*progress)
                mirror.sync(RunFolder(paths[progress.cell]))

            where: dict[str, Any] = {"runs": at.root, "placement": at.placement, "concurrent": at.concurrent}
            ended = engine.sweep(cells, study=name, actors=actors, show=show, **where)
        for cell, reason in ended.failed.items():
            news.failed(cells[cell], reason, paths[cell])
        lost = [news.lost(folder, json=at.json) for folder in ended.folders]
        shown: dict[str, Any] = {"json": at.json, "axes": axes, "x": x, "costs": costs, "failed": len(ended.failed)}
        made = news.end(ended.folders, home, following(at, name), **shown)
        mirror.log_study(
            home, figures=home / "figures", tables=home / "tables", metrics=made.metrics, note=made.markdown
        )
    return 3 if ended.failed or any(lost) else 0


def _how(at: Where, actors: int) -> str:
    hosts = "clients in the cell's process" if at.placement == "inline" else f"{at.placement}, {actors} per cell"
    return f"{hosts}, {at.concurrent or 'as many cells as CPUs or GPUs hold'} at a time"


def search(
    cells: Sequence[Experiment],
    space: Mapping[str, BaseDistribution],
    at: Where,
    *,
    name: str,
    trials: int,
    front: bool = False,
) -> dict[str, Any]:
    """Let Optuna choose fields; returns the point of the best score found so far, by dotted path.

    Args:
        cells: what a point is judged on: the mean of their local accuracy after the last round.
        space: Optuna's distributions by dotted path.
        at: where it runs and results go.
        name: of the study.
        trials: points in all, those of earlier invocations included.
        front: look for few bytes up, too; all points that no other beats in both are told.

    Raises:
        Failed: no point could be judged.
        BadInput, Unavailable: see `fedray.engine.search.search`.
    """
    possible(cells, at.placement, None)
    news.searching(name, trials, len(cells), list(space), json=at.json)
    present(cells, at, ray=True)
    with resumable(again()), reached(at, cells), mirrored(at, name) as mirror:
        from fedray.engine import search as engine

        def show(judged: Judged) -> None:
            if judged.folder:
                mirror.sync(RunFolder(Path(judged.folder)))
            if judged.done or judged.error:
                sent = judged.sent if front else None
                news.point("point", judged.params, judged.objective, sent, error=judged.error, json=at.json)

        where: dict[str, Any] = {"runs": at.root, "placement": at.placement, "concurrent": at.concurrent}
        asked: dict[str, Any] = {"trials": trials, "front": front, "study": name, "actors": at.actors or 1}
        found = engine.search(cells, space, **asked, **where, show=show)
    if not (best := sorted(found.best_trials, key=lambda trial: -trial.values[0])):
        raise Failed(f"search {name}: none of {len(found.trials)} points could be judged; see their errors above")
    for trial in best:
        sent = trial.values[1] if front else None
        news.point("best", trial.params, trial.values[0], sent, journal=at.root / f"{name}.journal", json=at.json)
    return best[0].params


def possible(cells: Sequence[Experiment], placement: Kind, actors: int | None) -> None:
    """Tell what can't be before anything slow is imported.

    Raises:
        BadInput: an unknown data set or exam, or a placement that does not fit.
    """
    for cell in cells:
        place(placement, cell.partition.clients, cpus=cpus(), actors=actors)
        sources.find(cell.data.name)
        exams.refused(cell.exams, cell.split.classes)


@contextmanager
def resumable(command: str) -> Iterator[None]:
    """On Ctrl-C, say how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        console.complain(f"what is done is kept; go on with: {command}", kind="interrupted")
        raise


def again() -> str:
    """The command line that was given."""
    program = Path(sys.argv[0])
    start = [program.name] if program.name == "fedray" else ["python", sys.argv[0]]
    return shlex.join([*start, *sys.argv[1:]])


def _terminate(*_: object) -> None:
    raise Terminated

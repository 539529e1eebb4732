"""What every study does around its question: read options, say the plan, sweep, track, tell, and end with an exit code.

    @dataclass(frozen=True)
    class Options:
        alphas: tuple[float, ...] = (0.1, 1.0, 10.0)
        at: study.At = study.HERE  # --runs, --mlflow, --placement, --actors, --concurrent, --json

    def main(o: Options) -> int:
        cells = study.grid(Experiment(), {"partition.alpha": o.alphas})
        return study.sweep(cells, o.at, name="mine", x="partition.alpha")

    if __name__ == "__main__":
        sys.exit(study.main(Options, main))

`fedray sweep` is the same without a file.
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
from fedray.data import sources
from fedray.engine.cluster import cpus
from fedray.engine.placement import Kind, place
from fedray.errors import BadInput, Unavailable
from fedray.experiment import Experiment, grid
from fedray.flags import one_line
from fedray.track import layout
from fedray.track.run import RunFolder
from fedray.where import HERE, At, Where, following, mirrored

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from fedray.engine.search import Judged
    from fedray.engine.sweep import Progress

__all__ = ["HERE", "At", "Failed", "grid", "guarded", "main", "search", "sweep"]

Options = TypeVar("Options")


class Failed(RuntimeError):
    """The request was run, and did not reach its end (exit code 3)."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends as Ctrl-C does, with another exit code."""


def main(options: type[Options], body: Callable[[Options], int]) -> int:
    """Read the command line into `options`, run `body`, and return the exit code."""
    return guarded(lambda: body(_parsed(options)))


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
    done = [layout.is_run(path) and RunFolder(path).status["state"] == "done" for path in paths]
    news.plan(cells, sum(done), 0, home, _how(at, actors), json=at.json)
    with resumable(again()), mirrored(at, name) as mirror:
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
    cells: Sequence[Experiment], space: Mapping[str, BaseDistribution], at: Where, *, name: str, trials: int
) -> dict[str, Any]:
    """Let Optuna choose fields; returns the best point found so far, by dotted path.

    Args:
        cells: what a point is judged on: the mean of their local accuracy after the last round.
        space: Optuna's distributions by dotted path.
        at: where it runs and results go.
        name: of the study.
        trials: points in all, those of earlier invocations included.

    Raises:
        Failed: no point could be judged.
        BadInput, Unavailable: see `fedray.engine.search.search`.
    """
    possible(cells, at.placement, None)
    console.say(f"search · {name} · {trials} points, {len(cells)} cells each · {', '.join(space)}")
    with resumable(again()), mirrored(at, name) as mirror:
        from fedray.engine import search as engine

        def show(judged: Judged) -> None:
            if judged.folder:
                mirror.sync(RunFolder(Path(judged.folder)))
            if judged.done or judged.error:
                point = ", ".join(f"{path} {_short(value)}" for path, value in judged.params.items())
                console.say(f"point · {judged.error or f'{judged.objective:.2f}'} · {point}")

        found = engine.search(
            cells,
            space,
            trials=trials,
            study=name,
            runs=at.root,
            placement=at.placement,
            actors=at.actors or 1,
            concurrent=at.concurrent,
            show=show,
        )
    if not any(trial.value is not None for trial in found.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"):
        raise Failed(f"search {name}: none of {len(found.trials)} points could be judged; see their errors above")
    best = ", ".join(f"{path} {_short(value)}" for path, value in found.best_params.items())
    console.say(f"best · {found.best_value:.2f} · {best} · journal {at.root / f'{name}.journal'}")
    return found.best_params


def possible(cells: Sequence[Experiment], placement: Kind, actors: int | None) -> None:
    """Tell what can't be before anything slow is imported.

    Raises:
        BadInput: an unknown data set, or a placement that does not fit.
    """
    for cell in cells:
        place(placement, cell.partition.clients, cpus=cpus(), actors=actors)
        sources.find(cell.data.name)


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


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _terminate(*_: object) -> None:
    raise Terminated

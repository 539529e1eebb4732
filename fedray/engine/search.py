"""Hyperparameter search: Optuna proposes, Tune places, the study lives in a journal that Optuna's dashboard opens.

    objective(point) = mean over cells (alphas, seeds) of a metric after the last round
    front            = the points that no other beats in that and in bytes up per client and round

Optuna is told the truth, which Ray's own searcher does not tell: a pruned trial is PRUNED (not a finished one with an
early value), a failed or NaN one is FAIL (not RUNNING for ever), and a trial that the journal has closed stays closed.
A search that was stopped goes on: closed trials are evidence, a point that was cut short is asked again before any new
one, and its cells that are done are read, not run.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState

from fedray.engine import samedata
from fedray.engine.cluster import attached
from fedray.engine.locks import locked
from fedray.engine.placement import Kind
from fedray.errors import BadInput, Unavailable
from fedray.experiment import Experiment
from fedray.track import files
from fedray.track.run import runs as folders

if TYPE_CHECKING:
    from ray import tune

CONTINUES = "continues"
"""Attribute of a trial that takes up the point of one that was cut short: that one's number."""


class Judged(NamedTuple):
    """News of a candidate: the running mean after so many of its cells."""

    params: dict[str, Any]
    objective: float
    cells_done: int
    done: bool
    folder: str
    error: str
    sent: float = 0.0  # bytes up per client and round


def search(
    cells: Sequence[Experiment],
    space: Mapping[str, BaseDistribution],
    *,
    trials: int,
    study: str,
    runs: Path,
    metric: str = "eval/local",
    front: bool = False,
    placement: Kind = "auto",
    actors: int = 1,
    concurrent: int | None = None,
    cache: Path | None = None,
    seed: int = 0,
    show: Callable[[Judged], None] = lambda _: None,
) -> optuna.Study:
    """Search until `trials` points have been judged, or have failed.

    Args:
        cells: what a point is judged on, in this order (put the cheap and telling ones first: pruning acts on them).
        space: distributions by dotted path, ``{"local.lr": FloatDistribution(1e-3, 1, log=True)}``.
        trials: points in all, those of earlier invocations included.
        study: folder of the runs; the journal is ``<runs>/<study>.journal``.
        runs: root of the run folders.
        metric: maximised; of a view, "eval/local", its accuracy or mean average precision.
        front: minimise the bytes that a client sends up, too; nothing is pruned then.
        placement: of the clients of a cell; "auto" is "packed".
        actors: host actors of a trial.
        concurrent: trials at a time; None: as many as there are CPUs (GPUs) for their hosts.
        cache: backbone and features.
        seed: of the sampler.
        show: told after each cell of each candidate, and of those whose processes kept dying.

    Raises:
        BadInput: an unknown path in `space`, a range with values that break a field's rule, no cell, a study of this
            name that had another goal or that another process searches, or data that have changed since a cell was
            begun.
        Unavailable: the run root, Ray or the journal of the search can't be used.
    """
    if not cells or trials < 1 or actors < 1:
        raise BadInput(f"cells, trials and actors must be >= 1, got {len(cells)}, {trials} and {actors}")
    check_space(cells[0], space)
    samedata.unchanged(folders(runs, study), cache)  # trials that are closed are evidence too
    if placement == "exclusive":
        actors = max(cell.partition.clients for cell in cells)
    storage, held = _open(runs, study, front)
    # to another process that searches, trials that this one runs would seem cut short
    with locked(runs / f".{study}.search.lock", f"search {study}"), ExitStack() as stack:
        _take_up(held)
        if (left := trials - judged(held)) <= 0:
            return held
        stack.enter_context(attached())  # ray and tune are slow to import: only when there is something to do
        from fedray.engine.trial import Candidate, Site
        from fedray.engine.tuner import absolute, fit

        config = _strategy(held, storage, space, cells=len(cells), points=left, seed=seed, front=front)
        site = Site(study, absolute(runs), cache and absolute(cache), placement == "inline", actors)
        bound = {"cells": list(cells), "metric": metric}
        died = fit(Candidate, bound, site, concurrent, config, {}, _teller(show))
    for params, error in died:  # of these no result told
        show(Judged(params, math.nan, 0, True, "", error, math.nan))
    return open_study(runs, study)


def _strategy(
    held: optuna.Study,
    storage: BaseStorage,
    space: Mapping[str, BaseDistribution],
    *,
    cells: int,
    points: int,
    seed: int,
    front: bool,
) -> tune.TuneConfig:
    """Who proposes points (TPE) and who gives them up early (ASHA, after a third of the cells; of a front nobody)."""
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    from fedray.engine.searcher import TruthfulSearch

    searcher = TruthfulSearch(
        space=dict(space),
        metric=["objective", "sent"] if front else "objective",
        mode=["max", "min"] if front else "max",
        study_name=held.study_name,
        storage=storage,
        sampler=_sampler(seed + len(held.trials)),
        cells=cells,
        front=front,
    )
    if front:
        return tune.TuneConfig(search_alg=searcher, num_samples=points)
    pruner = ASHAScheduler(
        metric="objective", mode="max", time_attr="cells_done", max_t=cells, grace_period=-(-cells // 3)
    )
    return tune.TuneConfig(search_alg=searcher, scheduler=pruner, num_samples=points)


def open_study(runs: Path, study: str) -> optuna.Study:
    """The Optuna study of a search, from its journal.

    Raises:
        Unavailable: the journal is damaged.
    """
    return _open(runs, study)[1]


def judged(study: optuna.Study) -> int:
    """Points that are closed: complete, pruned, or failed for good; those cut short by a kill do not count."""
    closed = sum(trial.state.is_finished() for trial in study.trials)
    return closed - sum(CONTINUES in trial.user_attrs for trial in study.trials)


def distributions(space: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """A method's own search space, as its file states it, in Optuna's terms.

    Args:
        space: by dotted path: (low, high), (low, high, "log"), or a list of choices; whole numbers stay whole.

    Raises:
        BadInput: an axis is none of these.
    """
    found: dict[str, BaseDistribution] = {}
    for path, axis in space.items():
        if isinstance(axis, list) and axis:
            found[path] = CategoricalDistribution(axis)
        elif isinstance(axis, tuple) and len(axis) in (2, 3) and axis[2:] in ((), ("log",)):
            whole = all(isinstance(end, int) for end in axis[:2])
            found[path] = (IntDistribution if whole else FloatDistribution)(axis[0], axis[1], log=len(axis) == 3)
        else:
            raise BadInput(f"the axis of {path} is {axis!r}; give (low, high), (low, high, 'log') or a list of choices")
    return found


def check_space(cell: Experiment, space: Mapping[str, BaseDistribution]) -> None:
    """Try the ends of every range: a typo, or a range that is too wide, fails here and not after an hour.

    Raises:
        BadInput: says which path, and what there is.
    """
    if not space:
        raise BadInput('the space of a search is empty; give it at least one range, e.g. "local.lr"')
    for path, distribution in space.items():
        for value in _ends(distribution):
            cell.override(**{path: value})


def _ends(distribution: BaseDistribution) -> Sequence[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    if isinstance(distribution, FloatDistribution | IntDistribution):
        return distribution.low, distribution.high
    raise BadInput(f"{type(distribution).__name__} is no distribution that a search knows; take one of Optuna's")


def _open(runs: Path, study: str, front: bool | None = None) -> tuple[BaseStorage, optuna.Study]:
    optuna.logging.set_verbosity(logging.WARNING)
    runs.mkdir(mode=0o700, parents=True, exist_ok=True)
    journal = runs / f"{study}.journal"
    goals = [StudyDirection.MAXIMIZE, *([StudyDirection.MINIMIZE] if front else [])]
    try:
        storage = JournalStorage(JournalFileBackend(str(journal)))
        held = optuna.create_study(study_name=study, storage=storage, directions=goals, load_if_exists=True)
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:  # whatever JSON it holds
        raise Unavailable(
            f"{journal} can't be read ({type(error).__name__}: {files.one_line(error)[:200]}); bring it back, or move "
            "it away to begin anew (runs that are done are kept)"
        ) from error
    if front is not None and len(held.directions) != 1 + front:
        goal = "accuracy against bytes" if len(held.directions) > 1 else "accuracy alone"
        raise BadInput(f"search {study} was begun for {goal}; give this one another name")
    return storage, held


def _teller(show: Callable[[Judged], None]) -> Callable[[dict[str, Any]], None]:
    """Who hears Tune's results and tells them on."""
    return lambda r: show(
        Judged(r["config"], r["objective"], r["cells_done"], r["done"], r["folder"], r["error"], r["sent"])
    )


def _take_up(study: optuna.Study) -> None:
    """Close the trials that a killed search left running, and ask their points again."""
    for orphan in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(orphan.number, state=TrialState.FAIL)
        study.enqueue_trial(orphan.params, user_attrs={CONTINUES: orphan.number})


def _sampler(seed: int) -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed)

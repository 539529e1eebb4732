"""Search: what is asked, what Optuna is told, and that a killed one goes on."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
from filelock import FileLock
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from fedray import Experiment, run
from fedray.engine import locks
from fedray.engine import search as engine
from fedray.engine.search import CONTINUES, Judged, check_space, judged, open_study, search
from fedray.errors import BadInput
from fedray.experiment import grid

Make = Callable[..., Experiment]
SPACE = {"local.lr": FloatDistribution(1e-9, 1e30, log=True), "method.n_ctx": IntDistribution(1, 3)}


@pytest.mark.parametrize(
    ("space", "text"),
    [
        ({"local.lrr": FloatDistribution(0.1, 1)}, "local.lrr is not a field. Did you mean local.lr?"),
        ({"local.lr": FloatDistribution(0, 1)}, "local.lr must be > 0, got 0.0"),
        ({"fraction": FloatDistribution(0.1, 2)}, "fraction must be in (0, 1], got 2.0"),
        ({"method.n_ctxx": IntDistribution(1, 2)}, "method.n_ctxx is not an option of fedotp. Did you mean n_ctx?"),
        ({}, 'the space of a search is empty; give it at least one range, e.g. "local.lr"'),
    ],
)
def test_a_space_is_checked_at_both_ends(space: dict, text: str, make: Make) -> None:
    with pytest.raises(BadInput) as error:
        check_space(make(), space)
    assert str(error.value) == text


def test_a_good_space_passes(make: Make) -> None:
    check_space(make(), SPACE | {"server.weighting": CategoricalDistribution(["samples", "uniform"])})


def test_a_search_without_cells_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cells, trials and actors must be >= 1, got 0, 4 and 1"):
        search([], SPACE, trials=4, study="s", runs=tmp_path)


def test_a_point_counts_once_however_often_it_was_cut_short(tmp_path: Path) -> None:
    study = open_study(tmp_path, "s")
    study.tell(study.ask(SPACE), 1.0)
    study.tell(study.ask(SPACE), state=TrialState.FAIL)  # diverged
    orphan = study.ask(SPACE)
    study.tell(orphan, state=TrialState.FAIL)  # cut short, and taken up
    study.enqueue_trial(orphan.params, user_attrs={CONTINUES: orphan.number})
    assert judged(study) == 2
    study.tell(study.ask(SPACE), 1.0)
    assert judged(study) == 3


def test_a_search_is_run_by_one_process_at_a_time(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "LOCK_S", 0.1)
    study = open_study(tmp_path, "s")
    study.ask(SPACE)  # what the other process is at
    with FileLock(tmp_path / ".s.search.lock"), pytest.raises(BadInput, match="search s is being run by another"):
        search([make()], SPACE, trials=4, study="s", runs=tmp_path)
    assert [trial.state for trial in open_study(tmp_path, "s").trials] == [TrialState.RUNNING]


def test_a_point_whose_process_kept_dying_is_told(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedray.engine import tuner

    point = {"local.lr": 0.1, "method.n_ctx": 2}
    monkeypatch.setattr(engine, "attached", nullcontext)
    monkeypatch.setattr(tuner, "fit", lambda *_: [(point, "its process died 4 times (out of memory)")])
    news: list[Judged] = []
    search([make()], SPACE, trials=1, study="s", runs=tmp_path, show=news.append)
    assert [(n.params, n.done, n.error) for n in news] == [(point, True, "its process died 4 times (out of memory)")]


def test_a_point_waits_for_its_twin(make: Make, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedray.engine import trial

    monkeypatch.setattr(locks, "LOCK_S", 0.05)
    monkeypatch.setattr(trial, "device", lambda: "cpu")
    (tmp_path / ".tune").mkdir()
    cell, warm = make(rounds=2), trial.Warm(trial.Site("s", tmp_path, cache, inline=True, actors=1))
    started = run(cell, study="s", runs=tmp_path, placement="inline", cache=cache)
    next(started.rounds)
    with ThreadPoolExecutor(1) as pool:
        twin = pool.submit(warm.score, cell, "eval/local")
        with pytest.raises(TimeoutError):
            twin.result(0.5)
        list(started.rounds)
        folder, score = twin.result(60)
    last = max(row.round for row in folder.rows())
    assert (folder.state, last) == ("done", 2)
    assert score == next(row.value for row in folder.rows() if (row.round, row.metric) == (2, "eval/local/acc1"))


@pytest.mark.ray
def test_optuna_is_told_the_truth_and_a_search_goes_on(
    make: Make, tmp_path: Path, cache: Path, cluster: None, workers: object
) -> None:
    cells = grid(make(method="promptfl", rounds=2), {"seed": [0, 1]})
    study = open_study(tmp_path, "s")
    good, diverges, bad = (
        {"local.lr": 1e-9, "method.n_ctx": 2},
        {"local.lr": 1e30, "method.n_ctx": 2},
        {"local.lr": 0.2, "method.n_ctx": 2},
    )
    for point in (good, diverges, bad):
        study.enqueue_trial(point)
    news: list[Judged] = []

    def go(trials: int) -> None:
        search(
            cells,
            SPACE,
            trials=trials,
            study="s",
            runs=tmp_path,
            metric="eval/local/loss",  # maximised: training makes it worse, for certain
            placement="inline",
            concurrent=1,
            cache=cache,
            show=news.append,
        )

    go(3)
    told = {tuple(t.params.values()): t for t in open_study(tmp_path, "s").trials}
    assert told[1e-9, 2].state == TrialState.COMPLETE
    assert told[1e30, 2].state == TrialState.FAIL
    assert told[0.2, 2].state == TrialState.PRUNED
    assert list(told[0.2, 2].intermediate_values) == [1]
    assert told[1e-9, 2].value == told[1e-9, 2].intermediate_values[2]
    failed = [n for n in news if n.error]
    assert len(failed) == 1
    assert "not finite" in failed[0].error
    assert math.isnan(failed[0].objective)

    study = open_study(tmp_path, "s")
    study.enqueue_trial(good)  # its cells are done, and only read
    study.ask(SPACE)  # a search that was killed leaves this
    news.clear()
    go(4)
    trials = open_study(tmp_path, "s").trials
    assert [t.state for t in trials[:3]] == [told[k].state for k in ((1e-9, 2), (1e30, 2), (0.2, 2))]
    assert trials[3].state == TrialState.FAIL
    assert trials[4].user_attrs == {CONTINUES: 3}
    assert trials[4].state == TrialState.COMPLETE
    assert trials[4].value == told[1e-9, 2].value
    assert len(trials) == 5
    assert [n.cells_done for n in news] == [1, 2]

"""Ray's Optuna searcher, made to tell the study the truth (see `fedray.engine.search`)."""

from __future__ import annotations

import math
from typing import Any, cast

import optuna
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch


class TruthfulSearch(OptunaSearch):
    """Each trial's end is told as what it was: complete, pruned or failed; a trial that is closed stays closed."""

    def __init__(self, *args: Any, cells: int, front: bool = False, **options: Any) -> None:
        super().__init__(*args, **options)
        self.cells, self.front = cells, front

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Report a running mean by the number of its cells, unless it is none or the trial is closed."""
        if self.front:  # Optuna prunes by one objective only
            return
        value = result.get("objective", math.nan)
        if not self._closed(trial_id) and math.isfinite(value):
            self._report(trial_id, value, result["cells_done"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Close the trial."""
        if self._closed(trial_id):
            return
        last = result or {}
        value, cells = last.get("objective", math.nan), last.get("cells_done", 0)
        trial = self._ot_trials[trial_id]
        if error or not math.isfinite(value) or (self.front and cells < self.cells):
            self._study.tell(trial, state=TrialState.FAIL)
            return
        if self.front:
            self._study.tell(trial, [value, last["sent"]])
            return
        self._report(trial_id, value, cells)  # Tune keeps a trial's last result to itself
        if cells < self.cells:
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, value)

    @property
    def _study(self) -> optuna.Study:
        return cast(optuna.Study, self._ot_study)

    def _closed(self, trial_id: str) -> bool:
        return trial_id not in self._ot_trials or self._frozen(trial_id).state.is_finished()

    def _report(self, trial_id: str, value: float, cells: int) -> None:
        if cells not in self._frozen(trial_id).intermediate_values:  # a trial whose process died tells it again
            self._ot_trials[trial_id].report(value, cells)

    def _frozen(self, trial_id: str) -> optuna.trial.FrozenTrial:
        number: int = self._ot_trials[trial_id].number
        return self._study.trials[number]

"""An invocation's run in MLflow: made once, found again after a kill, with what its machine did meanwhile."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from fedray.errors import Unavailable
from fedray.track import stores

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EVERY_S = 10
"""Seconds between two looks at the machine, at least."""
TOKEN = "fedray.invocation"  # noqa: S105 (a tag's name)

Log = Callable[[str, Sequence[tuple[str, float, int]]], None]
"""Sends (key, value, step) to a run."""


def experiment(client: MlflowClient, uri: str, study: str) -> str:
    """The id of ``fedray/<study>``, found or made."""
    name = f"fedray/{study}"
    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    place = stores.artifact_place(uri, study)
    try:
        return str(client.create_experiment(name, artifact_location=place))
    except Exception:  # another process was quicker, on a server
        if found := client.get_experiment_by_name(name):
            return str(found.experiment_id)
        raise


def remembered(client: MlflowClient, folder: Path, uri: str) -> Run | None:
    """The run that `folder` remembers, if the store still has it."""
    run_id = stores.recall(folder, uri).get("run_id")
    if run_id is None:
        return None
    try:
        run = client.get_run(run_id)
    except Exception as error:
        if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


class Invocation:
    """The parent of the cells' runs; one process at a time continues one that did not finish."""

    def __init__(self, client: MlflowClient, uri: str, study: str, log: Log, *, watch: bool) -> None:
        """`watch`: write down what this machine does."""
        self._client, self._uri, self._study, self._log, self._watch = client, uri, study, log, watch
        self.experiment = experiment(client, uri, study)
        self.held = ExitStack()
        self._run: Run | None = None
        self._alone: bool | None = None  # whether this process holds the study; None: not tried yet
        self._token = ""
        self._looked = 0.0
        psutil.cpu_percent()  # the first one is always 0

    def adopt(self, home: Path) -> None:
        """Continue the invocation that `home` remembers, if it did not finish and no living process is at it."""
        if self._alone is not None:
            return
        try:
            self.held.enter_context(stores.writer(home))
            self._alone = True
        except Unavailable:
            self._alone = False
            return
        run = remembered(self._client, home, self._uri)
        if run and run.info.status != "FINISHED":
            self._run = run
            self._client.update_run(str(run.info.run_id), status="RUNNING")
        elif run is None:  # it may have died before it learnt its run's name
            self._token = stores.recall(home, self._uri).get("token", "")

    def run_id(self, home: Path) -> str:
        """The invocation's run: adopted, found by its token, or made."""
        self.adopt(home)
        if self._run is None:
            found = self._token and self._client.search_runs(
                [self.experiment], filter_string=f"tags.`{TOKEN}` = '{self._token}'", max_results=1
            )
            self._run = found[0] if found else self._made(home)
            if self._alone:
                stores.remember(home, self._uri, run_id=str(self._run.info.run_id))
        return str(self._run.info.run_id)

    def _made(self, home: Path) -> Run:
        if not self._token:
            self._token = secrets.token_hex(8)
            if self._alone:
                stores.remember(home, self._uri, token=self._token)
        name = f"{self._study} · {datetime.now(UTC):%Y-%m-%d} · {self._token[:4]}"
        tags = {"fedray.study": self._study, "fedray.kind": "invocation", TOKEN: self._token}
        return self._client.create_run(self.experiment, tags=tags, run_name=name)

    def look(self) -> None:
        """Write down how busy this machine is, under MLflow's names; step: seconds since the invocation began."""
        now = time.time()
        if not self._watch or self._run is None or now - self._looked < EVERY_S:
            return
        self._looked = now
        memory = psutil.virtual_memory()
        seen = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.percent,
        }
        step = int(now - self._run.info.start_time / 1000)
        self._log(str(self._run.info.run_id), [(f"system/driver/{name}", value, step) for name, value in seen.items()])

    def end(self, status: str) -> None:
        """The run's status is this."""
        if self._run is not None:
            self._client.set_terminated(str(self._run.info.run_id), status=status)

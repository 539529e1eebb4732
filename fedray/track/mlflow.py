"""MLflow, written from run folders: one writer, in batches, off the critical path; nothing missing, nothing twice.

    experiment fedray/<study>
      run "<study> · <date> · <4 hex>"            one invocation; one that did not finish is continued by the next
        run "fedotp/digits/a=0.1/s1"              one cell: params, metrics by round (client == GLOBAL), artifacts

The folder is the truth. What the store has already is asked once per run and process, and again after every error, so
that `sync` may be repeated at any time: a server that was down is caught up with later. Never sent: private/, ckpt/,
clients' rows, paths, credentials.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import yaml

from fedray.errors import Unavailable
from fedray.track import export, files, stores
from fedray.track.background import Background
from fedray.track.names import cell
from fedray.track.run import GLOBAL, RunFolder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

STATUS = {"running": "RUNNING", "done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}

log = logging.getLogger("fedray")


class Child(NamedTuple):
    """A cell's run in the store, and the (metric, step) that it has."""

    run_id: str
    sent: set[tuple[str, int]]


class Mlflow:
    """The writer: `sync` returns at once and a thread does the rest; `close` waits for it and says what is left."""

    def __init__(self, uri: str, study: str) -> None:
        """Nothing is imported or opened before the first `sync`."""
        self._work: Background[Path | export.Study] = Background(partial(_store, uri, study), name="mlflow")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def sync(self, folder: RunFolder) -> None:
        """Brings the run of `folder` up to date, soon. Repeated calls cost what is new."""
        self._work.put(folder.run_id, folder.path)

    def log_study(
        self,
        home: Path,
        *,
        figures: Path | None = None,
        tables: Path | None = None,
        metrics: Mapping[str, float] = {},
        note: str = "",
    ) -> None:
        """Adds figures, tables, numbers and a note (Markdown) to the invocation's run; `home` is the study's folder."""
        self._work.put("summary", export.Study(home, figures, tables, dict(metrics), note))

    def close(self, timeout: float = 120.0) -> list[str]:
        """Sends what is left, ends the invocation's run, and returns (and warns of) the runs not fully sent.

        Args:
            timeout: seconds to wait for a slow store.
        """
        failed = self._work.close(timeout)
        if failed:
            names, reason = ", ".join(sorted(failed)), export.without_secrets(next(iter(failed.values())))
            text = "MLflow: %d of this study not fully sent: %s (%s); nothing is lost, it can be synced again later"
            log.warning(text, len(failed), names, reason)
        return sorted(failed)


@contextmanager
def _store(uri: str, study: str) -> Iterator[Callable[[Path | export.Study], None]]:
    store = _Store(uri, study)
    try:
        yield store.send
        store.end()
    finally:
        store.held.close()  # another process may continue this invocation


class _Store:
    """A connection, used by one thread."""

    def __init__(self, uri: str, study: str) -> None:
        self._uri, self._study = uri, study
        self._children: dict[Path, Child] = {}
        self._states: dict[Path, str] = {}
        self._mine: set[Path] = set()
        self._parent: str | None = None
        self._alone: bool | None = None  # whether this process holds the study; None: not tried yet
        self.held = ExitStack()
        with stores.only_one(uri):  # several processes that create the tables at once would fail
            self._client = _connect(uri)
            self._experiment = self._find_experiment()

    def _find_experiment(self) -> str:
        name = f"fedray/{self._study}"
        if found := self._client.get_experiment_by_name(name):
            return str(found.experiment_id)
        place = stores.artifact_place(self._uri, self._study)
        try:
            return str(self._client.create_experiment(name, artifact_location=place))
        except Exception:  # another process was quicker, on a server
            if found := self._client.get_experiment_by_name(name):
                return str(found.experiment_id)
            raise

    def adopt(self, home: Path) -> None:
        """Continues the invocation that `home` remembers, if it did not finish and no living process is at it."""
        if self._alone is not None:
            return
        try:
            self.held.enter_context(stores.writer(home))
            self._alone = True
        except Unavailable:
            self._alone = False
            return
        run = self._remembered(home)
        if run and run.info.status != "FINISHED":
            self._parent = str(run.info.run_id)
            self._client.update_run(self._parent, status="RUNNING")

    def parent(self, home: Path) -> str:
        """The invocation's run: adopted, or made."""
        self.adopt(home)
        if self._parent is None:
            name = f"{self._study} · {datetime.now(UTC):%Y-%m-%d} · {secrets.token_hex(2)}"
            tags = {"fedray.study": self._study, "fedray.kind": "invocation"}
            self._parent = str(self._client.create_run(self._experiment, tags=tags, run_name=name).info.run_id)
            if self._alone:
                stores.remember(home, self._uri, run_id=self._parent)
        return self._parent

    def end(self) -> None:
        """Ends the invocation's run: failed if a cell failed, killed if one is unfinished."""
        if self._parent:
            states = set(self._states.values())
            state = "failed" if "failed" in states else "done" if states <= {"done"} else "interrupted"
            self._client.set_terminated(self._parent, status=STATUS[state])

    def _remembered(self, folder: Path) -> Run | None:
        """The run that `folder` remembers, if the store still has it."""
        from mlflow.exceptions import MlflowException

        run_id = stores.recall(folder, self._uri).get("run_id")
        if run_id is None:
            return None
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def send(self, item: Path | export.Study) -> None:
        """Brings one run folder, or the invocation's run, up to date."""
        if isinstance(item, export.Study):
            self._send_study(item)
            return
        folder = RunFolder(item)
        status = folder.status
        self.adopt(item.parent)
        if stores.recall(item, self._uri).get("complete") == status["updated"]:
            self._states[item] = status["state"]
            return
        self._states[item] = "unsent"
        try:
            child = self._children.get(item) or self._open(folder)
            self._send_metrics(child, folder.records(client=GLOBAL))
            if status["state"] != "running":
                self._send_rest(child, folder)
                self._client.set_terminated(
                    child.run_id, STATUS[status["state"]], stores.milliseconds(status["updated"])
                )
                stores.remember(item, self._uri, run_id=child.run_id, complete=status["updated"])
                del self._children[item]  # should it go on, it has to be set running again
            self._states[item] = status["state"]
        except Exception:
            self._children.pop(item, None)  # ask the store anew what it has
            raise

    def _open(self, folder: RunFolder) -> Child:
        from mlflow.entities import Param

        if folder.path not in self._mine:
            self.held.enter_context(stores.writer(folder.path))
            self._mine.add(folder.path)
        run = self._remembered(folder.path) or self._created(folder)
        run_id = str(run.info.run_id)
        wanted = export.params(folder.config)
        for key, value in run.data.params.items():
            if wanted.get(key, value) != value:
                log.warning("MLflow: run %s keeps %s = %s, now %s", folder.run_id, key, value, wanted[key])
        missing = [Param(key, value) for key, value in wanted.items() if key not in run.data.params]
        for start in range(0, len(missing), 100):
            self._client.log_batch(run_id, params=missing[start : start + 100])
        if run.info.status != "RUNNING":
            self._client.update_run(run_id, status="RUNNING")
        sent = {(m.key, m.step) for key in run.data.metrics for m in self._client.get_metric_history(run_id, key)}
        self._children[folder.path] = child = Child(run_id, sent)
        return child

    def _created(self, folder: RunFolder) -> Run:
        """The cell's run inside this invocation: found, or made."""
        parent = self.parent(folder.path.parent)
        where = f"tags.`fedray.run_key` = '{folder.run_id}' and tags.`mlflow.parentRunId` = '{parent}'"
        found = self._client.search_runs([self._experiment], filter_string=where, max_results=1)
        if found:
            run = found[0]
        else:
            tags = {"mlflow.parentRunId": parent, **export.tags(folder.config, folder.study, folder.run_id)}
            start = stores.milliseconds(folder.status["started"])
            run = self._client.create_run(self._experiment, start, tags, cell(folder.config).title or folder.run_id)
        stores.remember(folder.path, self._uri, run_id=run.info.run_id)
        return run

    def _send_metrics(self, child: Child, rows: list[files.Record]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = [(metric, value, step) for step, _, metric, value, _ in rows if (metric, step) not in child.sent]
        infinite = [f"{metric}@{step}" for step, _, metric, value, _ in rows if math.isinf(value)]
        if infinite:  # which a store would keep as 1.8e308
            self._client.set_tag(child.run_id, "fedray.infinite", " ".join(infinite)[:5000])
        for start in range(0, len(new), 1000):
            batch = new[start : start + 1000]
            metrics = [Metric(key, math.nan if math.isinf(value) else value, now, step) for key, value, step in batch]
            self._client.log_batch(child.run_id, metrics=metrics)
            child.sent.update((key, step) for key, _, step in batch)

    def _send_rest(self, child: Child, folder: RunFolder) -> None:
        if folder.status["state"] == "done":
            self._send_metrics(child, export.final(folder.records(client=GLOBAL)))
        self._send_data(child, folder)
        public = yaml.safe_dump(export.public(folder.config), sort_keys=False, allow_unicode=True)
        self._client.log_text(child.run_id, public, "config.yaml")
        for path in export.artifacts(folder.path):
            self._upload(child.run_id, path, path.relative_to(folder.path))

    def _upload(self, run_id: str, path: Path, name: Path) -> None:
        self._client.log_artifact(run_id, str(path), None if name.parent == Path() else str(name.parent))

    def _send_data(self, child: Child, folder: RunFolder) -> None:
        """The partition as the run's input; a store keeps one of each digest."""
        if not folder.partition_path.is_file():
            return
        from mlflow.entities import Dataset, DatasetInput, InputTag

        digest = files.sha256(folder.partition_path.read_bytes())
        data = Dataset(cell(folder.config).data or "data", digest[:36], "fedray", "fedray", export.DATA_SCHEMA)
        self._client.log_inputs(child.run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "train")])])
        self._client.set_tag(child.run_id, "fedray.partition", digest)

    def _send_study(self, study: export.Study) -> None:
        from mlflow.entities import Metric

        run_id = self.parent(study.home)
        known = self._client.get_run(run_id).data.metrics
        changed = {key: value for key, value in study.metrics.items() if known.get(key) != value}
        now = int(time.time() * 1000)
        metrics = [Metric(key, value, now, 0) for key, value in changed.items() if math.isfinite(value)]
        if metrics:
            self._client.log_batch(run_id, metrics=metrics)
        if study.note:
            self._client.set_tag(run_id, "mlflow.note.content", study.note)
        for name, folder in (("figures", study.figures), ("tables", study.tables)):
            for path in export.inside(folder) if folder else ():
                self._upload(run_id, path, Path(name) / path.relative_to(folder or path))


def _connect(uri: str) -> MlflowClient:
    stores.before_import()
    from mlflow import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # says that it creates tables, at length
    return MlflowClient(tracking_uri=uri)

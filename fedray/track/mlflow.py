"""MLflow, written from run folders: one writer, in batches, off the critical path; nothing missing, nothing twice.

    experiment fedray/<study>
      run "<study> · <date> · <4 hex>"            one invocation; one that did not finish is continued by the next
        run "fedotp/digits/a=0.1/s1"              one cell: params, metrics by round (client == GLOBAL), artifacts,
                                                  data as inputs, its global prompts as a model (`track.models`)

The folder is the truth. What the store has already is asked once per run and process, and again after every error, so
that `sync` may be repeated at any time: a server that was down is caught up with later. Never sent: private/, ckpt/,
clients' rows, paths, credentials.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import yaml

from fedray.track import export, files, models, stores
from fedray.track.background import Background
from fedray.track.invocation import Invocation, remembered
from fedray.track.names import cell
from fedray.track.run import GLOBAL, RunFolder
from fedray.track.status import told

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

STATUS = {"running": "RUNNING", "done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}

log = logging.getLogger("fedray")


class Child(NamedTuple):
    """A cell's run in the store, and the (metric, step) that it has."""

    run_id: str
    sent: set[tuple[str, int]]


class Mlflow:
    """The writer: `sync` returns at once and a thread does the rest; `close` waits for it and says what is left."""

    def __init__(self, uri: str, study: str, *, watch: bool = True) -> None:
        """Nothing is imported or opened before the first `sync`.

        Args:
            uri: of the store.
            study: name of the study.
            watch: this process runs the study: write down how busy its machine is, and an invocation; else it only
                sends what others left, also that a run's process was killed.
        """
        opened = partial(_store, uri, study, watch)
        self._study = study
        self._work: Background[Path | export.Study] = Background(opened, name="mlflow")

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
            text = (
                "MLflow: %d of this study not fully sent: %s (%s); nothing is lost, send it later with: fedray sync %s"
            )
            log.warning(text, len(failed), names, reason, self._study)
        return sorted(failed)


@contextmanager
def _store(uri: str, study: str, watch: bool) -> Iterator[Callable[[Path | export.Study], None]]:
    store = _Store(uri, study, watch)
    try:
        yield store.send
        store.end()
    finally:
        store.invocation.held.close()  # another process may continue this invocation


class _Store:
    """A connection, used by one thread."""

    def __init__(self, uri: str, study: str, watch: bool) -> None:
        self._uri, self._study, self._watch = uri, study, watch
        self._children: dict[Path, Child] = {}
        self._states: dict[Path, str] = {}
        self._mine: set[Path] = set()
        with stores.only_one(uri):  # several processes that create the tables at once would fail
            self._client = _connect(uri)
            self.invocation = Invocation(self._client, uri, study, self._log, watch=watch)

    def end(self) -> None:
        """Ends the invocation's run: failed if a cell failed, killed if one is unfinished."""
        states = set(self._states.values())
        state = "failed" if "failed" in states else "done" if states <= {"done"} else "interrupted"
        self.invocation.end(STATUS[state])

    def send(self, item: Path | export.Study) -> None:
        """Brings one run folder, or the invocation's run, up to date."""
        if isinstance(item, export.Study):
            self._send_study(item)
        else:
            self._send_run(item)
        self.invocation.look()

    def _send_run(self, item: Path) -> None:
        folder = RunFolder(item)
        status = folder.status
        self.invocation.adopt(item.parent)
        if stores.recall(item, self._uri).get("complete") == status["updated"]:
            self._states[item] = status["state"]
            return
        self._states[item] = "unsent"
        try:
            child = self._children.get(item) or self._open(folder)
            self._send_metrics(child, folder.records(client=GLOBAL))
            if status["state"] != "running":
                model = self._send_rest(child, folder)
                ended = stores.milliseconds(status["updated"])
                self._client.set_terminated(child.run_id, STATUS[status["state"]], ended)
                stores.remember(item, self._uri, run_id=child.run_id, complete=status["updated"], **model)
                del self._children[item]  # should it go on, it has to be set running again
            elif not self._watch and status["round"] and told(item).state == "stopped":  # who ran it was killed
                ended = stores.milliseconds(status["updated"])
                self._client.set_terminated(child.run_id, STATUS["interrupted"], ended)
                del self._children[item]
            self._states[item] = status["state"]
        except Exception:
            self._children.pop(item, None)  # ask the store anew what it has
            raise

    def _open(self, folder: RunFolder) -> Child:
        from mlflow.entities import Param

        if folder.path not in self._mine:
            self.invocation.held.enter_context(stores.writer(folder.path))
            self._mine.add(folder.path)
        run = remembered(self._client, folder.path, self._uri) or self._created(folder)
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
        parent = self.invocation.run_id(folder.path.parent)
        where = f"tags.`fedray.run_key` = '{folder.run_id}' and tags.`mlflow.parentRunId` = '{parent}'"
        experiment = self.invocation.experiment
        found = self._client.search_runs([experiment], filter_string=where, max_results=1)
        if found:
            run = found[0]
        else:
            told = export.tags(folder.config, folder.study, folder.run_id) | export.origin(folder.path)
            start = stores.milliseconds(folder.status["started"])
            tags = {"mlflow.parentRunId": parent, **told}
            run = self._client.create_run(experiment, start, tags, cell(folder.config).title or folder.run_id)
        stores.remember(folder.path, self._uri, run_id=run.info.run_id)
        return run

    def _send_metrics(self, child: Child, rows: list[files.Record]) -> None:
        new = [(metric, value, step) for step, _, metric, value, _ in rows if (metric, step) not in child.sent]
        infinite = [f"{metric}@{step}" for step, _, metric, value, _ in rows if math.isinf(value)]
        if infinite:  # which a store would keep as 1.8e308
            self._client.set_tag(child.run_id, "fedray.infinite", " ".join(infinite)[:5000])
        for start in range(0, len(new), 1000):
            batch = new[start : start + 1000]
            self._log(child.run_id, batch)
            child.sent.update((key, step) for key, _, step in batch)

    def _log(
        self, run_id: str, points: Sequence[tuple[str, float, int]], moment: int | None = None, **about: str
    ) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000) if moment is None else moment
        told = [
            Metric(key, math.nan if math.isinf(value) else value, now, step, **about) for key, value, step in points
        ]
        self._client.log_batch(run_id, metrics=told)

    def _send_rest(self, child: Child, folder: RunFolder) -> dict[str, str]:
        """What a run leaves when it ends; what to remember of it."""
        self._send_data(child, folder)
        done = folder.status["state"] == "done"
        model = models.logged(self._client, self.invocation.experiment, child.run_id, folder) if done else None
        if done:
            self._send_final(child, folder, model)
        if model:
            self._link(child, str(model.model_id), folder.status["round"])
        public = yaml.safe_dump(export.public(folder.config), sort_keys=False, allow_unicode=True)
        self._client.log_text(child.run_id, public, "config.yaml")
        for path in export.artifacts(folder.path):
            self._upload(child.run_id, path, path.relative_to(folder.path))
        return {"model_id": str(model.model_id)} if model else {}

    def _send_final(self, child: Child, folder: RunFolder, model: LoggedModel | None) -> None:
        """The last scores, linked to the model: at the moment of the run's end, so that a store keeps one of each."""
        rows = export.final(folder.records(client=GLOBAL))
        linked = {(m.key, m.step) for m in model.metrics or ()} if model else set()
        missing = [
            (metric, value, step)
            for step, _, metric, value, _ in rows
            if (metric, step) not in child.sent or (model and (metric, step) not in linked)
        ]
        if missing:
            about = {"model_id": str(model.model_id)} if model else {}
            self._log(child.run_id, missing, stores.milliseconds(folder.status["updated"]), **about)
        child.sent.update((metric, step) for step, _, metric, _, _ in rows)

    def _link(self, child: Child, model_id: str, step: int) -> None:
        from mlflow.entities import LoggedModelOutput

        outputs = self._client.get_run(child.run_id).outputs
        if model_id not in [output.model_id for output in (outputs.model_outputs if outputs else ())]:
            self._client.log_outputs(child.run_id, [LoggedModelOutput(model_id, step)])

    def _upload(self, run_id: str, path: Path, name: Path) -> None:
        self._client.log_artifact(run_id, str(path), None if name.parent == Path() else str(name.parent))

    def _send_data(self, child: Child, folder: RunFolder) -> None:
        """What the run read, as its inputs; a store keeps one of each digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        told = [
            DatasetInput(Dataset(name, digest, "fedray", "fedray", schema), [InputTag("mlflow.data.context", context)])
            for name, digest, schema, context in export.inputs(folder.path, folder.config)
        ]
        if told:
            self._client.log_inputs(child.run_id, told)
        if folder.partition_path.is_file():
            digest = files.sha256(folder.partition_path.read_bytes())
            self._client.set_tag(child.run_id, "fedray.partition", digest)

    def _send_study(self, study: export.Study) -> None:
        last = None if self._watch else remembered(self._client, study.home, self._uri)
        ended = last and last.info.status == STATUS["done"]  # to send its files again is no invocation of its own
        run_id = str(last.info.run_id) if last and ended else self.invocation.run_id(study.home)
        known = self._client.get_run(run_id).data.metrics
        changed = {key: value for key, value in study.metrics.items() if known.get(key) != value}
        metrics = [(key, value, 0) for key, value in changed.items() if math.isfinite(value)]
        if metrics:
            self._log(run_id, metrics)
        if study.note:
            self._client.set_tag(run_id, "mlflow.note.content", study.note)
        for name, folder in (("figures", study.figures), ("tables", study.tables)):
            for path in export.inside(folder) if folder else ():
                self._upload(run_id, path, Path(name) / path.relative_to(folder or path))
        models.crown(self._client, self._study, study.home, self._uri)


def _connect(uri: str) -> MlflowClient:
    stores.before_import()
    from mlflow import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # says that it creates tables, at length
    return MlflowClient(tracking_uri=uri)

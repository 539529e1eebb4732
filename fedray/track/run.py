"""The run folder: one cell of a study on disk, the truth from which it resumes and from which all reports are made.

    runs/<study>/<run id>/
      config.yaml env.json status.json data.json
      rows.jsonl                        every number of the run, appended and synced before its checkpoint counts
      rounds.parquet clients.parquet    the same rows for readers: client == GLOBAL, and the others
      ckpt/r000012/                     state.safetensors, manifest.json; the two newest
      partition.parquet prompts/global.safetensors figures/ tables/
      private/                          mode 0700; written by the clients' processes, never read here

Rows are appended, so a commit costs what its own rows cost. The manifest holds the length and SHA-256 of the rows that
belong to it: what a kill left behind that is cut off by the next commit. The Parquet files are rewritten whole, so only
when the rows have doubled, and when the run ends.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fedray.errors import BadInput, Unavailable
from fedray.track import checkpoint, committed, export, files, layout, status, whole
from fedray.track.names import differences, flatten

if TYPE_CHECKING:
    import pyarrow as pa

    from fedray.types import Params, Round, Row

METRIC = re.compile(r"[a-z0-9_/]+")
JOURNAL, TABLES, GLOBAL = committed.JOURNAL, committed.TABLES, committed.GLOBAL
LOST = "agg/failed"  # updates that clients failed to send, a row of the round

log = logging.getLogger("fedray")


class RunFolder:
    """One run's folder; the process that calls `commit` is its only writer."""

    def __init__(self, path: Path) -> None:
        """Use `create` or `open`."""
        self.path = path
        self._config: dict[str, Any] | None = None
        self._mark = checkpoint.Mark()
        self._hash = hashlib.sha256()
        self._rows: list[files.Record] = []  # the committed ones, for the Parquet files
        self._tabled = 0  # rows in the Parquet files

    @classmethod
    def create(
        cls, root: Path, study: str, run_id: str, config: Mapping[str, Any], *, env: Mapping[str, Any] | None = None
    ) -> RunFolder:
        """Makes ``root/study/run_id`` (all folders 0700), or reopens it when it holds the same config.

        `env` adds to what env.json says; only the names in `layout.ENVIRONMENT` are kept. A field that the run's config
        does not have is younger than the run, and has its default: with another value the run's id would be another.

        Raises:
            BadInput: a name is no slug, the path leaves the root, or the run was started with another config.
            Unavailable: the place can't be written.
        """
        path = layout.place(root, study, run_id)
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        with files.writing(path):
            if not path.exists():
                layout.make(path, text, env or {}, config.get("rounds"))
            layout.close(path)
        run = cls.open(path)
        wanted = yaml.safe_load(text)
        if different := differences(flatten(wanted) | flatten(run.config), wanted):
            raise BadInput(whole.refused(path, different, run.config, wanted))
        whole.wake(path, run.config)
        return run

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run.

        Raises:
            Unavailable: there is nothing at `path`.
            BadInput: what is there is no run folder, or holds a symlink where fedray writes.
        """
        path = Path(path).absolute()
        if not path.is_dir():
            raise Unavailable(f"{path} does not exist; see the runs there are with: fedray ls runs")
        if not layout.is_run(path):
            raise BadInput(f"{path} is not a run folder (config.yaml and status.json are missing)")
        for entry in path.iterdir():
            if entry.is_symlink():
                raise BadInput(f"{entry} is a symlink; a run folder holds none, so put the real file there")
        return cls(path)

    @property
    def study(self) -> str:
        """Name of the folder around."""
        return self.path.parent.name

    @property
    def run_id(self) -> str:
        """Name of the folder."""
        return self.path.name

    @property
    def private_dir(self) -> Path:
        """Where the clients' processes keep private states (0700); nothing here reads it."""
        return self.path / "private"

    @property
    def partition_path(self) -> Path:
        """Where the caller saves the partition."""
        return self.path / "partition.parquet"

    @property
    def prompts_path(self) -> Path:
        """The final shared parameters, once finished; `fedray.track.whole.prompts` reads them."""
        return self.path / whole.PROMPTS

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        if self._config is None:
            self._config = files.read_mapping(self.path / "config.yaml", files.parsed_yaml)
        return self._config

    @property
    def status(self) -> dict[str, Any]:
        """What status.json says, read anew each time (see `fedray.track.status`).

        Raises:
            Unavailable: it is damaged.
        """
        return status.read(self.path)

    @property
    def state(self) -> str:
        """What to say of the run: that of `status`, or "stopped" where it says running and nobody is, or "damaged"."""
        return status.told(self.path).state

    def _set(self, *, sync: bool = True, **fields: Any) -> None:
        status.write(self.path, self.status, sync=sync, **fields)

    def begin(self, forked_from: str | None = None) -> None:
        """Says that the first round starts now: a folder may have waited for its turn. `forked_from`: another run."""
        self._set(state="running", started=layout.now(), forked_from=forked_from)

    def commit(self, done: Round, rows: Iterable[Row], private: Mapping[int, tuple[int, str]]) -> None:
        """Makes a finished round durable: killed at any point, `latest` finds this round or the one before.

        `private` are the clients' private states as (version, SHA-256): the manifest commits them with the global ones.

        Raises:
            Unavailable: the place can't be written; what was committed before stays intact.
            ValueError: the round is not after the last one, or a metric's name has other characters than a-z 0-9 _ /.
        """
        if done.round <= self._mark.round:
            raise ValueError(f"round {done.round} after round {self._mark.round}")
        new = [(int(r), int(k), str(m), float(v), int(n)) for r, k, m, v, n in rows]
        for name in dict.fromkeys(row[2] for row in new):
            if not METRIC.fullmatch(name):
                raise ValueError(f"metric {name!r} has other characters than a-z 0-9 _ /")
        lines = files.to_lines(new)
        total = self._hash.copy()
        total.update(lines)
        mark = checkpoint.Mark(done.round, self._mark.bytes + len(lines), total.hexdigest())
        with files.writing(self.path):
            files.append(self.path / JOURNAL, lines, at=self._mark.bytes)
            if len(self._rows) + len(new) >= 2 * self._tabled:
                self._write_tables([*self._rows, *new], sync=False)
            checkpoint.write(self.path / "ckpt", done, mark, private)
        self._mark, self._hash = mark, total
        self._rows += new
        with files.writing(self.path):
            checkpoint.prune(self.path / "ckpt", done.round)
            files.clear(self.path)
        self._set(sync=False, state="running", round=done.round)  # the checkpoint is the truth

    def _write_tables(self, rows: list[files.Record], *, sync: bool = True) -> dict[str, str]:
        parts = ([row for row in rows if row[1] == GLOBAL], [row for row in rows if row[1] != GLOBAL])
        images = {name: files.to_parquet(part) for name, part in zip(TABLES, parts, strict=True)}
        for name, image in images.items():
            files.replace(self.path / name, image, sync=sync)
        self._tabled = len(rows)
        return {name: files.sha256(image) for name, image in images.items()}

    def finish(self, params_shared: Params) -> None:
        """Writes the final prompts and tables and marks the run done.

        Raises:
            Unavailable: the place can't be written.
        """
        image = files.to_safetensors(params_shared)
        files.replace(self.prompts_path, image)
        self._close({whole.PROMPTS: files.sha256(image)}, state="done", error=None)

    def fail(self, error: BaseException | str) -> None:
        """Marks the run failed; the error is kept as one line. Where even that can't be written, a warning must do."""
        kind = "" if isinstance(error, str) else f"{type(error).__name__}: "
        self._try_close(state="failed", error=export.without_secrets(kind + files.one_line(error)))

    def interrupt(self) -> None:
        """Marks the run interrupted; `create` with the same config goes on."""
        try:
            self._try_close(state="interrupted", error=None)
        except KeyboardInterrupt:  # once more: then without tables, but not as if it still ran
            with suppress(Unavailable):
                self._set(state="interrupted", error=None)
            raise

    def _try_close(self, **fields: Any) -> None:
        try:
            self._close({}, **fields)
        except Unavailable as error:  # the caller has an error of its own to tell
            log.warning("%s", error)

    def _close(self, sums: Mapping[str, str], **fields: Any) -> None:
        if self._mark.round < 0:  # opened, not committed to: the rows are those of the last writer
            self._rows = committed.journal(self.path)
        sums = {**sums, **self._write_tables(self._rows)}
        with files.writing(self.path):
            files.clear(self.path)
            files.sync_folder(self.path)
        lost = int(sum(value for _, client, metric, value, _ in self._rows if (client, metric) == (GLOBAL, LOST)))
        self._set(files=sums, failures=lost or None, **fields)

    def latest(self) -> tuple[Round, checkpoint.Private] | None:
        """The newest intact checkpoint and its private states' (version, SHA-256); None when there is none yet.

        Later commits continue from it: rows of later rounds are dropped. The round's own `rows` are empty.

        Raises:
            Unavailable: there are checkpoints, and all of them are damaged.
        """
        damaged: list[str] = []
        for path in checkpoint.found(self.path / "ckpt"):
            try:
                done, private, mark, lines = checkpoint.read(path, self.path / JOURNAL)
            except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
                damaged.append(f"{path.name}: {error}")
                log.warning("run %s: checkpoint %s is damaged (%s), trying an older one", self.run_id, path.name, error)
                continue
            self._mark, self._hash = mark, hashlib.sha256(lines)
            self._rows, self._tabled = files.from_lines(lines), 0
            return done, private
        if damaged:
            raise Unavailable(
                f"run {self.run_id} has no intact checkpoint ({'; '.join(damaged)}); delete {self.path} to start anew"
            )
        return None

    def rows(self, *, client: int | None = None) -> list[Row]:
        """The committed rows; `client` picks one (GLOBAL: the rows of rounds)."""
        from fedray.types import Row

        return [Row(*row) for row in self.records(client=client)]

    def table(self, *, client: int | None = None) -> pa.Table:
        """`rows` as an Arrow table, without importing torch."""
        return files.to_table(self.records(client=client))

    def records(self, *, client: int | None = None) -> list[files.Record]:
        """`rows` as plain tuples, without importing torch."""
        return committed.records(self.path, client)

    def digest(self) -> str:
        """SHA-256 over the final prompts and all rows but those named ``time/``: equal runs, equal digests.

        Independent of how rows are stored and ordered; a value counts by its float64 bytes.
        """
        total = hashlib.sha256(whole.prompts(self.path))
        for r, client, metric, value, n in sorted(self.records(), key=lambda row: (*row[:3], row[4])):
            if not metric.startswith("time/"):
                bits = struct.pack("<iidq", r, client, math.nan if math.isnan(value) else value, n)
                total.update(bits + metric.encode() + b"\0")
        return total.hexdigest()


def runs(root: Path, study: str | None = None) -> list[RunFolder]:
    """The run folders below `root` (of one study, or of all), by name; whatever else lies there is skipped."""
    root = Path(root).expanduser().resolve()
    studies = layout.slugs(root) if study is None else [layout.place(root, study)]
    return [RunFolder(path) for folder in studies for path in layout.slugs(folder) if layout.is_run(path)]

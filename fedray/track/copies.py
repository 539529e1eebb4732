"""A copy of the results in an object store, or any file system that pyarrow knows: s3://, gs://, abfs://, file://.

    <uri>/<study>/<run id>/status.json rows.jsonl rounds.parquet ... prompts/global.safetensors
    <uri>/<study>/tables/...  figures/...

Written from run folders in the background, what changed alone, and status.json last: a copy that says "done" is whole.
The promise is a copy of results. Private states and checkpoints never leave the run folder, so a study resumes from
there and not from a copy.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from fedray.errors import BadInput
from fedray.track import export, whole
from fedray.track.background import Background
from fedray.track.run import RunFolder

SENT = (
    "config.yaml", "env.json", "data.json", "dropped.json", "partition.parquet", "rows.jsonl", "rounds.parquet",
    "clients.parquet", "prompts/global.safetensors",
)  # fmt: skip
"""All that is sent of a run, before its status."""
LAST = "status.json"
CHUNK = 1 << 22

log = logging.getLogger("fedray")


class Item(NamedTuple):
    """Files below a folder that are to be brought up to date, in this order."""

    root: Path
    names: tuple[str, ...]


class Copies:
    """The writer: `sync` returns at once and a thread does the rest; `close` waits for it and says what is left."""

    def __init__(self, uri: str, study: str) -> None:
        """Nothing is opened before the first `sync`.

        Raises:
            BadInput: the URI names no file system that pyarrow knows.
        """
        self.uri = uri.rstrip("/")
        if "://" not in self.uri or self.uri.partition("://")[0] not in KNOWN:
            shown = export.without_secrets(uri)
            raise BadInput(f"--copy {shown} is no address of a store; give one of {'://, '.join(KNOWN)}://")
        self._work: Background[Item] = Background(partial(_store, self.uri, study), name="copies")

    def sync(self, folder: RunFolder) -> None:
        """Brings the copy of a run up to date, soon."""
        self._work.put(folder.run_id, Item(folder.path.parent, _of_a_run(folder.run_id)))

    def log_study(self, home: Path, *, figures: Path, tables: Path, metrics: Mapping[str, float], note: str) -> None:
        """Adds figures and tables of a study."""
        made = [path for place in (figures, tables) if place.is_dir() for path in sorted(place.iterdir())]
        names = (path.relative_to(home).as_posix() for path in made if path.is_file())
        self._work.put("summary", Item(home, tuple(names)))

    def close(self, timeout: float = 120.0) -> list[str]:
        """Sends what is left; returns (and warns of) what was not."""
        failed = self._work.close(timeout)
        if failed:
            names, reason = ", ".join(sorted(failed)), export.without_secrets(next(iter(failed.values())))
            log.warning("copy: %d not fully sent: %s (%s); the next run sends them", len(failed), names, reason)
        return sorted(failed)


KNOWN = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "file")


def _of_a_run(run_id: str) -> tuple[str, ...]:
    return tuple(f"{run_id}/{name}" for name in (*SENT, LAST))


@contextmanager
def _store(uri: str, study: str) -> Iterator[Callable[[Item], None]]:
    from pyarrow import fs

    system, root = fs.FileSystem.from_uri(uri)
    system.create_dir(f"{root}/{study}", recursive=True)
    sent: dict[str, tuple[int, int]] = {}

    def copy(source: BinaryIO, goal: str) -> None:
        stat = os.fstat(source.fileno())
        mark = stat.st_size, stat.st_mtime_ns
        if sent.get(goal) == mark or (goal not in sent and _same(system, goal, stat.st_size, stat.st_mtime)):
            return
        system.create_dir(goal.rpartition("/")[0], recursive=True)
        with system.open_output_stream(goal) as to:
            while chunk := source.read(CHUNK):
                to.write(chunk)
        sent[goal] = mark

    def send(item: Item) -> None:
        with ExitStack() as stack:
            # opened first, sent last: of a run that ends meanwhile the copy must not say so before it has the rest
            held = {name: stack.enter_context(_opened(item.root / name)) for name in item.names if name.endswith(LAST)}
            for name in item.names:
                with held.get(name) or _opened(item.root / name) as source:
                    if source is None:
                        continue
                    if name.endswith(whole.PROMPTS):
                        whole.prompts((item.root / name).parent.parent)
                    copy(source, f"{root}/{study}/{name}")

    yield send


def _opened(path: Path) -> AbstractContextManager[BinaryIO | None]:
    """A plain file; None where there is none."""
    return path.open("rb") if path.is_file() and not path.is_symlink() else nullcontext()


def _same(system: Any, goal: str, size: int, changed: float) -> bool:
    """Whether an earlier process sent this: as long, and not older."""
    info = system.get_file_info(goal)
    return bool(info.is_file and info.size == size and info.mtime_ns is not None and info.mtime_ns >= changed * 1e9)

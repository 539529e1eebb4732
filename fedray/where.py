"""Where cells run and where results go: flags before environment before defaults; MLflow as the run folders' mirror."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro

from fedray.engine.placement import Kind
from fedray.track.mlflow import Mlflow
from fedray.track.run import RunFolder
from fedray.track.stores import default_uri


@dataclass(frozen=True)
class Where:
    """Where cells run and results go."""

    runs: Path | None = None  # root of the run folders ($FEDRAY_RUNS, else runs)
    mlflow: str | None = None  # MLflow store ($FEDRAY_MLFLOW, else RUNS/mlflow.db), or "off"
    placement: Kind = "auto"  # of clients: in the cell's process, packed in actors, or an actor for each
    actors: int | None = None  # host actors of each cell; 1 if not said
    concurrent: int | None = None  # cells at a time
    json: bool = False  # print one JSON object per line

    @property
    def root(self) -> Path:
        """Flag before environment before default."""
        return self.runs or Path(os.environ.get("FEDRAY_RUNS") or "runs")

    @property
    def store(self) -> str:
        """URI of the MLflow store, or "off"."""
        return self.mlflow or os.environ.get("FEDRAY_MLFLOW") or default_uri(self.root)

    @property
    def decided(self) -> dict[str, str]:
        """Who said where: a flag, the environment or nobody."""
        said = {"runs": (self.runs, "FEDRAY_RUNS"), "mlflow": (self.mlflow, "FEDRAY_MLFLOW")}
        return {
            name: f"--{name}" if flag else variable if os.environ.get(variable) else "default"
            for name, (flag, variable) in said.items()
        }

    @property
    def flags(self) -> str:
        """What to add to a command that should look at the same place."""
        return f" --runs {shlex.quote(str(self.root))}" if self.decided["runs"] == "--runs" else ""


At = Annotated[Where, tyro.conf.arg(name="")]
"""In a study's options: the flags above, without a prefix."""

HERE = Where()


def following(at: Where, name: str) -> list[str]:
    """Commands to go on with."""
    show = [] if at.store == "off" else [f"fedray ui --study {name}{at.flags}"]
    return [f"fedray ls{at.flags}", *show]


class NoStore(NamedTuple):
    """Stands in for `Mlflow` where it is off."""

    def sync(self, folder: RunFolder) -> None:
        """Nothing to do."""

    def log_study(self, home: Path, *, figures: Path, tables: Path, metrics: Mapping[str, float], note: str) -> None:
        """Nothing to do."""


@contextmanager
def mirrored(at: Where, name: str) -> Iterator[Mlflow | NoStore]:
    """Keep MLflow up to date with run folders, off the critical path."""
    if at.store == "off":
        yield NoStore()
        return
    writer = Mlflow(at.store, name)
    try:
        yield writer
    except BaseException:
        writer.close(timeout=10)  # what is missing comes with the next run
        raise
    writer.close()

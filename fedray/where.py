"""Where cells run and where results go: flags before environment before defaults; MLflow as the run folders' mirror."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import tyro

from fedray import console
from fedray.data import exams, sources
from fedray.data.cache import default_cache
from fedray.data.origins import ALIAS
from fedray.data.trees import home, origin
from fedray.engine.cluster import attached, given
from fedray.engine.placement import Kind
from fedray.errors import BadInput, Unavailable
from fedray.experiment import Experiment
from fedray.track.copies import Copies
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
    address: str | None = None  # Ray: "local", "auto" or HOST:PORT ($RAY_ADDRESS, else this host's cluster, else local)
    copy: str | None = None  # object store for a copy of the results, s3://BUCKET/PLACE ($FEDRAY_COPY)
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
    def away(self) -> str | None:
        """Address of a copy of the results, if one is asked for."""
        return self.copy or os.environ.get("FEDRAY_COPY") or None

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


Options = TypeVar("Options")

At = Annotated[Where, tyro.conf.arg(name="")]
"""In a study's options: the flags above, without a prefix."""

HERE = Where()


def following(at: Where, name: str) -> list[str]:
    """Commands to go on with; on a cluster's node also those for the machine that it was submitted from."""
    show = [] if at.store == "off" else [f"fedray ui --study {name}{at.flags}"]
    there = None
    with suppress(BadInput, Unavailable):  # it may have gone by now
        there = given()
    place = shlex.quote(str(at.root.expanduser().resolve() / name))
    fetch = [f"ray rsync-down CLUSTER.yaml {place} .   (on your machine; or look live: ray dashboard CLUSTER.yaml)"]
    return [f"fedray ls{at.flags}", *show, *(fetch if there else [])]


class Mirrors(NamedTuple):
    """All that keep up with run folders; none where MLflow is off and no copy is asked for."""

    writers: tuple[Mlflow | Copies, ...] = ()

    def sync(self, folder: RunFolder) -> None:
        """Bring what they have of a run up to date, soon."""
        for writer in self.writers:
            writer.sync(folder)

    def log_study(self, home: Path, *, figures: Path, tables: Path, metrics: Mapping[str, float], note: str) -> None:
        """Add what was made of the whole study."""
        for writer in self.writers:
            writer.log_study(home, figures=figures, tables=tables, metrics=metrics, note=note)

    def close(self, timeout: float) -> None:
        """Send what is left."""
        for writer in self.writers:
            writer.close(timeout)


@contextmanager
def mirrored(at: Where, name: str) -> Iterator[Mirrors]:
    """Keep MLflow and a copy up to date with run folders, off the critical path.

    Raises:
        BadInput: the copy's address is of no kind that is known.
    """
    stores = (Mlflow(at.store, name),) if at.store != "off" else ()
    writers = Mirrors((*stores, *((Copies(at.away, name),) if at.away else ())))
    try:
        yield writers
    except BaseException:
        writers.close(timeout=10)  # what is missing comes with the next run
        raise
    writers.close(timeout=120)


def settle(at: Where) -> None:
    """Make --address this process's own: whatever attaches to Ray later asks the environment, as Ray itself does.

    Raises:
        BadInput: it is no address.
    """
    if at.address is None:
        return
    if at.address not in ("local", "auto") and not re.fullmatch(r"(ray://)?\S+:\d+", at.address):
        raise BadInput(f"--address can't be {at.address!r}; give local, auto, or the HOST:PORT of a cluster")
    os.environ["RAY_ADDRESS"] = at.address


def settled(options: Options) -> Options:
    """A study's options, after `settle` of its `at`."""
    if isinstance(at := getattr(options, "at", None), Where):
        settle(at)
    return options


def present(cells: Sequence[Experiment], at: Where, *, ray: bool) -> None:
    """Tell before Ray's start that no cell has its data; where some have theirs, the others fail one by one.

    Args:
        cells: those that are to be computed.
        at: where.
        ray: whether Ray is needed; on a cluster that is there already, its nodes say what they lack.

    Raises:
        BadInput: a set wants its folder said.
        Unavailable: the first cell's data are missing, or nothing answers at the cluster's address.
    """
    settle(at)
    if ray and given():
        return
    lacking = []
    for sets in dict.fromkeys((cell.data.name, cell.exams, cell.data.root) for cell in cells):
        try:
            _there(*sets)
        except (BadInput, Unavailable) as error:
            lacking.append(error)
        else:
            return
    if lacking:
        raise lacking[0]


def _there(name: str, asked: str, root: str | None) -> None:
    """Open no file where a set's folder holds something; else its own source says what is missing."""
    for one in (name, *exams.elsewhere(asked)):
        known, folder = origin(one), home(ALIAS.get(one, one), Path(root) if root else None)
        made = known is not None and not (known.parts or known.page)
        if not made and not any(folder.glob("[!.]*")):
            sources.find(one)(root=Path(root) if root else None)


@contextmanager
def reached(at: Where, cells: Sequence[Experiment]) -> Iterator[None]:
    """Ray for the time of a block, on whose nodes these cells can run: all see the same run folders and data.

    Nothing at all where there are no cells, or all run in this process, one after the other.

    Raises:
        BadInput: a node lacks something, or sees another run folder.
        Unavailable: Ray can't be reached, or a node does not answer.
    """
    settle(at)
    if not cells or (at.placement == "inline" and at.concurrent == 1):
        yield
        return
    address = given()
    if not address and not at.json:
        console.say("ray · starts on this machine, in some ten seconds")
    with attached():
        from fedray.engine.nodes import Share, agree, needed

        shares = [Share(at.root, "--runs or FEDRAY_RUNS")]
        if at.placement != "inline":  # else a cell stays on the node that computes what it needs
            shares.append(Share(default_cache(), "FEDRAY_CACHE"))
        nodes = agree(shares, needed(cells))
        if address:
            root = at.root.expanduser().resolve()
            if at.json:
                console.tell("cluster", address=address, **nodes._asdict(), runs=root)
            else:
                console.say(f"cluster · {address} · {nodes} · run folders in {root}")
        yield

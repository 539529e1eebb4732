"""What the nodes of a cluster must have in common before clients are sent there, asked of each of them.

Run folders and the cache are named by paths: a path is only worth something where it leads to the same folder
everywhere. So a word is written into each, and every node reads it back: seconds now in place of a study whose private
states lie on one machine's own disk.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, NamedTuple

from fedray.engine.cluster import growth, resources
from fedray.errors import BadInput, Unavailable
from fedray.track import files

if TYPE_CHECKING:
    from fedray.experiment import Experiment

PATIENCE = 60.0
"""Seconds that a node may take to answer: a process is started there."""

MARK = ".driver"
"""File in a run's private folder with the word of whoever drives it."""


class Share(NamedTuple):
    """A folder that all nodes must see, and who says where it is."""

    path: Path
    said_by: str  # "--runs or FEDRAY_RUNS"


class Seen(NamedTuple):
    """What one node sees."""

    same: tuple[bool, ...]  # of each shared folder, whether it is the same one
    missing: tuple[str, ...]  # of the paths that are needed, those that are not there


class Nodes(NamedTuple):
    """A cluster, in numbers."""

    nodes: int
    cpus: float
    gpus: float
    grows: bool = False  # then CPUs and GPUs are those that it may grow to

    def __str__(self) -> str:
        now = " now, to grow to" if self.grows else ","
        return f"{self.nodes} node{'s' * (self.nodes != 1)}{now} {self.cpus:g} CPU, {self.gpus:g} GPU"


def agree(shares: Sequence[Share], needed: Sequence[str] = ()) -> Nodes:
    """Ask every node of the Ray that this process is attached to.

    Nodes that an autoscaler adds later are not asked: what starts on them calls `must_see`.

    Args:
        shares: folders that must be the same on all; made if they are not there.
        needed: paths that must be on all, as they are written.

    Raises:
        BadInput: a folder is another one on some node, or a path is not there.
        Unavailable: a folder can't be written, or a node does not answer.
    """
    there = _alive()
    total = resources()
    found = Nodes(len(there), total.get("CPU", 0), total.get("GPU", 0), bool(growth()))
    if len(there) > 1:
        with _words(shares) as words:
            for address, seen in zip(there, _asked(there, words, needed), strict=True):
                _told(address, seen, shares)
    return found


def see(words: Sequence[tuple[str, str]], needed: Sequence[str]) -> Seen:
    """What a node says: it reads the words, and looks for the paths."""
    same = []
    for path, word in words:
        try:
            same.append(Path(path).read_text() == word)
        except OSError:
            same.append(False)
    return Seen(tuple(same), tuple(path for path in needed if not Path(path).expanduser().exists()))


def mark(folder: Path) -> str:
    """Leave a new word in a folder, for `must_see` to look for on nodes that come later; returns the word.

    One for each time that somebody goes to work there: an old copy of the folder on a node's own disk has another.

    Raises:
        Unavailable: the folder can't be written.
    """
    word = secrets.token_hex(16)
    with files.writing(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.replace(folder / MARK, word.encode())
    return word


def must_see(place: str | Path, word: str | None = None, patience: float = 5.0) -> Path:
    """Refuse to work on a node that lacks what was made before: it would be made anew, on that node's own disk.

    Args:
        place: a folder that all nodes share.
        word: what `mark` left in it; None: the folder need only be there.
        patience: seconds for the word to arrive: a file system of the network may remember for a while what was.

    Returns:
        Where it is.

    Raises:
        Unavailable: nothing is there, or another folder than the one that was marked.
    """
    path, end = Path(place), monotonic() + patience
    while not (same := path.exists() and (word is None or _word(path) == word)) and word and monotonic() < end:
        sleep(0.1)
    if not same:
        import ray

        node, wrong = ray.util.get_node_ip_address(), "another folder" if path.exists() else "not there"
        raise Unavailable(f"{path} is {wrong} on node {node}; mount the disk that all nodes share there, too")
    return path


def _word(folder: Path) -> str:
    with suppress(OSError):
        return (folder / MARK).read_text()
    return ""


def needed(cells: Sequence[Experiment]) -> list[str]:
    """Paths that cells name, or where their data and those of their exams lie on this node."""
    from fedray.data.exams import elsewhere  # hosts import this file, and have no use for that
    from fedray.data.trees import home

    read = {name for cell in cells if not cell.data.root for name in (cell.data.name, *elsewhere(cell.exams))}
    sets = {str(folder) for name in read if (folder := home(name, None)).is_dir()}
    named = {path for cell in cells for path in (cell.data.root, cell.participation.trace) if path}
    weights = {cell.clip.weights for cell in cells if cell.clip.weights and Path(cell.clip.weights).is_file()}
    return sorted(sets | named | weights)


@contextmanager
def _words(shares: Sequence[Share]) -> Iterator[list[tuple[str, str]]]:
    written = []
    try:
        for share in shares:
            folder = share.path.expanduser().resolve()
            with files.writing(folder):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path, word = folder / f".shared-{secrets.token_hex(8)}", secrets.token_hex(16)
            files.replace(path, word.encode())
            written.append((str(path), word))
        yield written
    finally:
        for name, _ in written:
            with suppress(OSError):
                Path(name).unlink()


def _alive() -> dict[str, str]:
    """Nodes by address, with their ids; several on one machine get a number."""
    import ray

    found: dict[str, str] = {}
    nodes: list[dict[str, Any]] = ray.nodes()
    for node in nodes:
        if node["Alive"]:
            name = str(node["NodeManagerAddress"])
            found[name if name not in found else f"{name} ({len(found) + 1})"] = str(node["NodeID"])
    return found


def _asked(there: dict[str, str], words: Sequence[tuple[str, str]], needed: Sequence[str]) -> Iterator[Seen]:
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote: Any = ray.remote(num_cpus=0, max_retries=0)(see)
    calls = [
        remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(words, needed)
        for node in there.values()
    ]
    for address, call in zip(there, calls, strict=True):
        try:
            seen: Seen = ray.get(call, timeout=PATIENCE)
        except GetTimeoutError:
            raise Unavailable(f"node {address} did not answer within {PATIENCE:g} s; see: ray status") from None
        except RayError as error:
            first = next(iter(str(error).strip().splitlines()[-1:]), type(error).__name__)[:200]
            raise Unavailable(f"node {address} can't run fedray ({first}); install the same there") from error
        yield seen


def _told(address: str, seen: Seen, shares: Sequence[Share]) -> None:
    for same, share in zip(seen.same, shares, strict=True):
        if not same:
            raise BadInput(
                f"{share.path.expanduser().resolve()} on node {address} is not the same folder as here; name one on a "
                f"disk that all nodes share, by {share.said_by}"
            )
    if seen.missing:
        raise BadInput(
            f"{seen.missing[0]} is not there on node {address}; put it on a disk that all nodes share, and name it so"
        )

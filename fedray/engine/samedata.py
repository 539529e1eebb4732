"""Whether images, labels and classes are still those that a run was begun with: its folder keeps their digests.

    data.json    by data set (and exam that is another one): SHA-256 of images, labels and classes

Results of changed data would otherwise pass for results of the same experiment. Nothing here imports torch, so that a
finished run or sweep is compared, and told, at once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedray.data.cache import default_cache
from fedray.data.exams import elsewhere
from fedray.data.gathered import Digests, gather
from fedray.errors import BadInput, Unavailable
from fedray.track import files
from fedray.track.names import differences
from fedray.track.run import RunFolder

NOTE = "data.json"
SHOWN = 12
"""Digits of a digest in a message."""

log = logging.getLogger("fedray")


def begun(folder: RunFolder, digests: Digests) -> None:
    """Write down what a run is begun with, or compare it with what was written down.

    Raises:
        BadInput: the data are others than those that the run was begun with.
        Unavailable: the folder can't be written, or its note not be read.
    """
    if not (folder.path / NOTE).exists():
        files.replace(folder.path / NOTE, files.to_json(digests))
    _compare(folder, digests)


def unchanged(folders: Iterable[RunFolder], cache: Path | None = None) -> None:
    """Compare today's data with what runs were begun with, finished or not; each data set is read once.

    Runs that have not noted their data pass, and so do those whose data are not there: a warning says so.

    Raises:
        BadInput: the data of a run have changed; says what has, and what to do.
        Unavailable: a run's note can't be read.
    """
    known: dict[tuple[Any, ...], Digests | None] = {}
    for folder in folders:
        if not (folder.path / NOTE).exists():
            continue
        data = folder.config["data"]
        others = elsewhere(folder.config.get("exams", ""))
        key = (data["name"], data["root"], data["bad"], *others)
        if key not in known:
            known[key] = _today(data, others, cache or default_cache())
        if (digests := known[key]) is not None:
            _compare(folder, digests)


def _today(data: dict[str, Any], others: list[str], cache: Path) -> Digests | None:
    """The digests of data as they are now; None if they are not there."""
    try:
        return gather(data["name"], others, root=data["root"], skip=data["bad"] == "skip", cache=cache).digests
    except Unavailable as error:
        log.warning("whether the data have changed can't be told: %s", error)
        return None


def _compare(folder: RunFolder, digests: Digests) -> None:
    then = files.read_mapping(folder.path / NOTE, json.loads)
    if then == json.loads(files.to_json(digests)):
        return
    changed = differences(*({name: _short(what) for name, what in told.items()} for told in (then, digests)))
    raise BadInput(
        f"run {folder.run_id} was begun with other data ({changed}); bring the data back, choose another --runs "
        f"folder, or delete {folder.path}"
    )


def _short(digests: Any) -> dict[str, str]:
    return {what: digest[:SHOWN] for what, digest in digests.items()}

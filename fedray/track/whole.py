"""Whether a run's files are still those that fedray wrote, and what makes them so again.

config.yaml                  edited by hand: refused, and told as what it is
prompts/global.safetensors   damaged: refused by whoever reads it; made anew when the run is resumed
status.json                  damaged: shown as such in listings; made anew when the run is resumed
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from fedray.errors import BadInput, Unavailable
from fedray.track import checkpoint, files, layout, status
from fedray.track.names import fork_command

if TYPE_CHECKING:
    from fedray.track.run import RunFolder

CONFIG, PROMPTS = "config.yaml", "prompts/global.safetensors"

log = logging.getLogger("fedray")


class Named(Protocol):
    """An experiment, which knows what its run is called."""

    @property
    def run_id(self) -> str:
        """Name of the run folder."""
        ...


Meant = TypeVar("Meant", bound=Named)


def prompts(run: Path) -> bytes:
    """The file of a run's final shared parameters, as it was written; empty before it is finished.

    Raises:
        Unavailable: it is missing or damaged.
    """
    path = run / PROMPTS
    image, said = files.read(path), status.read(run)
    known = said.get("files", {}).get(PROMPTS)  # a run of before these were noted has none
    if (said["state"] == "done" and not image) or known not in (None, files.sha256(image)):
        wrong = "has another SHA-256 than status.json says" if image else "is missing"
        raise Unavailable(f"{path} {wrong}; make it anew with: fedray resume {quote(str(run))}")
    return image


def wake(run: Path, config: Mapping[str, Any]) -> None:
    """Says "running" of a run that was cut short, and of one of which something has to be made anew.

    Raises:
        Unavailable: the place can't be written.
    """
    said = status.told(run)
    if said.state in ("failed", "interrupted"):
        status.write(run, status.read(run), state="running", error=None)
    elif said.state == "damaged":
        log.warning("%s; it is made anew", said.error.partition("; make it anew")[0])
        last = max((int(path.name[1:]) for path in checkpoint.found(run / "ckpt")), default=0)
        anew = {"state": "running", "round": last, "rounds": config.get("rounds"), "started": layout.now()}
        own = files.sha256(files.read(run / CONFIG))
        status.write(run, anew, config=own, forked_from=config.get("forked_from") or None)
    elif said.state == "done":
        try:
            prompts(run)
        except Unavailable as error:
            log.warning("%s; it is made anew", str(error).partition("; make it anew")[0])
            status.write(run, status.read(run), state="running")


def edited(run: Path) -> bool:
    """Whether a run's configuration is not as fedray wrote it."""
    known = None if status.told(run).state == "damaged" else status.read(run).get("config")
    return known not in (None, files.sha256(files.read(run / CONFIG)))


def refused(run: Path, different: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Why a run can't go on with the configuration `new` in place of its own, and what can be done.

    Args:
        run: its folder.
        different: the two in words, as `names.differences` has it.
        old: what is in the folder.
        new: what was asked for.
    """
    if edited(run):
        return f"{run / CONFIG} was edited by hand, and what was asked differs: {different}; undo that, or delete {run}"
    remedy = f"use another seed or study, or delete {run}"
    if checkpoint.found(run / "ckpt") and not _private(old) and not _private(new):
        remedy = f"go on with the change as a new run: {fork_command(run, old, new)}; or {remedy}"
    return f"run {run.name} was started with {different}; {remedy}"


def experiment(folder: RunFolder, parse: Callable[[Mapping[str, Any]], Meant]) -> Meant:
    """The experiment that a run's configuration describes, made by `parse` (`fedray.experiment.from_dict`).

    Raises:
        BadInput: it describes another one than this run's: it was edited by hand, or is of another version.
        Unavailable: it can't be read.
    """
    odd, meant = None, None
    try:
        meant = parse(folder.config)
    except BadInput as error:
        odd = error
    if meant is not None and meant.run_id == folder.run_id:
        return meant
    if edited(folder.path):
        remedy = "start a new run with the change"
        if not _private(folder.config):
            remedy = f"go on with the change as a new run: {fork_command(folder.path, {}, {})} --FIELD VALUE"
        wrong = f"{folder.path / CONFIG} was edited by hand (status.json has another SHA-256 of it)"
        raise BadInput(f"{wrong}; undo that, and {remedy}")
    raise odd or BadInput(
        f"run {folder.run_id} was written by a fedray with other defaults, or with another text of its method's file; "
        "go on with that version"
    )


def _private(config: Mapping[str, Any]) -> bool:
    """Whether epsilon is counted, of all rounds alike: such a run can't be forked, nor a fork become one."""
    return "dpfedavg" in str(config.get("server"))

"""`fedray doctor`: whether this machine has what it takes, and what helps where it has not."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from fedray.commands import options
from fedray.commands.data import where
from fedray.commands.options import Json, Runs
from fedray.console import columns, complain, say, size, tell
from fedray.data import sources
from fedray.data.cache import default_cache
from fedray.engine.cluster import cpus, free_memory
from fedray.errors import BadInput, Unavailable

PACKAGES = ("fedray", "torch", "torchvision", "ray", "mlflow", "open_clip_torch", "optuna", "pyarrow", "scikit-learn")
NEEDED_MEMORY = 2 << 30
NEEDED_DISK = 1 << 30


@dataclass(frozen=True)
class Doctor:
    """Whether this machine has what it takes.

    fedray doctor
    """

    runs: Runs = None
    json: Json = False

    def __call__(self) -> int:
        """Do it."""
        return doctor(options.place(self).root, json=self.json)


class Finding(NamedTuple):
    """One line of the report; `state` is bad where a run could not start, and then says the remedy."""

    what: str
    state: Literal["ok", "note", "bad"]
    text: str


def doctor(runs: Path, *, json: bool) -> int:
    """Look at everything; 4 if something that every run needs is broken, else 0."""
    findings = [*_versions(), *_machine(), *_places(runs), *_weights(), *_data(), _ray()]
    if json:
        for finding in findings:
            tell("finding", **finding._asdict())
    else:
        say(columns(("", "", ""), [(f.state, f.what, f.text) for f in findings]).lstrip())
    bad = [finding for finding in findings if finding.state == "bad"]
    for finding in bad:
        complain(f"{finding.what}: {finding.text}")
    return 4 if bad else 0


def _versions() -> Iterator[Finding]:
    yield Finding("python", "ok", platform.python_version())
    for name in PACKAGES:
        try:
            yield Finding(name, "ok", metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(name, "bad", f"is not installed; pip install {name}")


def _machine() -> Iterator[Finding]:
    import torch

    yield Finding("cpus", "ok", str(cpus()))
    memory = free_memory()
    few = "" if memory >= NEEDED_MEMORY else "; little for Ray, use --placement inline"
    yield Finding("memory", "note" if few else "ok", f"{size(memory)} free{few}")
    found = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Finding("gpus", "ok" if found else "note", ", ".join(found) or "none, everything runs on the CPU")


def _places(runs: Path) -> Iterator[Finding]:
    for what, path, option in (("runs", runs, "--runs"), ("cache", default_cache(), "FEDRAY_CACHE")):
        place = path.absolute()
        there = next((folder for folder in (place, *place.parents) if folder.exists()), Path("/"))
        try:
            with tempfile.TemporaryFile(dir=there):
                free = shutil.disk_usage(there).free
        except OSError as error:
            reason = (error.strerror or "no access").lower()
            yield Finding(what, "bad", f"{path} can't be written ({reason}); choose another place with {option}")
            continue
        few = "" if free >= NEEDED_DISK else "; less than 1 GB"
        yield Finding(what, "note" if few else "ok", f"{path}, {size(free)} free{few}")


def _weights() -> Iterator[Finding]:
    from fedray.nn import backbone

    try:
        yield Finding("backbone", "ok", f"embedded, digest {backbone.load('embedded').digest[:12]}")
    except (BadInput, Unavailable) as error:
        yield Finding("backbone", "bad", str(error))


def _data() -> Iterator[Finding]:
    """Which sets are here; whether one is whole, says `fedray data verify`, which reads all of it."""
    for name in sources.names():
        here, place = where(name)
        yield Finding(f"data {name}", "ok" if here else "note", place)


def _ray() -> Finding:
    address = os.environ.get("RAY_ADDRESS")
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    place = f"cluster at {address}" if address else "local, on loopback only"
    if mode != "token":
        return Finding("ray", "note", f"{place}; RAY_AUTH_MODE is {mode}: whoever reaches the port runs code as you")
    return Finding("ray", "ok", f"{place}, with a token")

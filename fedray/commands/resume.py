"""`fedray resume`: go on with a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from fedray.commands import options
from fedray.commands.found import find
from fedray.commands.options import Actors, Address, Copy, Json, Placed, Runs, Store
from fedray.commands.run import run
from fedray.errors import BadInput
from fedray.experiment import from_dict
from fedray.where import Where


@dataclass(frozen=True)
class Resume:
    """Go on with a run that was cut short.

    fedray resume runs/single/otdpp-1f2e3d4c5b6a
    """

    run: Annotated[Positional[str], arg(metavar="RUN", help="its folder, or the beginning of its id")]
    placement: Placed = "auto"
    actors: Actors = None
    runs: Runs = None
    mlflow: Store = None
    address: Address = None
    copy: Copy = None
    json: Json = False

    def __call__(self) -> int:
        """Do it."""
        return resume(self.run, options.place(self))


def resume(name: str, at: Where) -> int:
    """Continue a run that was cut short, named by path, id, or the beginning of its id.

    Raises:
        BadInput: nothing, or more than one run, has that name; or its method's file is gone.
    """
    folder = find(name, at.root)
    file = str(dict(folder.config.get("method") or {}).get("name", ""))
    if file.endswith(".py") and not Path(file).is_file():
        raise BadInput(f"run {folder.run_id} needs its method's file {file}, which is gone; put it back there")
    experiment = from_dict(folder.config)
    if experiment.run_id != folder.run_id:
        raise BadInput(f"run {folder.run_id} was written by a fedray with other defaults; resume it with that version")
    return run(experiment, replace(at, runs=folder.path.parent.parent), folder.study)

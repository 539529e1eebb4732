"""`fedray resume`: go on with a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

from tyro.conf import Positional, arg

from fedray.commands import options
from fedray.commands.found import find
from fedray.commands.options import Actors, Address, Copy, Json, Placed, Runs, Store
from fedray.commands.run import run
from fedray.errors import BadInput
from fedray.experiment import as_dict, from_dict
from fedray.flags import parse, single
from fedray.recipe import Scalar
from fedray.track import whole
from fedray.track.names import differences
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

    def __call__(self, words: Sequence[str] = ()) -> int:
        """Do it; `words` that set a field to another value are refused."""
        return resume(self.run, options.place(self), parse(words, options.names(self)))


def resume(name: str, at: Where, fields: Mapping[str, Sequence[Scalar]] = MappingProxyType({})) -> int:
    """Continue a run that was cut short, named by path, id, or the beginning of its id.

    Raises:
        BadInput: nothing, or more than one run, has that name; its method's file is gone; its configuration was edited
            by hand; or `fields` would change it.
    """
    folder = find(name, at.root)
    file = str(dict(folder.config.get("method") or {}).get("name", ""))
    if file.endswith(".py") and not Path(file).is_file():
        raise BadInput(f"run {folder.run_id} needs its method's file {file}, which is gone; put it back there")
    experiment = whole.experiment(folder, from_dict)
    wanted = experiment.override(**single(fields, "resume goes on with the run's own"))
    old, new = as_dict(experiment), as_dict(wanted)
    if different := differences(old, new):
        raise BadInput(whole.refused(folder.path, different, old, new))
    return run(experiment, replace(at, runs=folder.path.parent.parent), folder.study)

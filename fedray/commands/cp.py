"""`fedray cp`: a study that comes along, to change it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Annotated

from tyro.conf import Positional, arg

from fedray import shipped
from fedray.commands.making import made
from fedray.commands.options import Json
from fedray.errors import BadInput, did_you_mean


@dataclass(frozen=True)
class Cp:
    """Copy a study that comes along, to change it.

    fedray cp alpha_sweep .
    """

    study: Annotated[Positional[str], arg(metavar="STUDY", help="its name; see fedray ls studies")]
    to: Annotated[Positional[Path], arg(metavar="PLACE", help="a folder, or a file's name")] = Path()
    json: Json = False

    def __call__(self) -> int:
        """Do it."""
        source = shipped_study(self.study)
        target = self.to / source.name if self.to.is_dir() else self.to
        then = f"fedray run {quote(str(target))} --smoke"
        return made(target, source.read_bytes(), "cp", then, json=self.json, study=source.stem)


def shipped_study(name: str) -> Path:
    """The file of a study that comes along.

    Raises:
        BadInput: none has that name.
    """
    known, stem = shipped.studies(), name.removesuffix(".py")
    if stem not in known:
        raise BadInput(f"study {name} does not exist. {did_you_mean(stem, known)}")
    return known[stem]

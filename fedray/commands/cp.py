"""`fedray cp`: a study that comes along, to change it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from fedray import shipped
from fedray.commands.options import Json
from fedray.console import say, tell
from fedray.errors import BadInput, Unavailable, did_you_mean


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
        if target.exists():
            raise BadInput(f"{target} is there already; remove it, or name another place")
        try:
            target.write_bytes(source.read_bytes())
        except OSError as error:
            reason = (error.strerror or "no access").lower()
            raise Unavailable(f"can't write {target}: {reason}; name another place") from None
        if self.json:
            tell("cp", study=source.stem, file=target)
        else:
            say(f"saved · {target}")
            say(f"next · fedray run {target} --smoke")
        return 0


def shipped_study(name: str) -> Path:
    """The file of a study that comes along.

    Raises:
        BadInput: none has that name.
    """
    known, stem = shipped.studies(), name.removesuffix(".py")
    if stem not in known:
        raise BadInput(f"study {name} does not exist. {did_you_mean(stem, known)}")
    return known[stem]

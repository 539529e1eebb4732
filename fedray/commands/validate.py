"""`fedray validate`: everything that is wrong with an experiment's file or a method's, at once."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from fedray.commands import options
from fedray.commands.options import Json, Protocol
from fedray.console import complain, describe, say, tell
from fedray.errors import BadInput
from fedray.experiment import Experiment
from fedray.flags import Wish, canonical, read, resolve
from fedray.protocols import find
from fedray.recipe import Recipe
from fedray.study import possible


@dataclass(frozen=True)
class Validate:
    """Everything that is wrong with an experiment's file, or with a method's, at once.

    fedray validate skewed.yaml --rounds 50
    """

    file: Annotated[Positional[Path], arg(metavar="FILE", help="YAML of an experiment, or Python of a method")]
    protocol: Protocol = None
    json: Json = False

    def __call__(self, words: Sequence[str]) -> int:
        """Do it with the fields that `words` set; 2 if anything is wrong."""
        if not self.file.is_file():
            what = "is a folder" if self.file.is_dir() else "does not exist"
            raise BadInput(f"{self.file} {what}; give a YAML file of an experiment, or a method's .py file")
        if self.file.suffix == ".py":
            fine, errors = _method(self.file, words)
        else:
            fine, errors = _experiment(self.file, words, options.names(self), self.protocol)
        if self.json:
            tell("validate", file=self.file, errors=errors)
        for error in errors:
            complain(error)
        if not errors and not self.json:
            say(f"{self.file} · fine: {fine}")
        return 2 if errors else 0


def _experiment(file: Path, words: Sequence[str], own: Sequence[str], protocol: str | None) -> tuple[str, list[str]]:
    """What is fine of it, or what is wrong."""
    wish = read(file)
    errors = _singly(wish, find(protocol) if protocol else {})
    if errors:
        return "", errors
    base = resolve(file, words, own, protocol=protocol).base
    possible([base], "auto", None)
    return f"{describe(base)}, {base.rounds} rounds", []


def _singly(wish: Wish, start: Mapping[str, Any]) -> list[str]:
    """Each field's own mistake: those that choose what others there are come first, a wrong one is then left out."""
    base, errors = Experiment().override(**start), []
    first = ("method", "partition", "server")
    for path in sorted(wish.values, key=lambda path: canonical(path) not in first):
        try:
            base = base.override(**{path: wish.values[path]})
        except BadInput as error:
            errors.append(f"{error} ({wish.where[path]})")
    return errors


def _method(file: Path, words: Sequence[str]) -> tuple[str, list[str]]:
    """Its options first, then the contract that every method keeps to."""
    recipe = resolve(None, ["--method", str(file), *words], ()).base.method
    from fedray.nn import backbone  # torch
    from fedray.testing import CHECKS

    clip, errors = backbone.tiny(), []
    checks: dict[str, Callable[..., None]] = {check.__name__.replace("_", " "): check for check in CHECKS}
    for name, check in checks.items():
        try:
            check(recipe, clip)
        except (AssertionError, BadInput) as error:
            errors.append(f"{file}: {name}: {error}")
        except Exception as error:  # the file is the user's: whatever it raises is its mistake
            said = f"{file}{_line(error, recipe)}: {type(error).__name__}: {error}"
            errors += [said] if said not in errors else []
    return f"{recipe!r} passes {len(checks)} checks", errors


def _line(error: Exception, recipe: Recipe) -> str:
    """The last line of the user's file that the error came through."""
    inside = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(recipe.file)]
    return f":{inside[-1]}" if inside else ""

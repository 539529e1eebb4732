"""`fedray new`: an experiment's file with every field in it, or a method's file to start from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from keyword import iskeyword
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

from tyro.conf import Positional, arg

from fedray import protocols
from fedray.commands.making import made
from fedray.commands.options import Json, Protocol
from fedray.errors import BadInput
from fedray.experiment import Experiment, as_dict, flatten
from fedray.fields import KINDS, leaves

METHOD = '''\
"""{title}: a shared and a private context for each class, compared with images by cosine.

    logits = scale * mean_n cos(text_n, image)        text_1 from the shared context, text_2 from the private one

Name your paper here: authors, "A title of at least twenty letters", venue, year. Departs from it: nothing is known yet.
"""

from fedray.method import PromptMethod
from fedray.nn.heads import Cosine
from fedray.nn.prompts import Beside, TextContext


def {name}(clip, *, n_ctx: int = 4):
    """{title}.

    Args:
        clip: the frozen backbone.
        n_ctx: context tokens of each prompt.
    """
    prompts = Beside(shared=TextContext(clip, n=n_ctx), local=TextContext(clip, n=n_ctx))
    return PromptMethod(prompts, Cosine(), private=["prompts.local.*"])
'''


@dataclass(frozen=True)
class New:
    """A file to start from: an experiment with every field, its rule and meaning, or a method.

    fedray new skewed --protocol otdpp
    """

    name: Annotated[Positional[str | None], arg(metavar="NAME", help="of the experiment; makes NAME.yaml")] = None
    method: Annotated[Path | None, arg(metavar="FILE", help="makes a method's file instead, as mine.py")] = None
    protocol: Protocol = None
    json: Json = False

    def __call__(self) -> int:
        """Do it."""
        if (self.name is None) == (self.method is None):
            raise BadInput("give the name of an experiment, or --method FILE; e.g. fedray new skewed")
        if self.method is not None:
            path, text, then = self.method, method(self.method), f"fedray validate {quote(str(self.method))}"
        else:
            path = Path(f"{self.name}".removesuffix(".yaml") + ".yaml")
            text, then = experiment(self.protocol), f"fedray run --config {quote(str(path))}"
        return made(path, text.encode(), "new", then, json=self.json)


def method(path: Path) -> str:
    """The text of a method's file.

    Raises:
        BadInput: the file's name can't be that of a function.
    """
    fits = path.stem.isidentifier() and path.stem.islower() and not iskeyword(path.stem)
    if path.suffix != ".py" or not fits:
        raise BadInput(f"--method can't be {path}: its function is named like the file, e.g. mine.py")
    return METHOD.format(name=path.stem, title=path.stem.capitalize())


def experiment(protocol: str | None) -> str:
    """YAML with every field of an experiment, the protocol's values in it, and behind each its rule and meaning."""
    base = Experiment().override(**protocols.find(protocol)) if protocol else Experiment()
    about = {leaf.path: "; ".join(filter(None, (leaf.rule, leaf.note))) for leaf in _about(base)}
    about |= {path: note for path, (_, note) in KINDS.items()}
    head = "# An experiment of fedray. A field that is left out has the value here; fedray run --help lists the other\n"
    return (
        head
        + "# kinds of partition and server with their fields.\n"
        + "\n".join(_lines(flatten(as_dict(base)), about))
        + "\n"
    )


def _about(base: Experiment) -> Iterator[Any]:
    yield from leaves()
    for path in KINDS:
        value = getattr(base, path)
        if value is not None:
            yield from leaves(type(value), f"{path}.")


def _lines(values: dict[str, Any], about: dict[str, str]) -> Iterator[str]:
    opened: list[str] = []
    for path, value in values.items():
        *parents, leaf = path.split(".")
        for depth, name in enumerate(parents):
            if opened[: depth + 1] != parents[: depth + 1]:
                opened = parents[: depth + 1]
                note = about.get(".".join(opened))
                yield f"{'  ' * depth}{name}:" + (f"  # {note}" if note else "")
        opened = parents
        text = f"{'  ' * len(parents)}{leaf}: {json.dumps(value)}"
        yield f"{text:<30}  # {about[path]}" if about.get(path) else text

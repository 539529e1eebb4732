"""Learned prompts as one file: all that it takes to score images with nothing else but the backbone.

    params/<name>   learned parameters; in the global view the shared ones alone
    inbox/<name>    what else the server had sent: other clients' prompts, experts
    metadata        one JSON text, key "fedray": `About`, with the SHA-256 of all the rest

Reading runs no code from the file: tensors are safetensors, the method is one of ours by name (or a file that the
reader names, whose text must be the one that was trained), options are plain values that its signature allows.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from shlex import quote
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedray import __version__, recipe
from fedray.errors import BadInput, Unavailable
from fedray.experiment import Clip
from fedray.learned import Learned, Names, Origin, filled, remade
from fedray.method import parameters, split
from fedray.recipe import Recipe
from fedray.track import files, layout
from fedray.types import Params

FORMAT = "fedray prompts 1"
KEY = "fedray"
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""What a backbone's name and its weights' tag look like: nothing that could be a path or an address."""
WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")
SPARE = 2**26
"""Numbers that a method may be made of beside four times those in its file, which lacks private ones: 256 MB."""
STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Backbone:
    """The frozen CLIP that the prompts were learned for."""

    name: str
    weights: str | None  # a tag, or the name of a file that the reader must have
    precision: str
    digest: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class About:
    """What a file says of itself."""

    format: str
    fedray: str  # version that wrote it
    experiment: str
    study: str
    run: str
    round: int
    client: int | None
    view: str
    private: list[str]  # parameters in it that had never left the client
    method: str
    text: str | None  # SHA-256 of the method's file, where it is none of ours
    options: dict[str, bool | int | float | str | None]
    seed: int
    backbone: Backbone
    classes: list[str]
    templates: list[str]
    multilabel: bool
    sha256: str


_ABOUT: TypeAdapter[About] = TypeAdapter(About)


def keep(learned: Learned, path: Path) -> About:
    """Write the file, whole or not at all, mode 0600.

    Raises:
        BadInput: a file is there already, its folder is not, or private parameters would lie in a run folder.
        Unavailable: the place can't be written.
    """
    path = Path(path).expanduser().absolute()
    tensors, about = _content(learned)
    if path.exists():
        raise BadInput(f"{path} is there already; remove it, or name another file with --to")
    if not path.parent.is_dir():
        raise BadInput(f"folder {path.parent} does not exist; make it, or name another file with --to")
    if about["private"] and (home := next((p for p in path.resolve().parents if layout.is_run(p)), None)):
        raise BadInput(f"{path} lies in the run folder {home.name}, whose files may be uploaded; choose another place")
    about["sha256"] = _sha256(tensors, about)
    text = json.dumps(about, sort_keys=True)
    files.replace(path, save({n: v.contiguous().clone() for n, v in tensors.items()}, {KEY: text}))
    return _ABOUT.validate_json(text)


def _content(learned: Learned) -> tuple[Params, dict[str, Any]]:
    origin, method = learned.origin, learned.method
    shared, own = split(parameters(method), method.private)
    private = own if origin.client is not None else {}
    tensors = {f"params/{name}": value for name, value in (shared | private).items()}
    tensors |= {f"inbox/{name}": value.detach().cpu() for name, value in learned.inbox.items()}
    ours, weights = origin.recipe.is_ours, origin.clip.weights
    about = {
        "format": FORMAT,
        "fedray": __version__,
        "experiment": origin.experiment,
        "study": origin.study,
        "run": origin.run,
        "round": origin.round,
        "client": origin.client,
        "view": learned.view,
        "private": sorted(private),
        "method": origin.recipe.name if ours else origin.recipe.file.name,
        "text": None if ours else files.sha256(origin.recipe.file.read_bytes()),
        "options": origin.recipe.options,
        "seed": origin.seed,
        "backbone": {
            "name": origin.clip.name.replace("/", "-"),
            "weights": Path(weights).name if weights and Path(weights).suffix in WEIGHTS else weights,
            "precision": origin.clip.precision,
            "digest": learned.clip.digest,
        },
        "classes": list(learned.names),
        "templates": list(learned.templates),
        "multilabel": learned.task.multilabel,
    }
    return tensors, about


def _sha256(tensors: Params, about: dict[str, Any]) -> str:
    rest = {key: value for key, value in about.items() if key != "sha256"}
    return files.sha256(files.to_line(rest) + files.to_safetensors(tensors))


def load_prompts(
    path: str | Path, *, weights: str | None = None, method: str | None = None, device: str = "cpu"
) -> Learned:
    """The classifier in a file that `fedray export` wrote: its digests, names and shapes are checked.

    Args:
        path: the file.
        weights: of the backbone, where they were a file: that file.
        method: where the method was a file: that file, whose text must be the one that was trained.
        device: where it computes.

    Raises:
        BadInput: it is no such file, or of other weights, another method or another fedray than there are here.
        Unavailable: it is missing or damaged, or the backbone's weights are missing.
    """
    path = Path(path).expanduser()
    about, tensors = read(path)
    b = about.backbone
    for name in (b.name, *([] if b.weights is None else [b.weights])):
        if not PLAIN.fullmatch(name):
            raise BadInput(f"{path}: {name[:80]!r} is no backbone's name; take a file that fedray export wrote")
    if weights is None and b.weights is not None and Path(b.weights).suffix in WEIGHTS:
        raise BadInput(
            f"{path} was learned on weights in a file, {b.weights}; say where it is with weights (--weights)"
        )
    try:
        clip = Clip(name=b.name, weights=weights or b.weights, precision="bf16" if b.precision == "bf16" else "fp32")
        origin = Origin(
            about.experiment,
            about.study,
            about.run,
            about.round,
            about.client,
            _recipe(about, method),
            about.seed,
            clip,
        )
        most = SPARE + 4 * sum(tensor.numel() for tensor in tensors.values())
        made = remade(origin, Names(tuple(about.classes), tuple(about.templates), about.multilabel), most)
        if made.clip.digest != b.digest:
            raise BadInput(
                f"its backbone {b.name} has digest {b.digest[:12]}, the one here {made.clip.digest[:12]}; get the "
                "weights that it was learned on"
            )
        params, inbox = _under("params/", tensors), _under("inbox/", tensors)
        shared, private = split(params, made.method.private if about.client is not None and params else ())
        return filled(made, shared, private, inbox, device)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    except (RuntimeError, MemoryError) as error:  # options that no memory can hold
        raise BadInput(f"{path}: its method can't be made ({files.one_line(error)}); export the run again") from None


def read(path: Path) -> tuple[About, Params]:
    """What a file says of itself, and its tensors; its SHA-256 is checked.

    Raises:
        BadInput: it holds something else, or is of another version.
        Unavailable: it is missing or damaged.
    """
    if layout.is_run(path):
        raise BadInput(f"{path} is a run folder; make a file of it with: fedray export {quote(str(path))}")
    if not path.is_file():
        raise Unavailable(f"{path} does not exist; make it with: fedray export RUN --to {quote(str(path))}")
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise Unavailable(f"{path} can't be read ({files.one_line(error)}); export the run again") from None
    if text is None:
        raise BadInput(f"{path} is a safetensors file without prompts; take one that fedray export wrote")
    try:
        told: dict[str, Any] = json.loads(text)
        if told["format"] != FORMAT:
            raise BadInput(f"{path} says {str(told['format'])[:40]!r}, this fedray reads {FORMAT!r}; export it again")
        about = _ABOUT.validate_json(text)
    except (ValueError, TypeError, KeyError, RecursionError, ValidationError) as error:
        if isinstance(error, BadInput):
            raise
        raise Unavailable(f"{path} is damaged, its metadata can't be read; export the run again") from None
    if _sha256(tensors, told) != about.sha256:
        raise Unavailable(f"{path} is damaged, its SHA-256 differs; export the run again")
    return about, tensors


def _under(prefix: str, tensors: Params) -> Params:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _recipe(about: About, method: str | None) -> Recipe:
    """The method by its name; a file only where the reader names it, and its text is the one that was trained."""
    if about.text is None:
        if about.method not in recipe.known():
            raise BadInput(f"method {about.method[:80]!r} does not exist in fedray {__version__}; update it")
        return Recipe(about.method, **about.options)
    if method is None:
        raise BadInput(f"its method is a file, {Path(about.method).name}; say where it is with method (--method)")
    found = Recipe(method, **about.options)
    if files.sha256(found.file.read_bytes()) != about.text:
        raise BadInput(f"{method} has another text than the method that was trained; take that one")
    return found

"""What a run has learned, as a classifier: method with its learned values, backbone, task and preprocessing.

    learned = from_run("runs/single/otdpp-1f2e3d4c5b6a", client=3)
    learned(["cat.jpg", "dog.jpg"]).top(2)

The global view is what `eval/global/...` scores, a client's view what `eval/local/...` does: the same parameters, the
same letters from the server, the same pixels. `fedray.promptfile` keeps one in a file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedray.data import sources
from fedray.data.exams import posed
from fedray.data.images import prepared
from fedray.errors import BadInput, Unavailable
from fedray.experiment import Clip, Experiment, aggregator, from_dict
from fedray.fed.seeds import torch_draws
from fedray.fed.vault import Vault, digest
from fedray.method import Method, load, multilabel, parameters, split
from fedray.nn import backbone
from fedray.nn.allowance import Allowance
from fedray.nn.backbone import Backbone
from fedray.nn.task import build_task
from fedray.recipe import Recipe
from fedray.track import files, whole
from fedray.track.run import RunFolder
from fedray.types import GLOBAL, Features, Given, Params, Task, View

Picture: TypeAlias = Image.Image | Path | str
BATCH = 64
"""Images of a forward pass."""


class Predictions(NamedTuple):
    """What a classifier says of B images."""

    names: tuple[str, ...]  # the C classes
    probabilities: Tensor  # (B, C): rows add up to 1, or each entry is of its own where images show several classes

    def top(self, k: int = 1) -> list[list[tuple[str, float]]]:
        """Of each image the `k` likeliest classes with their probabilities, the likeliest first."""
        values, places = self.probabilities.topk(min(k, len(self.names)), dim=1)
        return [
            [(self.names[c], p) for p, c in zip(row, where, strict=True)]
            for row, where in zip(values.tolist(), places.tolist(), strict=True)
        ]


class Origin(NamedTuple):
    """Where learned values come from, and what it takes to make their method anew."""

    experiment: str  # id
    study: str
    run: str
    round: int
    client: int | None  # None: the global view
    recipe: Recipe
    seed: int
    clip: Clip


@dataclass(frozen=True, eq=False)
class Learned:
    """A classifier of images; made by `from_run` or `fedray.load_prompts`.

    Attributes:
        method: the module with its learned values.
        clip: the frozen backbone.
        task: the classes.
        received: shared parameters as the server sent them.
        inbox: whatever else the server sent.
        view: "global", or "local" for a client's own.
        templates: hand-written sentences of the task.
        origin: where it comes from.
    """

    method: Method
    clip: Backbone
    task: Task
    received: Params
    inbox: Params
    view: View
    templates: tuple[str, ...]
    origin: Origin

    @property
    def names(self) -> tuple[str, ...]:
        """The C class names."""
        return self.task.names

    @property
    def given(self) -> Given:
        """All that is frozen in a forward pass."""
        return Given(self.clip, self.task, self.received, self.inbox, self.view)

    def __call__(self, images: Picture | Sequence[Picture] | Tensor) -> Predictions:
        """Score images.

        Args:
            images: PIL images and paths of image files, or one of them; or a tensor (B, 3, H, W), uint8 from 0 to 255
                or floats from 0 to 1. They are resized and cropped as the backbone wants it.

        Raises:
            BadInput: no image, or a tensor of another shape or range.
            Unavailable: a file is no readable image.
        """
        parts = [self.logits(part) for part in torch.split(self.pixels(images), BATCH)]
        logits = torch.cat(parts).float().cpu()
        return Predictions(self.names, logits.sigmoid() if self.task.multilabel else logits.softmax(1))

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        """Logits (B, C) of pixels (B, 3, S, S) from 0 to 255."""
        return self.method(self.given, self.seen(pixels)).logits

    @torch.no_grad()
    def seen(self, pixels: Tensor) -> Tensor | Features:
        """Pixels (B, 3, S, S) from 0 to 255 as the method wants them: normalised, or as features."""
        x = self.clip.preprocess(pixels.to(self.clip.logit_scale.device))
        needs = self.method.needs
        return x if needs == "pixels" else self.clip.encode_image(x, tokens="patches" if needs == "tokens" else False)

    def pixels(self, images: Picture | Sequence[Picture] | Tensor) -> Tensor:
        """Pixels (B, 3, S, S) from 0 to 255 as CLIP's evaluation sees the images.

        Raises:
            BadInput: see `__call__`.
            Unavailable: see `__call__`.
        """
        if isinstance(images, Tensor):
            return self._of_tensor(images)
        several = [images] if isinstance(images, Image.Image | Path | str) else list(images)
        if not several:
            raise BadInput("images are empty; give at least one")
        return torch.from_numpy(np.stack([self._of_picture(image) for image in several]))

    def _of_picture(self, image: Picture) -> np.ndarray:
        if isinstance(image, Path | str):
            return self._sized(Path(image))
        if not isinstance(image, Image.Image):
            raise BadInput(
                f"an image can't be {type(image).__name__}; give PIL images, paths, or a tensor (B, 3, H, W)"
            )
        return self._sized(np.asarray(image.convert("RGB")))

    def _of_tensor(self, images: Tensor) -> Tensor:
        if images.dim() != 4 or images.shape[1] != 3 or not len(images):
            raise BadInput(f"images must be (B, 3, H, W) with B >= 1, got {tuple(images.shape)}; stack RGB images")
        if images.dtype != torch.uint8:
            if not images.is_floating_point() or not bool(((images >= 0) & (images <= 1)).all()):
                raise BadInput("images must be uint8 from 0 to 255 or floats from 0 to 1; don't normalise them")
            images = images * 255
        size = self.clip.arch.image_size
        if images.shape[2:] == (size, size):
            return images.float()
        rows = images.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return torch.from_numpy(np.stack([self._sized(row) for row in rows]))

    def _sized(self, image: np.ndarray | Path) -> np.ndarray:
        return prepared(image, self.clip.arch.image_size, self.clip.arch.interpolation)


def from_run(path: str | Path, client: int | None = None, *, device: str = "cpu") -> Learned:
    """What a run had learned after its last committed round.

    Args:
        path: the run's folder.
        client: whose view; None: the global one, by the rule that the method states.
        device: where it computes.

    Raises:
        BadInput: no such client, no finished round, or the run is of other data or of another version than today's.
        Unavailable: the folder, its data set (for the class names), weights or private states are missing or damaged.
    """
    folder = RunFolder.open(Path(path))
    e = whole.experiment(folder, from_dict)
    if client is not None and not 0 <= client < e.partition.clients:
        raise BadInput(
            f"client must be in 0..{e.partition.clients - 1}, got {client}; leave it out for the global view"
        )
    found = folder.latest()
    if found is None:
        raise BadInput(
            f"run {folder.run_id} has no finished round yet; go on with: fedray resume {quote(str(folder.path))}"
        )
    done, versions = found
    origin, task = _told(folder, e, done.round, client)
    made = remade(origin, task)
    server: Any = e.server or aggregator(made.method.server or "fedavg")
    shared, inbox = server.send(done.state, GLOBAL if client is None else client, done.round)
    private = {} if client is None else _private(folder, made.method, client, versions.get(client))
    return filled(made, shared, private, inbox, device)


class Names(NamedTuple):
    """A label space in words."""

    names: tuple[str, ...]
    templates: tuple[str, ...]
    multilabel: bool = False


def remade(origin: Origin, words: Names, most: int | None = None) -> Learned:
    """The method as it was before anything was learned, in the global view.

    Args:
        origin: which method, with which options, on which backbone.
        words: the classes.
        most: numbers that the method may be made of; None: as many as its options ask for.

    Raises:
        BadInput: the backbone, the method or the words can't be what they say, or the method is larger than `most`.
        Unavailable: weights are missing.
    """
    clip = backbone.load(origin.clip.name, origin.clip.weights, precision=origin.clip.precision, seed=origin.seed)
    task = build_task(clip, words.names, words.templates)._replace(multilabel=words.multilabel)
    with torch_draws(origin.seed, "initial"), nullcontext() if most is None else Allowance(most):
        method = origin.recipe.build(clip, task)
    if words.multilabel:
        multilabel(method, origin.recipe.name)
    return Learned(method, clip.remembering(), task, {}, {}, "global", words.templates, origin)


def filled(made: Learned, shared: Params, private: Params, inbox: Params, device: str = "cpu") -> Learned:
    """The same with learned values; private ones that are not given stay as they were made.

    Raises:
        BadInput: a parameter is missing, foreign, of another shape or type, or not finite.
    """
    initial = parameters(made.method)
    told, own = split(initial, made.method.private)
    for known, given in ((told, shared), (own, private or own)):
        _fit(known, given)
    load(made.method, initial | shared | private)
    module: Any = made.method
    view: View = "global" if made.origin.client is None else "local"
    received, letters = ({n: v.to(device) for n, v in part.items()} for part in (shared, inbox))
    clip, task = made.clip.to(device), made.task.to(device)
    return replace(made, method=module.to(device), clip=clip, task=task, received=received, inbox=letters, view=view)


def _fit(known: Params, given: Params) -> None:
    for name in sorted({*known, *given}):
        if name not in given:
            raise BadInput(f"parameter {name} is missing; export the run again")
        if name not in known:
            raise BadInput(f"parameter {name} is none of this method's; export the run again")
        value, wanted = given[name], known[name]
        if (value.shape, value.dtype) != (wanted.shape, wanted.dtype):
            got, want = (f"{tuple(v.shape)} {v.dtype}".replace("torch.", "") for v in (value, wanted))
            raise BadInput(f"parameter {name} is {got}, the method needs {want}; export the run again")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise BadInput(f"parameter {name} is not finite; export a round that did not diverge")


def _told(folder: RunFolder, e: Experiment, round: int, client: int | None) -> tuple[Origin, Names]:
    """Where a run's values come from, and the words of its classes: the data set's, which must be as it was."""
    whole = sources.find(e.data.name)(root=Path(e.data.root) if e.data.root else None)
    note = folder.path / "data.json"
    then = files.read_mapping(note, json.loads).get(e.data.name, {}) if note.exists() else {}
    now = json.dumps([whole.names, whole.templates, whole.domains]).encode()
    if then.get("classes", files.sha256(now)) != files.sha256(now):
        raise BadInput(f"{e.data.name} has other class names or templates than run {folder.run_id}; bring them back")
    source, _ = posed(whole, {}, classes=e.split.classes, leave_out=e.split.leave_out)
    clip = Clip(name=e.clip.name, weights=e.clip.weights, precision=e.clip.precision)
    origin = Origin(e.id, folder.study, folder.run_id, round, client, e.method, e.seed, clip)
    return origin, Names(source.names, source.templates, source.multilabel)


def _private(folder: RunFolder, method: Method, client: int, version: tuple[int, str] | None) -> Params:
    """A client's private parameters; what it started with, where it never took part."""
    held = None
    if version is not None:
        held = Vault(folder.private_dir).before(client, version[0] + 1)
        if held is None or digest(held) != version[1]:
            raise Unavailable(
                f"private state of client {client} after round {version[0]} is missing or damaged in "
                f"{folder.private_dir}; bring the run's folder back whole"
            )
    return split(parameters(method), method.private)[1] if held is None else held

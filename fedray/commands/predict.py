"""`fedray predict`: images scored by exported prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

from tyro.conf import Positional, arg

from fedray.commands.options import Json
from fedray.console import complain, say, tell
from fedray.errors import BadInput, Unavailable

if TYPE_CHECKING:
    from torch import Tensor

    from fedray.learned import Learned, Predictions

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm"}
BATCH = 64

Weights: TypeAlias = Annotated[str | None, arg(metavar="FILE", help="of the backbone, where they were a file")]
Method: TypeAlias = Annotated[str | None, arg(metavar="FILE", help="of the method, where it is none of fedray's")]


@dataclass(frozen=True)
class Predict:
    """Classes of images, by prompts that were exported.

    fedray predict client3.safetensors cat.jpg photos/ --top 3
    """

    file: Annotated[Positional[Path], arg(metavar="FILE", help="what fedray export wrote")]
    images: Annotated[Positional[tuple[Path, ...]], arg(metavar="IMAGE ...", help="image files, or folders of them")]
    top: Annotated[int, arg(metavar="N", help="classes for each image")] = 3
    weights: Weights = None
    method: Method = None
    json: Json = False

    def __call__(self) -> int:
        """Do it; 3 when an image could not be read."""
        if self.top < 1:
            raise BadInput(f"--top must be >= 1, got {self.top}")
        paths = found(self.images)
        from fedray.promptfile import load_prompts  # torch

        learned = load_prompts(self.file, weights=self.weights, method=self.method)
        width, damaged = max(len(str(path)) for path in paths), 0
        for start in range(0, len(paths), BATCH):
            good, pixels = readable(learned, paths[start : start + BATCH])
            damaged += len(paths[start : start + BATCH]) - len(good)
            if good:
                self._tell(good, learned(pixels), width)
        return 3 if damaged else 0

    def _tell(self, paths: Sequence[Path], scores: Predictions, width: int) -> None:
        for path, top in zip(paths, scores.top(self.top), strict=True):
            if self.json:
                tell("prediction", image=path, top=[{"class": name, "probability": p} for name, p in top])
            else:
                say(f"{path!s:<{width}}  " + "  ".join(f"{name} {p:.3f}" for name, p in top))


def found(images: Sequence[Path]) -> list[Path]:
    """The image files that are named, and those in folders that are.

    Raises:
        BadInput: none is named, or one is not there.
    """
    if not images:
        raise BadInput("no image is named; give files or folders, e.g. fedray predict FILE cat.jpg")
    return [path for image in images for path in _files(image)]


def _files(image: Path) -> Iterator[Path]:
    if not image.is_dir():
        if not image.is_file():
            raise BadInput(f"image {image} does not exist; give an image file or a folder of them")
        yield image
        return
    inside = sorted(path for path in image.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not inside:
        raise BadInput(f"folder {image} holds no image ({' '.join(sorted(SUFFIXES))}); give another one")
    yield from inside


def readable(learned: Learned, paths: Sequence[Path]) -> tuple[list[Path], Tensor]:
    """Those that can be read, and their pixels (B, 3, S, S); the others are told on stderr."""
    import torch

    good, pixels = [], []
    for path in paths:
        try:
            pixels.append(learned.pixels(path))
            good.append(path)
        except Unavailable as error:
            complain(str(error).partition(";")[0], kind="failed")
    return good, torch.cat(pixels) if pixels else torch.empty(0, 3, 1, 1, dtype=torch.uint8)

"""ImageNet-1k, and its four variants that are only there to examine models trained on it (CoOp's protocol).

    label = position among the WordNet ids, sorted;  class name by id;  ImageNet-A and -R: the ids of their 200 folders

Names are open_clip's (OpenAI's, MIT licence), or those of a classnames.txt ("n01440764 tench" a line) in the set's
folder, as CoOp has it. Both lists call two pairs of classes alike; the second of each gets its WordNet word.
Folders are laid out as in CoOp's DATASETS.md, ImageNet also as torchvision has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedray.data.disk import folders_in, lines
from fedray.data.sources import Source, Table
from fedray.data.trees import NO_IMAGES, listing, located, shipped
from fedray.errors import Unavailable

TEMPLATES = ("a photo of a {}.",)
SAME = {"n04008634": ("missile", "projectile"), "n04355933": ("sunglasses", "sunglass")}
"""Classes whose usual name is also another's, and what they are called here."""
EXAM = "exam only: no training images"


def imagenet(root: Path | None = None) -> Source:
    """ImageNet-1k (Deng et al. 2009): 1.28 million photographs to train, the 50,000 of val to test, 1,000 classes.

    images/train/<id>/ and images/val/<id>/, or train/ and val/. Raises Unavailable when files are missing.
    """
    base = located("imagenet", root, ["images/train", "train"], ["imagenet"])
    images = base / "images" if (base / "images" / "train").is_dir() else base
    known = _names(base)
    train, test = (_folders("imagenet", images / part, list(known)) for part in ("train", "val"))
    return Source("imagenet", tuple(known.values()), TEMPLATES, train, test)


def imagenetv2(root: Path | None = None) -> Source:
    """ImageNetV2 (Recht et al. 2019), matched frequency: 10,000 new photographs of ImageNet's classes; for exams only.

    imagenetv2-matched-frequency-format-val/<0 .. 999>/. Raises Unavailable when files are missing.
    """
    images = "imagenetv2-matched-frequency-format-val"
    base = located("imagenetv2", root, [images], ["imagenetv2"])
    known = _names(base)
    test = _folders("imagenetv2", base / images, [str(c) for c in range(len(known))])  # not as text: 10 is after 9
    return _exam("imagenetv2", known, test)


def imagenet_sketch(root: Path | None = None) -> Source:
    """ImageNet-Sketch (Wang et al. 2019): 50,889 drawings of ImageNet's classes; for exams only.

    images/<id>/ or sketch/<id>/. Raises Unavailable when files are missing.
    """
    marks = ["images/n01440764", "sketch/n01440764"]
    base = located("imagenet_sketch", root, marks, ["imagenet-sketch", "imagenet_sketch"])
    images = base / "images" if (base / marks[0]).exists() else base / "sketch"
    known = _names(base)
    return _exam("imagenet_sketch", known, _folders("imagenet_sketch", images, list(known)))


def imagenet_a(root: Path | None = None) -> Source:
    """ImageNet-A (Hendrycks et al. 2021): 7,500 photographs that fool a ResNet, 200 classes; for exams only.

    imagenet-a/<id>/. Raises Unavailable when files are missing.
    """
    return _subset("imagenet_a", "imagenet-a", located("imagenet_a", root, ["imagenet-a"], ["imagenet-adversarial"]))


def imagenet_r(root: Path | None = None) -> Source:
    """ImageNet-R (Hendrycks et al. 2021): 30,000 paintings, toys, tattoos, ... of 200 classes; for exams only.

    imagenet-r/<id>/. Raises Unavailable when files are missing.
    """
    return _subset("imagenet_r", "imagenet-r", located("imagenet_r", root, ["imagenet-r"], ["imagenet-rendition"]))


def templates() -> tuple[str, ...]:
    """OpenAI's 80 templates for ImageNet, which their zero-shot classifier averages over; `imagenet` itself has one."""
    return tuple(shipped("imagenet.json")["templates"])


def _names(base: Path) -> dict[str, str]:
    """Class name by WordNet id, in label order: those of classnames.txt in `base`, else ours."""
    known: dict[str, str] = shipped("imagenet.json")["names"]
    path = base / "classnames.txt"
    if path.exists():
        said = dict(line.partition(" ")[::2] for line in lines(path))
        if set(said) != set(known) or not all(said.values()):
            raise Unavailable(
                f"{path}: not the names of ImageNet's 1,000 classes by WordNet id; get it again or remove it"
            )
        known = {wnid: said[wnid].strip() for wnid in known}
    return {wnid: SAME[wnid][1] if name == SAME.get(wnid, ("",))[0] else name for wnid, name in known.items()}


def _folders(name: str, images: Path, classes: Sequence[str]) -> Table:
    """The images of these class folders, which must all be there."""
    there = {path.name for path in folders_in(images)}
    lacking = [c for c in classes if c not in there]
    if lacking:
        raise Unavailable(
            f"{name}: no folder {lacking[0]} in {images} ({len(lacking)} are missing); complete the data set"
        )
    return listing([images / c for c in classes])


def _subset(name: str, folder: str, base: Path) -> Source:
    known, images = _names(base), base / folder
    held = [path.name for path in folders_in(images) if path.name in known]
    if len(held) != 200:
        raise Unavailable(f"{name}: {len(held)} class folders named by WordNet id in {images}, not 200; complete it")
    return _exam(name, {wnid: known[wnid] for wnid in held}, _folders(name, images, held))


def _exam(name: str, known: dict[str, str], test: Table) -> Source:
    return Source(name, tuple(known.values()), TEMPLATES, NO_IMAGES, test, note=EXAM)

"""The data sets of one label per image that papers on prompt learning share, in CoOp's protocol (coop.py).

Folders are laid out as in CoOp's DATASETS.md or as torchvision leaves them; class names and templates are CoOp's. All
raise Unavailable when files are missing or damaged.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from fedray.data.coop import Parts, listed, parts, resplit, source, told, without_fifth
from fedray.data.disk import key, lines, subfolders
from fedray.data.sources import Source, Table
from fedray.data.trees import listing, located, shipped
from fedray.errors import Unavailable

CALTECH = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}
EUROSAT = {
    "AnnualCrop": "Annual Crop Land",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "SeaLake": "Sea or Lake",
}


def caltech101(root: Path | None = None) -> Source:
    """Caltech-101 (Fei-Fei et al. 2004): 8,242 photographs of 100 kinds of things, background and Faces_easy left out.

    101_ObjectCategories/<class>/ and split_zhou_Caltech101.json.
    """
    base = located("caltech101", root, ["101_ObjectCategories"], ["caltech-101", "caltech101"])
    images = base / "101_ObjectCategories"
    found = parts(
        "caltech101",
        root,
        base,
        "Caltech101",
        images,
        lambda: listed(images, dropped=("BACKGROUND_Google", "Faces_easy")),
    )
    return source("caltech101", 100, "a photo of a {}.", found, CALTECH)


def dtd(root: Path | None = None) -> Source:
    """Describable Textures (Cimpoi et al. 2014): 5,640 photographs of 47 textures.

    images/<class>/, labels/ and split_zhou_DescribableTextures.json; without the last, the ten published partitions
    are not used, as in CoOp.
    """
    base = located("dtd", root, ["images"], ["dtd", "dtd/dtd"])
    images = base / "images"
    found = parts("dtd", root, base, "DescribableTextures", images, lambda: listed(images))
    return source("dtd", 47, "{} texture.", found)


def eurosat(root: Path | None = None) -> Source:
    """EuroSAT (Helber et al. 2019): 27,000 Sentinel-2 images in RGB, 10 kinds of land use.

    2750/<class>/ and split_zhou_EuroSAT.json.
    """
    base = located("eurosat", root, ["2750"], ["eurosat"])
    images = base / "2750"
    found = parts("eurosat", root, base, "EuroSAT", images, lambda: listed(images))
    return source("eurosat", 10, "a centered satellite photo of {}.", found, EUROSAT)


def food101(root: Path | None = None) -> Source:
    """Food-101 (Bossard et al. 2014): 101,000 photographs of 101 dishes.

    images/<class>/, meta/ and split_zhou_Food101.json; without the last, the published training set with its wrong
    labels is not told apart, as in CoOp.
    """
    base = located("food101", root, ["images"], ["food-101", "food101"])
    images = base / "images"
    found = parts("food101", root, base, "Food101", images, lambda: listed(images))
    return source("food101", 101, "a photo of {}, a type of food.", found)


def fgvc_aircraft(root: Path | None = None) -> Source:
    """FGVC-Aircraft (Maji et al. 2013): 10,000 photographs of 100 variants; the published 3,334 train, 3,333 test.

    variants.txt, images_variant_train.txt, images_variant_test.txt and images/.
    """
    beside = ["fgvc_aircraft", "fgvc-aircraft-2013b/data", "data"]
    base = located("fgvc_aircraft", root, ["variants.txt"], beside)
    names = lines(base / "variants.txt")
    train, test = (
        told([_image(*line.split(" ", 1)) for line in lines(path)], names, base / "images", path)
        for path in (base / "images_variant_train.txt", base / "images_variant_test.txt")
    )
    note = "the published train and test, val left out"
    return source("fgvc_aircraft", 100, "a photo of a {}, a type of aircraft.", Parts(names, train, test, note))


def flowers102(root: Path | None = None) -> Source:
    """Oxford Flowers 102 (Nilsback and Zisserman 2008): 8,189 photographs of 102 flowers, re-split as in CoOp.

    jpg/, imagelabels.mat and split_zhou_OxfordFlowers.json.
    """
    base = located("flowers102", root, ["jpg"], ["oxford_flowers", "flowers-102", "flowers102"])

    def own() -> Parts:
        y = _mat(base / "imagelabels.mat", "labels").astype(np.int64) - 1
        names = shipped("flowers102.json")["names"]
        known = dict(enumerate(names))
        rows = [_image(f"image_{i:05d}", known.get(int(c), "")) for i, c in enumerate(y, 1)]
        return resplit(names, told(rows, names, base / "jpg", base / "imagelabels.mat"))

    found = parts("flowers102", root, base, "OxfordFlowers", base / "jpg", own)
    return source("flowers102", 102, "a photo of a {}, a type of flower.", found)


def pets(root: Path | None = None) -> Source:
    """Oxford-IIIT Pets (Parkhi et al. 2012): 7,349 photographs of 37 breeds of cats and dogs.

    images/, annotations/trainval.txt, annotations/test.txt and split_zhou_OxfordPets.json.
    """
    base = located("pets", root, ["images"], ["oxford_pets", "oxford-iiit-pet"])
    images = base / "images"

    def own() -> Parts:
        files = [base / "annotations" / f"{part}.txt" for part in ("trainval", "test")]
        rows = [[line.split() for line in lines(path) if not line.startswith("#")] for path in files]
        breeds = {row[1]: row[0].rpartition("_")[0].lower() for row in rows[0] if len(row) > 1}
        names = [breeds[number] for number in sorted(breeds, key=lambda n: (len(n), n))]
        train, test = (
            told([_image(row[0], breeds.get(row[1], "")) for row in part], names, images, path)
            for part, path in zip(rows, files, strict=True)
        )
        return without_fifth(names, train, test)

    found = parts("pets", root, base, "OxfordPets", images, own)
    return source("pets", 37, "a photo of a {}, a type of pet.", found)


def cars(root: Path | None = None) -> Source:
    """Stanford Cars (Krause et al. 2013): 16,185 photographs of 196 models; "2012 Tesla Model S", the year in front.

    cars_train/, cars_test/, devkit/, cars_test_annos_withlabels.mat and split_zhou_StanfordCars.json.
    """
    base = located("cars", root, ["cars_train"], ["stanford_cars"])

    def own() -> Parts:
        models = [str(model).rpartition(" ") for model in _mat(base / "devkit" / "cars_meta.mat", "class_names")]
        names = [f"{year} {model}" for model, _, year in models]
        train = _annotated(base / "devkit" / "cars_train_annos.mat", base / "cars_train", names)
        test = _annotated(base / "cars_test_annos_withlabels.mat", base / "cars_test", names)
        return without_fifth(names, train, test)

    return source("cars", 196, "a photo of a {}.", parts("cars", root, base, "StanfordCars", base, own))


def sun397(root: Path | None = None) -> Source:
    """SUN397 (Xiao et al. 2010): scenes of 397 kinds; "outdoor athletic field", the path's words reversed.

    SUN397/<letter>/<scene>/, split_zhou_SUN397.json or ClassName.txt, Training_01.txt, Testing_01.txt (19,850 each);
    with none of these lists all 108,754 images are split.
    """
    base = located("sun397", root, ["SUN397"], ["sun397"])
    images = base / "SUN397"

    def own() -> Parts:
        beside = base if (base / "ClassName.txt").exists() else images  # as CoOp has it, or in the archive itself
        scenes = [line.lstrip("/") for line in lines(beside / "ClassName.txt")]
        names = [" ".join(reversed(scene.split("/")[1:])) for scene in scenes]
        if not (beside / "Training_01.txt").exists():
            return resplit(names, listing([images / place for place in scenes]))
        known = dict(zip(scenes, names, strict=True))

        def scene(image: str) -> tuple[str, str]:
            return image, known.get(image.rpartition("/")[0], "")

        train, test = (
            told([scene(line.lstrip("/")) for line in lines(path)], names, images, path)
            for path in (beside / "Training_01.txt", beside / "Testing_01.txt")
        )
        return without_fifth(names, train, test)

    return source("sun397", 397, "a photo of a {}.", parts("sun397", root, base, "SUN397", images, own))


def ucf101(root: Path | None = None) -> Source:
    """UCF101 (Soomro et al. 2012): the middle frames of 13,320 videos of 101 actions.

    UCF-101-midframes/<Action>/, split_zhou_UCF101.json or ucfTrainTestlist/.
    """
    base = located("ucf101", root, ["UCF-101-midframes"], ["ucf101"])
    images, lists = base / "UCF-101-midframes", base / "ucfTrainTestlist"

    def own() -> Parts:
        if not (lists / "classInd.txt").exists():
            return listed(images)
        actions = [line.split()[-1] for line in lines(lists / "classInd.txt")]
        there = {name: folder.name for name, folder in subfolders(images).items()}

        def frame(video: str) -> tuple[str, str]:
            action, _, name = video.partition("/")
            return _image(f"{there.get(key(action), action)}/{Path(name).stem}", action)

        train, test = (
            told([frame(line.split()[0]) for line in lines(path)], actions, images, path)
            for path in (lists / "trainlist01.txt", lists / "testlist01.txt")
        )
        return without_fifth(actions, train, test)

    found = parts("ucf101", root, base, "UCF101", images, own)
    spaced = {name: " ".join(re.findall("[A-Z][^A-Z_]*", name)) for name in found.names}
    return source("ucf101", 101, "a photo of a person doing {}.", found, spaced)


def _image(name: str, label: str = "") -> tuple[str, str]:
    """A row for `told`, of a list that leaves the ending out."""
    return f"{name}.jpg", label


def _mat(path: Path, variable: str) -> Any:
    """A variable of a MATLAB file, (n,); Unavailable if there is none."""
    from scipy.io import loadmat

    try:
        return np.atleast_1d(loadmat(path, squeeze_me=True, variable_names=[variable])[variable])
    except Exception as error:  # SciPy raises a dozen types on damaged files
        raise Unavailable(f"{path}: no readable {variable} ({error}); get the file again") from error


def _annotated(path: Path, images: Path, names: list[str]) -> Table:
    """The images of Stanford's annotations."""
    number = dict(enumerate(names, 1))
    try:
        rows = [(str(row["fname"]), number[int(row["class"])]) for row in _mat(path, "annotations")]
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise Unavailable(f"{path}: annotations without fname and class ({error}); get the file again") from error
    return told(rows, names, images, path)

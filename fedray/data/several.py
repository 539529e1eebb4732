"""Photographs with several labels each: VOC 2007, COCO 2014, NUS-WIDE, MultiScene-Clean and MLRSNet.

Labels are multi-hot int8 (n, C): 1 shown, 0 not shown, -1 unknown (left out of losses and metrics). Lists are read as
they were published; training and test are the published ones wherever there are any, and `Source.note` says which.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedray.data.disk import below, comma_separated, lines, parsed
from fedray.data.sources import Source, Table
from fedray.data.splits import stratified
from fedray.data.trees import located, remedy
from fedray.errors import Unavailable

TEMPLATES = ("a photo of a {}.",)
VOC = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table", "dog",
    "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor",
)  # fmt: skip
NUS = (
    "airport", "animal", "beach", "bear", "birds", "boats", "book", "bridge", "buildings", "cars", "castle", "cat",
    "cityscape", "clouds", "computer", "coral", "cow", "dancing", "dog", "earthquake", "elk", "fire", "fish", "flags",
    "flowers", "food", "fox", "frost", "garden", "glacier", "grass", "harbor", "horses", "house", "lake", "leaf", "map",
    "military", "moon", "mountain", "nighttime", "ocean", "person", "plane", "plants", "police", "protest", "railroad",
    "rainbow", "reflection", "road", "rocks", "running", "sand", "sign", "sky", "snow", "soccer", "sports", "statue",
    "street", "sun", "sunset", "surf", "swimmers", "tattoo", "temple", "tiger", "tower", "town", "toy", "train", "tree",
    "valley", "vehicle", "water", "waterfall", "wedding", "whales", "window", "zebra",
)  # fmt: skip
SCENES = (
    "apron", "baseball field", "basketball field", "beach", "bridge", "cemetery", "commercial area", "farmland",
    "woodland", "golf course", "greenhouse", "helipad", "lake or pond", "oil field", "orchard", "parking lot", "park",
    "pier", "port", "quarry", "railway", "residential area", "river", "roundabout", "runway", "soccer field",
    "solar panel", "sparse shrub", "stadium", "storage tank", "tennis court", "train station", "wastewater plant",
    "wind turbine", "works", "sea",
)  # fmt: skip
MLRS = (
    "airplane", "airport", "bare soil", "baseball diamond", "basketball court", "beach", "bridge", "buildings", "cars",
    "chaparral", "cloud", "containers", "crosswalk", "dense residential area", "desert", "dock", "factory", "field",
    "football field", "forest", "freeway", "golf course", "grass", "greenhouse", "gully", "habor", "intersection",
    "island", "lake", "mobile home", "mountain", "overpass", "park", "parking lot", "parkway", "pavement", "railway",
    "railway station", "river", "road", "roundabout", "runway", "sand", "sea", "ships", "snow", "snowberg",
    "sparse residential area", "stadium", "swimming pool", "tanks", "tennis court", "terrace", "track", "trail",
    "transmission tower", "trees", "water", "wetland", "wind turbine",
)  # fmt: skip
"""As the files spell them; the name that prompts use is "harbor"."""
MOST = 13
"""Labels that an image of MLRSNet has, by its authors."""

Hot: TypeAlias = NDArray[np.int8]


def voc2007(root: Path | None = None) -> Source:
    """PASCAL VOC 2007 (Everingham et al.): 5,011 photographs to train (trainval), 4,952 to test, labels (n, 20).

    A class whose only objects in an image are marked difficult counts as absent there, as in FedMPT's and DualCoOp's
    code. Every image of the lists is kept. Raises Unavailable when files are missing or damaged.
    """
    return _voc("voc2007", root, difficult=0)


def voc2007_ignore(root: Path | None = None) -> Source:
    """PASCAL VOC 2007 where a class with difficult objects only is unknown (-1), as in the challenge's own scoring.

    Otherwise as `voc2007`, from the same folder.
    """
    return _voc("voc2007_ignore", root, difficult=-1)


def _voc(name: str, root: Path | None, difficult: int) -> Source:
    tables = []
    for part, pack in (("trainval", "VOCtrainval2007"), ("test", "VOCtest2007")):
        inside = ("VOCdevkit/VOC2007", "VOC2007", f"{pack}/VOCdevkit/VOC2007", f"VOC2007/{pack}/VOCdevkit/VOC2007")
        marks = (f"ImageSets/Main/aeroplane_{part}.txt",)
        folder = located("voc2007", root, marks, inside)
        tables.append(_marked(folder, part, {"1": 1, "-1": 0, "0": difficult}))
    train, test = tables
    return Source(name, VOC, TEMPLATES, train, test, note="the published lists, trainval and test")


def _marked(folder: Path, part: str, meaning: dict[str, int]) -> Table:
    """The images of VOC's lists with a label for each class, whose own list says 1, 0 (difficult) or -1."""
    ids: list[str] = []
    columns: list[list[int]] = []
    for c in VOC:
        path = folder / "ImageSets" / "Main" / f"{c.replace(' ', '')}_{part}.txt"
        rows = [line.split() for line in lines(path)]
        if any(len(row) != 2 or row[1] not in meaning for row in rows):
            raise Unavailable(f"{path}: a line is not an image and 1, 0 or -1; get the file again")
        mine = [row[0] for row in rows]
        if (ids := ids or mine) != mine:
            raise Unavailable(f"{path}: lists other images than those for {VOC[0]}; get the file again")
        columns.append([meaning[row[1]] for row in rows])
    images = tuple(below(folder / "JPEGImages", f"{image}.jpg", path) for image in ids)
    return Table(images, np.array(columns, np.int8).T)


def coco2014(root: Path | None = None) -> Source:
    """MS-COCO 2014 (Lin et al.): 82,081 photographs to train (train2014), 40,137 to test (val2014), labels (n, 80).

    A class is present where there is an annotation of it, crowds included; images without annotations are left out.
    Classes in the order of their ids, images likewise. Raises Unavailable when files are missing or damaged.
    """
    (names, train), (others, test) = _coco(root, "train2014"), _coco(root, "val2014")
    if names != others:
        raise Unavailable("coco2014: train2014 and val2014 have different categories; get the annotations again")
    return Source("coco2014", names, TEMPLATES, train, test, note="train2014 and val2014 without unlabelled images")


def _coco(root: Path | None, part: str) -> tuple[tuple[str, ...], Table]:
    """Category names and labelled images of a part; its folder of images may lie in a folder images."""
    told = f"annotations/instances_{part}.json"
    found = [
        located("coco2014", root, (mark,), inside)
        for mark, inside in ((told, ("coco", "COCO")), (part, ("images", "coco", "COCO", "coco/images")))
    ]
    return parsed(found[0] / told, lambda raw: _instances(json.loads(raw), found[1] / part), "COCO's instances")


def _instances(told: Any, folder: Path) -> tuple[tuple[str, ...], Table]:
    """Category names and the labelled images of a parsed annotation file."""
    kinds = sorted((int(kind["id"]), str(kind["name"])) for kind in told["categories"])
    column = {number: c for c, (number, _) in enumerate(kinds)}
    files = {int(image["id"]): Path(str(image["file_name"])).name for image in told["images"]}
    shown = {(int(mark["image_id"]), column[int(mark["category_id"])]) for mark in told["annotations"]}
    ids = sorted({image for image, _ in shown})
    row = {image: i for i, image in enumerate(ids)}
    labels = np.zeros((len(ids), len(kinds)), np.int8)
    for image, c in shown:
        labels[row[image], c] = 1
    return tuple(name for _, name in kinds), Table(tuple(folder / files[image] for image in ids), labels)


def nuswide(root: Path | None = None) -> Source:
    """NUS-WIDE (Chua et al. 2009): the published lists, 161,789 and 107,859 Flickr photographs, labels (n, 81).

    Listed photographs that are not on disk (many are gone from the web) and those that show none of the 81 concepts are
    left out; the note counts them. Raises Unavailable when lists are missing or damaged, or no photograph is there.
    """
    inside = ("raw", "NUSWIDE/raw", "NUS-WIDE")
    folder = located("nuswide", root, ("ImageList/TrainImagelist.txt",), inside)
    truth = located("nuswide", folder, ("TrainTestLabels",), ("Groundtruth", "GroundTruth"))
    tables, notes = [], []
    for part in ("Train", "Test"):
        told = folder / "ImageList" / f"{part}Imagelist.txt"
        names = [line.replace("\\", "/") for line in lines(told)]
        labels = np.stack([_digits(truth / "TrainTestLabels" / f"Labels_{c}_{part}.txt", len(names)) for c in NUS], 1)
        images = [_flickr(folder, name, told) for name in names]
        gone = sum(image is None for image in images)
        if gone == len(names):
            raise Unavailable(
                f"nuswide: no photograph of {told} in Flickr or images beside it; get them: {remedy('nuswide')}"
            )
        kept = [i for i, image in enumerate(images) if image and labels[i].any()]
        tables.append(Table(tuple(image for i in kept if (image := images[i])), labels[kept]))
        blank = len(names) - gone - len(kept)
        notes.append(f"{part.lower()} {gone} of {len(names)} not on disk, {blank} unlabelled")
    train, test = tables
    return Source("nuswide", NUS, TEMPLATES, train, test, note=f"the published lists without {'; '.join(notes)}")


def _digits(path: Path, n: int) -> Hot:
    """The `n` labels 0 or 1 of a file with one a line."""

    def parse(raw: bytes) -> Hot:
        found = np.frombuffer(raw.translate(None, b" \t\r\n"), np.uint8) - ord("0")
        if len(found) != n or (found > 1).any():
            raise ValueError(f"{len(found)} labels for {n} images" if len(found) != n else "a label is neither 0 nor 1")
        return found.astype(np.int8)

    return parsed(path, parse, "a list of labels")


def _flickr(folder: Path, name: str, told: Path) -> Path | None:
    """Where a photograph lies: by concept as it was published, or all in one folder; None if it is not there."""
    choices = (
        below(folder / top, sub, told) for top in ("Flickr", "images") for sub in (name, name.rpartition("/")[2])
    )
    return next((path for path in choices if path.exists()), None)


def multiscene(root: Path | None = None) -> Source:
    """MultiScene-Clean (Hua et al. 2021): 7,000 aerial images to train, 7,000 to test, 512 x 512, labels (n, 36).

    Reads Tra.csv and Test.csv, an image and 36 columns of 0 or 1 in the order of the authors' code; class names are
    theirs, in words and without their slips. Raises Unavailable when files are missing or damaged.
    """
    folder = located("multiscene", root, ("Tra.csv",), ("MultiScene-Clean",))
    tables = []
    for part in ("Tra", "Test"):
        told = folder / f"{part}.csv"
        _, images, labels = _one_hot(told, len(SCENES))
        whole = [name if Path(name).suffix else f"{name}.jpg" for name in images]
        files = tuple(below(folder / "images", name, told) for name in whole)
        tables.append(Table(files, labels))
    train, test = tables
    return Source("multiscene", SCENES, TEMPLATES, train, test, note="the published lists, Tra.csv and Test.csv")


def _one_hot(path: Path, classes: int) -> tuple[list[str], list[str], Hot]:
    """Column names, image names and labels (n, C) of a CSV file with a header."""
    header, *rows = comma_separated(path) or [[]]
    meaning = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}
    if len(header) <= classes or any(
        len(row) <= classes or not meaning.keys() >= {*row[1 : classes + 1]} for row in rows
    ):
        raise Unavailable(f"{path}: not an image and {classes} columns of 0 or 1; get the file again")
    labels = np.array([[meaning[cell] for cell in row[1 : classes + 1]] for row in rows], np.int8)
    return header[1 : classes + 1], [row[0] for row in rows], labels.reshape(-1, classes)


def mlrsnet(root: Path | None = None) -> Source:
    """MLRSNet (Qi et al. 2020): 109,161 satellite images of 46 kinds of scenes, 256 x 256, labels (n, 60).

    Reads Labels/<scene>.csv, columns by name (their order differs between tables), and Images/<scene>/. Training and
    test are the images named in train.txt and test.txt (or .csv) where the set's folder has them; else 20 % and 70 % of
    each kind of scene at random (seed 0), as the authors split it, who keep 10 % for validation. In the authors' newest
    tables some 3,470 rows (of intersection and parkway, most) have 14 to 40 labels by a slip; the note counts them.
    Raises Unavailable when files are missing or damaged.
    """
    folder = located("mlrsnet", root, ("Labels", "labels"), ("MLRSNet",))
    photos = folder / ("Images" if (folder / "Images").exists() else "images")
    tables = sorted((folder / ("Labels" if (folder / "Labels").exists() else "labels")).glob("*.csv"))
    if not tables:
        raise Unavailable(
            f"mlrsnet: no CSV files in the folder of labels in {folder}; get it again: {remedy('mlrsnet')}"
        )
    images: list[Path] = []
    labels: list[Hot] = []
    scenes: list[int] = []
    for scene, path in enumerate(tables):
        header, files, hot = _one_hot(path, len(MLRS))
        header = [name or MLRS[c] for c, name in enumerate(header)]  # one table lost a column's name
        if sorted(header) != sorted(MLRS):
            raise Unavailable(f"{path}: its columns are not the 60 labels of MLRSNet; get the file again")
        images += [below(photos / path.stem, name, path) for name in files]
        labels.append(hot[:, [header.index(c) for c in MLRS]])
        scenes += [scene] * len(files)
    whole = Table(tuple(images), np.concatenate(labels))
    rows, note = _mlrs_split(folder, [image.name for image in images], scenes)
    if many := int((whole.labels.sum(1) > MOST).sum()):
        note += f"; {many} images have over {MOST} labels, a slip that the authors' commit cd5ca1c is free of"
    names = tuple("harbor" if c == "habor" else c for c in MLRS)
    return Source("mlrsnet", names, TEMPLATES, whole.take(rows[0]), whole.take(rows[1]), note=note)


def _mlrs_split(folder: Path, names: list[str], scenes: Sequence[int]) -> tuple[list[NDArray[np.int64]], str]:
    """Positions to train and to test, and whose choice they are."""
    for suffix in (".txt", ".csv"):
        lists = [folder / f"{part}{suffix}" for part in ("train", "test")]
        if all(path.exists() for path in lists):
            at = {name: i for i, name in enumerate(names)}
            named = [sorted({Path(line.partition(",")[0]).name for line in lines(path)} - {"image"}) for path in lists]
            unknown = next((name for name in named[0] + named[1] if name not in at), None)
            if unknown or {*named[0]} & {*named[1]}:
                why = f"{unknown!r} is no image of the set" if unknown else "they share images"
                raise Unavailable(f"{lists[0]} and {lists[1].name}: {why}; correct the lists or remove them")
            rows = [np.array([at[name] for name in part], np.int64) for part in named]
            return rows, f"the lists train{suffix} and test{suffix} in the set's folder"
    train, _, test = stratified(np.array(scenes), (0.2, 0.1, 0.7), np.random.default_rng(0))
    return [train, test], "split 20/70 by fedray, stratified by kind of scene, seed 0, 10 % left out"

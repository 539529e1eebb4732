"""Multi-label sets, read from made-up trees in the layouts that their authors publish."""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedray.data.gathered import digests
from fedray.data.partition import Iid
from fedray.data.several import MLRS, NUS, SCENES, VOC, coco2014, mlrsnet, multiscene, nuswide, voc2007, voc2007_ignore
from fedray.data.sources import Source, find, names
from fedray.data.trees import remedy
from fedray.errors import Unavailable
from fedray.experiment import Clip, Data, Experiment, Split
from fedray.recipe import Recipe


def photo(path: Path) -> None:
    """8 x 8 pixels that depend on the name, in bytes that depend on no codec."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    with path.open("wb") as file:
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(file, "PPM")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def shown(source: Source, part: str, i: int) -> set[str]:
    return {source.names[c] for c in np.flatnonzero(getattr(source, part).labels[i] == 1)}


def files(source: Source, part: str, root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in getattr(source, part).images]


# ---- VOC 2007


def voc(root: Path, folders: Sequence[str] = ("VOCdevkit/VOC2007", "VOCdevkit/VOC2007")) -> Path:
    """Images i of classes i and i + 1 (of 20); in image 1 of each part, class 2's objects are all difficult."""
    for part, folder, first in zip(("trainval", "test"), folders, (5, 1), strict=True):
        ids = [f"{first + i:06d}" for i in range(20)]
        for image in ids:
            photo(root / folder / "JPEGImages" / f"{image}.jpg")
        for c, name in enumerate(VOC):
            marks = [1 if c in (i, (i + 1) % 20) else -1 for i in range(20)]
            if c == 2:
                marks[1] = 0
            lines = [f"{image} {mark:2d}\n" for image, mark in zip(ids, marks, strict=True)]
            write(root / folder / "ImageSets/Main" / f"{name.replace(' ', '')}_{part}.txt", "".join(lines))
    return root


SPLIT = ("VOC2007/VOCtrainval2007/VOCdevkit/VOC2007", "VOC2007/VOCtest2007/VOCdevkit/VOC2007")


@pytest.mark.parametrize("folders", [("VOCdevkit/VOC2007",) * 2, (".", "."), SPLIT])
def test_voc_reads_its_class_lists(tmp_path: Path, folders: Sequence[str]) -> None:
    source = voc2007(voc(tmp_path, folders))
    assert source.multilabel
    assert (len(source.train), len(source.test)) == (20, 20)
    assert source.train.images[0] == tmp_path / folders[0] / "JPEGImages/000005.jpg"
    assert source.test.images[0] == tmp_path / folders[1] / "JPEGImages/000001.jpg"
    assert shown(source, "train", 10) == {"dining table", "dog"}
    assert {"dining table", "potted plant", "tv monitor"} < set(source.names)
    assert source.templates == ("a photo of a {}.",)
    assert source.note == "the published lists, trainval and test"


def test_difficult_objects_are_absent_or_unknown(tmp_path: Path) -> None:
    absent, unknown = voc2007(voc(tmp_path)), voc2007_ignore(tmp_path)
    for part in ("train", "test"):
        a, u = getattr(absent, part).labels, getattr(unknown, part).labels
        assert (a[1, 2], u[1, 2]) == (0, -1)
        assert (a == u).sum() == a.size - 1
    assert absent.digest != unknown.digest
    assert unknown.name == "voc2007_ignore"


def test_voc_is_one_digest_wherever_it_lies(tmp_path: Path) -> None:
    sources = [voc2007(voc(tmp_path / name, folders)) for name, folders in (("a", SPLIT), ("b", (".", ".")))]
    assert sources[0].digest == sources[1].digest
    assert sources[0].digest.startswith("020a5fae0f18")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("sofa_test.txt", "000001 2\n", "a line is not an image and 1, 0 or -1; get the file again"),
        ("sofa_test.txt", "000001\n", "a line is not an image and 1, 0 or -1; get the file again"),
        ("sofa_test.txt", "000001 1\n", "lists other images than those for aeroplane; get the file again"),
        ("tvmonitor_trainval.txt", None, "No such file or directory; get the file again, it belongs to the set"),
    ],
)
def test_damaged_voc_lists_are_named(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    voc(tmp_path)
    path = tmp_path / "VOCdevkit/VOC2007/ImageSets/Main" / name
    path.write_text(text) if text is not None else path.unlink()
    with pytest.raises(Unavailable) as error:
        voc2007(tmp_path)
    assert str(error.value) == f"{path}: {message}"


def test_voc_lists_that_lead_out_are_refused(tmp_path: Path) -> None:
    voc(tmp_path)
    for name in VOC:
        path = tmp_path / "VOCdevkit/VOC2007/ImageSets/Main" / f"{name.replace(' ', '')}_test.txt"
        path.write_text("../../../secret 1\n")
    with pytest.raises(Unavailable, match=r"'../../../secret.jpg' leads out of .*JPEGImages; get the file again"):
        voc2007(tmp_path)


# ---- COCO 2014


def coco(root: Path, inside: str = ".") -> Path:
    categories = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 67, "name": "dining table"}]
    for part, first in (("train2014", 100), ("val2014", 200)):
        images = [{"id": first + i, "file_name": f"COCO_{part}_{first + i:012d}.jpg"} for i in (3, 1, 2, 0)]
        marks = [(0, 67), (0, 1), (0, 1), (2, 90), (3, 1)]  # image 1 has none
        annotations = [
            {"image_id": first + i, "category_id": c, "iscrowd": int(i == 3), "segmentation": [[1, 2]]}
            for i, c in marks
        ]
        for image in images:
            photo(root / inside / part / str(image["file_name"]))
        told = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
        write(root / "annotations" / f"instances_{part}.json", json.dumps(told))
    return root


@pytest.mark.parametrize("inside", [".", "images"])
def test_coco_reads_its_annotations(tmp_path: Path, inside: str) -> None:
    source = coco2014(coco(tmp_path, inside))
    assert source.names == ("person", "dining table", "toothbrush")
    assert source.train.labels.tolist() == [[1, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert [path.name[-7:] for path in source.test.images] == ["200.jpg", "202.jpg", "203.jpg"]
    assert all(path.exists() for table in (source.train, source.test) for path in table.images)
    assert source.note == "train2014 and val2014 without unlabelled images"


def test_coco_is_one_digest_in_any_order(tmp_path: Path) -> None:
    one, two = coco(tmp_path / "a"), coco(tmp_path / "b", "images")
    path = two / "annotations/instances_train2014.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps({name: part[::-1] if isinstance(part, list) else part for name, part in told.items()}))
    assert coco2014(one).digest == coco2014(two).digest
    assert coco2014(one).digest.startswith("288c7e386475")


def alter(told: dict[str, Any], what: str) -> Any:
    if what == "list":
        return [told]
    if what == "category":
        told["annotations"][0]["category_id"] = 5
    elif what == "image":
        told["annotations"][0]["image_id"] = 5
    elif what == "key":
        del told["images"]
    elif what == "null":
        told["categories"] = None
    return told


@pytest.mark.parametrize("what", ["list", "category", "image", "key", "null"])
def test_other_json_is_no_annotation(tmp_path: Path, what: str) -> None:
    path = coco(tmp_path) / "annotations/instances_val2014.json"
    path.write_text(json.dumps(alter(json.loads(path.read_text()), what)))
    with pytest.raises(Unavailable) as error:
        coco2014(tmp_path)
    assert str(error.value).startswith(f"{path}: not COCO's instances (")
    assert str(error.value).endswith("); get the file again")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000])
def test_broken_json_is_told(tmp_path: Path, text: str) -> None:
    path = coco(tmp_path) / "annotations/instances_train2014.json"
    path.write_text(text)
    with pytest.raises(Unavailable, match=r"instances_train2014.json: not COCO's instances \(.*\); get the file again"):
        coco2014(tmp_path)


def test_coco_needs_one_list_of_categories(tmp_path: Path) -> None:
    path = coco(tmp_path) / "annotations/instances_val2014.json"
    path.write_text(path.read_text().replace("dining table", "table"))
    with pytest.raises(Unavailable, match="train2014 and val2014 have different categories; get the annotations again"):
        coco2014(tmp_path)


# ---- NUS-WIDE


def nus(root: Path, pictures: str = "Flickr", *, flat: bool = False, truth: str = "TrainTestLabels") -> Path:
    """Image i shows concepts i and i + 1; image 3 of the 6 shows none, image 4 is not on disk."""
    for part, first in (("Train", 0), ("Test", 50)):
        listed = [("actor", "zebra")[i % 2] + f"\\{first + i:04d}_{i}.jpg" for i in range(6)]
        write(root / "ImageList" / f"{part}Imagelist.txt", "".join(f"{name} \r\n" for name in listed))
        for i, name in enumerate(listed):
            if i != 4:
                photo(root / pictures / (name.partition("\\")[2] if flat else name.replace("\\", "/")))
        for c, concept in enumerate(NUS):
            marks = [int(i != 3 and c in (i, i + 1)) for i in range(6)]
            write(root / truth / f"Labels_{concept}_{part}.txt", "".join(f"{mark}\n" for mark in marks))
    return root


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("pictures", ["Flickr", "images"])
@pytest.mark.parametrize("truth", ["TrainTestLabels", "Groundtruth/TrainTestLabels"])
def test_nuswide_reads_its_lists(tmp_path: Path, flat: bool, pictures: str, truth: str) -> None:
    source = nuswide(nus(tmp_path, pictures, flat=flat, truth=truth))
    assert len(source.names) == 81
    assert [path.name for path in source.train.images] == ["0000_0.jpg", "0001_1.jpg", "0002_2.jpg", "0005_5.jpg"]
    assert shown(source, "train", 3) == {NUS[5], NUS[6]} == {"boats", "book"}
    assert shown(source, "test", 0) == {"airport", "animal"}
    assert source.note == (
        "the published lists without train 1 of 6 not on disk, 1 unlabelled; test 1 of 6 not on disk, 1 unlabelled"
    )


def test_nuswide_is_one_digest(tmp_path: Path) -> None:
    one, two = nuswide(nus(tmp_path / "a")), nuswide(nus(tmp_path / "b" / "raw", "images", flat=True).parent)
    assert one.digest == two.digest
    assert one.digest.startswith("bf55f1bc73fd")


@pytest.mark.parametrize(
    ("text", "why"),
    [("0\n1\n", "2 labels for 6 images"), ("0\n1\n2\n0\n0\n0\n", "a label is neither 0 nor 1")],
)
def test_damaged_nuswide_labels_are_named(tmp_path: Path, text: str, why: str) -> None:
    path = nus(tmp_path) / "TrainTestLabels/Labels_sun_Test.txt"
    path.write_text(text)
    with pytest.raises(Unavailable) as error:
        nuswide(tmp_path)
    assert str(error.value) == f"{path}: not a list of labels ({why}); get the file again"


def test_nuswide_without_photographs_says_so(tmp_path: Path) -> None:
    nus(tmp_path, "elsewhere")
    with pytest.raises(Unavailable) as error:
        nuswide(tmp_path)
    assert str(error.value) == (
        f"nuswide: no photograph of {tmp_path}/ImageList/TrainImagelist.txt in Flickr or images beside it; get them: "
        + remedy("nuswide")
    )


# ---- MultiScene-Clean and MLRSNet


def table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def scenes(root: Path) -> Path:
    for part, first in (("Tra", 0), ("Test", 100)):
        rows = [[f"{first + i}", *(int(c in (i, 35)) for c in range(36))] for i in range(36)]
        table(root / f"{part}.csv", ["name", *(f"Scene{c}" for c in range(36))], rows)
        for row in rows:
            photo(root / "images" / f"{row[0]}.jpg")
    return root


@pytest.mark.parametrize("inside", [".", "MultiScene-Clean"])
def test_multiscene_reads_its_tables(tmp_path: Path, inside: str) -> None:
    scenes(tmp_path / inside)
    source = multiscene(tmp_path)
    assert len(source.names) == len(set(source.names)) == 36
    assert files(source, "test", tmp_path / inside)[0] == "images/100.jpg"
    assert shown(source, "train", 13) == {"oil field", "sea"}
    assert source.train.labels.sum() == 71
    assert source.digest.startswith("d6e93a03cdd1")


@pytest.mark.parametrize("row", [["7"] * 3, ["7", *["2"] * 36], ["7", *[""] * 36], []])
def test_damaged_tables_are_named(tmp_path: Path, row: list[str]) -> None:
    scenes(tmp_path)
    header = ["name", *SCENES] if row else []
    table(tmp_path / "Tra.csv", header, [row] if row else [])
    with pytest.raises(Unavailable) as error:
        multiscene(tmp_path)
    assert str(error.value) == f"{tmp_path}/Tra.csv: not an image and 36 columns of 0 or 1; get the file again"


def mlrs(root: Path, *, upper: bool = True, columns: Sequence[str] = MLRS) -> Path:
    """Two kinds of scenes, the second with shuffled columns; image i shows classes i and i + 1."""
    labels, images = ("Labels", "Images") if upper else ("labels", "images")
    for n, scene in enumerate(("airplane", "harbor&port")):
        order = np.random.default_rng(n).permutation(60) if n else np.arange(60)
        names = [f"{scene}_{i:05d}.jpg" for i in range(60)]
        rows = [[name, *(int(c in (i, (i + 1) % 60)) for c in order)] for i, name in enumerate(names)]
        table(root / labels / f"{scene}.csv", ["image", *(columns[c] for c in order)], rows)
        for name in names:
            photo(root / images / scene / name)
    return root


@pytest.mark.parametrize("upper", [True, False])
def test_mlrsnet_splits_each_kind_of_scene(tmp_path: Path, upper: bool) -> None:
    source = mlrsnet(mlrs(tmp_path, upper=upper))
    assert (len(source.train), len(source.test)) == (24, 84)
    train, test = ({path.name for path in t.images} for t in (source.train, source.test))
    assert not train & test
    assert sum(name.startswith("harbor") for name in train) == 12
    assert "harbor" in source.names
    assert "habor" not in source.names
    for path, row in zip(source.train.images, source.train.labels, strict=True):
        i = int(path.stem[-5:])
        assert np.flatnonzero(row).tolist() == sorted((i, (i + 1) % 60))
        assert path.parent.name == path.name.rpartition("_")[0]
    assert source.note == "split 20/70 by fedray, stratified by kind of scene, seed 0, 10 % left out"
    assert source.digest.startswith("98792c3b7dba")


@pytest.mark.parametrize("suffix", [".txt", ".csv"])
def test_mlrsnet_follows_lists(tmp_path: Path, suffix: str) -> None:
    mlrs(tmp_path)
    head, tail = ("image,label\n", ",1") if suffix == ".csv" else ("", "")
    write(tmp_path / f"train{suffix}", f"{head}airplane/airplane_00003.jpg{tail}\nairplane_00001.jpg{tail}\n")
    write(tmp_path / f"test{suffix}", f"{head}harbor&port_00002.jpg{tail}\n")
    source = mlrsnet(tmp_path)
    assert [path.name for path in source.train.images] == ["airplane_00001.jpg", "airplane_00003.jpg"]
    assert shown(source, "test", 0) == {"bare soil", "baseball diamond"}
    assert source.note == f"the lists train{suffix} and test{suffix} in the set's folder"


@pytest.mark.parametrize(
    ("train", "test", "why"),
    [
        ("emu_1.jpg", "airplane_00001.jpg", "'emu_1.jpg' is no image of the set"),
        ("airplane_00001.jpg", "airplane_00001.jpg", "they share images"),
    ],
)
def test_wrong_mlrsnet_lists_are_told(tmp_path: Path, train: str, test: str, why: str) -> None:
    mlrs(tmp_path)
    write(tmp_path / "train.txt", train)
    write(tmp_path / "test.txt", test)
    with pytest.raises(Unavailable) as error:
        mlrsnet(tmp_path)
    assert str(error.value) == f"{tmp_path}/train.txt and test.txt: {why}; correct the lists or remove them"


def test_slips_of_mlrsnet_are_met(tmp_path: Path) -> None:
    """As published: one table without the name of a column, and rows dragged over too many cells."""
    mlrs(tmp_path)
    before = mlrsnet(tmp_path)
    path = tmp_path / "Labels/airplane.csv"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header.replace(",snowberg,", ",,"), *rows]))
    assert mlrsnet(tmp_path).digest == before.digest
    rows[0] = "airplane_00000.jpg" + ",1" * 14 + ",0" * 46
    path.write_text("\n".join([header, *rows]))
    slip = "; 1 images have over 13 labels, a slip that the authors' commit cd5ca1c is free of"
    assert mlrsnet(tmp_path).note == before.note + slip


def test_mlrsnet_knows_its_columns(tmp_path: Path) -> None:
    mlrs(tmp_path, columns=[*MLRS[:-1], "windmill"])
    with pytest.raises(Unavailable, match=r"airplane.csv: its columns are not the 60 labels of MLRSNet; get the file"):
        mlrsnet(tmp_path)
    for path in tmp_path.glob("Labels/*.csv"):
        path.unlink()
    with pytest.raises(Unavailable, match=f"^mlrsnet: no CSV files in the folder of labels in {tmp_path}; get it"):
        mlrsnet(tmp_path)


# ---- all of them

MISSING = {
    "voc2007": "ImageSets/Main/aeroplane_trainval.txt in {0}; get it: fedray data get voc2007 (911 MB)",
    "voc2007_ignore": "ImageSets/Main/aeroplane_trainval.txt in {0}; get it: fedray data get voc2007 (911 MB)",
    "coco2014": "annotations/instances_train2014.json in {0}; get it: fedray data get coco2014 (20 GB)",
    "nuswide": "ImageList/TrainImagelist.txt in {0}; get it: by hand (some 7.0 GB) from lms.comp.nus.edu.sg/wp-content/"
    "uploads/2019/research/nuswide/NUS-WIDE.html, laid out as ImageList/, Groundtruth/TrainTestLabels/, "
    "Flickr/<concept>/*.jpg",
    "multiscene": "Tra.csv in {0}; get it: by hand (some 1.0 GB) from github.com/Hua-YS/Multi-Scene-Recognition "
    "(MultiScene-Clean), laid out as images/*.jpg, Tra.csv, Test.csv",
    "mlrsnet": "Labels or labels in {0}; get it: by hand (some 1.3 GB) from data.mendeley.com/datasets/7j9bv9vwsx, "
    "laid out as Images/<scene>/*.jpg, Labels/<scene>.csv",
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_set_says_where_and_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert name in names()
    for root in (tmp_path, None):
        monkeypatch.setenv("FEDRAY_DATA", str(tmp_path / "all"))
        with pytest.raises(Unavailable) as error:
            find(name)(root=root)
        place = root or tmp_path / "all" / name.removesuffix("_ignore")
        assert str(error.value) == f"{name.removesuffix('_ignore')}: no " + MISSING[name].format(place)


def test_a_federated_run_is_built_from_voc(tmp_path: Path) -> None:
    from fedray.build import build  # the only test here that needs torch

    experiment = Experiment(
        clip=Clip(name="tiny"),
        method=Recipe("promptfl", n_ctx=2),
        data=Data(name="voc2007_ignore", root=str(voc(tmp_path))),
        split=Split(shots=1),
        partition=Iid(clients=2),
    )
    built = build(experiment, cache=tmp_path / "cache")
    assert built.setup.task.multilabel
    assert built.labels.dtype == np.int8
    assert built.labels.shape[1] == 20
    assert (built.labels == 1).any(0).all()
    assert sum(map(len, built.parts)) == len(built.labels)
    assert built.digests == {"voc2007_ignore": digests(voc2007_ignore(tmp_path))}

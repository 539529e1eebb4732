"""Every set in its real layouts, with all its classes and a few images of each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedray.data import classics
from fedray.data.sources import Source, Table, find
from fedray.data.trees import shipped
from fedray.errors import Unavailable

OWN = "split 50/20/30 by fedray, stratified, seed 1, the 20 % left out"
FIFTH = "the published test set; train without 20 % (stratified, seed 1)"
LETTERS = [f"{a}{b}" for a in "abcdefghijklmnopqrst" for b in "abcdefghijklmnopqrst"]
"""400 class names, sorted."""


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("one") / "image.jpg"
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(path)
    return path.read_bytes()


def plant(base: Path, images: Iterable[str], jpeg: bytes) -> None:
    for image in images:
        path = base / image
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg)


def classes(table: Table, base: Path, *, depth: int = 0) -> dict[str, int]:
    """The part of each image's path that tells its class, with the label that it got; one label each."""
    found: dict[str, int] = {}
    for path, label in zip(table.images, table.labels, strict=True):
        assert isinstance(path, Path)
        name = path.relative_to(base).parts[depth]
        assert found.setdefault(name, int(label)) == label
    return found


def community(path: Path, names: Sequence[str], images: Callable[[int, int], str]) -> None:
    """A split file with 2, 1 and 1 images a class, classes numbered from the last name to the first."""
    order = list(reversed(names))
    parts = {
        part: [[images(names.index(name), i), c, name] for c, name in enumerate(order) for i in numbers]
        for part, numbers in (("train", (0, 1)), ("val", (2,)), ("test", (3,)))
    }
    path.write_text(json.dumps(parts))


LISTED = {
    "caltech101": ("101_ObjectCategories", ["caltech-101", "caltech101"], "Caltech101", 100, "a photo of a {}."),
    "dtd": ("images", ["dtd", "dtd/dtd"], "DescribableTextures", 47, "{} texture."),
    "eurosat": ("2750", ["eurosat"], "EuroSAT", 10, "a centered satellite photo of {}."),
    "food101": ("images", ["food-101"], "Food101", 101, "a photo of {}, a type of food."),
}
EUROSAT = {
    "AnnualCrop": "Annual Crop Land",
    "Forest": "Forest",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "River": "River",
    "SeaLake": "Sea or Lake",
}


def class_names(name: str, n: int) -> list[str]:
    if name == "eurosat":
        return sorted(EUROSAT)
    if name == "caltech101":
        return sorted(["Faces", "Leopards", "Motorbikes", "airplanes", *(f"{c}_x" for c in LETTERS[: n - 4])])
    return [f"{c}_x" for c in LETTERS[:n]]


def grown(base: Path, name: str, jpeg: bytes) -> list[str]:
    images, _, _, n, _ = LISTED[name]
    names = class_names(name, n)
    extra = ["BACKGROUND_Google", "Faces_easy"] if name == "caltech101" else []
    plant(base / images, (f"{c}/image_{i:04d}.jpg" for c in names + extra for i in range(10)), jpeg)
    return names


@pytest.mark.parametrize("name", LISTED)
def test_class_folders_are_split_as_coop_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jpeg: bytes, name: str
) -> None:
    images, places, _, n, template = LISTED[name]
    names = grown(tmp_path / places[0], name, jpeg)
    source = find(name)(root=tmp_path)
    assert (source.name, source.templates, source.note) == (name, (template,), OWN)
    assert np.bincount(source.train.labels).tolist() == [5] * n
    assert np.bincount(source.test.labels).tolist() == [3] * n
    expected = {c: i for i, c in enumerate(names)}
    assert classes(source.train, tmp_path / places[0] / images) == expected
    assert classes(source.test, tmp_path / places[0] / images) == expected
    assert not set(source.train.images) & set(source.test.images)
    assert not any("_" in word for word in source.names)
    assert find(name)(root=tmp_path / places[0]).digest == source.digest
    monkeypatch.setenv("FEDRAY_DATA", str(tmp_path))
    assert find(name)().digest == source.digest


@pytest.mark.parametrize("name", LISTED)
def test_the_communitys_split_goes_first(tmp_path: Path, jpeg: bytes, name: str) -> None:
    images, places, file, n, _ = LISTED[name]
    base = tmp_path / places[-1]
    names = grown(base, name, jpeg)
    path = tmp_path / f"split_zhou_{file}.json"  # in the set's folder, though the images are further down
    community(path, names, lambda c, i: f"{names[c]}/image_{i:04d}.jpg")
    source = find(name)(root=tmp_path)
    assert source.note == f"split_zhou_{file}.json, its val left out"
    assert (len(source.train), len(source.test)) == (2 * n, n)
    assert classes(source.test, base / images) == {c: i for i, c in enumerate(reversed(names))}


def test_caltech_drops_and_renames(tmp_path: Path, jpeg: bytes) -> None:
    grown(tmp_path, "caltech101", jpeg)
    source = classics.caltech101(tmp_path)
    assert source.names[:4] == ("face", "leopard", "motorbike", "aa x")
    assert "airplane" in source.names and len(source.names) == 100
    assert not {"BACKGROUND Google", "Faces easy"} & set(source.names)


def test_eurosat_is_renamed_also_in_a_split_file(tmp_path: Path, jpeg: bytes) -> None:
    names = grown(tmp_path, "eurosat", jpeg)
    assert classics.eurosat(tmp_path).names == tuple(EUROSAT[c] for c in sorted(EUROSAT))
    for words in (names, [EUROSAT[c] for c in names]):
        community(tmp_path / "split_zhou_EuroSAT.json", words, lambda c, i: f"{names[c]}/image_{i:04d}.jpg")
        assert classics.eurosat(tmp_path).names == tuple(EUROSAT[c] for c in sorted(EUROSAT, reverse=True))


@pytest.mark.parametrize("place", [".", "fgvc_aircraft", "fgvc-aircraft-2013b/data", "data"])
def test_aircraft_has_its_published_split(tmp_path: Path, jpeg: bytes, place: str) -> None:
    base = tmp_path / place
    names = ["F/A-18", "707-320", "Boeing 717", *LETTERS[:97]]
    plant(base / "images", (f"{i:07d}.jpg" for i in range(300)), jpeg)
    (base / "variants.txt").write_text("".join(f"{c}\n" for c in names))
    for k, part in enumerate(("train", "val", "test")):
        rows = "".join(f"{100 * k + i:07d} {names[(i + k) % 100]}\n" for i in range(100))
        (base / f"images_variant_{part}.txt").write_text(rows)
    source = classics.fgvc_aircraft(tmp_path)
    assert source.names == tuple(names)
    assert source.templates == ("a photo of a {}, a type of aircraft.",)
    assert source.train.labels.tolist() == list(range(100))
    assert source.test.labels.tolist() == [(i + 2) % 100 for i in range(100)]
    assert source.test.images[0] == base / "images" / "0000200.jpg"
    (base / "images_variant_test.txt").write_text("0000200 Concorde 9\n")
    with pytest.raises(Unavailable, match=r"test.txt: '0000200.jpg Concorde 9' is no image with its class; get the"):
        classics.fgvc_aircraft(tmp_path)
    (base / "images_variant_test.txt").write_text("0000999 F/A-18\n")
    with pytest.raises(Unavailable, match=r"0000999.jpg: missing, but images_variant_test.txt lists it; complete"):
        classics.fgvc_aircraft(tmp_path)
    (base / "images_variant_test.txt").write_text("../../x F/A-18\n")
    with pytest.raises(Unavailable, match=r"'../../x.jpg' leads out of "):
        classics.fgvc_aircraft(tmp_path)


@pytest.mark.parametrize("place", [".", "oxford_flowers", "flowers-102"])
def test_flowers_are_split_again(tmp_path: Path, jpeg: bytes, place: str) -> None:
    from scipy.io import savemat

    base = tmp_path / place
    labels = np.tile(np.arange(1, 103), 10)
    plant(base / "jpg", (f"image_{i:05d}.jpg" for i in range(1, 1021)), jpeg)
    savemat(base / "imagelabels.mat", {"labels": labels.astype(np.uint8)[None]})
    source = classics.flowers102(tmp_path)
    names = shipped("flowers102.json")["names"]
    assert source.names == tuple(names) and len(names) == len(set(names)) == 102
    assert (names[0], names[20], names[76], names[-1]) == (
        "pink primrose", "fire lily", "passion flower", "blackberry lily"
    )  # fmt: skip
    assert source.note == OWN and np.bincount(source.train.labels).tolist() == [5] * 102
    for path, label in zip(source.test.images, source.test.labels, strict=True):
        assert isinstance(path, Path) and labels[int(path.stem[-5:]) - 1] == label + 1
    community(base / "split_zhou_OxfordFlowers.json", names, lambda c, i: f"image_{102 * i + c + 1:05d}.jpg")
    source = classics.flowers102(tmp_path)
    assert source.names == tuple(reversed(names)) and len(source.train) == 204
    (base / "split_zhou_OxfordFlowers.json").unlink()
    (base / "imagelabels.mat").write_bytes(b"MATLAB 5.0" + bytes(200))
    with pytest.raises(Unavailable, match=r"imagelabels.mat: no readable labels \(.*\); get the file again$"):
        classics.flowers102(tmp_path)


@pytest.mark.parametrize("place", [".", "oxford_pets", "oxford-iiit-pet"])
def test_pets_keep_their_test_set(tmp_path: Path, jpeg: bytes, place: str) -> None:
    base = tmp_path / place
    breeds = ["Abyssinian", "american_bulldog", *(f"Breed_{c}" for c in LETTERS[:35])]
    (base / "annotations").mkdir(parents=True)
    for part, numbers in (("trainval", range(10)), ("test", range(10, 13))):
        images = [(f"{breed}_{i}", c + 1) for i in numbers for c, breed in enumerate(breeds)]
        plant(base / "images", (f"{image}.jpg" for image, _ in images), jpeg)
        rows = "".join(f"{image} {c} 1 1\n" for image, c in images)
        (base / "annotations" / f"{part}.txt").write_text(f"#Image CLASS-ID SPECIES BREED ID\n{rows}")
    source = classics.pets(tmp_path)
    assert source.names[:3] == ("abyssinian", "american bulldog", "breed aa")
    assert source.templates == ("a photo of a {}, a type of pet.",)
    assert source.note == FIFTH
    assert np.bincount(source.train.labels).tolist() == [8] * 37
    assert np.bincount(source.test.labels).tolist() == [3] * 37
    assert source.test.images[1] == base / "images" / "american_bulldog_10.jpg" and source.test.labels[1] == 1
    names = [breed.lower() for breed in breeds]
    community(base / "split_zhou_OxfordPets.json", names, lambda c, i: f"{breeds[c]}_{i}.jpg")
    assert classics.pets(tmp_path).names[-1] == "abyssinian"
    assert len(classics.pets(tmp_path).train) == 74


def annotated(path: Path, rows: Sequence[tuple[str, int]]) -> None:
    from scipy.io import savemat

    kinds = [("bbox_x1", object), ("class", object), ("fname", object)]
    savemat(path, {"annotations": np.array([[(1, c, name) for name, c in rows]], kinds)})


@pytest.mark.parametrize("place", [".", "stanford_cars"])
def test_cars_have_their_year_in_front(tmp_path: Path, jpeg: bytes, place: str) -> None:
    from scipy.io import savemat

    base = tmp_path / place
    models = ["AM General Hummer SUV 2000", *(f"Make {c} 2012" for c in LETTERS[:195])]
    (base / "devkit").mkdir(parents=True)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": np.array([models], object)})
    for part, n, path in (
        ("train", 5, base / "devkit" / "cars_train_annos.mat"),
        ("test", 2, base / "cars_test_annos_withlabels.mat"),
    ):
        rows = [(f"{i:05d}.jpg", i % 196 + 1) for i in range(196 * n)]
        plant(base / f"cars_{part}", (name for name, _ in rows), jpeg)
        annotated(path, rows)
    source = classics.cars(tmp_path)
    assert source.names[:2] == ("2000 AM General Hummer SUV", "2012 Make aa")
    assert source.note == FIFTH
    assert np.bincount(source.train.labels).tolist() == [4] * 196
    assert source.test.labels.tolist() == [i % 196 for i in range(392)]
    assert source.test.images[7] == base / "cars_test" / "00007.jpg"
    names = list(source.names)
    community(base / "split_zhou_StanfordCars.json", names, lambda c, i: f"cars_train/{196 * i + c:05d}.jpg")
    assert classics.cars(tmp_path).names == tuple(reversed(names))
    (base / "split_zhou_StanfordCars.json").unlink()
    annotated(base / "cars_test_annos_withlabels.mat", [("00000.jpg", 0)])
    with pytest.raises(Unavailable, match=r"withlabels.mat: annotations without fname and class \(0\); get the file"):
        classics.cars(tmp_path)


def scenes() -> list[str]:
    return ["a/abbey", "a/athletic_field/outdoor", "b/badminton_court/indoor", *(f"c/{c}" for c in LETTERS[:394])]


def planted_scenes(images: Path, jpeg: bytes) -> None:
    plant(images, (f"{scene}/sun_{i}.jpg" for scene in scenes() for i in range(10)), jpeg)


@pytest.mark.parametrize("place", ["SUN397", "sun397/SUN397"])
@pytest.mark.parametrize("beside", [True, False])
def test_sun_has_its_lists(tmp_path: Path, jpeg: bytes, place: str, beside: bool) -> None:
    images = tmp_path / place
    planted_scenes(images, jpeg)
    lists = images.parent if beside else images
    (lists / "ClassName.txt").write_text("".join(f"/{scene}\n" for scene in scenes()))
    source = classics.sun397(tmp_path)
    assert source.names[:4] == ("abbey", "outdoor athletic field", "indoor badminton court", "aa")
    assert source.note == OWN and len(source.train) == 5 * 397
    assert source.test.labels[-1] == 396
    for part, numbers in (("Training", range(5)), ("Testing", range(5, 7))):
        rows = "".join(f"/{scene}/sun_{i}.jpg\n" for scene in scenes() for i in numbers)
        (lists / f"{part}_01.txt").write_text(rows)
    source = classics.sun397(tmp_path)
    assert source.note == FIFTH
    assert (len(source.train), len(source.test)) == (4 * 397, 2 * 397)
    assert source.test.images[2] == images / "a/athletic_field/outdoor/sun_5.jpg" and source.test.labels[2] == 1
    names = list(source.names)
    community(images.parent / "split_zhou_SUN397.json", names, lambda c, i: f"{scenes()[c]}/sun_{i}.jpg")
    source = classics.sun397(tmp_path)
    assert source.names[-2] == "outdoor athletic field" and len(source.test) == 397


def actions() -> list[str]:
    return ["ApplyEyeMakeup", "HandStandPushups", "YoYo", *(f"Do{c.title()}Now" for c in LETTERS[:98])]


@pytest.mark.parametrize("place", [".", "ucf101"])
def test_ucf_is_read_from_its_lists_a_split_file_or_its_folders(tmp_path: Path, jpeg: bytes, place: str) -> None:
    import re

    base = tmp_path / place
    # the real frames write "Handstand_Pushups"
    folders = ["_".join(re.findall("[A-Z][^A-Z]*", a)).replace("Hand_Stand", "Handstand") for a in actions()]
    images = base / "UCF-101-midframes"
    plant(images, (f"{f}/v_g{i:02d}_c01.jpg" for f in folders for i in range(10)), jpeg)
    source = classics.ucf101(tmp_path)
    assert source.note == OWN and source.templates == ("a photo of a person doing {}.",)
    assert {"Apply Eye Makeup", "Handstand Pushups", "Yo Yo"} < set(source.names)
    lists = base / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("".join(f"{c + 1} {a}\r\n" for c, a in enumerate(actions())))
    for part, numbers, tail in (("train", range(5), " 1"), ("test", range(5, 8), "")):
        rows = "".join(f"{a}/v_g{i:02d}_c01.avi{tail}\r\n" for a in actions() for i in numbers)
        (lists / f"{part}list01.txt").write_text(rows)
    source = classics.ucf101(tmp_path)
    assert source.note == FIFTH and source.names[:3] == ("Apply Eye Makeup", "Hand Stand Pushups", "Yo Yo")
    assert np.bincount(source.train.labels).tolist() == [4] * 101
    assert source.test.images[3] == images / "Handstand_Pushups" / "v_g05_c01.jpg" and source.test.labels[3] == 1
    community(base / "split_zhou_UCF101.json", folders, lambda c, i: f"{folders[c]}/v_g{i:02d}_c01.jpg")
    assert classics.ucf101(tmp_path).names[-3:] == ("Yo Yo", "Handstand Pushups", "Apply Eye Makeup")


SETS: dict[str, tuple[str, str]] = {
    "caltech101": ("101_ObjectCategories", "fedray data get caltech101 (137 MB)"),
    "dtd": ("images", "fedray data get dtd (625 MB)"),
    "eurosat": ("2750", "fedray data get eurosat (94 MB)"),
    "fgvc_aircraft": ("variants.txt", "fedray data get fgvc_aircraft (2.8 GB)"),
    "flowers102": ("jpg", "fedray data get flowers102 (345 MB)"),
    "pets": ("images", "fedray data get pets (811 MB)"),
    "cars": (
        "cars_train",
        "by hand (some 2.0 GB) from ai.stanford.edu/~jkrause/cars/car_dataset.html, gone; mirrors on Kaggle, "
        "laid out as cars_train/*.jpg, cars_test/*.jpg, devkit/*.mat, cars_test_annos_withlabels.mat",
    ),
    "food101": (
        "images",
        "fedray data get food101 (5.0 GB)",
    ),
    "sun397": ("SUN397", "fedray data get sun397 (39 GB)"),
    "ucf101": (
        "UCF-101-midframes",
        "by hand (some 600 MB) from github.com/KaiyangZhou/CoOp, DATASETS.md, "
        "laid out as UCF-101-midframes/<class>/*.jpg, ucfTrainTestlist/*.txt",
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_missing_sets_say_where_and_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("FEDRAY_DATA", str(tmp_path))
    mark, get = SETS[name]
    with pytest.raises(Unavailable) as error:
        find(name)()
    assert str(error.value) == f"{name}: no {mark} in {tmp_path / name}; get it: {get}"


def test_another_set_in_its_place_is_not_taken_for_it(tmp_path: Path, jpeg: bytes) -> None:
    plant(tmp_path, (f"2750/{c}/{i}.jpg" for c in LETTERS[:11] for i in range(3)), jpeg)
    with pytest.raises(Unavailable) as error:
        classics.eurosat(tmp_path)
    assert str(error.value) == "eurosat: 11 classes are there, not 10; complete the data set"
    (tmp_path / "2750" / "aa").rename(tmp_path / "2750" / "empty")
    for path in (tmp_path / "2750" / "empty").iterdir():
        path.unlink()
    with pytest.raises(Unavailable, match="2750/empty: no images; complete the data set or remove the folder"):
        classics.eurosat(tmp_path)


def test_classes_read_as_words() -> None:
    functions: list[Callable[..., Source]] = [find(name) for name in SETS]
    for function in functions:
        assert (function.__doc__ or "").partition("\n")[0].endswith(".")

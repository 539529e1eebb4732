"""Sets of several domains, read from made-up trees in the layouts that are in use."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedray.data.disk import key
from fedray.data.gathered import digests
from fedray.data.partition import Domains
from fedray.data.shifted import (
    DOMAINNET,
    HOME,
    OFFICE,
    domainnet10,
    held_out,
    office_caltech10,
    officehome,
    pacs,
    terraincognita,
    vlcs,
)
from fedray.data.sources import Source, Table, find, names
from fedray.errors import BadInput, Unavailable
from fedray.experiment import Clip, Data, Experiment, Split
from fedray.recipe import Recipe

PACS = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
PACS_DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
SIX = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
TERRA = ("bird", "bobcat", "cat", "coyote", "dog", "empty", "opossum", "rabbit", "raccoon", "squirrel")


def photo(path: Path) -> None:
    """8 x 8 pixels that depend on the file's place, in bytes that depend on no codec."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32("/".join(path.parts[-3:]).encode()))
    with path.open("wb") as file:
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(file, "PPM")


def tree(root: Path, domains: Sequence[str], classes: Sequence[str], n: int = 3) -> Path:
    """`n` images of each class in each domain, written in an order that is not theirs."""
    for domain in domains[::-1]:
        for c in classes:
            for i in reversed(range(n)):
                photo(root / domain / c / f"{c}_{i:03d}.jpg")
    return root


def folded(names: Sequence[str]) -> list[str]:
    return [name.replace(" ", "_") for name in names]


# ---- folders alone


@pytest.mark.parametrize(
    ("read", "inside", "domains", "classes"),
    [
        (pacs, ".", PACS_DOMAINS, PACS),
        (pacs, "kfold", PACS_DOMAINS, PACS),
        (pacs, "images", PACS_DOMAINS, PACS),
        (domainnet10, ".", SIX, folded(DOMAINNET)),
        (domainnet10, "DomainNet", SIX, [*folded(DOMAINNET), "aircraft_carrier", "The_Eiffel_Tower"]),
        (office_caltech10, "office_caltech_10", ("amazon", "caltech", "dslr", "webcam"), folded(OFFICE)),
        (vlcs, "VLCS", ("Caltech101", "LabelMe", "SUN09", "VOC2007"), ("bird", "car", "chair", "dog", "person")),
        (officehome, ".", ("art", "clipart", "product", "real_world"), folded(HOME)),
        (
            officehome,
            "OfficeHomeDataset_10072016",
            ("Art", "Clipart", "Product", "Real World"),
            ["TV" if c == "tv" else "ToothBrush" if c == "toothbrush" else c.title().replace(" ", "_") for c in HOME],
        ),
        (terraincognita, "terra_incognita", [f"location_{n}" for n in (100, 38, 43, 46)], TERRA),
        (terraincognita, ".", ["L100", "L38", "L43", "L46"], TERRA),
    ],
)
def test_folders_are_split_by_domain_and_class(
    tmp_path: Path, read: object, inside: str, domains: Sequence[str], classes: Sequence[str]
) -> None:
    tree(tmp_path / inside, domains, classes)
    source = read(tmp_path)
    known = [c for c in classes if key(c) in {key(name) for name in source.names}]
    assert (len(source.names), len(source.domains)) == (len(known), len(domains))
    for table, per_class in ((source.train, 2), (source.test, 1)):
        cells = np.asarray(table.domains) * len(known) + table.labels
        assert (np.bincount(cells, minlength=len(domains) * len(known)) == per_class).all()
        for path, y, d in zip(table.images, table.labels, table.domains, strict=True):
            assert key(path.parent.name) == key(source.names[y])
            same = key(path.parts[-3]), key(source.domains[d])
            assert same[0] == same[1] or (read, same[0]) in ALIASES
    assert not {*source.train.images} & {*source.test.images}
    assert source.note == "split 70/30 into train and test by fedray, stratified by domain and class, seed 0"
    assert source.templates == ("a photo of a {}.",)


ALIASES = {(vlcs, name) for name in ("caltech101", "sun09", "voc2007")} | {
    (terraincognita, f"l{n}") for n in (38, 43, 46, 100)
}


def test_names_are_in_a_fixed_order(tmp_path: Path) -> None:
    source = domainnet10(tree(tmp_path / "a", SIX, folded(DOMAINNET)))
    assert source.names == (
        *("bird", "feather", "headphones", "ice cream", "teapot"),
        *("tiger", "whale", "windmill", "wine glass", "zebra"),
    )
    assert source.domains == SIX
    places = terraincognita(tree(tmp_path / "b", ["L100", "L38", "L43", "L46"], TERRA))
    assert places.domains == ("location 38", "location 43", "location 46", "location 100")
    assert "real world" in officehome(tree(tmp_path / "c", ["Art", "Clipart", "Product", "Real World"], HOME)).domains


def test_a_tree_is_one_digest_wherever_it_lies(tmp_path: Path) -> None:
    one, two = (
        pacs(tree(tmp_path / "a", PACS_DOMAINS, PACS)),
        tree(tmp_path / "b" / "images", PACS_DOMAINS, PACS).parent,
    )
    assert one.digest == pacs(two).digest
    assert one.digest.startswith("65eb475c53b2")
    photo(two / "images/photo/dog/dog_003.jpg")
    assert one.digest != pacs(two).digest


# ---- published splits


def lists(root: Path, folder: Path, tails: Sequence[str], classes: Sequence[str], first: int) -> None:
    """Of each class, image 0 goes into the first list, image 1 into the second, all into the third."""
    for domain in folder.iterdir():
        for k, tail in enumerate(tails):
            rows = [
                f"{domain.name}/{c}/{c}_{i:03d}.jpg {first + y}\n"
                for y, c in enumerate(classes)
                for i in range(3)
                if k in (i, 2)
            ]
            root.mkdir(exist_ok=True)
            (root / f"{domain.name}{tail}").write_text("".join(rows))


KFOLD = ("_train_kfold.txt", "_crossval_kfold.txt", "_test_kfold.txt")


def test_pacs_follows_its_lists(tmp_path: Path) -> None:
    tree(tmp_path / "images", PACS_DOMAINS, PACS)
    lists(tmp_path / "splits", tmp_path / "images", KFOLD, PACS, 1)
    path = tmp_path / "splits/sketch_train_kfold.txt"
    path.write_text("sketch/dog/n02103406_4068-1.png 1\n" + path.read_text())  # known to be damaged
    source = pacs(tmp_path)
    assert (len(source.train), len(source.test)) == (28, 28)
    assert {path.stem[-3:] for path in source.train.images} == {"000"}
    assert {path.stem[-3:] for path in source.test.images} == {"001"}
    assert source.train.labels.tolist() == [*range(7)] * 4
    assert source.train.domains.tolist() == np.repeat(np.arange(4), 7).tolist()
    assert all(path.exists() for path in source.train.images)
    assert source.note == "the published lists *_train_kfold.txt and *_crossval_kfold.txt"


def test_domainnet_follows_its_lists_for_its_ten_classes(tmp_path: Path) -> None:
    classes = ["aircraft_carrier", *folded(DOMAINNET), "The_Eiffel_Tower"]
    tree(tmp_path, SIX, classes)
    for domain in SIX[:-1]:
        for tail, i in (("_train.txt", 0), ("_test.txt", 2)):
            rows = "".join(f"{domain}/{c}/{c}_{i:03d}.jpg {y}\n" for y, c in enumerate(classes))
            (tmp_path / f"{domain}{tail}").write_text(rows)
    source = domainnet10(tmp_path)
    assert (len(source.train), len(source.test)) == (5 * 10 + 20, 5 * 10 + 10)
    assert source.train.labels[:10].tolist() == [*range(10)]
    assert source.note == (
        "clipart, infograph, painting, quickdraw, real: the published lists *_train.txt and *_test.txt; sketch: "
        "split 70/30 into train and test by fedray, stratified by domain and class, seed 0"
    )


@pytest.mark.parametrize("line", ["photo/dog/1.jpg 1", "dog/1.jpg 1", "art_painting/dog/1.jpg", "../art_painting 1"])
def test_wrong_lists_are_named(tmp_path: Path, line: str) -> None:
    tree(tmp_path, PACS_DOMAINS, PACS)
    for tail in KFOLD[:2]:
        (tmp_path / f"art_painting{tail}").write_text(line + "\n")
    with pytest.raises(Unavailable) as error:
        pacs(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/art_painting_train_kfold.txt: {line!r} is not art_painting/<class>/<file> <number>; "
        "get the file again"
    )


@pytest.mark.parametrize("test", ["test", "val"])
def test_train_and_test_folders_are_kept(tmp_path: Path, test: str) -> None:
    """JiGen's VLCS numbers its classes and has further folders; Dassl's Office-Home has val."""
    for domain in ("CALTECH", "LABELME", "PASCAL", "SUN"):
        for part, n in (("train", 4), (test, 2), ("full", 6)):
            tree(tmp_path / domain, [part], "01234", n)
    source = vlcs(tmp_path)
    assert source.names == ("bird", "car", "chair", "dog", "person")
    assert source.domains == ("caltech", "labelme", "pascal", "sun")
    assert (len(source.train), len(source.test)) == (4 * 5 * 4, 4 * 5 * 2)
    assert {path.parts[-3] for path in source.train.images} == {"train"}
    assert {path.parts[-3] for path in source.test.images} == {test}
    assert source.note == f"the published folders train and {test}"


# ---- what is missing


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    (tmp_path / "DomainNet").mkdir()
    for domain in SIX:
        (tmp_path / "DomainNet" / f"{domain}_train.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(Unavailable) as error:
        domainnet10(tmp_path)
    assert str(error.value) == (
        f"domainnet10: {tmp_path}/DomainNet/clipart_train.pkl is a pickle, which runs code when it is read, and is not "
        f"opened; unpack the images as clipart/<class>/ and so on into {tmp_path}"
    )
    tree(tmp_path / "DomainNet", SIX, folded(DOMAINNET))
    assert domainnet10(tmp_path).note.startswith("split 70/30")


def test_a_missing_domain_or_class_is_named(tmp_path: Path) -> None:
    tree(tmp_path, PACS_DOMAINS[:2], PACS[:-1])
    with pytest.raises(Unavailable) as error:
        pacs(tmp_path)
    assert str(error.value) == (
        f"pacs: no folder of the domain 'photo' in {tmp_path}; get it: by hand, some 190 MB, PACS of "
        "domaingeneralization.github.io"
    )
    tree(tmp_path, PACS_DOMAINS[2:], PACS[:-1])
    with pytest.raises(Unavailable) as error:
        pacs(tmp_path)
    assert str(error.value) == f"pacs: no image of class 'person' in any domain in {tmp_path}; complete the data set"
    photo(tmp_path / "sketch/person/1.png")
    assert len(pacs(tmp_path).train) == 4 * 6 * 2 + 1


SIZES = {
    "domainnet10": ("clipart", "18 GB in all"),
    "office_caltech10": ("amazon", "some 60 MB"),
    "pacs": ("art painting", "some 190 MB"),
    "vlcs": ("caltech", "some 3.6 GB"),
    "officehome": ("art", "1.1 GB"),
    "terraincognita": ("location 38", "some 6 GB"),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_missing_set_says_where_and_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert name in names()
    domain, size = SIZES[name]
    monkeypatch.setenv("FEDRAY_DATA", str(tmp_path))
    with pytest.raises(Unavailable) as error:
        find(name)(root=None)
    start = f"{name}: no folder of the domain {domain!r} in {tmp_path / name}; get it: by hand, {size}, "
    assert str(error.value).startswith(start)
    assert "\n" not in str(error.value)


def test_other_programs_folders_beside_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRAY_DATA", str(tmp_path))
    tree(tmp_path / "PACS", PACS_DOMAINS, PACS)
    assert len(find("pacs")(root=None).train) == 4 * 7 * 2


# ---- use


def test_a_domain_can_be_held_out(tmp_path: Path) -> None:
    source = pacs(tree(tmp_path, PACS_DOMAINS, PACS))
    rest, exam = held_out(source, "photo")
    assert {*np.unique(rest.train.domains), *np.unique(rest.test.domains)} == {0, 1, 3}
    assert (len(rest.train), len(rest.test), len(exam)) == (42, 21, 21)
    assert {path.parts[-3] for path in exam.images} == {"photo"}
    assert np.unique(exam.domains).tolist() == [2]
    assert np.bincount(exam.labels).tolist() == [3] * 7
    assert (rest.names, rest.domains, rest.note) == (source.names, source.domains, source.note)
    everything = {*source.train.images, *source.test.images}
    assert {*rest.train.images, *rest.test.images, *exam.images} == everything
    with pytest.raises(BadInput) as error:
        held_out(source, "photos")
    assert str(error.value) == "pacs has no domain 'photos'. Did you mean photo?"
    rest, exam = held_out(source, "ART_painting")
    assert (len(rest.train), np.unique(exam.domains).tolist()) == (42, [0])
    plain = Source("x", ("a",), ("{}",), Table((), np.zeros(0, np.int64)), Table((), np.zeros(0, np.int64)))
    with pytest.raises(BadInput, match=r"^x has no domain 'photo': no image of it has one; take another data set$"):
        held_out(plain, "photo")


def test_arrays_can_be_held_out_too() -> None:
    pixels = np.arange(4 * 3, dtype=np.uint8).reshape(4, 1, 1, 3)
    table = Table(pixels, np.zeros(4, np.int64), np.array([0, 1, 0, 1]))
    rest, exam = held_out(Source("x", ("a",), ("{}",), table, table, ("day", "night")), "night")
    assert (np.asarray(exam.images) == pixels[[1, 3, 1, 3]]).all()
    assert (np.asarray(rest.train.images) == pixels[[0, 2]]).all()


def test_what_is_hashed_stays_so_without_a_domain(tmp_path: Path) -> None:
    source = pacs(tree(tmp_path / "set", PACS_DOMAINS, PACS))
    known = replace(source, train=source.train.hashed(), test=source.test.hashed())
    for one, two in zip(held_out(known, "photo"), held_out(source, "photo"), strict=True):
        for a, b in zip(*((x.train, x.test) if isinstance(x, Source) else (x,) for x in (one, two)), strict=True):
            assert a.hashes is not None
            assert b.hashes is None
            assert a.digest == b.digest


@pytest.mark.parametrize(
    ("train", "test", "text"),
    [
        ([0, 0], [0, 1], "x has no training images outside of domain 'day'; leave out another one"),
        ([0, 1], [0, 0], "x has no test images outside of domain 'day'; leave out another one"),
        ([1, 1], [1, 1], "x has no images of domain 'day'; leave out another one"),
    ],
)
def test_something_must_be_left_on_both_sides(train: list[int], test: list[int], text: str) -> None:
    pixels = np.zeros((2, 1, 1, 3), np.uint8)
    tables = (Table(pixels, np.zeros(2, np.int64), np.array(part)) for part in (train, test))
    with pytest.raises(BadInput, match=f"^{text}$"):
        held_out(Source("x", ("a",), ("{}",), *tables, ("day", "night")), "day")


def test_a_federated_run_is_built_by_domain(tmp_path: Path) -> None:
    from fedray.build import build  # the only test here that needs torch

    experiment = Experiment(
        clip=Clip(name="tiny"),
        method=Recipe("promptfl", n_ctx=2),
        data=Data(name="pacs", root=str(tree(tmp_path / "data", PACS_DOMAINS, PACS))),
        split=Split(shots=None),
        partition=Domains(clients=4),
    )
    built = build(experiment, cache=tmp_path / "cache")
    source = pacs(tmp_path / "data")
    assert built.clients == (0, 1, 2, 3)
    for k, part in enumerate(built.parts):
        assert (source.train.domains[part] == k).all()
    assert built.labels.tolist() == source.train.labels.tolist()
    assert built.digests == {"pacs": digests(source)}

"""Remote sensing sets, read from made-up trees in the layouts that their authors publish."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedray.data.remote import MERCED, OPTIMAL, RESISC, optimal31, resisc45, uc_merced
from fedray.data.sources import find, names
from fedray.errors import Unavailable

LAYOUTS = [
    (optimal31, "OPTIMAL-31/Images", OPTIMAL, "_", ".jpg", (5, 5)),
    (optimal31, "Images", OPTIMAL, "_", ".jpg", (5, 5)),
    (uc_merced, "UCMerced_LandUse/Images", MERCED, "", ".tif", (5, 5)),
    (resisc45, "NWPU-RESISC45", RESISC, "_", ".jpg", (2, 8)),
    (resisc45, ".", RESISC, " ", ".png", (2, 8)),
]


def scenes(root: Path, classes: tuple[str, ...], gap: str, suffix: str, n: int = 10) -> Path:
    for c in classes[::-1]:
        folder = root / c.replace(" ", gap)
        folder.mkdir(parents=True)
        for i in range(n):
            rng = np.random.default_rng(zlib.crc32(f"{c}{i}".encode()))
            with (folder / f"{folder.name}{i:02d}{suffix}").open("wb") as file:
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(file, "PPM")
    return root


@pytest.mark.parametrize(("read", "inside", "classes", "gap", "suffix", "shares"), LAYOUTS)
def test_class_folders_are_split_as_the_paper_splits_them(
    tmp_path: Path, read: object, inside: str, classes: tuple[str, ...], gap: str, suffix: str, shares: tuple[int, int]
) -> None:
    scenes(tmp_path / inside, classes, gap, suffix)
    source = read(tmp_path)
    assert source.names == classes
    for table, n in zip((source.train, source.test), shares, strict=True):
        assert np.bincount(table.labels).tolist() == [n] * len(classes)
        assert all(
            p.parent.name == classes[y].replace(" ", gap) for p, y in zip(table.images, table.labels, strict=True)
        )
    assert not {*source.train.images} & {*source.test.images}
    assert source.templates == ("a satellite photo of {}.",)
    a, b = (10 * n for n in shares)
    assert source.note == f"split {a}/{b} into train and test by fedray, stratified, seed 0"


def test_names_are_words() -> None:
    assert {"dense residential", "mobile home park", "storage tanks"} < {*MERCED}
    assert {"dense residential", "thermal power station", "sea ice"} < {*RESISC}
    assert (len(OPTIMAL), len(MERCED), len(RESISC)) == (31, 21, 45)
    assert all(list(classes) == sorted({*classes}) for classes in (OPTIMAL, MERCED, RESISC))


def test_a_tree_is_one_digest_wherever_it_lies(tmp_path: Path) -> None:
    one = uc_merced(scenes(tmp_path / "a", MERCED, "", ".tif"))
    two = uc_merced(scenes(tmp_path / "b" / "Images", MERCED, "", ".tif").parent)
    assert one.digest == two.digest
    assert one.digest.startswith("db9a74bce03a")


def test_missing_classes_are_counted(tmp_path: Path) -> None:
    scenes(tmp_path, MERCED[:18], "", ".tif")
    (tmp_path / "storagetanks").mkdir()
    with pytest.raises(Unavailable) as error:
        uc_merced(tmp_path)
    assert str(error.value) == (
        f"uc_merced: 3 of 21 class folders in {tmp_path} are missing or empty, the first is 'sparse residential'; "
        "complete the data set"
    )


@pytest.mark.parametrize(
    ("name", "mark", "how"),
    [
        ("optimal31", "airplane or Airplane", "by hand (some 25 MB) from its authors at CAS"),
        ("uc_merced", "agricultural or Agricultural", "fedray data get uc_merced (332 MB)"),
        ("resisc45", "airplane or Airplane", "fedray data get resisc45 (some 400 MB)"),
    ],
)
def test_a_missing_set_says_where_and_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, mark: str, how: str
) -> None:
    assert name in names()
    monkeypatch.setenv("FEDRAY_DATA", str(tmp_path))
    with pytest.raises(Unavailable) as error:
        find(name)(root=None)
    assert str(error.value).startswith(f"{name}: no {mark} in {tmp_path / name}; get it: {how}")
    assert "\n" not in str(error.value)

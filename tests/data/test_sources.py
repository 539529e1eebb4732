from __future__ import annotations

import gzip
import importlib.util
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fedray.data import composites, sources
from fedray.data.sources import SYSTEM, Source, Table, digits, fashion, find, names
from fedray.errors import BadInput, Unavailable


def idx(path: Path, array: np.ndarray, *, pack: bool = True) -> None:
    raw = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw) if pack else raw)


def garments(folder: Path, *, pack: bool = True) -> np.ndarray:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 28, 28))
    for part, n in (("train", 20), ("t10k", 10)):
        tail = ".gz" if pack else ""
        idx(folder / f"{part}-images-idx3-ubyte{tail}", images[:n], pack=pack)
        idx(folder / f"{part}-labels-idx1-ubyte{tail}", np.arange(n) % 10, pack=pack)
    return images


def test_digits_are_the_measured_task() -> None:
    source = digits()
    assert (len(source.train), len(source.test)) == (1078, 719)
    assert source.names[3] == "three"
    assert source.templates == ("a photo of the digit {}",)
    assert source.train.images.shape == (1078, 28, 28, 3)
    assert source.train.images.dtype == np.uint8
    assert source.train.labels.dtype == np.int64
    share = np.bincount(source.train.labels) / np.bincount(np.r_[source.train.labels, source.test.labels])
    np.testing.assert_allclose(share, 0.6, atol=0.005)
    # A change here orphans stored features and published numbers: it must be meant.
    assert source.digest.startswith("c81c524f3d0d")


def test_digits_are_enlarged_as_torch_does() -> None:
    import torch
    from sklearn.datasets import load_digits

    x = torch.tensor(load_digits().images / 16)[:, None]
    x = torch.nn.functional.pad(x, (1, 1, 1, 1))
    x = torch.nn.functional.interpolate(x, size=(28, 28), mode="bicubic", align_corners=False).clamp(0, 1)
    expected = (x * 255).numpy()[:, 0]
    source = digits()
    ours = np.concatenate([source.train.images, source.test.images])
    assert (ours == ours[..., :1]).all()
    key = [np.sort(images.reshape(len(images), -1).sum(1)) for images in (ours[..., 0].astype(float), expected)]
    np.testing.assert_allclose(*key, atol=0.5 * 28 * 28)
    up = sources.bicubic(10, 28)
    np.testing.assert_allclose(
        np.clip(up @ np.pad(load_digits().images / 16, ((0, 0), (1, 1), (1, 1))) @ up.T, 0, 1) * 255,
        expected,
        atol=1e-9,
    )


@pytest.mark.parametrize("place", [".", "fashion", "FashionMNIST/raw"])
@pytest.mark.parametrize("pack", [True, False])
def test_fashion_is_found_where_people_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, pack: bool
) -> None:
    images = garments(tmp_path / place, pack=pack)
    source = fashion(tmp_path)
    assert (source.train.images == images[..., None]).all()
    assert source.train.images.shape == (20, 28, 28, 3)
    assert source.test.labels.tolist() == list(range(10))
    assert source.names[9] == "ankle boot"
    monkeypatch.setenv("FEDRAY_DATA", str(tmp_path))
    assert find("fashion")(root=None).digest == source.digest


def test_the_systems_copy_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDRAY_DATA", raising=False)
    monkeypatch.setattr(sources, "SYSTEM", tmp_path)
    garments(tmp_path / "fashion-mnist")
    assert len(fashion().train) == 20
    with pytest.raises(Unavailable, match="elsewhere"):
        fashion(tmp_path / "elsewhere")


@pytest.mark.skipif(not (SYSTEM / "fashion-mnist").exists(), reason="no packaged copy of Fashion-MNIST")
def test_the_real_fashion_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDRAY_DATA", raising=False)
    source = fashion()
    assert np.bincount(source.train.labels).tolist() == [6000] * 10
    assert np.bincount(source.test.labels).tolist() == [1000] * 10
    assert source.digest.startswith("e32e7fac8bf7")


def test_a_missing_set_says_where_and_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unavailable) as error:
        fashion(tmp_path)
    assert str(error.value) == (
        f"fashion: no train-images-idx3-ubyte.gz in {tmp_path}, {tmp_path}/fashion, {tmp_path}/FashionMNIST/raw; "
        "get it: fedray data get fashion (31 MB)"
    )
    monkeypatch.setenv("FEDRAY_DATA", str(tmp_path / "all"))
    monkeypatch.setattr(sources, "SYSTEM", tmp_path)
    with pytest.raises(Unavailable, match=f"no train-images-idx3-ubyte.gz in {tmp_path}/all, {tmp_path}/all/fashion, "):
        fashion()


def damage(path: Path, how: str) -> None:
    raw = path.read_bytes()
    if how == "truncated":
        path.write_bytes(raw[: len(raw) // 2])
    elif how == "flipped":
        path.write_bytes(raw[:-20] + bytes([raw[-20] ^ 1]) + raw[-19:])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "not packed":
        path.write_bytes(b"<html>not found</html>")
    elif how == "short":
        path.write_bytes(gzip.compress(gzip.decompress(raw)[:-1]))
    elif how == "long":
        path.write_bytes(gzip.compress(gzip.decompress(raw) + b"\0"))
    elif how == "other magic":
        path.write_bytes(gzip.compress(b"\0\0\x0d\x03" + gzip.decompress(raw)[4:]))
    else:
        path.unlink()


@pytest.mark.parametrize(
    "how", ["truncated", "flipped", "empty", "not packed", "short", "long", "other magic", "deleted"]
)
@pytest.mark.parametrize("name", ["t10k-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"])
def test_damaged_files_are_named(tmp_path: Path, how: str, name: str) -> None:
    garments(tmp_path)
    damage(tmp_path / name, how)
    with pytest.raises(Unavailable) as error:
        fashion(tmp_path)
    assert str(tmp_path / name.removesuffix(".gz")) in str(error.value)
    assert "get " in str(error.value)


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    garments(tmp_path)
    head = struct.pack(">4I", 0x0803, 4_000_000_000, 28, 28)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + bytes(300_000_000), 1))
    start = time.process_time()
    with pytest.raises(Unavailable, match="at most 100000"):
        fashion(tmp_path)
    assert time.process_time() - start < 2


def test_labels_must_fit_the_images(tmp_path: Path) -> None:
    garments(tmp_path)
    idx(tmp_path / "train-labels-idx1-ubyte.gz", np.arange(19))
    with pytest.raises(Unavailable, match="19 labels up to 18 do not fit 20 images of 10 classes"):
        fashion(tmp_path)


def test_sets_are_found_by_name() -> None:
    assert {"digits", "fashion", "multidigits", "multifashion"} <= set(names())
    assert not {"find", "names", "Source", "stratified", "likelihoods"} & set(names())
    assert find("digits") is digits
    assert find("multidigits") is composites.multidigits
    for module in sources.MODULES:
        assert importlib.util.find_spec(f"fedray.data.{module}"), module
    for name in names():
        source = find(name)
        assert name == source.__name__ and (source.__doc__ or "").partition("\n")[0].endswith("."), name
    with pytest.raises(BadInput) as error:
        find("fasion")
    assert str(error.value) == "unknown data set 'fasion'. Did you mean fashion?"
    with pytest.raises(BadInput, match="Choose from: caltech101, cars, cifar10, cifar100"):
        find("__class__")


def test_listing_imports_no_heavy_package() -> None:
    code = (
        "import sys; from fedray.data.sources import names; names();"
        "print({'torch', 'sklearn', 'torchvision', 'pyarrow', 'PIL'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_digests_see_pixels_shapes_labels_and_files(tmp_path: Path) -> None:
    images = np.arange(4 * 2 * 3 * 3, dtype=np.uint8).reshape(4, 2, 3, 3)
    table = Table(images, np.arange(4))
    other = images.copy()
    other[3, 1, 2, 2] ^= 1
    shaped = [table, Table(other, np.arange(4)), Table(images.reshape(4, 3, 2, 3), np.arange(4))]
    assert len({t.digest for t in shaped}) == 3
    assert table.digest == Table(images[::-1][::-1], np.zeros(4, np.int64)).digest
    relabelled = Table(images, np.zeros(4, np.int64))
    a, b = (Source("x", tuple("abcd"), ("{}",), t, t) for t in (table, relabelled))
    assert a.digest != b.digest
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode())
    one, two = ((tmp_path / "a", tmp_path / "b"), (tmp_path / "b", tmp_path / "a"))
    assert Table(one, np.zeros(2, np.int64)).digest != Table(two, np.zeros(2, np.int64)).digest
    with pytest.raises(Unavailable, match="nowhere: No such file"):
        _ = Table((tmp_path / "nowhere",), np.zeros(1, np.int64)).digest


def test_tables_take_rows_in_order() -> None:
    table = Table(np.arange(12, dtype=np.uint8).reshape(4, 1, 1, 3), np.arange(4))
    assert table.take(np.array([2, 0])).labels.tolist() == [2, 0]
    assert table.take(np.array([2, 0])).images[:, 0, 0, 0].tolist() == [6, 0]
    paths = Table((Path("a"), Path("b")), np.arange(2))
    assert paths.take(np.array([1])).images == (Path("b"),)
    with pytest.raises(BadInput, match="2 images but 1 labels; give one label for each image"):
        Table((Path("a"), Path("b")), np.arange(1))


PIXEL = np.zeros((2, 1, 1, 3), np.uint8)


def test_labels_are_one_class_or_a_multi_hot_row() -> None:
    assert not Table(PIXEL, np.array([0, 4])).multilabel
    assert Table(PIXEL, np.array([[1, 0, -1], [0, 0, 0]], np.int8)).multilabel
    assert Table(PIXEL, np.array([[1, 0], [0, 1]], np.int8)).take(np.array([1])).labels.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0.0, 1.0]), "labels of shape (2,), float64, are neither int64 (n,) nor int8 (n, C); convert them"),
        (
            np.eye(2, dtype=np.int64),
            "labels of shape (2, 2), int64, are neither int64 (n,) nor int8 (n, C); convert them",
        ),
        (np.zeros(2, np.int8), "labels of shape (2,), int8, are neither int64 (n,) nor int8 (n, C); convert them"),
        (np.array([0, -1]), "a label is -1; classes count from 0"),
        (np.array([[1, 0], [2, 0]], np.int8), "a label is 2; multi-hot labels are 1, 0 or -1 for unknown"),
        (np.zeros((3, 2), np.int8), "2 images but 3 labels; give one label for each image"),
    ],
)
def test_other_labels_are_refused(labels: np.ndarray, message: str) -> None:
    with pytest.raises(BadInput) as error:
        Table(PIXEL, labels)
    assert str(error.value) == message


def test_a_source_names_every_class_and_mixes_no_kinds_of_labels() -> None:
    one, several = Table(PIXEL, np.array([0, 2])), Table(PIXEL, np.eye(2, dtype=np.int8))
    assert Source("x", ("a", "b"), ("{}",), several, several).multilabel
    assert not Source("x", tuple("abcd"), ("{}",), one, one).multilabel
    with pytest.raises(BadInput, match="x: train has 3 classes but 2 names; name each class"):
        Source("x", ("a", "b"), ("{}",), one, one)
    with pytest.raises(BadInput, match="x: train has 2 classes but 3 names; name each class"):
        Source("x", tuple("abc"), ("{}",), several, several)
    with pytest.raises(BadInput, match=r"x: train and test must both have labels \(n,\) or both \(n, C\)"):
        Source("x", ("a", "b"), ("{}",), several, Table(PIXEL, np.array([0, 1])))


def test_digests_see_multi_hot_labels() -> None:
    labels = [np.array([[1, 0], [0, 0]]), np.array([[0, 1], [0, 0]]), np.array([[1, 0], [0, -1]])]
    tables = [Table(PIXEL, y.astype(np.int8)) for y in labels]
    assert len({Source("x", ("a", "b"), ("{}",), t, t).digest for t in tables}) == 3


def test_domains_are_numbers_that_travel_with_the_rows() -> None:
    table = Table(PIXEL, np.array([0, 1]), np.array([1, 0]))
    moved = table.take(np.array([1, 1, 0]))
    assert moved.domains is not None and moved.domains.tolist() == [0, 0, 1]
    paths = Table((Path("a"), Path("b")), np.array([0, 1]), np.array([1, 0])).take(np.array([1]))
    assert paths.domains is not None and paths.domains.tolist() == [0]
    source = Source("x", ("a", "b"), ("{}",), table, table, ("here", "there"))
    assert source.domains == ("here", "there")
    with pytest.raises(BadInput, match="x: domain 1 has no name; name each domain"):
        Source("x", ("a", "b"), ("{}",), table, table, ("here",))
    for wrong in (np.array([0]), np.array([0.0, 1.0]), np.array([0, -1]), np.array([[0], [1]])):
        with pytest.raises(BadInput, match=r"domains of shape .* are not one int64 from 0 for each of 2 images"):
            Table(PIXEL, np.array([0, 1]), wrong)


def test_digests_see_domains_and_nothing_of_sets_without() -> None:
    y = np.array([0, 1])
    tables = [Table(PIXEL, y, d) for d in (None, np.array([0, 1]), np.array([1, 0]))]
    made = [Source("x", ("a", "b"), ("{}",), t, t, ("p", "q")) for t in tables]
    assert len({source.digest for source in made}) == 3
    assert made[0].digest == Source("x", ("a", "b"), ("{}",), tables[0], tables[0]).digest
    assert len({t.digest for t in tables}) == 1  # images alone


def test_a_set_for_exams_only_has_no_training_images() -> None:
    nothing = Table((), np.zeros(0, np.int64))
    source = Source("x", ("a", "b"), ("{}",), nothing, Table(PIXEL, np.array([0, 1])))
    assert not source.multilabel and len(source.train) == 0 and source.digest

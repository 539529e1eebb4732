from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from fedray.data.cifar import HUNDRED, PIXELS, TEN, cifar10, cifar100
from fedray.data.sources import find
from fedray.errors import Unavailable


def images(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


def planes(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 3, 1, 2).reshape(len(x), PIXELS)


def word(text: str) -> bytes:
    return b"U" + bytes([len(text)]) + text.encode()


def number(n: int) -> bytes:
    return b"K" + bytes([n]) if n < 256 else b"J" + struct.pack("<i", n)


def numbers(values: list[int]) -> bytes:
    return b"](" + b"".join(map(number, values)) + b"e"


def python2(x: np.ndarray, **lists: list[int]) -> bytes:
    """The pickle that Python 2 and NumPy wrote: protocol 2, the array's bytes in one string."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + number(len(x)) + number(PIXELS) + b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<I", x.size) + planes(x).tobytes() + b"tb"
    )  # fmt: skip
    body = word("batch_label") + word("training batch 1 of 5")
    for key, values in lists.items():
        body += word(key) + numbers(values)
    return b"\x80\x02}(" + body + word("data") + array + word("filenames") + b"](" + word("a_s_0.png") + b"eu."


def ten(root: Path, *, binary: bool) -> tuple[np.ndarray, np.ndarray]:
    folder = root / ("cifar-10-batches-bin" if binary else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    x, y = images(30, 0), np.arange(30) % 10
    for k, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        part = slice(5 * k, 5 * k + 5)
        if binary:
            (folder / f"{name}.bin").write_bytes(np.c_[y[part], planes(x[part])].astype(np.uint8).tobytes())
        else:
            (folder / name).write_bytes(python2(x[part], labels=y[part].tolist()))
    return x, y


def test_the_fixture_is_a_pickle_that_numpy_understands() -> None:
    import pickle
    import warnings

    x = images(300, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy has moved the function that old pickles name
        held = pickle.loads(python2(x, labels=[3] * 300), encoding="latin1")  # it is ours
    assert held["labels"] == [3] * 300
    assert np.array_equal(held["data"], planes(x))


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("place", [".", "cifar-10"])
def test_cifar10_in_both_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, binary: bool, place: str) -> None:
    x, y = ten(tmp_path / place, binary=binary)
    source = cifar10(tmp_path)
    assert np.array_equal(source.train.images, x[:25]) and np.array_equal(source.test.images, x[25:])
    assert source.train.labels.tolist() == y[:25].tolist() and source.test.labels.tolist() == y[25:].tolist()
    assert source.names == TEN and source.templates == ("a photo of a {}.",)
    monkeypatch.setenv("FEDRAY_DATA", str(tmp_path))
    if place != ".":
        assert find("cifar10")().digest == source.digest


@pytest.mark.parametrize("binary", [True, False])
def test_cifar100_has_fine_classes(tmp_path: Path, binary: bool) -> None:
    folder = tmp_path / ("cifar-100-binary" if binary else "cifar-100-python")
    folder.mkdir()
    x, fine, coarse = images(20, 1), np.arange(20) * 5, np.arange(20)
    for part, rows in (("train", slice(12)), ("test", slice(12, 20))):
        if binary:
            raw = np.c_[coarse[rows], fine[rows], planes(x[rows])].astype(np.uint8).tobytes()
            (folder / f"{part}.bin").write_bytes(raw)
        else:
            raw = python2(x[rows], fine_labels=fine[rows].tolist(), coarse_labels=coarse[rows].tolist())
            (folder / part).write_bytes(raw)
    source = cifar100(tmp_path)
    assert source.train.labels.tolist() == fine[:12].tolist()
    assert np.array_equal(source.test.images, x[12:])
    assert source.names == HUNDRED and len(set(HUNDRED)) == 100
    assert source.names[1] == "aquarium fish"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\x03" * (PIXELS + 1) + b"x", "3074 bytes are no whole number of records of 3073"),
        (b"", "0 bytes are no whole number of records of 3073"),
        (b"\x0a" * (PIXELS + 1), "label 10 of 10 classes"),
    ],
)
def test_damaged_binary_files_are_named(tmp_path: Path, raw: bytes, message: str) -> None:
    ten(tmp_path, binary=True)
    (tmp_path / "cifar-10-batches-bin" / "data_batch_4.bin").write_bytes(raw)
    with pytest.raises(Unavailable) as error:
        cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_4.bin"
    assert str(error.value) == f"{path}: not CIFAR's binary form ({message}); get the file again"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"no pickle",
        python2(images(2, 0), labels=[1, 2])[:-9000],
        python2(images(2, 0), labels=[1]),
        python2(images(2, 0), labels=[1, 10]),
        python2(images(2, 0), other=[1, 2]),
    ],
)
def test_damaged_pickles_are_named(tmp_path: Path, raw: bytes) -> None:
    ten(tmp_path, binary=False)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(raw)
    with pytest.raises(Unavailable) as error:
        cifar10(tmp_path)
    assert str(error.value).startswith(f"{path}: not CIFAR's Python form (")
    assert "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(Unavailable, match="test_batch: No such file"):
        cifar10(tmp_path)


def test_a_pickle_with_a_sting_is_not_obeyed(tmp_path: Path) -> None:
    ten(tmp_path, binary=False)
    goal = tmp_path / "stung"
    raw = python2(images(2, 0), labels=[1, 2])
    evil = b"\x80\x02(cos\nsystem\n(" + word(f"touch {goal}") + b"tR0" + raw[2:]
    for path in (tmp_path / "cifar-10-batches-py").iterdir():
        path.write_bytes(evil)
    assert len(cifar10(tmp_path).train) == 10  # its images are read, its commands are not
    assert not goal.exists()


def test_a_missing_set_says_where_and_how(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as error:
        cifar100(tmp_path)
    assert str(error.value) == (
        f"cifar100: no cifar-100-binary or cifar-100-python in {tmp_path}; get it: fedray data get cifar100 (169 MB)"
    )

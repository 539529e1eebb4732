from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedray.build import build
from fedray.data.coop import resplit, without_fifth, zhou
from fedray.data.disk import SUFFIXES
from fedray.data.partition import Iid
from fedray.data.sources import Source, Table, find
from fedray.data.trees import folder, home, listing, located
from fedray.errors import BadInput, Unavailable
from fedray.experiment import Experiment, Recipe

OWN = "split 70/30 into train and test by fedray, stratified, seed 0"


def paint(path: Path, shade: int = 0) -> Path:
    """An image of 8 x 8 with a shade of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(path)
    return path


def grow(root: Path, classes: dict[str, int]) -> None:
    for c, (name, n) in enumerate(classes.items()):
        for i in range(n):
            paint(root / name / f"{i}.png", 40 * c + i)


def below(root: Path, table: Table) -> list[str]:
    assert isinstance(table.images, tuple)
    return [path.relative_to(root).as_posix() for path in table.images]


def refusal(root: Path) -> str:
    with pytest.raises(BadInput) as error:
        folder(root)
    assert "\n" not in str(error.value)
    return str(error.value).replace(str(root), "ROOT")


def test_class_folders_are_split_here_and_say_so(tmp_path: Path) -> None:
    grow(tmp_path, {"polar_bear": 10, "Ant": 20, ".cache": 3})
    (tmp_path / "readme.txt").write_text("hello")
    (tmp_path / "Ant" / ".hidden.png").write_text("no image")
    (tmp_path / "Ant" / "notes.txt").write_text("no image")
    source = folder(tmp_path)
    assert (source.name, source.names, source.templates) == ("folder", ("Ant", "polar bear"), ("a photo of a {}.",))
    assert source.note == OWN
    assert np.bincount(source.train.labels).tolist() == [14, 7]
    assert np.bincount(source.test.labels).tolist() == [6, 3]
    both = below(tmp_path, source.train) + below(tmp_path, source.test)
    assert sorted(both) == sorted([f"Ant/{i}.png" for i in range(20)] + [f"polar_bear/{i}.png" for i in range(10)])
    for table in (source.train, source.test):
        assert [name.startswith("polar") for name in below(tmp_path, table)] == (table.labels == 1).tolist()
    again = find("folder")(root=tmp_path)
    assert again.digest == source.digest
    assert below(tmp_path, again.test) == below(tmp_path, source.test)


def test_train_and_test_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    grow(tmp_path / "train", {"a": 2, "b": 1, "c": 3})
    grow(tmp_path / "test", {"c": 1, "a": 2})
    paint(tmp_path / "train" / "b" / "deep" / "er" / "x.JPG")
    source = folder(tmp_path)
    assert source.names == ("a", "b", "c")
    assert source.train.labels.tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert below(tmp_path, source.train)[3] == "train/b/deep/er/x.JPG"
    assert below(tmp_path, source.test) == ["test/a/0.png", "test/a/1.png", "test/c/0.png"]
    assert source.test.labels.tolist() == [0, 0, 2]
    assert source.note == ""


def test_wrong_trees_are_named(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "ROOT: no class folders; make one for each class, or write labels.csv"
    grow(tmp_path, {"a": 2})
    (tmp_path / "b").mkdir()
    assert refusal(tmp_path) == "ROOT/b: no images; add some or remove the folder"
    (tmp_path / "b").rmdir()
    grow(tmp_path / "train", {"a": 2})
    assert refusal(tmp_path) == "ROOT has a folder train but none named test; add it or move the classes up"
    grow(tmp_path / "test", {"a": 1, "z": 1})
    expected = "ROOT/test has a class 'z' that train has not; remove it or add images to train"
    assert refusal(tmp_path) == expected
    with pytest.raises(BadInput) as error:
        folder()
    assert str(error.value) == "data set 'folder' has no data.root; say which folder: --data.root FOLDER"
    with pytest.raises(Unavailable, match=r"nowhere: not a folder; name one with class folders or a CSV file$"):
        folder(tmp_path / "nowhere")


def test_links_may_not_lead_out(tmp_path: Path) -> None:
    secret = paint(tmp_path / "secret" / "s.png")
    root = tmp_path / "root"
    grow(root, {"a": 3})
    (root / "a" / "same.png").symlink_to(root / "a" / "0.png")
    assert len(folder(root).train) + len(folder(root).test) == 4
    (root / "a" / "out.png").symlink_to(secret)
    assert refusal(root) == "ROOT/a/out.png is a link that leads out of ROOT; put the image itself there"
    (root / "a" / "out.png").unlink()
    (root / "b").symlink_to(secret.parent)
    assert refusal(root) == "ROOT/b is a link that leads out of ROOT; put the images themselves there"
    (root / "b").unlink()
    (root / "a" / "loop").symlink_to(root)
    assert len(folder(root).train) + len(folder(root).test) == 4
    (tmp_path / "alias").symlink_to(root)
    assert folder(tmp_path / "alias").digest == folder(root).digest


def write(root: Path, text: str, name: str = "labels.csv") -> None:
    (root / name).write_text(text)


def pool(root: Path, n: int = 6) -> None:
    for i in range(n):
        paint(root / "pics" / f"{i}.png", i)


def test_a_csv_of_classes(tmp_path: Path) -> None:
    pool(tmp_path)
    write(
        tmp_path,
        "file, label ,split,domain\n"
        "pics/0.png,10,train,zoo\n"
        '"pics/1.png",2,train,farm\n\n'
        "pics/2.png,2,test,zoo\n"
        "pics/3.png,10,test,zoo\n",
    )
    source = folder(tmp_path)
    assert source.names == ("2", "10")  # numbers by size
    assert source.train.labels.tolist() == [1, 0]
    assert source.test.labels.tolist() == [0, 1]
    assert source.domains == ("farm", "zoo")
    assert source.train.domains is not None and source.train.domains.tolist() == [1, 0]
    assert below(tmp_path, source.test) == ["pics/2.png", "pics/3.png"]
    assert source.note == ""


def test_a_csv_with_a_mark_of_its_encoding_and_no_split(tmp_path: Path) -> None:
    pool(tmp_path, 20)
    rows = "".join(f"pics/{i}.png,{'black_bear' if i % 2 else 'Žába'}\n" for i in range(20))
    (tmp_path / "labels.csv").write_text("image,label\n" + rows, encoding="utf-8-sig")
    source = folder(tmp_path)
    assert source.names == ("black bear", "Žába")
    assert (len(source.train), len(source.test), source.note) == (14, 6, OWN)
    assert {*below(tmp_path, source.train), *below(tmp_path, source.test)} == {f"pics/{i}.png" for i in range(20)}
    assert source.train.domains is None


def test_two_csv_files_with_several_labels(tmp_path: Path) -> None:
    pool(tmp_path)
    write(tmp_path, "path,red_car,bus\npics/0.png,1,0\npics/1.png,1,1\npics/2.png,-1,\n", "train.csv")
    write(tmp_path, "path,bus,red_car\npics/3.png,1,0\n", "test.csv")
    source = folder(tmp_path)
    assert source.multilabel and source.names == ("red car", "bus")
    assert source.train.labels.tolist() == [[1, 0], [1, 1], [-1, -1]]
    assert source.test.labels.tolist() == [[0, 1]]


def test_several_labels_are_split_by_each_images_rarest_class(tmp_path: Path) -> None:
    pool(tmp_path, 20)
    rows = "".join(f"pics/{i}.png,1,{int(i < 4)},0\n" for i in range(18)) + "pics/18.png,0,0,1\npics/19.png,0,0,0\n"
    write(tmp_path, "image,common,rare,single\n" + rows)
    source = folder(tmp_path)
    assert source.note == OWN and len(source.train) + len(source.test) == 20
    assert (source.train.labels == 1).sum(0).tolist()[1:] == [3, 1]
    assert (source.test.labels == 1).sum(0).tolist()[1:] == [1, 0]


ENDINGS = ", ".join(sorted(SUFFIXES))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label\npics/9.png,a", "line 2: ROOT/pics/9.png is missing; put the image there or remove the row"),
        (
            "image,label\npics/0.png,a\npics/0.png,b",
            "line 3: ROOT/pics/0.png was listed before, at ROOT/labels.csv line 2; list each image once",
        ),
        (
            "image,label\npics/0.png,a\npics/../pics/0.png,b",
            "line 3: 'pics/../pics/0.png' is no path below ROOT; write it as folder/image.jpg",
        ),
        ("image,label\n/etc/passwd,a", "line 2: '/etc/passwd' is no path below ROOT; write it as folder/image.jpg"),
        ("image,label\n,a", "line 2: '' is no path below ROOT; write it as folder/image.jpg"),
        (
            "image,label\npics/a\0.png,a",
            "line 2: 'pics/a\\x00.png' is no path below ROOT; write it as folder/image.jpg",
        ),
        ("image,label\nlabels.csv,a", f"line 2: 'labels.csv' has no image's ending; images end in {ENDINGS}"),
        ("image,label\npics/0.png,", "line 2: no label; say what the image shows"),
        ("image,label\npics/0.png", "line 2: 1 cells, the header has 2; mend the row"),
        (
            "image,label,split\npics/0.png,cat,train\npics/1.png,cta,test",
            "line 3: label 'cta' is in no training row. Did you mean cat?",
        ),
        (
            "image,label,split\npics/0.png,cat,val",
            "line 2: split 'val' is neither train nor test; choose one",
        ),
        (
            "image,label,split\npics/0.png,cat,train",
            ": no row has split test; mark some, or leave the column out",
        ),
        ("image,cat\npics/0.png,yes", "line 2: 'yes' under cat is not 1, 0 or -1; correct it"),
        ("image,cat,dog\npics/0.png,1,0", ": no training image shows 'dog'; add one or remove the column"),
        ("image,label,dog\npics/0.png,cat,0", ": a column label and other columns (dog); keep one kind"),
        ("image\npics/0.png", ": no column label and none for each class; add what the images show"),
        (
            "image,label,label\npics/0.png,a,b",
            ": the columns ['image', 'label', 'label'] are not all named, each once; ",
        ),
        ("image,label\n", ": no images; write a header and a row for each image"),
        ("", ": no images; write a header and a row for each image"),
        ('image,label\n"pics/0.png"x,a', ": can't be read as CSV in UTF-8 ("),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, text: str, message: str) -> None:
    pool(tmp_path)
    write(tmp_path, text)
    said = refusal(tmp_path)
    assert said.startswith("ROOT/labels.csv") and message in said


def test_wrong_files_are_named(tmp_path: Path) -> None:
    pool(tmp_path)
    write(tmp_path, "image,label\npics/0.png,a\n", "train.csv")
    assert refusal(tmp_path) == "ROOT holds train.csv; have either labels.csv or both train.csv and test.csv"
    write(tmp_path, "image,cat\npics/1.png,1\n", "test.csv")
    assert refusal(tmp_path) == "train.csv has the columns ['label'], test.csv ['cat']; give both the same"
    write(tmp_path, "image,label\npics/0.png,a\n", "test.csv")
    assert "pics/0.png was listed before, at ROOT/train.csv line 2" in refusal(tmp_path)
    for name, i in (("train.csv", 0), ("test.csv", 1)):
        write(tmp_path, f"image,label,split\npics/{i}.png,a,train\n", name)
    assert refusal(tmp_path) == "ROOT/train.csv: a column split, but the files' names say it; remove the column"
    (tmp_path / "test.csv").unlink()
    (tmp_path / "train.csv").rename(tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_bytes(b"image,label\npics/0.png,\xff\xfe\n")
    assert refusal(tmp_path).startswith("ROOT/labels.csv: can't be read as CSV in UTF-8 (")


def test_rows_may_not_lead_out_by_a_link(tmp_path: Path) -> None:
    secret = paint(tmp_path / "secret.png")
    root = tmp_path / "root"
    pool(root)
    (root / "pics" / "link.png").symlink_to(secret)
    write(root, "image,label\npics/link.png,a\n")
    assert refusal(root) == (
        "ROOT/labels.csv line 2: ROOT/pics/link.png is a link that leads out of ROOT; put the image itself there"
    )


@pytest.mark.parametrize("several", [False, True])
def test_an_experiment_on_a_folder_is_built(tmp_path: Path, several: bool) -> None:
    root = tmp_path / "mine"
    if several:
        pool(root, 12)
        rows = "".join(f"pics/{i}.png,{int(i % 2 == 0)},{int(i % 3 == 0)}\n" for i in range(12))
        write(root, "image,cat,dog\n" + rows)
    else:
        grow(root, {"cat": 6, "dog": 6})
    e = Experiment(method=Recipe("promptfl"), partition=Iid(clients=2)).override(
        **{
            "data.name": "folder",
            "data.root": str(root),
            "clip.name": "tiny",
            "split.shots": None,
        }
    )
    built = build(e, cache=tmp_path / "cache")
    assert built.setup.task.names == ("cat", "dog")
    assert built.setup.task.multilabel == several
    assert sum(len(part) for part in built.parts) == len(built.labels) == 12 - len(built.setup.test)
    assert len(built.setup.test) == len(folder(root).test) >= 3


def test_home_is_the_root_then_the_environment_then_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDRAY_DATA", raising=False)
    assert home("dtd", tmp_path) == tmp_path
    assert home("dtd", None) == Path.home() / ".cache" / "fedray" / "data" / "dtd"
    monkeypatch.setenv("FEDRAY_DATA", str(tmp_path))
    assert home("dtd", None) == tmp_path / "dtd"


def test_sets_are_located_where_people_keep_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRAY_DATA", str(tmp_path))
    for root, place in ((tmp_path / "x", "x"), (tmp_path / "y", "y/old"), (None, "dtd/old"), (None, "old")):
        with pytest.raises(Unavailable) as error:
            located("dtd", root, ["a/mark", "b"], ["old"])
        base = root or tmp_path / "dtd"
        assert str(error.value) == f"dtd: no a/mark or b in {base}; get it: fedray data get dtd (625 MB)"
        mark = tmp_path / place / "a" / "mark"
        mark.mkdir(parents=True)
        assert located("dtd", root, ["a/mark", "b"], ["old"]) == tmp_path / place
        mark.rmdir()


def test_a_set_named_relative_to_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(tmp_path / "mine", {"a": 2, "b": 2})
    monkeypatch.chdir(tmp_path)
    assert folder(Path("mine")).digest == folder(tmp_path / "mine").digest
    assert all(path.is_absolute() for path in folder(Path("mine")).train.images if isinstance(path, Path))


def test_reading_a_folder_needs_no_torch(tmp_path: Path) -> None:
    grow(tmp_path, {"a": 2})
    code = (
        "import sys; from pathlib import Path; from fedray.data.trees import folder; folder(Path(sys.argv[1]));"
        "print({'torch', 'PIL', 'scipy'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code, str(tmp_path)], text=True).strip() == "set()"


def split_file(root: Path, **parts: list[tuple[str, int, str]]) -> Path:
    path = root / "split_zhou_Test.json"
    path.write_text(json.dumps({"train": [], "val": [], "test": []} | parts))
    return path


def test_a_split_file_is_read(tmp_path: Path) -> None:
    grow(tmp_path / "images", {"a": 3, "b": 2})
    path = split_file(
        tmp_path,
        train=[("b/0.png", 0, "bee"), ("a/0.png", 1, "ant")],
        val=[("a/1.png", 1, "ant")],
        test=[("a/2.png", 1, "ant"), ("b/1.png", 0, "bee")],
    )
    train, val, test, names = zhou(path, tmp_path / "images")
    assert names == ("bee", "ant")
    assert (train.labels.tolist(), val.labels.tolist(), test.labels.tolist()) == ([0, 1], [1], [1, 0])
    assert below(tmp_path / "images", test) == ["a/2.png", "b/1.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "SPLIT: not a split file ("),
        ("[" * 100_000, "SPLIT: not a split file (nested too deeply); get the file again"),
        ('{"train": []}', "SPLIT: not a split file ("),
        ('{"train": [], "val": [], "test": []}', "its labels are not the numbers from 0 with one class name each"),
        ('{"train": [["a/0.png", 1, "a"]], "val": [], "test": []}', "its labels are not the numbers from 0 with one"),
        (
            '{"train": [["a/0.png", 0, "a"]], "val": [["a/0.png", 0, "b"]], "test": []}',
            "its labels are not the numbers from 0 with one class name each",
        ),
        ('{"train": [["a/0.png", 0]], "val": [], "test": []}', "SPLIT: not a split file ("),
        (
            '{"train": [["../x.png", 0, "a"]], "val": [], "test": []}',
            "SPLIT: '../x.png' leads out of BASE; get the file again or remove it",
        ),
        (
            '{"train": [["/x.png", 0, "a"]], "val": [], "test": []}',
            "SPLIT: '/x.png' leads out of BASE; get the file again or remove it",
        ),
        (
            '{"train": [["a/7.png", 0, "a"]], "val": [], "test": []}',
            "BASE/a/7.png: missing, but split_zhou_Test.json lists it; complete the data set",
        ),
    ],
)
def test_wrong_split_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    base, path = tmp_path / "images", tmp_path / "split_zhou_Test.json"
    grow(base, {"a": 1})
    path.write_text(text)
    with pytest.raises(Unavailable) as error:
        zhou(path, base)
    assert message in str(error.value).replace(str(path), "SPLIT").replace(str(base), "BASE")
    assert "\n" not in str(error.value)


def test_own_splits_have_coops_shares() -> None:
    y = np.repeat(np.arange(3), [20, 40, 10])
    table = Table(tuple(Path(str(i)) for i in range(70)), y)
    parts = resplit(["a", "b", "c"], table)
    assert np.bincount(parts.train.labels).tolist() == [10, 20, 5]
    assert np.bincount(parts.test.labels).tolist() == [6, 12, 3]
    assert not set(parts.train.images) & set(parts.test.images)
    assert parts.note == "split 50/20/30 by fedray, stratified, seed 1, the 20 % left out"
    fifth = without_fifth(["a", "b", "c"], table, table)
    assert np.bincount(fifth.train.labels).tolist() == [16, 32, 8]
    assert fifth.test is table


def test_empty_folders_of_a_known_set_are_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(Unavailable, match=r"a: no images; complete the data set or remove the folder$"):
        listing([tmp_path / "a"])


def test_a_source_says_its_note_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    table = Table((), np.zeros(0, np.int64))
    with caplog.at_level("INFO", "fedray"):
        Source("x", ("a",), ("{}",), table, table, note="split by hand")
    assert caplog.messages == ["x: split by hand"]


def test_unreadable_folders_are_named(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    grow(tmp_path, {"a": 1})
    (tmp_path / "a").chmod(0)
    try:
        with pytest.raises(Unavailable, match="a: Permission denied"):
            folder(tmp_path)
    finally:
        (tmp_path / "a").chmod(0o755)

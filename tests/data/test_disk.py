from __future__ import annotations

from pathlib import Path

import pytest

from fedray.data import disk
from fedray.errors import Unavailable


def test_folders_are_the_same_whatever_their_spelling(tmp_path: Path) -> None:
    for name in ("Real World", "art", ".git"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    assert disk.subfolders(tmp_path) == {"art": tmp_path / "art", "realworld": tmp_path / "Real World"}
    assert disk.subfolders(tmp_path / "nowhere") == {}
    (tmp_path / "real_world").mkdir()
    with pytest.raises(Unavailable) as error:
        disk.subfolders(tmp_path)
    assert str(error.value) == (
        f"{tmp_path / 'Real World'} and real_world beside it are names for the same; keep one of them"
    )


def test_pictures_are_sorted_and_seen_ones_only(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.tif", "._a.tif", "list.txt", "c.png.part"):
        (tmp_path / name).touch()
    assert disk.pictures(tmp_path) == [tmp_path / "a.tif", tmp_path / "b.JPG"]
    with pytest.raises(Unavailable, match="nowhere: No such file or directory; complete the data set"):
        disk.pictures(tmp_path / "nowhere")


def test_class_folders_go_by_class_then_name(tmp_path: Path) -> None:
    for name in ("cat/2.png", "cat/1.png", "Big_Dog/1.png", "other/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    paths, labels = disk.class_folders(tmp_path, [("big dog",), ("emu",), ("2", "cat")])
    assert [str(path.relative_to(tmp_path)) for path in paths] == ["Big_Dog/1.png", "cat/1.png", "cat/2.png"]
    assert labels == [0, 2, 2]


@pytest.mark.parametrize("name", ["../x.jpg", "/etc/x.jpg", "a/../../x.jpg", "a\0.jpg"])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(Unavailable, match=r"list.txt: .* leads out of .*; get the file again"):
        disk.below(tmp_path, name, tmp_path / "list.txt")


def test_lists_may_have_marks_blanks_and_any_line_end(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeffa b \r\n\r\n  c\n".encode())
    assert disk.lines(path) == ["a b", "c"]
    path.write_text('image,"a, b"\n1.jpg, 0\n\n')
    assert disk.comma_separated(path) == [["image", "a, b"], ["1.jpg", "0"]]


def test_damaged_lists_are_named(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    with pytest.raises(Unavailable, match=r"list.txt: No such file or directory; get the file again, it belongs"):
        disk.lines(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Unavailable, match=r"list.txt: not text \('utf-8' codec can't decode .*; get the file again"):
        disk.lines(path)
    path.write_text('"a,b\n')
    with pytest.raises(Unavailable, match=r"list.txt: not comma-separated text \(unexpected end of data\); get"):
        disk.comma_separated(path)

"""From files to pixels: every kind of picture, random views, and what happens to damaged ones."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedray.data import images
from fedray.data.images import batches, prepared, sound
from fedray.data.sources import Table
from fedray.errors import Unavailable


def picture(size: tuple[int, int] = (40, 30), seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def written(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def test_sixteen_bits_keep_the_upper_eight(tmp_path: Path) -> None:
    ramp = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    for name in ("a.png", "a.tiff"):
        got = prepared(written(tmp_path / name, Image.fromarray(ramp)), 32, "bicubic")
        assert np.array_equal(got, np.broadcast_to(ramp >> 8, (3, 32, 32)))


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path: Path) -> None:
    colours = picture((16, 16)).quantize(16)
    path = written(tmp_path / "a.png", colours, transparency=bytes([0, 128, 255] + [255] * 13))
    expected = np.array(colours.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(prepared(path, 16, "bicubic"), expected)


def test_cmyk_and_one_pixel(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jpg", Image.new("CMYK", (20, 20), (0, 255, 255, 0)))
    red, green, blue = prepared(path, 8, "bicubic").reshape(3, -1).mean(1)
    assert red > 240 > 20 > max(green, blue)
    one = prepared(written(tmp_path / "b.png", Image.new("RGB", (1, 1), (7, 8, 9))), 8, "bicubic")
    assert np.array_equal(one, np.broadcast_to(np.array([7, 8, 9])[:, None, None], (3, 8, 8)))


def test_orientation_is_not_applied_as_in_the_papers_code(tmp_path: Path) -> None:
    image, exif = picture((8, 8)), Image.Exif()
    exif[0x0112] = 6
    plain = prepared(written(tmp_path / "a.png", image), 8, "bicubic")
    assert np.array_equal(prepared(written(tmp_path / "b.png", image, exif=exif), 8, "bicubic"), plain)


@pytest.mark.parametrize("kind", ["file", "array"])
def test_views_are_crops_that_the_image_itself_decides(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path / "a.png", picture())
    copy = written(tmp_path / "b.png", picture())
    first, second = (path, copy) if kind == "file" else (np.asarray(picture()), np.asarray(picture()))
    views = [prepared(first, 16, "bicubic", view) for view in range(4)]
    assert len({view.tobytes() for view in views}) == 4
    assert all(view.shape == (3, 16, 16) and view.dtype == np.uint8 for view in views)
    for number, view in enumerate(views):
        assert np.array_equal(prepared(second, 16, "bicubic", number), view)
    other = np.asarray(picture(seed=1))
    assert not np.array_equal(prepared(other, 16, "bicubic", 1), views[1])


def test_a_view_of_a_plain_image_is_plain() -> None:
    for view in range(6):
        got = prepared(np.full((50, 20, 3), 77, np.uint8), 16, "bicubic", view)
        assert (got == 77).all()


def test_files_are_prepared_in_parallel_and_stay_in_order() -> None:
    together = threading.Barrier(2, timeout=30)  # one thread alone would wait here for ever

    def slow(path: Path) -> str:
        together.wait()
        return path.name

    paths = [Path(str(i)) for i in range(10)]
    got = list(batches(paths, slow, 4))
    assert got == [["0", "1", "2", "3"], ["4", "5", "6", "7"], ["8", "9"]]


def test_at_most_two_batches_are_ahead() -> None:
    begun: list[int] = []
    stream = batches([Path(str(i)) for i in range(100)], lambda path: begun.append(int(path.name)), 5)
    next(stream)
    stream.close()
    assert len(begun) <= 10


@pytest.fixture
def mixed(tmp_path: Path) -> Table:
    good = [written(tmp_path / f"good{i}.png", picture(seed=i)) for i in range(4)]
    whole = good[0].read_bytes()
    bad = {"cut.png": whole[: len(whole) // 2], "empty.jpg": b"", "text.jpg": b"hello"}
    for name, raw in bad.items():
        (tmp_path / name).write_bytes(raw)
    names = [good[0], tmp_path / "cut.png", good[1], tmp_path / "empty.jpg", good[2], tmp_path / "gone.png", good[3]]
    return Table((*names, tmp_path / "text.jpg"), np.arange(8))


def test_skip_drops_names_and_counts(mixed: Table, caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[int, int]] = []
    with caplog.at_level(logging.WARNING, "fedray"):
        table, dropped = sound(mixed, "skip", progress=lambda *at: told.append(at))
    assert [path.name for path in dropped] == ["cut.png", "empty.jpg", "gone.png", "text.jpg"]
    assert table.labels.tolist() == [0, 2, 4, 6]
    assert [path.name for path in table.images] == [f"good{i}.png" for i in range(4)]
    assert told == [(8, 8)]
    (said,) = caplog.messages
    assert said.startswith("4 of 8 images left out, not readable: ")
    assert all(f"{path} (" in said for path in dropped)
    assert "gone.png (No such file or directory)" in said
    assert "empty.jpg (of no image format that is known)" in said


def test_a_long_list_is_cut_in_the_log(
    mixed: Table, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(images, "NAMED", 1)
    with caplog.at_level(logging.WARNING, "fedray"):
        _, dropped = sound(mixed, "skip")
    assert caplog.text.rstrip().endswith("; and 3 more")
    assert len(dropped) == 4


def test_error_leaves_all_to_whoever_reads(mixed: Table) -> None:
    table, dropped = sound(mixed)
    assert table is mixed
    assert dropped == ()
    with pytest.raises(Unavailable, match=r"cut\.png: not a readable image \(.+\); replace it .* with data\.bad skip$"):
        prepared(mixed.images[1], 8, "bicubic")


def test_arrays_and_good_files_are_left_alone(tmp_path: Path) -> None:
    array = Table(np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.int64))
    assert sound(array, "skip") == (array, ())
    files = Table((written(tmp_path / "a.png", picture()),), np.zeros(1, np.int64))
    assert sound(files, "skip") == (files, ())


def test_nothing_readable_is_said(tmp_path: Path) -> None:
    paths = (tmp_path / "a.jpg", tmp_path / "b.jpg")
    with pytest.raises(
        Unavailable, match=r"^none of 2 images can be read: .*a\.jpg \(No such .*; get the data set again"
    ):
        sound(Table(paths, np.zeros(2, np.int64)), "skip")


def test_what_was_found_is_kept_until_a_file_changes(
    mixed: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    monkeypatch.setattr(images, "decoded", lambda raw, real=images.decoded: (looked.append(1), real(raw))[1])
    first = sound(mixed, "skip", cache=tmp_path / "checks")
    assert len(looked) == 7  # one is not there
    again = sound(mixed, "skip", cache=tmp_path / "checks")
    assert len(looked) == 7
    assert first[1] == again[1]
    assert again[0].labels.tolist() == first[0].labels.tolist()
    Path(mixed.images[1]).write_bytes(Path(mixed.images[0]).read_bytes())
    repaired = sound(mixed, "skip", cache=tmp_path / "checks")
    assert len(looked) == 14
    assert [path.name for path in repaired[1]] == ["empty.jpg", "gone.png", "text.jpg"]
    assert not list((tmp_path / "checks").glob("*.tmp"))


def test_every_flipped_bit_of_a_kept_finding_is_found(mixed: Table, tmp_path: Path) -> None:
    expected = sound(mixed, "skip", cache=tmp_path / "checks")[1]
    (note,) = (tmp_path / "checks").iterdir()
    whole = bytearray(note.read_bytes())
    for bit in np.random.default_rng(0).choice(8 * len(whole), 40, replace=False).tolist():
        whole[bit // 8] ^= 1 << bit % 8
        note.write_bytes(whole)
        assert sound(mixed, "skip", cache=tmp_path / "checks")[1] == expected
        whole[bit // 8] ^= 1 << bit % 8


def test_a_folder_that_cannot_be_written_costs_the_finding_only(
    mixed: Table, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING, "fedray"):
        assert len(sound(mixed, "skip", cache=tmp_path / "file")[1]) == 4
    assert "cannot be written" in caplog.text

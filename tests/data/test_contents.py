"""Hashes of files: as hashlib finds them, read once, and never believed where the file may be another."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedray.data import contents
from fedray.data.contents import hashes
from fedray.data.sources import Table
from fedray.errors import Unavailable

Reads = list[str]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "set"
    paths = [folder / name for name in ("a/1.png", "a/2.png", "b/1.png", "b/ü \udcff.png", "c.png")]
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(range(i, 100 + i)))
    return paths


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """Names of the files that are read, while files count as settled at once and go one by one to the threads."""
    names: Reads = []
    real = contents._hash

    def counted(paths: Sequence[Path]) -> Any:
        names.extend(path.name for path in paths)
        return real(paths)

    monkeypatch.setattr(contents, "_hash", counted)
    monkeypatch.setattr(contents, "SETTLED", 0.0)
    monkeypatch.setattr(contents, "BLOCK", 1)
    return names


def told(paths: Sequence[Path]) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def found(paths: Sequence[Path], notes: Path | None = None) -> list[str]:
    return [row.tobytes().hex() for row in hashes(paths, notes)]


def test_hashes_are_those_of_the_bytes_with_and_without_notes(files: list[Path], tmp_path: Path) -> None:
    assert found(files) == found(files, tmp_path / "notes") == found(files, tmp_path / "notes") == told(files)
    assert found(files[:1], tmp_path / "notes") == told(files[:1])
    assert hashes([], tmp_path / "notes").shape == hashes([]).shape == (0, 32)


def test_no_file_is_read_twice(files: list[Path], tmp_path: Path, reads: Reads) -> None:
    first = found(files, tmp_path)
    assert sorted(reads) == sorted(path.name for path in files)
    reads.clear()
    assert found(files[::-1], tmp_path) == first[::-1]
    assert found([files[0], *files], tmp_path) == [first[0], *first]
    assert reads == []


def test_new_files_alone_are_read_and_the_old_ones_stay_known(files: list[Path], tmp_path: Path, reads: Reads) -> None:
    found([files[0], files[4]], tmp_path)
    reads.clear()
    found(files, tmp_path)
    assert sorted(reads) == sorted(path.name for path in files[1:4])
    reads.clear()
    found([files[0], files[4]], tmp_path)
    assert reads == []


def bytes_changed(path: Path) -> None:
    path.write_bytes(path.read_bytes()[::-1])


def bytes_changed_and_time_set_back(path: Path) -> None:
    stat = path.stat()
    bytes_changed(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def replaced_by_a_copy(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes()[::-1])
    other.replace(path)


@pytest.mark.parametrize("change", [bytes_changed, bytes_changed_and_time_set_back, replaced_by_a_copy])
def test_changed_bytes_of_the_same_length_are_seen(
    change: Callable[[Path], None], files: list[Path], tmp_path: Path, reads: Reads
) -> None:
    before = found(files, tmp_path)
    reads.clear()
    change(files[1])
    after = found(files, tmp_path)
    assert after == told(files) != before
    assert reads == ["2.png"]


def test_a_touched_file_is_read_again_and_has_the_same_hash(files: list[Path], tmp_path: Path, reads: Reads) -> None:
    before = found(files, tmp_path)
    reads.clear()
    os.utime(files[2])
    assert found(files, tmp_path) == before
    assert reads == ["1.png"]


def test_files_changed_a_moment_ago_are_not_noted(
    files: list[Path], tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "SETTLED", 3600.0)
    assert found(files, tmp_path / "notes") == found(files, tmp_path / "notes") == told(files)
    assert len(reads) == 2 * len(files)


def test_a_damaged_note_is_never_believed(
    files: list[Path], tmp_path: Path, reads: Reads, caplog: pytest.LogCaptureFixture
) -> None:
    expected = found(files, tmp_path / "notes")
    (note,) = (tmp_path / "notes").glob("*.parquet")
    good = note.read_bytes()
    draw = np.random.default_rng(0)
    for bit in draw.integers(0, 8 * len(good), 100).tolist():
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        note.write_bytes(bad)
        assert found(files, tmp_path / "notes") == expected
    for bad in (b"", good[: len(good) // 2], b"hello"):
        note.write_bytes(bad)
        reads.clear()
        with caplog.at_level(logging.WARNING, "fedray"):
            caplog.clear()
            assert found(files, tmp_path / "notes") == expected
        assert len(reads) == len(files)
        assert caplog.messages[0].startswith(f"{note}: damaged (")


def test_a_note_that_was_written_by_another_hand_is_not_believed(
    files: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, reads: Reads
) -> None:
    found(files, tmp_path / "notes")
    (note,) = (tmp_path / "notes").glob("*.parquet")
    table = pq.read_table(note)
    forged = pa.array([bytes(32)] * len(files), pa.binary(32))
    pq.write_table(table.set_column(table.schema.get_field_index("sha256"), "sha256", forged), note)
    assert found(files, tmp_path / "notes") == told(files)
    assert caplog.messages == [f"{note}: damaged (its digest does not match), reading the files anew"]


def test_where_nothing_can_be_noted_files_are_read(
    files: list[Path], reads: Reads, caplog: pytest.LogCaptureFixture
) -> None:
    notes = files[0] / "notes"  # below a file
    for _ in range(2):
        assert found(files, notes) == told(files)
    assert len(reads) == 2 * len(files)
    assert "cannot be written" in caplog.messages[0]


def test_what_was_read_before_an_interruption_stays_known(files: list[Path], tmp_path: Path, reads: Reads) -> None:
    def stop(done: int, total: int) -> None:
        assert total == len(files)
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hashes(files, tmp_path, stop)
    reads.clear()
    assert found(files, tmp_path) == told(files)
    assert 0 < len(reads) <= 3


def test_one_reads_and_the_others_wait(files: list[Path], tmp_path: Path, reads: Reads) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: found(files, tmp_path), range(4)))
    assert answers == [told(files)] * 4
    assert len(reads) == len(files)


def test_progress_is_told_only_while_files_are_read(files: list[Path], tmp_path: Path, reads: Reads) -> None:
    news: list[tuple[int, int]] = []
    for _ in range(2):
        hashes(files, tmp_path, lambda done, total: news.append((done, total)))
    assert news == [(i + 1, 5) for i in range(5)]


@pytest.mark.parametrize("notes", [True, False])
def test_a_missing_file_is_named(notes: bool, files: list[Path], tmp_path: Path) -> None:
    files[3].unlink()
    with pytest.raises(Unavailable, match=r"No such file or directory; put the image back or remove it from the set$"):
        hashes(files, tmp_path / "notes" if notes else None)


def test_a_table_has_the_same_digest_whether_it_was_hashed_or_not(files: list[Path], tmp_path: Path) -> None:
    table, rows = Table(tuple(files), np.arange(5)), np.array([3, 0])
    hashed = table.hashed(tmp_path / "notes")
    assert table.hashes is None
    assert hashed.digest == table.digest
    for path in files:
        path.unlink()  # nobody needs them any more
    other = hashlib.sha256(b"".join(hashed.hashes[i].tobytes() for i in rows)).hexdigest()  # type: ignore[index]
    assert hashed.take(rows).digest == other
    pixels = Table(np.zeros((2, 1, 1, 3), np.uint8), np.arange(2))
    assert pixels.hashed(tmp_path / "notes") is pixels

"""Archives that mean harm, or are damaged, and what is left of them: nothing outside of the folder."""

from __future__ import annotations

import hashlib
import io
import re
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from fedray.data.unpack import Unpacked, allowance, unpack
from fedray.errors import Unavailable

ROOMY = 1 << 20
PLAIN = {"a/one.txt": b"1", "a/b/two.txt": b"22" * 5000, "three.txt": b""}


def zipped(path: Path, files: dict[str, bytes], mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = mode << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            packed.writestr(entry, content)
    return path


def rolled(path: Path, files: dict[str, bytes], kind: bytes = tarfile.REGTYPE, link: str = "") -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as packed:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, link, len(content)
            packed.addfile(member, io.BytesIO(content))
    return path


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_files_come_out_with_their_hashes(name: str, tmp_path: Path) -> None:
    make = zipped if name.endswith("zip") else rolled
    heard: list[int] = []
    files = unpack(make(tmp_path / name, PLAIN), tmp_path / "out", limit=ROOMY, tell=heard.append)
    assert files == {path: Unpacked(len(raw), hashlib.sha256(raw).hexdigest()) for path, raw in PLAIN.items()}
    assert {path: (tmp_path / "out" / path).read_bytes() for path in everything(tmp_path / "out")} == PLAIN
    assert heard == [1, 10_001, 10_001]


def test_what_file_systems_leave_is_left_out(tmp_path: Path) -> None:
    litter = {"__MACOSX/a/x.jpg": b"x", "a/._x.jpg": b"x", ".DS_Store": b"x", "./a/x.jpg": b"image"}
    for archive in (zipped(tmp_path / "a.zip", litter), rolled(tmp_path / "a.tar", litter)):
        out = tmp_path / archive.suffix
        assert set(unpack(archive, out, limit=ROOMY)) == everything(out) == {"a/x.jpg"}


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "a\\..\\x", "C:/x", "a\nb"])
@pytest.mark.parametrize("make", [zipped, rolled])
def test_names_that_leave_the_folder_are_refused(make: object, name: str, tmp_path: Path) -> None:
    assert callable(make)
    archive = make(tmp_path / "archive", {"fine": b"1", name: b"2"})
    with pytest.raises(Unavailable, match=r"archive holds .*, which leaves its folder; nothing of it is kept"):
        unpack(archive, tmp_path / "deep" / "out", limit=ROOMY)
    assert everything(tmp_path) <= {"archive", "deep/out/fine"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(kind: bytes, tmp_path: Path) -> None:
    archive = rolled(tmp_path / "a.tar", {"odd": b""}, kind, "fine")
    with pytest.raises(Unavailable, match=r"a\.tar holds 'odd', a link or device; nothing of it is kept, remove it"):
        unpack(archive, tmp_path / "out", limit=ROOMY)
    assert everything(tmp_path) == {"a.tar"}


def test_links_in_a_zip_are_refused_too(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"odd": b"/etc/passwd"}, stat.S_IFLNK | 0o777)
    with pytest.raises(Unavailable, match="a link or device"):
        unpack(archive, tmp_path / "out", limit=ROOMY)


@pytest.mark.parametrize("name", ["bomb.zip", "bomb.tar.gz"])
def test_bombs_are_refused_before_they_fill_the_disk(name: str, tmp_path: Path) -> None:
    make = zipped if name.endswith("zip") else rolled
    archive = make(tmp_path / name, {"small": b"1", "zeros": bytes(80 << 20)})
    limit = allowance(archive)
    assert limit < 80 << 20
    with pytest.raises(Unavailable, match=re.escape(f"{name} unpacks to more than {limit:,} bytes")):
        unpack(archive, tmp_path / "out", limit=limit)
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) <= limit


def test_sizes_that_a_zip_lies_about_don_t_help_it(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"zeros": bytes(100_000)})
    raw = archive.read_bytes()
    archive.write_bytes(raw.replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(Unavailable, match="can't be unpacked"):
        unpack(archive, tmp_path / "out", limit=ROOMY)


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_damage_is_told_in_one_line(name: str, tmp_path: Path) -> None:
    make = zipped if name.endswith("zip") else rolled
    raw = make(tmp_path / name, PLAIN).read_bytes()
    for damaged in (raw[: len(raw) // 2], b"no archive", b""):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(Unavailable, match=rf"{name} can't be unpacked \([^\n]+\); remove it and get it again"):
            unpack(tmp_path / name, tmp_path / "out", limit=ROOMY)


def test_encrypted_zip(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"x": b"1"})
    raw = bytearray(archive.read_bytes())
    raw[raw.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(raw)
    with pytest.raises(Unavailable, match="encrypted, password required"):
        unpack(archive, tmp_path / "out", limit=ROOMY)

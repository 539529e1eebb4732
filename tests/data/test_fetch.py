"""Getting whole data sets, and looking at them again: small ones in the real layouts, from a host on this machine."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from fedray.data import sources
from fedray.data.download import Part
from fedray.data.fetch import get, manifest
from fedray.data.origins import ALIAS, ORIGINS, Origin
from fedray.data.verify import verify
from fedray.errors import BadInput, Unavailable

KINDS = (
    "AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop", "Residential",
    "River", "SeaLake",
)  # fmt: skip
EACH = 10


class Quiet(SimpleHTTPRequestHandler):
    asked: list[str] = []

    def log_message(self, *_: object) -> None:
        Quiet.asked.append(self.path)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder whose files a host has, and the host's address."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("FEDRAY_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("fedray.data.download.PAUSES", (0.0,))
    folder = tmp_path / "shelf"
    folder.mkdir()
    Quiet.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def picture(number: int, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    colour = np.full((8, 8, 3), number % 251, np.uint8)
    file = io.BytesIO()
    Image.fromarray(colour).convert(mode).save(file, kind)
    return file.getvalue()


def scenes() -> dict[str, bytes]:
    """EuroSAT's layout."""
    return {
        f"2750/{kind}/{kind}_{i}.jpg": picture(31 * k + i) for k, kind in enumerate(KINDS) for i in range(1, EACH + 1)
    }


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return path


def rolled(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as packed:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return file.getvalue()


def part(path: Path, host: str, kind: str = "sha256", **options: Any) -> Part:
    raw = path.read_bytes()
    digest = hashlib.new(kind, raw, usedforsecurity=False).hexdigest()
    return Part(f"{host}/{path.name}", len(raw), f"{kind}:{digest}", **options)


@pytest.fixture
def eurosat(shelf: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """EuroSAT in small can be downloaded; returns the archive."""
    folder, host = shelf
    archive = zipped(folder / "EuroSAT.zip", scenes())
    monkeypatch.setitem(ORIGINS, "eurosat", Origin(10, 100, (part(archive, host, "md5"),)))
    return archive


def quiet(file: str, done: int, whole: int) -> None:
    """Nobody listens."""


# ---- the table ----


def test_every_set_can_be_had_somehow(tmp_path: Path) -> None:
    files = {ALIAS.get(name, name) for name in sources.names()} - {"folder"}
    assert files <= ORIGINS.keys()
    assert ORIGINS.keys() <= set(sources.names())
    for name in files:
        origin = ORIGINS[name]
        assert not (origin.parts and origin.page)
        assert bool(origin.page) == bool(origin.layout)


@pytest.mark.parametrize("part", [part for origin in ORIGINS.values() for part in origin.parts], ids=lambda p: p.name)
def test_every_download_is_pinned(part: Part) -> None:
    assert re.fullmatch(r"https?://[\w.-]+/[\w./~-]+", part.url)
    assert re.fullmatch(r"sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", part.digest)
    assert part.size or part.digest.startswith("md5")
    assert (part.unpack is None) != part.name.endswith((".zip", ".tar", ".tar.gz", ".tgz"))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("dtd", "dtd"), ("caltech101", "caltech"), ("eurosat", "eurosat"), ("fgvc_aircraft", "fgvc_aircraft"),
        ("food101", "food101"), ("flowers102", "flowers102"), ("pets", "oxford_iiit_pet"), ("sun397", "sun397"),
        ("voc2007", "voc"), ("cifar10", "cifar"), ("fashion", "mnist"),
    ],
)  # fmt: skip
def test_addresses_are_those_of_torchvision(name: str, file: str) -> None:
    text = Path(str(distribution("torchvision").locate_file(f"torchvision/datasets/{file}.py"))).read_text()
    assert f"{ORIGINS[name].parts[0].url.rpartition('/')[0]}/" in text


# ---- get ----


def test_get_brings_unpacks_and_writes_down(eurosat: Path, tmp_path: Path) -> None:
    heard = set()
    folder = get("eurosat", None, lambda file, done, whole: heard.add(file))
    assert folder == tmp_path / "data" / "eurosat"
    assert sorted(path.name for path in folder.iterdir()) == [".new.lock", "2750", "manifest.json"]
    known = manifest(folder)
    assert known.parts == {ORIGINS["eurosat"].parts[0].url: hashlib.sha256(eurosat.read_bytes()).hexdigest()}
    assert {name: sha for name, (_, sha) in known.files.items()} == {
        name: hashlib.sha256(raw).hexdigest() for name, raw in scenes().items()
    }
    source = sources.find("eurosat")()
    assert (len(source.names), len(source.train), len(source.test)) == (10, 50, 30)
    assert heard == {"EuroSAT.zip", "EuroSAT.zip unpacked"}


def test_second_get_does_nothing(eurosat: Path) -> None:
    folder = get("eurosat", None, quiet)
    before = (folder / "manifest.json").stat().st_mtime_ns
    eurosat.unlink()
    assert get("eurosat", None, quiet) == folder
    assert len(Quiet.asked) == 1
    assert (folder / "manifest.json").stat().st_mtime_ns == before


def test_what_is_missing_comes_back_and_what_is_the_users_stays(eurosat: Path, tmp_path: Path) -> None:
    folder = get("eurosat", tmp_path / "mine", quiet)
    image = folder / "2750" / "River" / "River_3.jpg"
    image.unlink()
    (folder / "split_zhou_EuroSAT.json").write_text("mine")
    get("eurosat", folder, quiet)
    assert image.read_bytes() == scenes()["2750/River/River_3.jpg"]
    assert (folder / "split_zhou_EuroSAT.json").read_text() == "mine"
    assert len(Quiet.asked) == 2


def test_other_bytes_with_a_fitting_md5_are_not_trusted_later(eurosat: Path) -> None:
    folder = get("eurosat", None, quiet)
    (folder / "2750" / "River" / "River_3.jpg").unlink()
    written = json.loads((folder / "manifest.json").read_text())
    written["parts"] = dict.fromkeys(written["parts"], "0" * 64)
    (folder / "manifest.json").write_text(json.dumps(written))
    with pytest.raises(Unavailable, match="not 000000000000… as at the first download; the file is removed"):
        get("eurosat", None, quiet)


def test_killed_on_the_way_leaves_nothing_that_is_trusted(eurosat: Path, tmp_path: Path) -> None:
    def killed(file: str, done: int, whole: int) -> None:
        if file.endswith("unpacked"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get("eurosat", None, killed)
    folder = tmp_path / "data" / "eurosat"
    assert [path.name for path in folder.iterdir() if path.name[0] != "."] == []
    with pytest.raises(Unavailable, match="eurosat: no "):
        sources.find("eurosat")()
    get("eurosat", None, quiet)
    assert len(Quiet.asked) == 1  # the archive was there already
    assert not (folder / ".new").exists()


def test_archive_that_means_harm(shelf: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zipped(shelf[0] / "EuroSAT.zip", scenes() | {"../../../x": b"harm"})
    monkeypatch.setitem(ORIGINS, "eurosat", Origin(10, 100, (part(archive, shelf[1]),)))
    with pytest.raises(Unavailable, match=r"EuroSAT\.zip holds '\.\./\.\./\.\./x', which leaves its folder"):
        get("eurosat", None, quiet)
    assert not (tmp_path / "data" / "eurosat" / "2750").exists()
    assert not list(tmp_path.rglob("x"))


def test_archive_in_an_archive(shelf: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["BACKGROUND_Google", "Faces_easy", *(f"kind{c:03d}" for c in range(100))]
    files = {f"101_ObjectCategories/{c}/image_{i:04d}.jpg": picture(i) for c in names for i in range(4)}
    inner = "caltech-101/101_ObjectCategories.tar.gz"
    archive = zipped(shelf[0] / "caltech-101.zip", {inner: rolled(files), "caltech-101/Annotations.tar": b"unread"})
    monkeypatch.setitem(ORIGINS, "caltech101", Origin(100, 400, (part(archive, shelf[1], inner=(inner,)),)))
    folder = get("caltech101", None, quiet)
    assert not (folder / inner).exists()
    assert set(manifest(folder).files) == {f"caltech-101/{f}" for f in files} | {"caltech-101/Annotations.tar"}
    report = verify("caltech101", None, quiet)
    assert (report.classes, report.sound, report.unlisted) == (100, True, 0)


def test_archives_that_share_folders_and_files_that_stay_as_they_are(
    shelf: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = (
        part(zipped(shelf[0] / "a.zip", {"top/a": b"1"}), shelf[1]),
        part(zipped(shelf[0] / "b.zip", {"top/b": b"2"}), shelf[1]),
        part(zipped(shelf[0] / "c.zip", {"c": b"3"}), shelf[1], unpack=None),
    )
    monkeypatch.setitem(ORIGINS, "dtd", Origin(47, 5640, parts))
    folder = get("dtd", None, quiet)
    assert set(manifest(folder).files) == {"top/a", "top/b", "c.zip"}
    assert (folder / "c.zip").read_bytes() == (shelf[0] / "c.zip").read_bytes()


def test_only_one_gets_at_a_time(eurosat: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "eurosat"
    folder.mkdir(parents=True)
    with (
        FileLock(folder / ".new.lock"),
        pytest.raises(Unavailable, match=r"another process gets eurosat into .*; wait"),
    ):
        get("eurosat", None, quiet)


def test_sets_that_are_got_by_hand(shelf: tuple[Path, str], tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as told:
        get("pacs", None, quiet)
    assert str(told.value) == (
        "pacs can't be downloaded by a program; get it by hand from domaingeneralization.github.io, 0.2 GB, put it "
        f"into {tmp_path}/data/pacs as <domain>/<class>/*; art_painting, cartoon, photo, sketch, and look with: fedray "
        "data verify pacs"
    )


def test_sets_that_come_along_and_names_that_do_not_exist(shelf: tuple[Path, str]) -> None:
    get("digits", None, quiet)
    with pytest.raises(BadInput, match=r"unknown data set 'eurosatt'\. Did you mean eurosat\?"):
        get("eurosatt", None, quiet)


def test_folder_that_can_t_be_written(eurosat: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match=r"can't be written .*; choose another with --root"):
        get("eurosat", tmp_path / "file", quiet)


def test_damaged_manifest(eurosat: Path) -> None:
    folder = get("eurosat", None, quiet)
    for text in ("{", "[]", '{"parts": {}, "files": {"a": 1}}', '{"parts": {}}'):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(Unavailable, match=r"manifest\.json can't be read .*; remove it, then get the set again"):
            get("eurosat", None, quiet)


# ---- verify ----


def test_verify_finds_nothing_wrong(eurosat: Path, tmp_path: Path) -> None:
    get("eurosat", None, quiet)
    report = verify("eurosat", None, quiet)
    assert report.sound
    assert (report.hashed, report.train, report.test, report.classes) == (100, 50, 30, 10)
    assert (report.missing, report.changed, report.broken, report.odd, report.error) == ([], [], {}, {}, "")
    assert report.folder == tmp_path / "data" / "eurosat"
    assert "split 50/20/30 by fedray" in report.note


def test_verify_names_what_is_wrong(eurosat: Path) -> None:
    folder = get("eurosat", None, quiet)
    train = sorted(str(path) for path in sources.find("eurosat")().train.images if isinstance(path, Path))
    flipped, cut, other = (Path(train[i]) for i in (0, 10, 20))
    raw = flipped.read_bytes()
    flipped.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    cut.write_bytes(cut.read_bytes()[:100])
    other.write_bytes(b"no image".ljust(other.stat().st_size))
    report = verify("eurosat", None, quiet)
    assert not report.sound
    assert report.missing == [cut.relative_to(folder).as_posix()]
    assert sorted(report.changed) == sorted(path.relative_to(folder).as_posix() for path in (flipped, other))
    assert {str(cut), str(other)} <= set(report.broken) <= {str(cut), str(other), str(flipped)}


def test_verify_counts_what_is_unusual(shelf: tuple[Path, str], tmp_path: Path) -> None:
    """A set that was put there by hand: no hashes to compare with."""
    root = tmp_path / "mine"
    for name, raw in scenes().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(raw)
    for kind, (form, mode) in {"Forest": ("JPEG", "L"), "River": ("JPEG", "CMYK"), "SeaLake": ("PNG", "RGB")}.items():
        for path in (root / "2750" / kind).iterdir():
            path.write_bytes(picture(1, form, mode))
    for path in (root / "2750" / "Pasture").iterdir():
        Image.new("RGB", (1, 9)).save(path)
    report = verify("eurosat", root, quiet)
    assert (report.sound, report.hashed, report.unlisted) == (True, 0, 0)
    assert report.odd == {"gray": 8, "CMYK": 8, "another format than named": 8, "one pixel wide": 8}
    assert report.folder == root / "2750"


def test_verify_tells_of_images_that_were_added(eurosat: Path) -> None:
    folder = get("eurosat", None, quiet)
    for kind in KINDS:
        (folder / "2750" / kind / "zzz.jpg").write_bytes(picture(0))
    assert 0 < verify("eurosat", None, quiet).unlisted <= 10


def test_verify_of_a_set_that_can_t_be_loaded(eurosat: Path) -> None:
    folder = get("eurosat", None, quiet)
    for path in (folder / "2750").rglob("*.jpg"):
        path.unlink()
    report = verify("eurosat", None, quiet)
    assert (report.sound, len(report.missing), report.classes) == (False, 100, 0)
    assert report.error


def test_verify_of_nothing_says_how_to_get_it(shelf: tuple[Path, str]) -> None:
    with pytest.raises(Unavailable, match="fedray data get eurosat"):
        verify("eurosat", None, quiet)


def test_verify_of_a_set_without_files() -> None:
    report = verify("digits", None, quiet)
    assert (report.sound, report.train + report.test, report.classes) == (True, 1797, 10)

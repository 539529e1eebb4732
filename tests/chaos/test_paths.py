"""Case 16: names that try to lead out of their folder, and archives that try to fill the disk."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fedray.data.lists import listed
from fedray.data.unpack import unpack
from fedray.errors import BadInput, Unavailable
from fedray.experiment import Experiment
from fedray.track import layout
from fedray.track.run import RunFolder

pytestmark = pytest.mark.chaos
Tally, Often = Callable[[str, str, int, int], None], Callable[[int, int], int]
PIECES = (
    "..",
    ".",
    "",
    "/",
    "//",
    "\\",
    "a",
    "runs",
    "etc",
    "~",
    "\0",
    "\n",
    "\u202e",
    "é",
    "%2e%2e",
    "C:",
    "x" * 300,
    " ",
)


def names(count: int) -> list[str]:
    """Names of one to five pieces, each of which leads out, is no slug, or both."""
    draw, found = random.Random(16), list[str]()
    while len(found) < count:
        name = draw.choice(("", "/", "./", "a/"))
        name += draw.choice(("/", "", "/../")).join(draw.choice(PIECES) for _ in range(draw.randint(1, 5)))
        if not layout.SLUG.fullmatch(name):
            found.append(name)
    return found


def everything(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


def test_names_of_studies_and_runs(tmp_path: Path, tally: Tally, often: Often) -> None:
    passed, tried = 0, names(often(100, 200))
    root = tmp_path / "in" / "runs"
    root.mkdir(parents=True)
    for name in tried:
        for study, run_id in ((name, "ok"), ("ok", name)):
            with pytest.raises(BadInput, match="is not a usable name") as error:
                RunFolder.create(root, study, run_id, {"rounds": 1})
        passed += "\n" not in str(error.value) and everything(tmp_path / "in") == {str(root)}
    tally("16", "names of studies and runs", len(tried), passed)


def test_links_on_the_way(tmp_path: Path, tally: Tally) -> None:
    """A link in the place of each thing that is written into a run folder: refused, and nothing goes through it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    folder = RunFolder.create(tmp_path / "runs", "study", "one", {"rounds": 1})
    tried = [*layout.FOLDERS, "config.yaml", "status.json", "env.json", "rows.jsonl", "log.txt", "partition.parquet"]
    passed = 0
    for name in tried:
        aside, place = tmp_path / "aside", folder.path / name
        if place.exists():
            place.rename(aside)
        place.symlink_to(outside if name in layout.FOLDERS else outside / "file")
        try:
            RunFolder.open(folder.path)
        except BadInput as error:
            passed += f"{name} is a symlink" in str(error)
        place.unlink()
        if aside.exists():
            aside.rename(place)
    assert everything(outside) == {str(outside / "file")} and (outside / "file").read_text() == "mine"
    tally("16", "links in a run folder", len(tried), passed)


def packed(path: Path, name: str, kind: bytes, link: str) -> None:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(zipfile.ZipInfo(name), b"x")
        return
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.size = kind, link, 1 if kind == tarfile.REGTYPE else 0
        archive.addfile(member, io.BytesIO(b"x"))


def test_archives(tmp_path: Path, tally: Tally, often: Often) -> None:
    """Names and links in archives: refused, or unpacked inside."""
    draw, passed = random.Random(17), 0
    tried = names(often(100, 200))
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    for i, name in enumerate(tried):
        path = tmp_path / f"{i}.{'zip' if i % 2 else 'tar'}"
        kind = draw.choice((tarfile.REGTYPE, tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE))
        packed(path, name, kind, draw.choice(("../../x", "/etc/passwd", "x")))
        before = everything(tmp_path) - everything(out)
        try:
            files = unpack(path, out, limit=1 << 20)
            fine = all((out / made).is_file() and not (out / made).is_symlink() for made in files)
        except Unavailable as error:
            fine = "\n" not in str(error)
        passed += fine and everything(tmp_path) - everything(out) == before
        path.unlink()
    assert not any(Path(path).is_symlink() for path in everything(out))
    tally("16", "names and links in archives", len(tried), passed)


def test_ten_gigabytes(tmp_path: Path, tally: Tally, often: Often) -> None:
    """A tar of 10 MB that unpacks to 10 GB (quick: 1 GB), and one that says so: a megabyte is written at most."""
    zeros, parts = gzip.compress(bytes(64 << 20), 1), often(16, 160)
    member = tarfile.TarInfo("zeros")
    member.size = parts * (64 << 20)
    bomb, liar = tmp_path / "bomb.tar.gz", tmp_path / "liar.tar"
    bomb.write_bytes(gzip.compress(member.tobuf()) + zeros * parts)
    member.size = 10 << 30
    liar.write_bytes(member.tobuf() + bytes(10_000))
    passed = 0
    for path in (bomb, liar):
        with pytest.raises(Unavailable):
            unpack(path, tmp_path / "out", limit=1 << 20)
        passed += sum(file.stat().st_size for file in (tmp_path / "out").rglob("*")) <= 1 << 20
    tally("16", "bombs", 2, passed)


def test_rows_of_a_list(tmp_path: Path, tally: Tally, often: Often) -> None:
    """Images that a list names outside of its folder."""
    (tmp_path / "secret.png").write_bytes(b"x")
    root = tmp_path / "set"
    root.mkdir()
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    tried = ["../secret.png", str(tmp_path / "secret.png"), "link.png", "a/../../secret.png", "./../secret.png"]
    tried += [name for name in names(often(45, 195)) if not set(name) & {"\n", "\0", '"', ","} and name.strip()]
    passed = 0
    for name in tried:
        (root / "labels.csv").write_text(f"image,label,split\n{name},cat,train\n")
        try:
            listed(root)
        except BadInput as error:
            passed += str(error).count("\n") == 0
    tally("16", "images outside of their folder", len(tried), passed)


def test_names_in_an_experiment(tmp_path: Path, tally: Tally, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a field says, the run's folder is a slug of ours."""
    monkeypatch.chdir(tmp_path)
    passed, tried = 0, names(50)
    for name in tried:
        try:
            run_id = Experiment().override(**{"data.name": name, "exams": name}).run_id
            passed += layout.SLUG.fullmatch(run_id) is not None
        except BadInput:
            passed += 1
    assert not everything(tmp_path)
    tally("16", "names in an experiment", len(tried), passed)

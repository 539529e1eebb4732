"""`fedray data` as users meet it: texts, exit codes, JSON, and a listing that costs nothing."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from fedray.cli import main
from fedray.commands.data import amount, where
from fedray.data import sources
from fedray.data.download import Part
from fedray.data.origins import ALIAS, ORIGINS, Origin
from fedray.errors import BadInput, Unavailable

HEAVY = ("torch", "ray", "mlflow", "ot", "open_clip", "pandas", "sklearn", "scipy", "matplotlib", "optuna", "pyarrow")
KINDS = (
    "AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop", "Residential",
    "River", "SeaLake",
)  # fmt: skip


class Said(NamedTuple):
    code: int
    out: str
    err: str


Fedray = Callable[..., Said]


@pytest.fixture
def fedray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Fedray]:
    """The command line, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDRAY_DATA", "data")
    monkeypatch.setenv("FEDRAY_CACHE", str(tmp_path / "cache"))
    before, handlers = signal.getsignal(signal.SIGTERM), logging.getLogger().handlers[:]

    def run(*words: object) -> Said:
        capsys.readouterr()
        code = main(["data", *map(str, words)])
        return Said(code, *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, before)
    logging.getLogger().handlers[:] = handlers


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def eurosat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """EuroSAT in small, on a host on this machine; returns its archive."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("fedray.data.download.PAUSES", ())
    archive = tmp_path / "host" / "EuroSAT.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as packed:
        for number, kind in enumerate(KINDS * 10):
            file = io.BytesIO()
            Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(file, "JPEG")
            packed.writestr(f"2750/{kind}/{kind}_{number}.jpg", file.getvalue())
    handler = functools.partial(Quiet, directory=str(archive.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}/EuroSAT.zip"
        sha = hashlib.sha256(archive.read_bytes()).hexdigest()
        made = Origin(10, 100, (Part(url, archive.stat().st_size, f"sha256:{sha}"),))
        monkeypatch.setitem(ORIGINS, "eurosat", made)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield archive
        server.shutdown()
        thread.join()


# ---- mistakes ----

MISTAKES = {
    "get": "fedray data get needs a name, e.g. fedray data get dtd; see: fedray data ls",
    "verify": "fedray data verify needs a name, e.g. fedray data verify dtd; see: fedray data ls",
    "get eurosatt": "unknown data set 'eurosatt'. Did you mean eurosat?",
    "ls digit": "unknown data set 'digit'. Did you mean digits?",
    "get dtd eurosat --root x": "--root is the folder of one data set, got 2 names; give one name",
    "get dtd --max 1GB": "--max is for fedray data cache, not for get; leave it out",
    "cache dtd": "fedray data cache takes no name, got 'dtd'; it is one cache for all",
    "cache --root x": "--root is a data set's folder; where the cache lies, $FEDRAY_CACHE says",
    "cache --max much": "--max can't be 'much'; give a size, e.g. 10GB or 500MB",
    "ls --jsn": "--jsn is not an option of fedray data. Did you mean --json?",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistake_is_one_line(line: str, fedray: Fedray) -> None:
    assert fedray(*line.split()) == Said(2, "", f"error: {MISTAKES[line]}\n")


def test_unknown_verb_is_one_line(fedray: Fedray) -> None:
    code, out, err = fedray("fetch", "dtd")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: invalid choice 'fetch'")


def test_nothing_heavy_is_imported_for_a_word(tmp_path: Path) -> None:
    script = (
        "import json, sys\nfrom fedray.cli import main\n"
        "for words in (['data', 'ls'], ['data', 'ls', '--json'], ['data', 'get', 'x'], ['data', '--help'],\n"
        "              ['data', 'get', 'pacs'], ['data', 'cache']):\n"
        "    main(words)\n"
        "print('\\n' + json.dumps([m for m in json.loads(sys.argv[1]) if m in sys.modules]))\n"
    )
    command = [sys.executable, "-c", script, json.dumps(HEAVY)]
    env = os.environ | {"FEDRAY_CACHE": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# ---- get, verify ----


def test_get_and_verify(eurosat: Path, fedray: Fedray) -> None:
    code, out, err = fedray("get", "eurosat")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("EuroSAT.zip · 0 B of ")
    assert lines[-1] == "eurosat · data/eurosat"
    assert fedray("get", "eurosat") == Said(0, "eurosat · data/eurosat\n", "")
    code, out, err = fedray("verify", "eurosat")
    assert (code, err) == (0, "")
    assert out.splitlines()[-4:] == [
        "eurosat · data/eurosat",
        "files · 100 hashed and compared with the download",
        "images · 50 train, 30 test, 10 classes",
        "split · split 50/20/30 by fedray, stratified, seed 1, the 20 % left out",
    ]


def test_verify_of_a_damaged_set_ends_with_4(eurosat: Path, fedray: Fedray, tmp_path: Path) -> None:
    fedray("get", "eurosat")
    image = sorted((tmp_path / "data" / "eurosat" / "2750" / "River").iterdir())[0]
    image.write_bytes(bytes(image.stat().st_size))
    code, _, err = fedray("verify", "eurosat")
    assert code == 4
    assert err.startswith(f"error: eurosat: 1 changed: 2750/River/{image.name}; ")
    assert err.endswith("remove what changed, then fedray data get eurosat brings the set anew\n")
    image.unlink()
    assert fedray("get", "eurosat").code == 0
    assert fedray("verify", "eurosat").code == 0


def test_verify_names_images_that_can_t_be_read(eurosat: Path, fedray: Fedray, tmp_path: Path) -> None:
    with zipfile.ZipFile(eurosat) as packed:
        packed.extractall(tmp_path / "mine")
    for path in (tmp_path / "mine" / "2750" / "River").iterdir():
        path.write_bytes(b"no image")
    code, out, err = fedray("verify", "eurosat", "--root", "mine")
    assert code == 4
    assert "files · not downloaded by fedray: there are no hashes to compare with\n" in out
    assert err.startswith("error: eurosat: 8 can't be read: mine/2750/River/")
    assert err.endswith(" and 5 more; replace them, or leave them out with --data.bad skip\n")


def test_json(eurosat: Path, fedray: Fedray) -> None:
    events = [json.loads(line) for line in fedray("get", "eurosat", "--json").out.splitlines()]
    assert {event["event"] for event in events} == {"progress", "got"}
    assert events[-1] == {"event": "got", "data": "eurosat", "folder": "data/eurosat"}
    events = [json.loads(line) for line in fedray("verify", "eurosat", "--json").out.splitlines()]
    assert events[-1]["event"] == "verified"
    assert (events[-1]["sound"], events[-1]["hashed"], events[-1]["broken"]) == (True, 100, {})


def test_what_can_t_be_had_ends_with_4(eurosat: Path, fedray: Fedray) -> None:
    eurosat.unlink()
    code, _, err = fedray("get", "digits", "eurosat", "pacs")
    assert (code, err.count("\n")) == (4, 1)
    assert "EuroSAT.zip answers 404 File not found; get the file elsewhere, as data/eurosat/.new/archives/" in err
    code, _, err = fedray("get", "pacs")
    assert (code, err.count("\n")) == (4, 1)
    assert err.startswith("error: pacs can't be downloaded by a program; get it by hand from ")
    code, _, err = fedray("verify", "eurosat")
    assert (code, err.count("\n")) == (4, 1)


def test_ctrl_c_says_how_to_go_on(eurosat: Path, fedray: Fedray, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fedray.data.fetch.unpack", stop)
        code, _, err = fedray("get", "eurosat", "--root", "my folder")
    assert code == 130
    assert err == "interrupted: what is done is kept; go on with: fedray data get eurosat --root 'my folder'\n"
    assert fedray("get", "eurosat", "--root", "my folder") == Said(0, "eurosat · my folder\n", "")


def test_sets_that_come_along(fedray: Fedray) -> None:
    assert fedray("get", "digits") == Said(0, "digits · comes along with fedray, there is nothing to get\n", "")


UNITS = {"MB": 1e6, "GB": 1e9}
ALONG = ("digits", "colourdigits", "multidigits")


@pytest.mark.parametrize("name", sorted({*sources.names()} - {*ALONG, "folder"}))
def test_a_set_that_is_missing_says_how_to_get_it(
    name: str, fedray: Fedray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command where there is one, the size, the folder; and the command does try to get it."""

    def refuse(*_: object, **__: object) -> str:
        raise Unavailable("no network here")

    monkeypatch.setattr("fedray.data.fetch.download", refuse)
    with pytest.raises(Unavailable) as error:
        sources.find(name)(root=tmp_path / "empty")
    said = str(error.value)
    code, _, err = fedray("get", name)
    assert code == 4
    files = ALIAS.get(name, name)
    command = re.search(r"fedray data get (\w+)", said)
    assert (command is not None and command[1] in (name, files)) == (err == "error: no network here\n"), (said, err)
    assert (command is None) == ("by hand" in said)
    number, unit = re.findall(r"([\d.]+) (MB|GB)", said)[-1]
    assert float(number) * UNITS[unit] == pytest.approx(ORIGINS[files].download, rel=0.06)
    assert str(tmp_path / "empty") in said and "\n" not in said


@pytest.mark.parametrize("name", ALONG)
def test_what_comes_along_needs_no_folder(name: str, tmp_path: Path) -> None:
    assert len(sources.find(name)(root=tmp_path / "empty").train) > 0
    assert where(name) == (True, "comes along")


# ---- ls ----


def test_ls_says_where_sets_are_or_how_to_get_them(fedray: Fedray, tmp_path: Path) -> None:
    (tmp_path / "data" / "oxford_pets" / "images").mkdir(parents=True)  # as CoOp lays it out
    (tmp_path / "data" / "dtd" / ".new").mkdir(parents=True)  # a download that is not at its end
    code, out, err = fedray("ls")
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert "data/oxford_pets" in rows["pets"]
    assert "fedray data get dtd (625 MB)" in rows["dtd"]
    assert "by hand (some 190 MB)" in rows["pacs"]
    assert "comes along" in rows["digits"]
    assert out.splitlines()[-1] == "by hand · where from, and where to put it, says: fedray data get NAME"


def test_ls_as_json(fedray: Fedray, tmp_path: Path) -> None:
    (tmp_path / "mine" / "images").mkdir(parents=True)
    (row,) = [json.loads(line) for line in fedray("ls", "dtd", "--root", "mine", "--json").out.splitlines()]
    assert (row["event"], row["data"], row["classes"], row["images"]) == ("data", "dtd", 47, 5640)
    assert (row["here"], row["where"]) == (True, "mine")
    (row,) = [json.loads(line) for line in fedray("ls", "dtd", "--json").out.splitlines()]
    assert (row["here"], row["where"]) == (False, "fedray data get dtd (625 MB)")


# ---- cache ----


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("10GB", 10**10), ("500 mb", 5 * 10**8), ("1.5kB", 1500), ("2GiB", 2**31), ("1e9", 10**9), ("7b", 7)],
)
def test_amount(text: str, size: int) -> None:
    assert amount(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1 XB", "1,5GB", "inf", "1GB2", "0x10"])
def test_amount_refuses(text: str) -> None:
    with pytest.raises(BadInput, match="--max can't be"):
        amount(text)


def stored(folder: Path, name: str, size: int, age: float) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_cache_is_shown_and_shrunk(fedray: Fedray, tmp_path: Path) -> None:
    old = stored(tmp_path / "cache" / "features", "old.arrow", 3_000, 9e6)
    new = stored(tmp_path / "cache" / "features", "new.arrow", 2_000, 8e6)
    kept = stored(tmp_path / "cache" / "backbones", "clip.safetensors", 1_000, 7e6)
    code, out, err = fedray("cache")
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()[:3]] == [
        ["kind", "files", "size", "in", "use"],
        ["backbones", "1", "1.0", "kB", "0"],
        ["features", "2", "5.0", "kB", "0"],
    ]
    assert out.splitlines()[-1] == f"cache · {tmp_path}/cache · 6.0 kB"
    code, out, err = fedray("cache", "--max", "3500")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == f"cache · {tmp_path}/cache · 3.0 kB · 1 removed, 3.0 kB"
    assert (old.exists(), new.exists(), kept.exists()) == (False, True, True)


def test_what_is_in_use_stays(fedray: Fedray, tmp_path: Path) -> None:
    path = stored(tmp_path / "cache" / "features", "new.arrow", 2_000, 1.0)
    code, _, err = fedray("cache", "--max", "0")
    assert code == 0
    assert err == "warning: 2.0 kB stay: what is in use now or within the last hour isn't removed\n"
    assert path.exists()
    stored(tmp_path / "cache", "thesis.tex", 1_000, 9e6)
    assert fedray("cache", "--max", "0").err == (
        "warning: 3.0 kB stay: what is in use now or within the last hour isn't removed, nor are 1.0 kB that fedray "
        "didn't put there\n"
    )


def test_cache_as_json(fedray: Fedray, tmp_path: Path) -> None:
    stored(tmp_path / "cache" / "features", "old.arrow", 3_000, 9e6)
    rows = [json.loads(line) for line in fedray("cache", "--max", "0", "--json").out.splitlines()]
    assert rows == [{"event": "cache_total", "folder": f"{tmp_path}/cache", "bytes": 0, "removed": 1, "freed": 3000}]

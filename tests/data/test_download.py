"""One file from a host that cuts, lies, forgets or is not there; the host is a thread on this machine."""

from __future__ import annotations

import hashlib
import shutil
import socket
import threading
import urllib.error
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fedray.data.download import Part, download
from fedray.errors import Unavailable

CONTENT = bytes(range(256)) * 4000  # 1.0 MB


class Host:
    """What the host has and how it behaves, and what it was asked for."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.cuts: list[int] = []  # bytes after which the next answers break off
        self.failures: list[int] = []  # status of the next answers
        self.resumes = True
        self.chunked = False
        self.asked: list[str] = []  # Range of each request
        self.url = ""

    def part(self, **changes: Any) -> Part:
        told = {"url": f"{self.url}/set.bin", "size": len(CONTENT)}
        return Part(**told | {"digest": f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"} | changes)


def handler(host: Host) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range", "")
            host.asked.append(asked)
            if host.failures:
                self.send_error(host.failures.pop(0))
                return
            if self.path == "/away":
                self.send_response(302)
                self.send_header("Location", "ftp://127.0.0.1/set.bin")
                self.end_headers()
                return
            if self.path != "/set.bin":
                self.send_error(404)
                return
            start = int(asked.removeprefix("bytes=").removesuffix("-") or 0) if host.resumes else 0
            size = len(host.content)
            if asked and start >= size and host.resumes:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            if not host.chunked:
                self.send_header("Content-Length", str(size - start))
            self.end_headers()
            end = min(size, start + host.cuts.pop(0)) if host.cuts else size
            self.wfile.write(host.content[start:end])

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr("fedray.data.download.PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Host()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler(made)) as server:
        made.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield made
        server.shutdown()
        thread.join()


def quiet(file: str, done: int, whole: int) -> None:
    """Nobody listens."""


def left(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def test_file_comes_whole_and_progress_is_told(host: Host, tmp_path: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    sha = download(host.part(), tmp_path / "new", lambda *told: heard.append(told))
    assert sha == hashlib.sha256(CONTENT).hexdigest()
    assert (tmp_path / "new" / "set.bin").read_bytes() == CONTENT
    assert left(tmp_path / "new") == {"set.bin": len(CONTENT)}
    assert heard[0] == ("set.bin", 0, len(CONTENT))
    assert heard[-1] == ("set.bin", len(CONTENT), len(CONTENT))
    download(host.part(), tmp_path / "new", quiet)
    assert host.asked == [""]  # what is there and right is not fetched again


def test_cut_connections_are_resumed_where_they_broke(host: Host, tmp_path: Path) -> None:
    host.cuts = [1000, 500_000, 7, 1, 1, 1]  # more than there are pauses: each brought something
    download(host.part(), tmp_path, quiet)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT
    starts = [1000, 501_000, 501_007, 501_008, 501_009, 501_010]
    assert host.asked == ["", *(f"bytes={start}-" for start in starts)]


def test_next_command_goes_on_with_the_part(host: Host, tmp_path: Path) -> None:
    (tmp_path / "set.bin.part").write_bytes(CONTENT[:1234])
    download(host.part(), tmp_path, quiet)
    assert host.asked == ["bytes=1234-"]
    assert left(tmp_path) == {"set.bin": len(CONTENT)}


def test_host_that_can_t_resume_starts_over(host: Host, tmp_path: Path) -> None:
    host.resumes, host.cuts = False, [5000]
    download(host.part(), tmp_path, quiet)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT


def test_host_that_never_gets_further_is_left(host: Host, tmp_path: Path) -> None:
    host.resumes, host.cuts = False, [5000] * 4
    with pytest.raises(Unavailable, match=r"can't be reached \(cut after 5,000 of 1,024,000 bytes\); what came so far"):
        download(host.part(), tmp_path, quiet)
    assert left(tmp_path) == {"set.bin.part": 5000}


def test_host_that_has_another_file_now(host: Host, tmp_path: Path) -> None:
    host.content = CONTENT[:5000]
    with pytest.raises(Unavailable, match=r"set\.bin has 5,000 bytes, not 1,024,000: another file"):
        download(host.part(), tmp_path, quiet)
    host.chunked = True  # the length is only known at the end
    with pytest.raises(Unavailable, match=r"brought 5,000 bytes, not 1,024,000; the file is removed"):
        download(host.part(), tmp_path, quiet)


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_wrong_checksum_is_refused_and_the_file_removed(kind: str, host: Host, tmp_path: Path) -> None:
    right = hashlib.new(kind, CONTENT, usedforsecurity=False).hexdigest()
    host.content = CONTENT[:-1] + b"?"
    with pytest.raises(Unavailable, match=rf"brought {kind} \w{{12}}…, not {right[:12]}…; the file is removed, try"):
        download(host.part(digest=f"{kind}:{right}"), tmp_path, quiet)
    assert left(tmp_path) == {}
    host.content = CONTENT
    download(host.part(digest=f"{kind}:{right}"), tmp_path, quiet)
    assert left(tmp_path) == {"set.bin": len(CONTENT)}


def test_damage_on_disk_is_seen_before_use(host: Host, tmp_path: Path) -> None:
    (tmp_path / "set.bin").write_bytes(CONTENT[1:] + b"?")
    with pytest.raises(Unavailable, match="the file is removed"):
        download(host.part(), tmp_path, quiet)
    assert left(tmp_path) == {}


def test_sha256_is_trusted_on_first_use(host: Host, tmp_path: Path) -> None:
    part = host.part(digest=f"md5:{hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()}")
    sha = download(part, tmp_path, quiet)
    (tmp_path / "set.bin").unlink()
    download(part, tmp_path, quiet, sha256=sha)
    with pytest.raises(Unavailable, match=r"brought sha256 \w{12}…, not 000000000000… as at the first download"):
        download(part, tmp_path, quiet, sha256="0" * 64)


def test_size_that_nobody_published(host: Host, tmp_path: Path) -> None:
    host.cuts = [100]
    download(host.part(size=0), tmp_path, quiet)
    (tmp_path / "set.bin").rename(tmp_path / "set.bin.part")  # killed before the check
    download(host.part(size=0), tmp_path, quiet)
    (tmp_path / "set.bin").unlink()
    (tmp_path / "set.bin.part").write_bytes(CONTENT + b"more")  # of another file
    download(host.part(size=0), tmp_path, quiet)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT


def test_missing_file_is_not_asked_for_twice(host: Host, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=rf"/gone answers 404 Not Found; get the file elsewhere, as {tmp_path}/gone"):
        download(host.part(url=f"{host.url}/gone"), tmp_path, quiet)
    assert len(host.asked) == 1


def test_busy_host_is_asked_again(host: Host, tmp_path: Path) -> None:
    host.failures = [503, 429, 500]
    download(host.part(), tmp_path, quiet)
    host.failures = [503] * 4
    with pytest.raises(Unavailable, match=r"can't be reached \(503 Service Unavailable\)"):
        download(host.part(), tmp_path / "other", quiet)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:1/set.bin", "connection refused"),
        ("http://nowhere.invalid/set.bin", "the host's name can't be resolved; is there a network?"),
        ("file:///etc/passwd", "unknown url type: file"),
    ],
)
def test_no_network_is_one_line(url: str, reason: str, host: Host, tmp_path: Path, monkeypatch: Any) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Unavailable) as told:
        download(host.part(url=url), tmp_path, quiet)
    assert str(told.value) == f"{url} can't be reached ({reason}); what came so far is kept, try again later"


def test_unknown_name_is_looked_up_again_only_after_a_cut(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedray.data import download as module

    opened, asked = module._opened, []

    def lost(url: str, start: int) -> Any:
        asked.append(start)
        if not host.cuts:
            raise urllib.error.URLError(socket.gaierror(-3, "Temporary failure in name resolution"))
        return opened(url, start)

    monkeypatch.setattr(module, "_opened", lost)
    for cuts, tries in (([], [0]), ([1000], [0, 1000, 1000, 1000])):
        host.cuts = cuts
        with pytest.raises(Unavailable, match="is there a network"):
            download(host.part(), tmp_path, quiet)
        assert asked == tries
        asked.clear()


def test_nothing_but_http_after_a_redirection(host: Host, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="can't be reached"):
        download(host.part(url=f"{host.url}/away"), tmp_path, quiet)
    assert left(tmp_path) == {}


def test_room_is_looked_for_first(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(Unavailable, match=r"set\.bin needs 1\.0 MB, .* has 0\.0 MB free; choose another folder"):
        download(host.part(), tmp_path, quiet)
    assert host.asked == []


def test_folder_that_can_t_be_written(host: Host, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match=r"set\.bin\.part can't be written \(.*\); choose another folder"):
        download(host.part(), tmp_path / "file", quiet)

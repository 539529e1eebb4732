"""Case 25, the doors: who listens where while `fedray run` is on a local Ray and while `fedray ui` serves."""

from __future__ import annotations

import ipaddress
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import psutil
import pytest

from fedray.engine.search import open_study

pytestmark = [pytest.mark.chaos, pytest.mark.ray]
Tally = Callable[[str, str, int, int], None]
RUN = ["run", "--clip.name", "tiny", "--partition.clients", "4", "--split.shots", "2"]


@contextmanager
def started(words: list[str], home: Path, short: str) -> Iterator[subprocess.Popen[str]]:
    """A command of ours, with nothing of Ray's or MLflow's in its environment and an ordinary umask."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "FEDRAY_RUNS"))}
    env |= {"HOME": str(home), "RAY_TMPDIR": short}
    command = [sys.executable, "-m", "fedray.cli", *words]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=home, env=env, umask=0o022, start_new_session=True, **streams) as process:  # type: ignore[call-overload]
        family = []
        try:
            yield process
            family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.wait(60)
        assert psutil.wait_procs(family, timeout=20)[1] == [], "processes left behind"


def listeners(process: psutil.Process) -> set[tuple[str, int]]:
    """Addresses at which a process and all that it started listen."""
    found = set()
    for member in [process, *process.children(recursive=True)]:
        try:
            found |= {(c.laddr.ip, c.laddr.port) for c in member.net_connections() if c.status == psutil.CONN_LISTEN}
        except psutil.Error:
            continue
    return found


def loopback(ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def asked(address: str, token: str | None) -> grpc.StatusCode:
    """What Ray's control service answers to whoever can reach it; a refused connection would be UNAVAILABLE."""
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
        try:
            call(b"", timeout=20, metadata=() if token is None else (("authorization", f"Bearer {token}"),))
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


def control(process: psutil.Process) -> str:
    """Where it is, from the command lines of what a local Ray consists of."""
    for member in process.children(recursive=True):
        with suppress(psutil.Error):  # some have ended already
            if found := [word for word in member.cmdline() if word.startswith("--gcs-address=")]:
                return found[0].partition("=")[2]
    raise AssertionError("no process of Ray's knows of a control service")


def test_nobody_else_is_let_in(tmp_path: Path, tally: Tally) -> None:
    seen, answers = set[tuple[str, int]](), dict[str | None, grpc.StatusCode]()
    with tempfile.TemporaryDirectory(prefix="fr", dir="/tmp") as short:
        with started([*RUN, "--rounds", "4", "--placement", "packed", "--actors", "2"], tmp_path, short) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if re.match(r"r +\d+/4", line):
                    ours = psutil.Process(process.pid)
                    seen |= listeners(ours)
                    if not answers:
                        good = (tmp_path / ".ray" / "auth_token").read_text().strip()
                        answers = {token: asked(control(ours), token) for token in (None, "0" * 64, good[::-1], good)}
            assert process.wait(60) == 0
        assert len(seen) >= 5, seen  # Ray has that many on one machine
        tally("25", "listeners of fedray run on loopback", len(seen), sum(loopback(ip) for ip, _ in seen))
        assert answers.pop(good) == grpc.StatusCode.OK  # else the question would be wrong
        refused = [code == grpc.StatusCode.UNAUTHENTICATED for code in answers.values()]
        tally("25", "callers without the token refused by Ray", len(refused), sum(refused))
        assert stat.S_IMODE((tmp_path / ".ray" / "auth_token").stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "runs" / "mlflow.db").stat().st_mode) == 0o600


def test_the_browser_s_server_is_for_this_machine(tmp_path: Path, tally: Tally, long_only: None) -> None:
    """MLflow's own server, which takes half a minute to start and to end."""
    with tempfile.TemporaryDirectory(prefix="fr", dir="/tmp") as short:
        with started([*RUN, "--rounds", "1", "--placement", "inline"], tmp_path, short) as process:
            assert process.wait(120) == 0
        seen = served(["ui"], tmp_path, short)
        tally("25", "listeners of fedray ui on loopback", len(seen), sum(loopback(ip) for ip, _ in seen))


def test_the_dashboard_of_a_search_is_for_this_machine(tmp_path: Path, tally: Tally, long_only: None) -> None:
    """Optuna's own server."""
    pytest.importorskip("optuna_dashboard")
    open_study(tmp_path / "runs", "s")
    with tempfile.TemporaryDirectory(prefix="fr", dir="/tmp") as short:
        seen = served(["ui", "--optuna"], tmp_path, short)
    tally("25", "listeners of fedray ui --optuna on loopback", len(seen), sum(loopback(ip) for ip, _ in seen))


def served(words: list[str], home: Path, short: str) -> set[tuple[str, int]]:
    """Who listens while a page is served."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with started([*words, "--port", str(port)], home, short) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith("open "))
        time.sleep(1)
        seen = listeners(psutil.Process(process.pid))
    assert ("127.0.0.1", port) in seen
    return seen

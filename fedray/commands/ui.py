"""`fedray ui`: MLflow's own server, or Optuna's dashboard, on this machine only, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Annotated, NamedTuple

from tyro.conf import arg

from fedray.commands import options
from fedray.commands.options import Json, Runs, Store
from fedray.console import say, tell
from fedray.errors import BadInput, Unavailable, did_you_mean
from fedray.track.export import without_secrets
from fedray.track.stores import CLOSED, database

HOST = "127.0.0.1"
QUIET = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # a second process for features that are not used here
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}
PATIENCE = 120
"""Seconds that the server may take to answer for the first time."""


@dataclass(frozen=True)
class Ui:
    """MLflow, or the dashboard of a search, in the browser; on this machine only.

    fedray ui --study sweep
    """

    study: Annotated[str | None, arg(metavar="NAME", help="the study, or search, to open")] = None
    optuna: Annotated[bool, arg(help="Optuna's dashboard of a search, in place of MLflow")] = False
    runs: Runs = None
    mlflow: Store = None
    port: Annotated[int, arg(metavar="PORT")] = 5000
    json: Json = False

    def __call__(self) -> int:
        """Do it."""
        at = options.place(self)
        if self.optuna:
            return search(at.root, self.study, self.port, json=self.json)
        return ui(at.store, self.study, self.port, json=self.json)


def ui(uri: str, study: str | None, port: int, *, json: bool = False) -> int:
    """Serve the store in the foreground; Ctrl-C ends the server with all of its processes.

    Raises:
        BadInput: no such study in the store, or no port of that number.
        Unavailable: there is no store, the port is taken, or the server does not start.
    """
    if uri == "off":
        raise BadInput("--mlflow off leaves nothing to show; give a store, or leave it out")
    path = database(uri)
    if path is None:
        if json:
            tell("ui", address=without_secrets(uri))
        else:
            say(f"this store has a server of its own: {without_secrets(uri)}")
        return 0
    page = _page(path, study)
    command = ["-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", uri, "--default-artifact-root", (path.parent / "mlartifacts").as_uri()]
    return _serve(Server("MLflow", command, path, port, page), json=json)


def search(root: Path, study: str | None, port: int, *, json: bool = False) -> int:
    """Serve the dashboard of a search's journal in the foreground, until Ctrl-C.

    Raises:
        BadInput: no such search below `root`, several and none named, or no port of that number.
        Unavailable: the dashboard is not installed, there is no search, the port is taken, or nothing starts.
    """
    if find_spec("optuna_dashboard") is None:
        raise Unavailable('Optuna\'s dashboard is not installed; get it with: pip install "fedray[ui]"')
    path = _journal(root, study)
    command = ["-c", "from optuna_dashboard._cli import main; main()", path.name, "--host", HOST, "--port", str(port)]
    command += ["--storage-class", "JournalFileStorage", "--server", "wsgiref", "--quiet"]
    return _serve(Server("Optuna's dashboard", command, path, port, "dashboard/"), json=json)


class Server(NamedTuple):
    """A page's name, its program as words for Python, the file that it shows, its port and its address there."""

    name: str
    command: Sequence[str]
    path: Path
    port: int
    page: str


def _serve(what: Server, *, json: bool) -> int:
    _free(what.port)
    with tempfile.TemporaryFile() as log:
        # a session of its own: Ctrl-C reaches us alone, and we end the server and its workers together
        server = subprocess.Popen(  # noqa: S603 (no shell, our own arguments)
            [sys.executable, *what.command],
            stdout=log,
            stderr=log,
            env=os.environ | QUIET | CLOSED,
            start_new_session=True,
            cwd=what.path.parent,
        )
        try:
            if not json:
                say(f"starting {what.name} on {what.path} ...")
            _wait(what, server, log)
            if json:
                tell("ui", address=f"http://{HOST}:{what.port}/{what.page}")
            else:
                say(f"open http://{HOST}:{what.port}/{what.page}  (Ctrl-C ends it)")
            server.wait()
            raise Unavailable(f"{what.name} ended by itself ({_last(log)}); start it again")
        finally:
            _stop(server)


def _journal(root: Path, study: str | None) -> Path:
    """The journal of a search below `root`: the one that is named, or the only one."""
    found = {path.stem: path.resolve() for path in sorted(root.glob("*.journal"))}
    if not found:
        raise Unavailable(f"there is no search below {root}; make one with: fedray run search --smoke, or give --runs")
    if study is None and len(found) > 1:
        raise BadInput(f"there are {len(found)} searches below {root}; choose one with --study: {', '.join(found)}")
    name = study or next(iter(found))
    if name not in found:
        raise BadInput(f"no search {name} below {root}. {did_you_mean(name, found)}")
    return found[name]


def _page(path: Path, study: str | None) -> str:
    """The address of a study's runs, or of all studies."""
    if not path.is_file():
        raise Unavailable(f"there is no MLflow store at {path}; run something first, or give --runs or --mlflow")
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as store:
            rows = store.execute("SELECT name, experiment_id FROM experiments WHERE name LIKE 'fedray/%'").fetchall()
    except sqlite3.Error as error:
        raise Unavailable(f"{path} is no MLflow store ({error}); give another with --mlflow") from None
    known = {name.removeprefix("fedray/"): number for name, number in rows}
    if study is None and len(known) != 1:
        return "#/experiments"
    name = study or next(iter(known))
    if name not in known:
        raise BadInput(f"no study {name} in {path}. {did_you_mean(name, known)}")
    return f"#/experiments/{known[name]}/runs?workflowType=machine_learning"  # else it opens among chat models' pages


def _free(port: int) -> None:
    if not 1 <= port <= 65535:
        raise BadInput(f"port must be in 1..65535, got {port}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else a server that just ended blocks its port
        try:
            probe.bind((HOST, port))
        except OSError:
            raise Unavailable(f"port {port} is taken or forbidden; choose another with --port") from None


def _wait(what: Server, server: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    for _ in range(PATIENCE * 5):
        if server.poll() is not None:
            raise Unavailable(f"{what.name} did not start ({_last(log)})")
        with suppress(OSError), socket.create_connection((HOST, what.port), timeout=1):
            return
        time.sleep(0.2)
    raise Unavailable(f"{what.name} did not answer within {PATIENCE} s ({_last(log)}); try again")


def _stop(server: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(10)
            break


def _last(log: IO[bytes]) -> str:
    """The last line that the server wrote."""
    log.seek(0)
    lines = log.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")

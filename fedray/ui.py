"""`fedray ui`: MLflow's own server on the store of the runs, on this machine only, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import IO

from fedray.console import say
from fedray.errors import BadInput, Unavailable, did_you_mean
from fedray.track.export import without_secrets
from fedray.track.stores import database

HOST = "127.0.0.1"
QUIET = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # a second process for features that are not used here
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}
PATIENCE = 120
"""Seconds that the server may take to answer for the first time."""


def ui(uri: str, study: str | None, port: int) -> int:
    """Serve the store in the foreground; Ctrl-C ends the server with all of its processes.

    Raises:
        BadInput: no such study in the store, or no port of that number.
        Unavailable: there is no store, the port is taken, or the server does not start.
    """
    if uri == "off":
        raise BadInput("--mlflow off leaves nothing to show; give a store, or leave it out")
    path = database(uri)
    if path is None:
        say(f"this store has a server of its own: {without_secrets(uri)}")
        return 0
    page = _page(path, study)
    _free(port)
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", uri, "--default-artifact-root", (path.parent / "mlartifacts").as_uri()]
    with tempfile.TemporaryFile() as log:
        # a session of its own: Ctrl-C reaches us alone, and we end the server and its workers together
        server = subprocess.Popen(  # noqa: S603 (no shell, our own arguments)
            command, stdout=log, stderr=log, env=os.environ | QUIET, start_new_session=True, cwd=path.parent
        )
        try:
            say(f"starting MLflow on {path} ...")
            _wait(server, port, log)
            say(f"open http://{HOST}:{port}/{page}  (Ctrl-C ends it)")
            server.wait()
            raise Unavailable(f"the MLflow server ended by itself ({_last(log)}); start it again")
        finally:
            _stop(server)


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


def _wait(server: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
    for _ in range(PATIENCE * 5):
        if server.poll() is not None:
            raise Unavailable(f"the MLflow server did not start ({_last(log)})")
        with suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return
        time.sleep(0.2)
    raise Unavailable(f"the MLflow server did not answer within {PATIENCE} s ({_last(log)}); try again")


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

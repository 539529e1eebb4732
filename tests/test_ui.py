"""`fedray ui --optuna`: Optuna's dashboard on a search's journal, on this machine only, until Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import closing
from pathlib import Path

import optuna
import psutil
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from fedray.cli import main
from fedray.commands import ui


def a_search(root: Path, name: str) -> None:
    root.mkdir(exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=name, storage=JournalStorage(JournalFileBackend(str(root / f"{name}.journal"))), direction="maximize"
    )
    study.optimize(lambda trial: -((trial.suggest_float("local.lr", 0, 1) - 0.3) ** 2), n_trials=3)


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    capsys.readouterr()
    return main(["ui", "--optuna", *map(str, words)]), capsys.readouterr().err


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    nothing = "error: there is no search below runs; make one with: fedray run search --smoke, or give --runs\n"
    assert said(capsys) == (4, nothing)
    a_search(tmp_path / "runs", "alpha")
    a_search(tmp_path / "runs", "beta")
    two = "error: there are 2 searches below runs; choose one with --study: alpha, beta\n"
    assert said(capsys) == (2, two)
    wrong = "error: no search alpa below runs. Did you mean alpha?\n"
    assert said(capsys, "--study", "alpa") == (2, wrong)
    assert said(capsys, "--study", "beta", "--port", 0) == (2, "error: port must be in 1..65535, got 0\n")
    monkeypatch.setattr(ui, "find_spec", lambda name: None)
    absent = 'error: Optuna\'s dashboard is not installed; get it with: pip install "fedray[ui]"\n'
    assert said(capsys, "--study", "beta") == (4, absent)


def test_dashboard_until_interrupted(tmp_path: Path) -> None:
    a_search(tmp_path, "mine")
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["ui", "--optuna", "--runs", str(tmp_path), "--port", str(port), "--json"]
    command = [sys.executable, "-m", "fedray.cli", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=dict(os.environ)) as process:
        assert process.stdout
        told = json.loads(process.stdout.readline())
        assert told == {"event": "ui", "address": f"http://127.0.0.1:{port}/dashboard/"}
        (child,) = psutil.Process(process.pid).children(recursive=True)
        listening = [c.laddr.ip for c in child.net_connections() if c.status == psutil.CONN_LISTEN]
        assert listening == ["127.0.0.1"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=30) as answer:
            assert [study["study_name"] for study in json.load(answer)["study_summaries"]] == ["mine"]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert not child.is_running()

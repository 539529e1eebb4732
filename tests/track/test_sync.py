"""`fedray sync` to a real MLflow server that is killed in the middle: nothing missing, nothing twice."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from fedray.cli import main
from fedray.commands.ui import QUIET
from fedray.track import stores
from fedray.track.run import RunFolder
from fedray.types import GLOBAL, Round, Row

pytestmark = [pytest.mark.chaos, pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")]


def a_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(home: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """MLflow on this host alone, with all its processes in a group of their own."""
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{home}/server.db", "--artifacts-destination", str(home / "files")]
    with (home / "server.log").open("ab") as log:
        started = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words],
            env=os.environ | QUIET,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=home,
        )
    try:
        for _ in range(1000):
            assert started.poll() is None, (home / "server.log").read_text()[-2000:]
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.2)
        yield started
    finally:
        kill(started)


def kill(started: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)
    started.wait(30)


def study(root: Path, cells: int, rounds: int) -> None:
    for cell in range(cells):
        config = {"method": {"name": "fedotp"}, "data": {"name": "digits"}, "rounds": rounds, "seed": cell}
        folder, ctx = RunFolder.create(root, "far", f"cell-{cell}", config), {"ctx": torch.ones(2)}
        folder.partition_path.write_bytes(b"partition %d" % cell)
        for r in range(1, rounds + 1):
            rows = [Row(r, GLOBAL, key, 50.0 + cell + r, 9) for key in ("eval/global/acc1", "train/loss")]
            folder.commit(Round(r, ctx, ctx, (0,), ()), rows, {})
        folder.finish(ctx)
    tables = root / "far" / "tables"
    tables.mkdir()
    (tables / "summary.csv").write_text("a,b")


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("when", [("log_batch", 3)])
def test_server_killed_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], when: tuple[str, int]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    cells, rounds, port = 2, 3, a_port()
    study(tmp_path / "runs", cells, rounds)
    uri = f"http://127.0.0.1:{port}"
    words = ["sync", "far", "--to", uri, "--runs", str(tmp_path / "runs")]
    call, left = when[0], [when[1]]
    real = getattr(MlflowClient, call)
    with server(tmp_path, port) as started, monkeypatch.context() as patch:

        def counted(self: MlflowClient, *args: object, **kwargs: object) -> object:
            left[0] -= 1
            done = real(self, *args, **kwargs)
            if not left[0]:
                kill(started)
                raise ConnectionError("the server was killed before it could answer")
            return done

        patch.setattr(MlflowClient, call, counted)
        assert main(words) == 4
        assert left[0] <= 0
    assert "of far not fully sent; when the store answers, the same command goes on" in capsys.readouterr().err
    with server(tmp_path, port):
        assert main(words) == 0
        assert capsys.readouterr().out == f"sent · 2 runs of far · {uri}\n"
        assert main(words) == 0
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name("fedray/far").experiment_id
        runs = client.search_runs([experiment])
        children = [run for run in runs if run.data.tags["fedray.kind"] == "cell"]
        assert sorted(run.data.tags["fedray.run_key"] for run in children) == ["cell-0", "cell-1"]
        finals = {("final/global/acc1", rounds), ("final/n_eval", rounds)}
        wanted = {(key, r) for key in ("eval/global/acc1", "train/loss") for r in range(1, rounds + 1)} | finals
        for run in children:
            points = Counter(
                (m.key, m.step) for key in run.data.metrics for m in client.get_metric_history(run.info.run_id, key)
            )
            assert points == Counter(dict.fromkeys(wanted, 1))
            assert run.info.status == "FINISHED"
            assert "rounds.parquet" in [item.path for item in client.list_artifacts(run.info.run_id)]
        assert len(client.search_logged_models([experiment])) == cells
        best = client.get_model_version_by_alias("fedray.far.digits", "champion")
        assert client.get_run(best.run_id).data.tags["fedray.run_key"] == "cell-1"
        parents = {run.data.tags["mlflow.parentRunId"] for run in children}
        assert len(parents) == 1
        (table,) = client.list_artifacts(parents.pop(), "tables")
        assert table.path == "tables/summary.csv"


def test_sync_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = str(tmp_path / "runs")
    assert main(["sync", "far", "--runs", runs]) == 2
    assert capsys.readouterr().err.startswith(f"error: no run or study far below {runs}")
    study(tmp_path / "runs", 1, 1)
    assert main(["sync", "far", "--to", "off", "--runs", runs]) == 2
    assert capsys.readouterr().err == "error: MLflow is off here ($FEDRAY_MLFLOW); name the store with --to\n"


def test_sync_to_the_store_of_the_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study(tmp_path / "runs", 1, 1)
    assert main(["sync", "cell-0", "--runs", str(tmp_path / "runs"), "--json"]) == 0
    assert '"event": "sync", "runs": 1' in capsys.readouterr().out
    client = MlflowClient(tracking_uri=stores.default_uri(tmp_path / "runs"))
    experiment = client.get_experiment_by_name("fedray/far").experiment_id
    (parent,) = client.search_runs([experiment], "tags.`fedray.kind` = 'invocation'")
    assert parent.data.metrics == {}  # nothing of the machine that sends

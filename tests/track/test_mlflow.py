"""MLflow from run folders: nothing missing, nothing twice, nothing private."""

import logging
import subprocess
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from fedray.track import stores
from fedray.track.mlflow import Mlflow
from fedray.track.run import RunFolder
from fedray.types import GLOBAL, Round, Row

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
CONFIG = {
    "method": {"name": "fedotp", "mass": 0.8},
    "data": {"name": "digits", "root": "/home/someone/data"},
    "clip": {"name": "ViT-B-16", "weights": "/home/someone/clip.bin"},
    "partition": {"kind": "dirichlet", "alpha": 0.1},
    "rounds": 3,
    "seed": 1,
}


def advance(folder, upto, *, start=1, value=50.0):
    ctx = {"ctx": torch.ones(2)}
    for r in range(start, upto + 1):
        rows = [Row(r, k, "eval/local/acc1", value + k, 5) for k in range(3)]
        rows += [Row(r, GLOBAL, "eval/global/acc1", value + r, 200), Row(r, GLOBAL, "time/fit_s", 0.1, 0)]
        folder.commit(Round(r, ctx, ctx, (0, 1), tuple(rows)), rows, {0: (r, "00" * 32)})
    return ctx


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def uri(root):
    return stores.default_uri(root)


@pytest.fixture(scope="module")
def client(uri):
    return MlflowClient(tracking_uri=uri)


def folder_of(root, study, run_id="cell-1"):
    return RunFolder.create(root, study, run_id, CONFIG)


def cells(client, study):
    experiment = client.get_experiment_by_name(f"fedray/{study}")
    runs = client.search_runs([experiment.experiment_id])
    children = [run for run in runs if run.data.tags["fedray.kind"] == "cell"]
    return children, [run for run in runs if run.data.tags["fedray.kind"] == "invocation"]


def points(client, run):
    return Counter((m.key, m.step) for key in run.data.metrics for m in client.get_metric_history(run.info.run_id, key))


def uploaded(client, run_id, path=None):
    for item in client.list_artifacts(run_id, path):
        if item.is_dir:
            yield from uploaded(client, run_id, item.path)
        else:
            yield item.path


def expected(rounds, *, final):
    keys = {(key, r) for key in ("eval/global/acc1", "time/fit_s") for r in range(1, rounds + 1)}
    return keys | ({("final/global/acc1", rounds), ("final/n_eval", rounds)} if final else set())


def test_finished_run(root, uri, client, tmp_path):
    folder = folder_of(root, "whole")
    folder.partition_path.write_bytes(b"partition")
    (folder.private_dir / "0.safetensors").write_bytes(b"CANARY")
    (folder.path / "figures" / "curve.png").write_bytes(b"png")
    (folder.path / "figures" / "leak.png").symlink_to(folder.private_dir / "0.safetensors")
    (folder.path / "data.json").write_text('{"digits": {"images": "ab"}, "fashion": {"images": "cd"}}')
    folder.finish(advance(folder, 3))
    (tmp_path / "summary.csv").write_text("a,b")
    with Mlflow(uri, "whole") as writer:
        writer.sync(folder)
        writer.log_study(folder.path.parent, tables=tmp_path, metrics={"best/acc1": 53.0})
    (child,), (parent,) = cells(client, "whole")
    assert child.info.run_name == "fedotp/digits/a=0.1/s1"
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["fedray.run_key"] == "cell-1"
    assert child.info.status == parent.info.status == "FINISHED"
    assert parent.info.run_name.startswith("whole · ")
    assert child.data.params == {
        "method.name": "fedotp", "method.mass": "0.8", "data.name": "digits", "clip.name": "ViT-B-16",
        "clip.weights": "clip.bin", "partition.kind": "dirichlet", "partition.alpha": "0.1", "rounds": "3", "seed": "1",
    }  # fmt: skip
    assert points(client, child) == Counter(dict.fromkeys(expected(3, final=True), 1))
    assert child.data.metrics["final/global/acc1"] == 53.0
    assert child.data.metrics["final/n_eval"] == 200
    assert sorted(uploaded(client, child.info.run_id)) == [
        "config.yaml", "env.json", "figures/curve.png", "partition.parquet", "prompts/global.safetensors",
        "rounds.parquet",
    ]  # fmt: skip
    inputs = {(data.dataset.name, len(data.dataset.digest), data.tags[0].value) for data in child.inputs.dataset_inputs}
    assert inputs == {("digits", 36, "train"), ("digits", 36, "test"), ("fashion", 36, "exam")}
    assert child.data.tags["fedray.version"] == metadata.version("fedray")
    assert list(uploaded(client, parent.info.run_id)) == ["tables/summary.csv"]
    system = {"cpu_utilization_percentage", "system_memory_usage_megabytes", "system_memory_usage_percentage"}
    assert {*parent.data.metrics} == {"best/acc1", *(f"system/driver/{name}" for name in system)}
    assert parent.data.metrics["best/acc1"] == 53.0


def test_global_prompts_are_a_model_and_the_best_one_is_champion(root, uri, client):
    folders = [folder_of(root, "models", f"cell-{i}") for i in range(3)]
    for i, folder in enumerate(folders):
        folder.finish(advance(folder, 2, value=(50.0, 70.0, 60.0)[i]))
    for _ in range(2):
        with Mlflow(uri, "models") as writer:
            for folder in folders:
                writer.sync(folder)
            writer.log_study(folders[0].path.parent)
    children, _ = cells(client, "models")
    models = client.search_logged_models([children[0].info.experiment_id])
    assert {model.source_run_id for model in models} == {child.info.run_id for child in children}
    for model in models:
        assert (model.name, model.status, model.model_type) == ("fedotp-digits-a-0-1-s1", "READY", "fedray-prompts")
        assert [item.path for item in client.list_logged_model_artifacts(model.model_id)] == ["global.safetensors"]
        run = client.get_run(model.source_run_id)
        assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
        assert {(m.key, m.value) for m in model.metrics} == {
            (key, value) for key, value in run.data.metrics.items() if key.startswith("final/")
        }
    best = client.get_model_version_by_alias("fedray.models.digits", "champion")
    assert client.get_run(best.run_id).data.tags["fedray.run_key"] == "cell-1"
    assert len(client.search_model_versions("name = 'fedray.models.digits'")) == 1


def test_prompts_that_are_a_link_are_no_model(root, uri, client):
    folder = folder_of(root, "linked")
    (folder.private_dir / "0.safetensors").write_bytes(b"CANARY")
    folder.finish(advance(folder, 1))
    folder.prompts_path.unlink()
    folder.prompts_path.symlink_to(folder.private_dir / "0.safetensors")
    with Mlflow(uri, "linked") as writer:
        writer.sync(folder)
    (child,), _ = cells(client, "linked")
    assert client.search_logged_models([child.info.experiment_id]) == []


def test_two_stores_in_turn(root, uri, client, tmp_path):
    folder, other = folder_of(root, "both"), stores.default_uri(tmp_path)
    folder.finish(advance(folder, 2))
    for place in (uri, other, uri, other):
        writer = Mlflow(place, "both", watch=False)
        writer.sync(folder)
        assert writer.close() == []
    for each in (client, MlflowClient(tracking_uri=other)):
        (child,), (parent,) = cells(each, "both")
        assert points(each, child) == Counter(dict.fromkeys(expected(2, final=True), 1))
        assert parent.data.metrics == {}


def test_memory_of_one_store_is_still_read(tmp_path):
    (tmp_path / stores.MEMORY).write_text('{"uri": "sqlite:////a.db", "run_id": "1", "complete": "2"}')
    stores.remember(tmp_path, "http://me:hunter2@host", run_id="3")
    assert stores.recall(tmp_path, "sqlite:////a.db") == {"run_id": "1", "complete": "2"}
    assert stores.recall(tmp_path, "http://host") == {"run_id": "3"}
    assert stores.recall(tmp_path, "http://elsewhere") == {}


def test_invocation_whose_name_never_came_back_is_found(root, uri, client, monkeypatch):
    folder = folder_of(root, "orphan")
    folder.finish(advance(folder, 1))
    original = MlflowClient.create_run

    def die(self, *args, **kwargs):
        original(self, *args, **kwargs)
        raise ConnectionError("the answer was lost")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_run", die)
        writer = Mlflow(uri, "orphan")
        writer.sync(folder)
        assert writer.close() == ["cell-1"]
    writer = Mlflow(uri, "orphan")
    writer.sync(folder)
    assert writer.close() == []
    children, parents = cells(client, "orphan")
    assert (len(children), len(parents)) == (1, 1)


def test_nothing_private_in_store_or_artifacts(root, uri, client):
    folder = folder_of(root, "canary")
    (folder.private_dir / "0.safetensors").write_bytes(b"PRIVATE-CANARY")
    folder.finish(advance(folder, 1))
    with Mlflow(uri, "canary") as writer:
        writer.sync(folder)
    stored = [stores.database(uri), *(root / "mlartifacts").rglob("*")]
    for path in stored:
        if path.is_file():
            content = path.read_bytes()
            assert b"PRIVATE-CANARY" not in content
            assert b"/home/someone" not in content


def test_sync_as_often_as_you_like(root, uri, client):
    folder = folder_of(root, "often")
    with Mlflow(uri, "often") as writer:
        for r in (1, 2, 3):
            ctx = advance(folder, r, start=r)
            writer.sync(folder)
            writer.sync(folder)
        folder.finish(ctx)
        writer.sync(folder)
    for _ in range(2):
        with Mlflow(uri, "often") as writer:
            writer.sync(folder)
    (child,), parents = cells(client, "often")
    assert points(client, child) == Counter(dict.fromkeys(expected(3, final=True), 1))
    assert len(parents) == 1


def test_who_only_sends_makes_no_invocation(root, uri, client):
    folder = folder_of(root, "sent")
    folder.finish(advance(folder, 1))
    (folder.path.parent / "tables").mkdir()
    for watch in (True, False, False):
        with Mlflow(uri, "sent", watch=watch) as writer:
            writer.sync(folder)
            writer.log_study(folder.path.parent, tables=folder.path.parent / "tables", note="n")
    _, (parent,) = cells(client, "sent")
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["mlflow.note.content"] == "n"


def test_a_run_whose_process_was_killed_is_told_as_killed(root, uri, client):
    folder = folder_of(root, "killed")
    with Mlflow(uri, "killed") as writer:
        advance(folder, 1)
        writer.sync(folder)
    (child,), _ = cells(client, "killed")
    assert child.info.status == "RUNNING"
    with FileLock(folder.path / ".lock"), Mlflow(uri, "killed", watch=False) as writer:
        writer.sync(folder)  # somebody is at work on it
    (child,), _ = cells(client, "killed")
    assert child.info.status == "RUNNING"
    with Mlflow(uri, "killed", watch=False) as writer:
        writer.sync(folder)
    (child,), (parent,) = cells(client, "killed")
    assert child.info.status == parent.info.status == "KILLED"
    assert child.info.end_time == stores.milliseconds(folder.status["updated"])
    with Mlflow(uri, "killed") as writer:
        folder.finish(advance(folder, 2, start=2))
        writer.sync(folder)
    (child,), (parent,) = cells(client, "killed")
    assert child.info.status == parent.info.status == "FINISHED"
    assert {step for _, step in points(client, child)} == {1, 2}


def test_interrupted_invocation_continues(root, uri, client):
    folder = folder_of(root, "cut")
    with Mlflow(uri, "cut") as writer:
        advance(folder, 2)
        folder.interrupt()
        writer.sync(folder)
    (child,), (parent,) = cells(client, "cut")
    assert child.info.status == parent.info.status == "KILLED"
    assert not any(key.startswith("final/") for key in child.data.metrics)

    again = folder_of(root, "cut")
    again.latest()
    with Mlflow(uri, "cut") as writer:
        writer.sync(again)
        again.finish(advance(again, 3, start=3))
        writer.sync(again)
    (child,), (parent,) = cells(client, "cut")
    assert child.info.status == parent.info.status == "FINISHED"
    assert points(client, child) == Counter(dict.fromkeys(expected(3, final=True), 1))


CALLS = [
    "create_run", "log_batch", "get_metric_history", "create_logged_model", "log_model_artifact", "log_artifact",
    "set_terminated",
]  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_killed_after_any_call(root, uri, client, monkeypatch, call):
    """The store has done it, the writer never learns: the worst moment to die."""
    study = f"kill-{call.replace('_', '-')}"
    folder = folder_of(root, study)
    original, dead = getattr(MlflowClient, call), []

    def die(self, *args, **kwargs):
        if dead == ["dead"]:
            raise ConnectionError("the writer is dead")
        result = original(self, *args, **kwargs)
        if call != "create_run" or "mlflow.parentRunId" in str(args):
            dead.append("dead")
            raise ConnectionError("the writer is dead")
        return result

    advance(folder, 2)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, call, die)
        writer = Mlflow(uri, study)
        writer.sync(folder)
        left = writer.close()
    assert left == {"create_run": ["cell-1"], "log_batch": ["cell-1"], "set_terminated": ["mlflow"]}.get(call, [])
    folder.finish(advance(folder, 3, start=3))
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, call, die)
        dead.clear()
        writer = Mlflow(uri, study)
        writer.sync(folder)
        assert ("cell-1" in writer.close()) == (call != "create_run")  # it is found, not created again
    writer = Mlflow(uri, study)
    writer.sync(folder)
    assert writer.close() == []
    (child,), (parent,) = cells(client, study)
    assert points(client, child) == Counter(dict.fromkeys(expected(3, final=True), 1))
    assert child.info.status == parent.info.status == "FINISHED"
    assert child.data.params["seed"] == "1"


def test_store_down_is_told_and_caught_up_with(root, uri, client, monkeypatch, caplog):
    folder = folder_of(root, "down")
    folder.finish(advance(folder, 3))

    def down(*_, **__):
        raise MlflowException("could not reach http://me:hunter2@host/api?token=abc")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "fedray"):
        patch.setattr(MlflowClient, "log_batch", down)
        writer = Mlflow(uri, "down")
        writer.sync(folder)
        assert writer.close() == ["cell-1"]
    assert caplog.messages == [
        "MLflow: 1 of this study not fully sent: cell-1 (could not reach http://host/api); "
        "nothing is lost, send it later with: fedray sync down"
    ]
    with Mlflow(uri, "down") as writer:
        writer.sync(folder)
    (child,), _ = cells(client, "down")
    assert points(client, child) == Counter(dict.fromkeys(expected(3, final=True), 1))


def test_infinite_and_undefined_values(root, uri, client):
    folder = folder_of(root, "odd")
    rows = [Row(1, GLOBAL, "train/loss", float("inf"), 1), Row(1, GLOBAL, "train/other", float("nan"), 1)]
    folder.commit(Round(1, {}, {}, (), ()), rows, {})
    with Mlflow(uri, "odd") as writer:
        writer.sync(folder)
    (child,), _ = cells(client, "odd")
    assert all(value != value for value in child.data.metrics.values())
    assert child.data.tags["fedray.infinite"] == "train/loss@1"


def test_many_rows_go_in_batches(root, uri, client):
    folder = folder_of(root, "many")
    rows = [Row(1, GLOBAL, f"train/m{i}", float(i), 1) for i in range(2100)]
    folder.commit(Round(1, {}, {}, (), ()), rows, {})
    with Mlflow(uri, "many") as writer:
        writer.sync(folder)
    (child,), _ = cells(client, "many")
    assert len(child.data.metrics) == 2100


def test_one_writer_per_run(root, uri, client):
    folder = folder_of(root, "twice")
    advance(folder, 1)
    with stores.writer(folder.path):
        second = Mlflow(uri, "twice")
        second.sync(folder)
        assert second.close() == ["cell-1"]
    with Mlflow(uri, "twice") as writer:
        writer.sync(folder)
    (child,), _ = cells(client, "twice")
    assert points(client, child) == Counter(dict.fromkeys(expected(1, final=False), 1))


def test_failed_run_fails_the_invocation(root, uri, client):
    folder = folder_of(root, "bad")
    folder.fail(ValueError("no"))
    with Mlflow(uri, "bad") as writer:
        writer.sync(folder)
    (child,), (parent,) = cells(client, "bad")
    assert child.info.status == parent.info.status == "FAILED"


def test_unused_writer_needs_no_store(tmp_path):
    writer = Mlflow("sqlite:////proc/nowhere/mlflow.db", "idle")
    assert writer.close() == []


def test_unwritable_store_is_told(tmp_path):
    folder = folder_of(tmp_path, "proc")
    writer = Mlflow("sqlite:////proc/nowhere/mlflow.db", "proc")
    writer.sync(folder)
    assert writer.close() == ["cell-1"]


START = """
import sys
from fedray.track.mlflow import Mlflow
from fedray.track.run import RunFolder
root, uri, name = sys.argv[1:]
folder = RunFolder.create(root, "race", name, {"seed": 1, "rounds": 1})
writer = Mlflow(uri, "race")
writer.sync(folder)
sys.exit(len(writer.close()))
"""


@pytest.mark.slow
def test_fresh_store_opened_by_several_processes(tmp_path):
    uri = stores.default_uri(tmp_path)
    names = [f"cell-{i}" for i in range(2)]
    started = [subprocess.Popen([sys.executable, "-c", START, str(tmp_path), uri, name]) for name in names]
    assert [process.wait(timeout=100) for process in started] == [0, 0]
    children, _ = cells(MlflowClient(tracking_uri=uri), "race")
    assert sorted(run.data.tags["fedray.run_key"] for run in children) == names


def test_default_store_is_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert stores.default_uri(Path("runs")) == f"sqlite:///{tmp_path}/runs/mlflow.db"

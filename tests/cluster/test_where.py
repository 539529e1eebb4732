"""Studies that know where they are: which Ray, which shared folders, and a copy of the results."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedray import study, where
from fedray.engine import nodes
from fedray.errors import BadInput, Unavailable
from fedray.experiment import Experiment
from fedray.track.copies import SENT, Copies, Item, _store
from fedray.track.run import RunFolder
from fedray.where import Where

# ---- which Ray ----


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is set goes with the test."""
    monkeypatch.setenv("RAY_ADDRESS", "")


@pytest.mark.parametrize("said", ["local", "auto", "10.0.0.1:6379", "head:6379"])
def test_an_address_holds_for_the_whole_process(said: str, address: None) -> None:
    where.settle(Where(address=said))
    assert os.environ["RAY_ADDRESS"] == said
    where.settle(Where())
    assert os.environ["RAY_ADDRESS"] == said


def test_what_is_no_address_is_told(address: None) -> None:
    with pytest.raises(BadInput, match="--address can't be 'mars'; give local, auto, or the HOST:PORT of a cluster"):
        where.settle(Where(address="mars"))


def test_every_study_takes_one(address: None, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Options:
        at: study.At = study.HERE

    monkeypatch.setattr(sys, "argv", ["mine.py", "--address", "local"])
    assert study.main(Options, lambda o: 0 if os.environ["RAY_ADDRESS"] == "local" else 1) == 0
    monkeypatch.setattr(sys, "argv", ["mine.py", "--address", "ray://head:10001"])

    def attach(o: Options) -> int:
        with where.reached(o.at, [Experiment()]):
            return 1

    assert study.main(Options, attach) == 2


def test_nothing_to_run_needs_no_ray(address: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where, "attached", lambda: pytest.fail("Ray is not needed"))
    for at, cells in ((Where(), []), (Where(placement="inline", concurrent=1), [Experiment()])):
        with where.reached(at, cells):
            pass


# ---- what nodes share ----


def test_a_node_reads_the_word_or_does_not(tmp_path: Path) -> None:
    share = nodes.Share(tmp_path / "runs", "--runs")
    with nodes._words([share]) as words:
        assert nodes.see(words, [str(tmp_path), "~"]) == nodes.Seen((True,), ())
        assert nodes.see([(words[0][0], "another word")], []) == nodes.Seen((False,), ())
        assert nodes.see([(str(tmp_path / "elsewhere"), "x")], ["/no/such"]) == nodes.Seen((False,), ("/no/such",))
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_node_that_sees_another_folder_is_named(tmp_path: Path) -> None:
    shares = [nodes.Share(tmp_path, "--runs or FEDRAY_RUNS")]
    nodes._told("10.0.0.7", nodes.Seen((True,), ()), shares)
    with pytest.raises(BadInput) as error:
        nodes._told("10.0.0.7", nodes.Seen((False,), ()), shares)
    assert str(error.value) == (
        f"{tmp_path} on node 10.0.0.7 is not the same folder as here; name one on a disk that all nodes share, by "
        "--runs or FEDRAY_RUNS"
    )
    with pytest.raises(BadInput, match=r"^/home/me/data is not there on node 10.0.0.7; put it on a disk that all"):
        nodes._told("10.0.0.7", nodes.Seen((True,), ("/home/me/data",)), shares)


def test_a_cluster_in_words() -> None:
    assert str(nodes.Nodes(2, 4, 0)) == "2 nodes, 4 CPU, 0 GPU"
    assert str(nodes.Nodes(1, 0, 8, True)) == "1 node now, to grow to 0 CPU, 8 GPU"


def test_a_late_node_without_the_shared_disk_says_so(tmp_path: Path) -> None:
    nodes.must_see(tmp_path)
    with pytest.raises(Unavailable, match=rf"{tmp_path}/x is not there on node [\d.]+; mount the disk that all nodes"):
        nodes.must_see(tmp_path / "x")


def test_a_late_node_with_another_folder_of_that_name_says_so(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine" / "private", tmp_path / "other" / "private"
    for folder in (mine, other):
        folder.mkdir(parents=True)
    word = nodes.mark(mine)
    nodes.must_see(mine, word)
    text = r"{}/private is {} on node [\d.]+; mount the disk that all nodes share there, too"
    with pytest.raises(Unavailable, match=text.format("other", "another folder")):
        nodes.must_see(other, word, patience=0)
    with pytest.raises(Unavailable, match=text.format("gone", "not there")):
        nodes.must_see(tmp_path / "gone" / "private", word, patience=0)
    shutil.copytree(mine, other, dirs_exist_ok=True)  # yesterday's copy, on a node's own disk
    nodes.must_see(other, word)
    assert nodes.mark(mine) != word
    with pytest.raises(Unavailable, match="another folder"):
        nodes.must_see(mine, word, patience=0)


def test_a_word_may_arrive_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter(["", "old", "new"])
    monkeypatch.setattr(nodes, "_word", lambda folder: next(said))
    nodes.must_see(tmp_path, "new")
    assert list(said) == []


def test_a_run_root_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(Unavailable, match="choose another place with --runs"),
        nodes._words([nodes.Share(tmp_path / "file" / "runs", "--runs")]),
    ):
        pass


def test_paths_that_cells_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRAY_DATA", str(tmp_path))
    (tmp_path / "dtd").mkdir()
    cells = [
        Experiment(),
        Experiment().override(**{"data.name": "dtd"}),
        Experiment().override(**{"data.name": "eurosat", "data.root": "/mnt/eurosat"}),
        Experiment().override(**{"participation.trace": "there.csv"}),
    ]
    assert nodes.needed(cells) == sorted([str(tmp_path / "dtd"), "/mnt/eurosat", "there.csv"])


# ---- two raylets on this machine ----

RAYLETS = """
    import json, os, sys
    from contextlib import closing
    from pathlib import Path
    from fedray.engine.cluster import QUIET, attached
    os.environ.update(QUIET)
    import ray
    from ray.cluster_utils import Cluster
    from fedray import where
    from fedray.build import build
    from fedray.engine.actors import RayActors
    from fedray.engine.driver import open_folder
    from fedray.engine.placement import place
    from fedray.errors import BadInput
    from fedray.experiment import Experiment

    def mapped(host) -> dict:
        "Files of the cache that this process maps, by inode."
        rows = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        files = {row[5]: row[4] for row in rows if len(row) > 5 and row[5].startswith(os.environ["FEDRAY_CACHE"])}
        return {"node": ray.get_runtime_context().get_node_id(), "files": files}

    def main() -> None:
        runs = Path(sys.argv[1])
        e = Experiment().override(**{"clip.name": "tiny", "method": "fedotp", "method.n_ctx": 2, "split.shots": 4,
                                     "partition.clients": 4, "rounds": 1})
        small = {"num_cpus": 2, "object_store_memory": 80 << 20}
        cluster = Cluster(initialize_head=True, head_node_args=small)
        cluster.add_node(**small)
        os.environ["RAY_ADDRESS"] = cluster.address
        try:
            at = where.Where(runs=runs, mlflow="off")
            with where.reached(at, [e]):
                built = build(e)
                placement = place("packed", 4, cpus=4, actors=4)
                with closing(RayActors(placement)) as hosts:
                    hosts.open(built.setup, open_folder(e, study="s", runs=runs).private_dir)
                    assert len(list(hosts.fit([]))) == 0
                    from fedray.types import Job
                    got = sorted(r.client for r in hosts.fit([Job(1, k, built.shared) for k in built.clients]))
                    assert got == list(built.clients)
                    print(json.dumps(ray.get([h.__ray_call__.remote(mapped) for h in hosts.hosts])))
            for wrong in ({"data.name": "folder", "data.root": "/no/such/place"},):
                try:
                    with where.reached(at, [e.override(**wrong)]):
                        print("let through")
                except BadInput as error:
                    print(str(error).replace("(2) ", ""))
        finally:
            ray.shutdown()
            cluster.shutdown()

    if __name__ == "__main__":
        main()
"""


@pytest.mark.ray
def test_data_and_backbone_are_one_copy_per_node(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with tempfile.TemporaryDirectory(prefix="fr", dir="/tmp") as short:
        more = {"RAY_TMPDIR": short, "FEDRAY_CACHE": str(cache), "HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"}
        out = script(RAYLETS, tmp_path, str(tmp_path / "runs"), **more).splitlines()
    told = next(line for line in out if line.startswith("cluster · "))
    assert f"2 nodes, 4 CPU, 0 GPU · run folders in {tmp_path / 'runs'}" in told
    hosts = json.loads(next(line for line in out if line.startswith("[")))
    assert len({host["node"] for host in hosts}) == 2
    # what a host of one node maps is what every other maps, and there is no further copy on the disk
    first = hosts[0]["files"]
    assert {Path(name).suffix for name in first} == {".arrow", ".safetensors"}
    assert all(host["files"] == first for host in hosts)
    assert len(list((cache / "backbones").glob("*.safetensors"))) == 1
    assert any("/no/such/place is not there on node" in line for line in out)


def script(text: str, folder: Path, *arguments: str, **environment: str) -> str:
    file = folder / "script.py"
    file.write_text(textwrap.dedent(text))
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TUNE_", "FEDRAY_"))}
    done = subprocess.run(
        [sys.executable, str(file), *arguments],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ---- a copy of the results ----


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(tmp_path / "runs", "s", "fedotp-1", {"rounds": 1})
    (folder.path / "private" / "000001-a.safetensors").write_bytes(b"canary")
    (folder.path / "ckpt" / "state").write_bytes(b"canary")
    (folder.path / "log.txt").write_text("canary")
    (folder.path / "prompts" / "global.safetensors").write_bytes(b"shared")
    return folder


def test_a_copy_holds_results_and_nothing_private(run: RunFolder, tmp_path: Path) -> None:
    home = run.path.parent
    (home / "tables").mkdir()
    (home / "tables" / "Table_1.md").write_text("| a |")
    copies = Copies(f"file://{tmp_path}/bucket", "s")
    copies.sync(run)
    copies.log_study(home, figures=home / "figures", tables=home / "tables", metrics={}, note="")
    assert copies.close() == []
    there = {p.relative_to(tmp_path / "bucket").as_posix() for p in (tmp_path / "bucket").rglob("*") if p.is_file()}
    assert there == {
        "s/tables/Table_1.md",
        *(f"s/fedotp-1/{name}" for name in ("config.yaml", "env.json", "status.json", "prompts/global.safetensors")),
    }
    assert not any(b"canary" in (tmp_path / "bucket" / name).read_bytes() for name in there)
    assert not {"private", "ckpt", "log.txt"} & {part for name in SENT for part in name.split("/")}


def test_only_what_changed_is_sent_again(run: RunFolder, tmp_path: Path) -> None:
    uri, item = f"file://{tmp_path}/bucket", Item(run.path.parent, ("fedotp-1/config.yaml", "fedotp-1/status.json"))
    there = tmp_path / "bucket" / "s" / "fedotp-1"
    for _ in range(2):  # the second stands for a process that comes later
        with _store(uri, "s") as send:
            send(item)
            times = [(there / name).stat().st_mtime_ns for name in ("config.yaml", "status.json")]
            run._set(state="running", round=7)
            send(item)
            later = [(there / name).stat().st_mtime_ns for name in ("config.yaml", "status.json")]
            assert later[0] == times[0]
            assert json.loads((there / "status.json").read_text())["round"] == 7
            run._set(state="running", round=8)
            send(item)
            assert json.loads((there / "status.json").read_text())["round"] == 8


def test_a_store_that_is_away_costs_a_warning(run: RunFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "bucket").write_text("in the way")
    copies = Copies(f"file://{tmp_path}/bucket", "s")
    copies.sync(run)
    with caplog.at_level(logging.WARNING):
        assert copies.close() == ["fedotp-1"]
    assert "copy: 1 not fully sent: fedotp-1" in caplog.text


@pytest.mark.parametrize("uri", ["/mnt/x", "mars://x", "bucket"])
def test_what_is_no_store_is_told_before_anything_runs(uri: str) -> None:
    with pytest.raises(BadInput, match=rf"--copy {uri} is no address of a store; give one of s3://, "):
        Copies(uri, "s")


def test_mlflow_and_a_copy_are_kept_side_by_side(run: RunFolder, tmp_path: Path) -> None:
    at = Where(runs=tmp_path / "runs", mlflow="off", copy=f"file://{tmp_path}/bucket")
    with where.mirrored(at, "s") as mirrors:
        mirrors.sync(run)
    assert (tmp_path / "bucket" / "s" / "fedotp-1" / "status.json").is_file()
    with where.mirrored(Where(mlflow="off"), "s") as mirrors:
        assert mirrors.writers == ()

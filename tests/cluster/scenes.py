"""Several Ray nodes as processes of this machine, with made-up GPUs, and what is played on them.

    python scenes.py SCENE RUNS CACHE

A scene prints one JSON object. It has a process of its own, for nodes leave threads and variables behind; the caller
names a folder for Ray's files (RAY_TMPDIR) and a token, so that no other Ray of the machine is met.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SMALL = {
    "clip.name": "tiny",
    "method": "fedotp",
    "method.n_ctx": 2,
    "split.shots": 4,
    "partition.clients": 6,
    "fraction": 0.7,
    "rounds": 8,
    "evaluate_every": 4,
    "local.epochs": 2,
}
STORE = 80 << 20
"""Bytes of a node's object store: little more than the least that Ray takes."""

PATIENCE = 300.0

HEAD = "f" * 51 + "00000"
"""What Ray's make-believe cloud calls its head."""

COMMANDS = [f"{when}_commands" for when in ("initialization", "setup", "head_setup", "worker_setup")]
UNUSED = [*COMMANDS, "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files"]
UNUSED += ["rsync_exclude", "rsync_filter"]
"""Of a file for ``ray up``, which would fill them in: here its reader has to be given them."""


@contextmanager
def nodes(*gpus: int, cpus: int = 1) -> Iterator[Any]:
    """A head without GPUs, and a node for each number."""
    import os

    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": cpus, "object_store_memory": STORE, "include_dashboard": False},
    )
    try:
        cluster.others = [add(cluster, gpu) for gpu in gpus]
        os.environ["RAY_ADDRESS"] = cluster.address
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def add(cluster: Any, gpus: int, kind: str = "") -> Any:
    resources = {f"accelerator_type:{kind}": 1} if kind else {}
    return cluster.add_node(num_cpus=1, num_gpus=gpus, resources=resources, object_store_memory=STORE)


def kill(cluster: Any, node: Any) -> None:
    """End a node as a power cut would, workers included, and wait until the cluster has noticed.

    Left to themselves, workers of a raylet that is gone live on for a while: rounds enough for a whole run.
    """
    import psutil

    raylets = node.all_processes["raylet"]
    workers = [worker for raylet in raylets for worker in psutil.Process(raylet.process.pid).children(recursive=True)]
    cluster.remove_node(node, allow_graceful=False)
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.kill()
    deadline = time.monotonic() + PATIENCE
    while (node.node_id, "ALIVE") in hosts():
        if time.monotonic() > deadline:
            raise SystemExit(f"nobody has missed the node that was killed {PATIENCE:g} s ago")
        time.sleep(0.1)


def hosts() -> list[tuple[str, str]]:
    """Node and state of every actor that hosts clients, or hosted."""
    from ray._private.state import actors

    return [(a["Address"]["NodeID"], a["State"]) for a in actors().values() if a["ActorClassName"] == "Host"]


def cell(**changes: object) -> Any:
    from fedray.experiment import Experiment

    return Experiment().override(**{**SMALL, **changes})


def run_lost(runs: Path, cache: Path) -> dict[str, Any]:
    """A run on three GPUs of two nodes: one node is killed amid a round, and another comes in its place."""
    from fedray import run
    from fedray.engine.cluster import attached

    with nodes(2, 2) as cluster, attached():
        started = run(cell(), runs=runs, placement="packed", actors=3, cache=cache)
        found: dict[str, Any] = {"placed": [len(started.placement.hosts), started.placement.num_gpus], "rounds": []}
        for done in started.rounds:
            found["rounds"].append(done.round)
            if done.round == 2:  # the next round is under way
                before = {node for node, _ in hosts()}
                lost = next(node for node in cluster.others if node.node_id in before)
                kill(cluster, lost)
                new = add(cluster, 2)
            if done.round == 5:  # round 3 may have been done before the node went, and round 4 need not ask its clients
                after = {node for node, state in hosts() if state == "ALIVE"}
        found |= {"left": lost.node_id not in after, "came": new.node_id in after}
        return found | {"digests": [started.folder.digest()]}


def sweep_lost(runs: Path, cache: Path) -> dict[str, Any]:
    """A sweep over three nodes, two of them with a GPU for a trial: one is killed, one added, the other killed."""
    from fedray.engine.cluster import attached
    from fedray.engine.sweep import Progress, sweep
    from fedray.experiment import grid

    found: dict[str, Any] = {"rounds": [], "came": False}
    new: list[str] = []  # the node that is added
    with nodes(1, 1) as cluster, attached():

        def show(p: Progress) -> None:
            found["rounds"].append((p.cell, p.round))
            if new:
                found["came"] |= new[0] in {node for node, state in hosts() if state == "ALIVE"}
            if len(found["rounds"]) == 3:
                kill(cluster, cluster.others[0])
                new.append(add(cluster, 1).node_id)
            if len(found["rounds"]) == 12:
                kill(cluster, cluster.others[1])

        cells = grid(cell(), {"seed": [0, 1, 2, 3]})
        done = sweep(cells, study="s", runs=runs, concurrent=2, cache=cache, show=show)
        return found | {"failed": done.failed, "digests": [folder.digest() for folder in done.folders]}


def run_shrunk(runs: Path, cache: Path) -> dict[str, Any]:
    """Two hosts of a GPU each; one's node is killed for good, the other takes over, until a node comes after all."""
    from contextlib import closing

    from fedray.build import build
    from fedray.engine import actors
    from fedray.engine.cluster import attached
    from fedray.engine.driver import claimed, drive, open_folder
    from fedray.engine.placement import place

    actors.LOST_S, actors.LOOK_S = 2.0, 0.5
    e = cell()
    with nodes(1, 1) as cluster, attached():
        built, folder = build(e, cache=cache), open_folder(e, study="single", runs=runs)
        found: dict[str, Any] = {"away": {}}
        with closing(actors.RayActors(place("packed", 6, cpus=1, gpus=2))) as executor, claimed(folder):
            executor.open(built.setup, folder.private_dir)
            for done in drive(e, built, folder, executor):
                found["away"][done.round] = dict(executor.away)
                if done.round == 2:
                    kill(cluster, cluster.others[1])
                if done.round == 5:
                    add(cluster, 1)
                    deadline = time.monotonic() + PATIENCE
                    while any(map(waiting, executor.hosts)) and time.monotonic() < deadline:
                        time.sleep(0.2)
        return found | {"digests": [folder.digest()]}


def waiting(host: Any) -> bool:
    from fedray.engine.calls import waiting

    return waiting(host)


def gpus(runs: Path, cache: Path) -> dict[str, Any]:
    """Where hosts sit: dealt out evenly, by type, and refused."""
    import os
    from contextlib import closing

    import ray

    from fedray.engine.actors import RayActors
    from fedray.engine.cluster import attached
    from fedray.engine.devices import devices
    from fedray.engine.placement import place
    from fedray.errors import BadInput

    def seats(hosts: list[Any]) -> list[tuple[str, list[str], float]]:
        def seat(_: object) -> tuple[str, list[str], float]:
            context = ray.get_runtime_context()
            return (
                context.get_node_id(),
                context.get_accelerator_ids()["GPU"],
                context.get_assigned_resources().get("GPU", 0),
            )

        return ray.get([host.__ray_call__.remote(seat) for host in hosts], timeout=PATIENCE)

    found: dict[str, Any] = {}
    with nodes() as cluster:
        names = {add(cluster, 2, "A100").node_id: "A100", add(cluster, 1, "T4").node_id: "T4"}
        with attached():
            for name, kind, clients in (("dealt", "exclusive", 4), ("A100", "exclusive", 3), ("T4", "packed", 4)):
                os.environ["FEDRAY_ACCELERATOR"] = "" if name == "dealt" else name
                cpus, there, accelerator = devices()
                placement = place(kind, clients, cpus=cpus, gpus=there, accelerator=accelerator)
                with closing(RayActors(placement)) as executor:
                    found[name] = [(names[node], ids, share) for node, ids, share in seats(executor.hosts)]
            os.environ["FEDRAY_ACCELERATOR"] = "H100"
            try:
                devices()
            except BadInput as error:
                found["refused"] = str(error)
            deadline = time.monotonic() + PATIENCE
            while ray.available_resources().get("GPU", 0) < 3 and time.monotonic() < deadline:
                time.sleep(0.2)
            return found | {"free": ray.available_resources().get("GPU", 0)}


def grown(runs: Path, cache: Path) -> dict[str, Any]:
    """A head without GPUs, and an autoscaler that may bring two nodes with one: they come when a run asks for them.

    Ends no node: ``ray stop`` would end every Ray of the machine; the caller ends all that knows this scene's folder.
    """
    import os

    import ray

    from fedray import run
    from fedray.engine.cluster import attached

    os.environ |= {"RAY_ADDRESS": head_that_scales(runs.parent), "FEDRAY_GPUS": "2"}
    with attached():
        before = sum(node["Alive"] for node in ray.nodes())
        started = run(cell(), runs=runs, placement="packed", cache=cache)
        rounds = [done.round for done in started.rounds]
        gpus = sorted(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"])
    return {
        "reason": started.placement.reason,
        "before": before,
        "gpus": gpus,
        "rounds": rounds,
        "digests": [started.folder.digest()],
    }


def head_that_scales(home: Path) -> str:
    """Start it; returns its address."""
    import os
    import socket
    import subprocess

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    worker = {"CPU": 1, "GPU": 1, "object_store_memory": STORE}
    config = {
        "cluster_name": "fake",
        "max_workers": 2,
        "upscaling_speed": 20.0,
        "idle_timeout_minutes": 10,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"127.0.0.1:{port}",
            "head_node_id": HEAD,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "auth": {"ssh_user": "nobody"},
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "gpu": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
        "head_node_type": "ray.head.default",
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
    } | {key: [] for key in UNUSED}
    file = home / "scaling.yaml"  # JSON is YAML
    file.write_text(json.dumps(config))
    mine = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
        "RAY_CLOUD_INSTANCE_ID": HEAD,
    }
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--autoscaling-config={file}"]
    limits = [f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=1", f"--object-store-memory={STORE}"]
    quiet = ["--include-dashboard=false", "--disable-usage-stats"]
    done = subprocess.run(ray + limits + quiet, env=os.environ | mine, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return f"127.0.0.1:{port}"


SCENES: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    f.__name__: f for f in (run_lost, sweep_lost, run_shrunk, gpus, grown)
}

if __name__ == "__main__":
    name, runs, cache = sys.argv[1:]
    print(json.dumps(SCENES[name](Path(runs), Path(cache))))

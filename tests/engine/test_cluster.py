"""Reaching Ray: a local one that nobody else can talk to, and clusters that are there, or are not."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
from pathlib import Path

import pytest
import ray

from fedray.engine import cluster as room
from fedray.engine.cluster import attached, free_memory
from fedray.engine.nodes import needed
from fedray.errors import BadInput, Unavailable
from fedray.experiment import Experiment


def python(script: str, tmp_path: Path, *arguments: str, **environment: str) -> str:
    file = tmp_path / "script.py"
    file.write_text(textwrap.dedent(script))
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TUNE_"))}
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


# ---- addresses ----


@pytest.fixture
def closed_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{s.getsockname()[1]}"


def test_a_dead_cluster_is_told_at_once(monkeypatch: pytest.MonkeyPatch, closed_port: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", closed_port)
    with pytest.raises(Unavailable) as error, attached():
        pass
    assert str(error.value) == (
        f"Ray can't be reached at {closed_port} (nothing answers there); "
        "start that cluster, unset RAY_ADDRESS for a local Ray, or use --placement inline"
    )


def test_ray_client_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(BadInput, match=r"RAY_ADDRESS is ray://head:10001, a Ray Client address; submit .* ray job"):
        room.given()


def greet(server: socket.socket, words: bytes) -> None:
    line, _ = server.accept()
    with line:
        line.sendall(words)
        line.recv(100)


def test_what_a_dead_cluster_left_counts_for_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, closed_port: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(closed_port + "\n")
    assert room.given() is None
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(Unavailable, match="at auto \\(no cluster runs on this host\\)"):
        room.given()
    for greeting, counts in ((b"\0\0\0\4\0\0\0\0\0", True), (b"HTTP/1.1 400 Bad Request\r\n", False)):
        with socket.create_server(("127.0.0.1", 0)) as living:
            address = f"127.0.0.1:{living.getsockname()[1]}"
            (tmp_path / "ray" / "ray_current_cluster").write_text(address)
            monkeypatch.setenv("RAY_ADDRESS", "")
            answer = threading.Thread(target=greet, args=(living, greeting), daemon=True)
            answer.start()
            assert room.given() == (address if counts else None)
            answer.join(10)


def test_what_says_nothing_is_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "REACH_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(Unavailable, match=f"at {address} \\(nothing answers there\\)"):
            room.given()


def test_a_container_s_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(room, "CGROUP", tmp_path)
    whole = free_memory()
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert free_memory() == 2000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() > whole / 2


def test_a_ray_that_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(room, "given", lambda: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)

    def refuse(*args: object, **options: object) -> None:
        raise RuntimeError("no\nport is free")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(Unavailable) as error, attached():
        pass
    assert str(error.value) == "Ray can't be started on this host (no port is free); use --placement inline"


def test_nodes_must_have_the_data_of_exams_and_files_of_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDRAY_DATA", str(tmp_path))
    (tmp_path / "dtd").mkdir()
    (tmp_path / "clip.pt").touch()
    cell = Experiment().override(**{"exams": "dtd,inverted,eurosat", "clip.name": "ViT-B/32"})
    cells = [cell.override(**{"clip.weights": weights}) for weights in (str(tmp_path / "clip.pt"), "openai")]
    assert needed(cells) == [str(tmp_path / "clip.pt"), str(tmp_path / "dtd")]


def test_a_cluster_may_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 1.0})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": False}])
    assert room.resources() == {"CPU": 4} and room.alone()
    monkeypatch.setenv("FEDRAY_GPUS", "8")
    monkeypatch.setenv("FEDRAY_CPUS", "2")
    assert room.resources() == {"CPU": 4, "GPU": 8} and not room.alone()
    assert room.resources(free=True) == {"CPU": 1}
    monkeypatch.setenv("FEDRAY_GPUS", "many")
    with pytest.raises(BadInput, match="FEDRAY_GPUS must be a whole number, of what the cluster may grow to; got 'm"):
        room.resources()


# ---- a local Ray ----

LISTENERS = """
    import ipaddress, os, stat, sys
    from pathlib import Path
    import psutil
    if sys.argv[1] == "first":
        import ray
    from fedray.engine.cluster import attached

    def pid() -> int:
        return os.getpid()

    if __name__ == "__main__":
        with attached(num_cpus=1):
            import ray
            ray.get(ray.remote(num_cpus=0)(pid).remote())
            family = [psutil.Process(), *psutil.Process().children(recursive=True)]
            found = {c.laddr.ip for p in family for c in p.net_connections() if c.status == "LISTEN"}
            assert found, "Ray listens nowhere"
            addresses = [ipaddress.ip_address(ip) for ip in found]
            assert all((getattr(a, "ipv4_mapped", None) or a).is_loopback for a in addresses), found
            assert os.environ["RAY_AUTH_MODE"] == "token"
            token = Path.home() / ".ray" / "auth_token"
            assert stat.S_IMODE(token.stat().st_mode) == 0o600
            socket = Path(ray.nodes()[0]["ObjectStoreSocketName"])
            assert stat.S_IMODE(socket.parents[3].stat().st_mode) == 0o700, socket
            with attached():  # inside another: nothing changes
                pass
            assert ray.is_initialized()
        assert not ray.is_initialized()
        gone, left = psutil.wait_procs(family[1:], timeout=15)
        assert not left, left
        assert not socket.parents[3].exists()
"""


@pytest.mark.ray
@pytest.mark.parametrize("ray_is_imported", ["first", "later"])
def test_a_local_ray_is_for_its_owner_alone(ray_is_imported: str, tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        python(LISTENERS, tmp_path, ray_is_imported, HOME=str(tmp_path))
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / ".ray").stat().st_mode) == 0o700


# ---- several nodes with fake GPUs ----

GPUS = """
    import sys
    from contextlib import closing
    from pathlib import Path
    from fedray.engine.cluster import QUIET, alone
    import os
    os.environ.update(QUIET)
    import ray
    from ray.cluster_utils import Cluster
    from fedray.build import build
    from fedray.engine.actors import RayActors
    from fedray.engine.driver import claimed, drive, open_folder
    from fedray.engine.placement import place
    from fedray.experiment import Experiment
    from fedray.types import Job

    def main() -> None:
        small = {"clip.name": "tiny", "method": "fedotp", "method.n_ctx": 2, "split.shots": 4,
                 "partition.clients": 5, "fraction": 0.6, "rounds": 2}
        e = Experiment().override(**small)
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
        for _ in range(2):
            nodes.add_node(num_cpus=1, num_gpus=2)
        ray.init(nodes.address, logging_level="ERROR", log_to_driver=False)
        try:
            assert not alone()
            built = build(e, cache=Path(sys.argv[2]))
            where = lambda self: (ray.get_runtime_context().get_node_id(), tuple(ray.get_gpu_ids()))
            placement = place("packed", 5, cpus=3, gpus=4)
            with closing(RayActors(placement)) as hosts:
                folder = open_folder(e, study="single", runs=Path(sys.argv[1]))
                hosts.open(built.setup, folder.private_dir)
                with claimed(folder):
                    list(drive(e, built, folder, hosts))
                places = ray.get([h.__ray_call__.remote(where) for h in hosts.hosts])
                assert len(set(places)) == len(places) == 4, places
                devices = ray.get([h.__ray_call__.remote(lambda s: str(s.clients.world.device)) for h in hosts.hosts])
                assert set(devices) == {"cpu"}, devices  # there is no CUDA behind these
            print(folder.digest())
            placement = place("exclusive", 5, cpus=3, gpus=4)
            assert placement.num_gpus == 0.5
            with closing(RayActors(placement)) as hosts:
                hosts.open(built.setup, None)
                results = list(hosts.fit([Job(1, k, built.shared) for k in built.clients]))
                assert sorted(r.client for r in results) == list(built.clients)
        finally:
            ray.shutdown()
            nodes.shutdown()

    if __name__ == "__main__":
        main()
"""


@pytest.mark.ray
def test_fake_gpus_on_several_nodes(tmp_path: Path, cache: Path, make: object) -> None:
    from fedray import run

    with tempfile.TemporaryDirectory(prefix="fr", dir="/tmp") as short:
        out = python(GPUS, tmp_path, str(tmp_path / "runs"), str(cache), RAY_TMPDIR=short)
    plain = run(make(rounds=2), runs=tmp_path / "plain", placement="inline", cache=cache)  # type: ignore[operator]
    list(plain.rounds)
    assert out.split() == [plain.folder.digest()]


def test_sigterm_stays_with_who_had_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's start would have it end the process on the spot: no status, no command to go on with."""
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))

    def start(place: str, num_cpus: int | None, num_gpus: int | None) -> None:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))  # as ray.init does
        if len(heard) == 1:
            os.kill(os.getpid(), signal.SIGTERM)  # amid the start

    monkeypatch.setattr(room, "_start", start)
    monkeypatch.setattr(room, "given", lambda: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # another test's may be
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    try:
        with attached():
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]
        with pytest.raises(SystemExit), attached():
            pass
        assert heard == [signal.SIGTERM, signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)

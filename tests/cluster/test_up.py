"""``ray up`` on cluster/local.yaml over real SSH to this machine, then ``ray submit`` and ``ray job submit``.

Installs nothing: needs sshd, ssh and rsync (on Debian: apt-get install openssh-server rsync), and says so where they
are missing. What is changed of the shipped file: addresses, ports, folders; packages are linked, not installed; and no
``ray stop``, which would end every Ray of this machine. What was started is ended by its process id.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import yaml

from fedray.track.run import runs

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


class Up(NamedTuple):
    """A cluster that runs."""

    file: Path
    shared: Path
    dashboard: str
    env: dict[str, str]
    seconds: float


def missing() -> str:
    """What is not there, and what helps."""
    found = {
        "sshd": sshd(),
        "ssh": shutil.which("ssh"),
        "rsync": shutil.which("rsync"),
        "ssh-keygen": shutil.which("ssh-keygen"),
    }
    lacking = [name for name, path in found.items() if path is None]
    if lacking:
        return f"{', '.join(lacking)} missing; on Debian: apt-get install openssh-server rsync"
    if os.getuid() == 0:
        import pwd

        try:
            pwd.getpwnam("sshd")
        except KeyError:
            return "root's sshd needs a user sshd; on Debian: apt-get install openssh-server"
    return ""


def sshd() -> str | None:
    return shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@pytest.fixture(scope="module")
def desk(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A short folder; everything whose command line names it is ended with it."""
    if reason := missing():
        capture = request.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            sys.stderr.write(f"\ntests/cluster/test_up.py is SKIPPED: {reason}\n")
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="frup", dir="/tmp", ignore_cleanup_errors=True) as name:
        try:
            yield Path(name)
        finally:
            end(name)


def end(name: str) -> None:
    mine = psutil.Process()
    spared = {mine.pid, *(parent.pid for parent in mine.parents())}
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid not in spared and name in " ".join(process.cmdline()):
                found += [process, *process.children(recursive=True)]
    for process in found:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(found, timeout=15)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def served(desk: Path) -> Iterator[tuple[Path, str]]:
    """An sshd of our own on loopback, for our own key: that key, and the command that reaches it."""
    keys, port = desk / "keys", free_port()
    keys.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name)], check=True)
    shutil.copy(keys / "user.pub", keys / "authorized")
    lines = {
        "ListenAddress": f"127.0.0.1:{port}", "HostKey": keys / "host", "AuthorizedKeysFile": keys / "authorized",
        "PidFile": "none", "UsePAM": "no", "StrictModes": "no", "PasswordAuthentication": "no",
        "PermitRootLogin": "prohibit-password", "SetEnv": f"HOME={desk / 'home'}", "MaxStartups": 100,
    }  # fmt: skip
    config = desk / "sshd_config"
    config.write_text("".join(f"{key} {value}\n" for key, value in lines.items()))
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    proxy = desk / "proxy.py"
    proxy.write_text(
        "import socket, sys, threading, os\n"
        f"s = socket.create_connection(('127.0.0.1', {port}))\n"
        "def out():\n"
        "    while data := s.recv(65536):\n"
        "        os.write(1, data)\n"
        "    os._exit(0)\n"
        "threading.Thread(target=out, daemon=True).start()\n"
        "while data := os.read(0, 65536):\n"
        "    s.sendall(data)\n"
        "s.shutdown(socket.SHUT_WR)\n"
        "threading.Event().wait(5)\n"
    )
    with (desk / "sshd.log").open("wb") as log:
        server = subprocess.Popen([str(sshd()), "-D", "-e", "-f", str(config)], stdout=log, stderr=log)
    try:
        _listening(port, desk / "sshd.log")
        yield keys / "user", f"{sys.executable} {proxy}"
    finally:
        server.terminate()
        server.wait(10)


def _listening(port: int, log: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def moved(desk: Path, key: Path, proxy: str, dashboard: int) -> dict[str, Any]:
    """cluster/local.yaml for this machine."""
    shared, here = desk / "shared", f"--node-ip-address=127.0.0.1 --dashboard-port={dashboard} --num-cpus=2"
    quiet = f"--object-store-memory=100000000 --ray-client-server-port={free_port()} "
    quiet += f"--dashboard-agent-listen-port={free_port()}"
    text = (ROOT / "cluster" / "local.yaml").read_text().replace("/srv/fedray", str(shared))
    config: dict[str, Any] = yaml.safe_load(text)
    config |= {"cluster_name": desk.name, "max_workers": 0}
    config["provider"] |= {"head_ip": "127.0.0.1", "worker_ips": []}
    config["auth"] = {"ssh_user": getpass.getuser(), "ssh_private_key": str(key), "ssh_proxy_command": proxy}
    config["file_mounts"]["~/fedray"] = str(ROOT / "studies")  # a smaller folder than the whole project
    setup, starts = config["setup_commands"], config["head_start_ray_commands"]
    assert [i for i, line in enumerate(setup) if "pip install" in line] == [3]
    setup[3] = "test -f ~/fedray/alpha_sweep.py"
    setup[4] = setup[4].replace("RAY_AUTH_MODE", f"RAY_TMPDIR={desk} RAY_AUTH_MODE")
    setup[4] = setup[4].replace("FEDRAY_CPUS=32 FEDRAY_GPUS=2", "OMP_NUM_THREADS=1")
    assert "FEDRAY_GPUS" not in setup[4]
    assert starts[0].endswith("ray stop")
    config["head_start_ray_commands"] = [starts[1].replace("--port=6379", f"--port={free_port()} {here} {quiet}")]
    return config


@pytest.fixture(scope="module")
def up(desk: Path, served: tuple[Path, str]) -> Up:
    """The cluster, up."""
    start, dashboard = time.monotonic(), free_port()
    home = desk / "home"
    (home / ".ray").mkdir(parents=True, mode=0o700)
    (home / ".bashrc").write_text("")
    (home / "fedray-env").symlink_to(BIN.parent)  # what `python -m venv` and pip would have made
    token = home / ".ray" / "auth_token"
    token.touch(mode=0o600)
    token.write_text("0123456789abcdef" * 4)
    mine = desk / "mine"  # the laptop: another home than the node's
    shutil.copytree(home / ".ray", mine / ".ray")
    token.unlink()
    (desk / "m").mkdir()
    file = desk / "local.yaml"
    file.write_text(yaml.safe_dump(moved(desk, *served, dashboard)))
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TUNE_", "FEDRAY_"))}
    env = clean | {
        "HOME": str(mine), "PATH": f"{BIN}:{os.environ['PATH']}", "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(desk / "m"),
    }  # fmt: skip
    said = call([BIN / "ray", "up", "-y", "--no-config-cache", str(file)], env, 900)
    assert token.read_text() == "0123456789abcdef" * 4, said
    return Up(file, desk / "shared", f"http://127.0.0.1:{dashboard}", env, time.monotonic() - start)


def call(words: list[Any], env: dict[str, str], seconds: float) -> str:
    done = subprocess.run(
        list(map(str, words)), env=env, capture_output=True, text=True, timeout=seconds, check=False, cwd=env["HOME"],
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def told(out: str, up: Up) -> None:
    """The study attached to the cluster, kept its runs on the shared disk, and says how to fetch them."""
    line = next((line for line in out.splitlines() if line.startswith("cluster · ")), out)
    assert line.endswith(f" · 1 node, 2 CPU, 0 GPU · run folders in {up.shared / 'runs'}"), line
    assert f"ray rsync-down CLUSTER.yaml {up.shared / 'runs'}" in out


def test_ray_submit_runs_a_study_on_the_cluster(up: Up) -> None:
    out = call([BIN / "ray", "submit", up.file, ROOT / "studies" / "shots.py", "--", "--smoke"], up.env, 600)
    told(out, up)
    found = runs(up.shared / "runs", "shots")
    assert found and all(run.status["state"] == "done" for run in found)
    assert (up.shared / "runs" / "mlflow.db").is_file()
    assert any((up.shared / "cache" / "backbones").iterdir())


def test_ray_job_submit_runs_another(up: Up) -> None:
    folder = up.file.parent / "job"
    folder.mkdir()
    shutil.copy(ROOT / "studies" / "n_ctx.py", folder)
    ask = [BIN / "ray", "job", "submit", "--address", up.dashboard, "--working-dir", folder]
    out = call([*ask, "--", "python", "n_ctx.py", "--smoke", "--mlflow", "off"], up.env, 600)
    told(out, up)
    assert all(run.status["state"] == "done" for run in runs(up.shared / "runs", "n_ctx"))
    again = call([*ask, "--", "python", "n_ctx.py", "--smoke", "--mlflow", "off"], up.env, 600)
    assert "already done" in again  # what is on the shared disk is not run twice


def test_who_has_no_token_is_turned_away(up: Up) -> None:
    import urllib.error
    import urllib.request

    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(f"{up.dashboard}/api/jobs/", timeout=20)
    with error.value:
        assert error.value.code == 401
    token = (Path(up.env["HOME"]) / ".ray" / "auth_token").read_text()
    request = urllib.request.Request(f"{up.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert len(json.loads(answer.read())) >= 1


def test_the_run_folder_is_its_owner_s_alone(up: Up) -> None:
    assert (up.shared / "runs").stat().st_mode & 0o077 == 0

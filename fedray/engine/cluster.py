"""Reaching Ray: the cluster that one is submitted to, or a local one that nobody else can talk to."""

from __future__ import annotations

import gc
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedray.errors import BadInput, Unavailable

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # run folders hold the results
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a path means the same in a trial as in the shell
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: it prints how to go on
}
LOCAL = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every listener on loopback
    "RAY_preload_python_modules": "torch",  # idle workers import it while we build (a comma list; JSON is ignored)
}
GROWTH = {"CPU": "FEDRAY_CPUS", "GPU": "FEDRAY_GPUS"}
"""Where a cluster's file says how many of each it may grow to."""
CGROUP = Path("/sys/fs/cgroup")
REACH_S = 5.0
"""Seconds to wait for a cluster's port; Ray itself would try for minutes."""
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
SETTINGS = 4
"""HTTP/2's greeting, an empty list of settings, and the kind of frame that a server answers with."""


@contextmanager
def attached(*, num_cpus: int | None = None, num_gpus: int | None = None) -> Iterator[None]:
    """Connect to Ray for the time of a block; a local Ray that was started for it is stopped at the end.

    On a cluster's node (``ray submit``, ``ray job submit``) the block attaches to that cluster. Inside another such
    block, or where Ray was initialised by other means, it changes nothing.

    Args:
        num_cpus: of a local Ray; None: all that this process may use.
        num_gpus: of a local Ray; None: all there are.

    Raises:
        BadInput: ``$RAY_ADDRESS`` is of a kind that can't be used.
        Unavailable: Ray can't be started or reached.
    """
    address = given()
    for name, value in (QUIET if address else QUIET | LOCAL).items():
        os.environ.setdefault(name, value)
    if not address and "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # once ray is imported it would believe half of it
    import ray

    if ray.is_initialized():
        yield
        return
    with tempfile.TemporaryDirectory(prefix="fedray-", dir=_short(), ignore_cleanup_errors=True) as place:
        try:
            with _sigterm_kept():
                if address:
                    ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
                else:
                    _start(place, num_cpus, num_gpus)
        except Exception as error:  # where a node comes up too slowly, Ray raises that and nothing more special
            ray.shutdown()
            first = " ".join(str(error).split())[:200]
            if address:
                raise Unavailable(f"Ray can't be reached at {address} ({first}); {_REMEDY}") from error
            raise Unavailable(f"Ray can't be started on this host ({first}); use --placement inline") from error
        try:
            yield
        finally:
            gc.collect()  # a reference to an object of Ray that is let go after Ray would end this process
            ray.shutdown()


_REMEDY = "start that cluster, unset RAY_ADDRESS for a local Ray, or use --placement inline"


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Ray's start takes SIGTERM over, to end this process on the spot; whoever handled it before goes on doing so."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as stop:  # it came meanwhile
        if stop.code == signal.SIGTERM and callable(before):
            before(signal.SIGTERM, None)
        raise
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int:
    """Bytes of memory that are free for new processes, on this host and in this container."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return free if limit == "max" else max(0, min(free, int(limit) - int(used)))
    except (OSError, ValueError):  # no control groups here, or of another kind
        return free


def resources(*, free: bool = False) -> dict[str, float]:
    """What the cluster has ("CPU", "GPU", ...) or is said to grow to, or what of it is not taken.

    Raises:
        BadInput: what is said of its growth is no number.
    """
    import ray

    if free:
        now: Callable[[], dict[str, float]] = ray.available_resources
        return now()
    whole: Callable[[], dict[str, float]] = ray.cluster_resources
    there = whole()
    return there | {kind: max(there.get(kind, 0), most) for kind, most in growth().items()}


def growth() -> dict[str, float]:
    """What an autoscaler may bring, which Ray does not tell: without it a cluster of no workers would stay so."""
    found = {}
    for kind, name in GROWTH.items():
        if said := os.environ.get(name):
            if not said.isdecimal():
                raise BadInput(f"{name} must be a whole number, of what the cluster may grow to; got {said!r}")
            found[kind] = float(said)
    return found


def alone() -> bool:
    """Whether this host is the whole cluster, and will be."""
    import ray

    ask: Callable[[], list[dict[str, Any]]] = ray.nodes
    return sum(bool(node["Alive"]) for node in ask()) == 1 and not growth()


def _start(place: str, num_cpus: int | None, num_gpus: int | None) -> None:
    import ray
    from ray._private import ray_constants

    _token()
    ray_constants.ENABLE_RAY_CLUSTER = False  # LOCAL's first line comes too late where ray was imported before
    ray.init(
        "local",
        num_cpus=num_cpus or cpus(),
        num_gpus=num_gpus,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
        _temp_dir=f"{place}/r",  # sockets, logs, spilled objects; Ray opens it to all, but not the folder around
    )


def _short() -> str | None:
    """Where Ray's folder goes: paths of sockets may have 107 characters. None: the system's choice."""
    place = os.environ.get("RAY_TMPDIR") or "/tmp"  # noqa: S108 (a new folder of mode 0700 is made in it)
    return place if os.access(place, os.W_OK) else None


def given() -> str | None:
    """The cluster that `attached` goes to, by ``$RAY_ADDRESS`` or what ``ray start`` left here; None: a local Ray.

    Raises:
        BadInput: a Ray Client address.
        Unavailable: nothing answers at ``$RAY_ADDRESS``.
    """
    said = os.environ.get("RAY_ADDRESS", "")
    if said.startswith("ray://"):
        raise BadInput(f"RAY_ADDRESS is {said}, a Ray Client address; submit to the cluster with: ray job submit")
    if said and said not in ("auto", "local"):
        if ":" in said and not _answers(said):
            raise Unavailable(f"Ray can't be reached at {said} (nothing answers there); {_REMEDY}")
        return said
    left = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray" / "ray_current_cluster"  # noqa: S108 (Ray's own place)
    found = left.read_text().strip() if left.is_file() and said != "local" else ""
    if found and _answers(found):
        return found
    if said == "auto":
        raise Unavailable(f"Ray can't be reached at auto (no cluster runs on this host); {_REMEDY}")
    return None  # what a cluster that has died left behind counts for nothing


def _answers(address: str) -> bool:
    """Whether a gRPC server, as Ray's is one, greets whoever comes; what else may listen there would be waited for."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S) as line:
            line.sendall(HELLO)
            return len(head := line.recv(9, socket.MSG_WAITALL)) == 9 and head[3] == SETTINGS
    except (OSError, ValueError):
        return False


def _token() -> None:
    """Ray's token, readable by its owner alone (Ray itself would create it with the umask's mode)."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = Path.home() / ".ray" / "auth_token"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        path.chmod(0o600)  # Ray itself may have made it, for all to read
        return
    except OSError:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # a home that can't be written: for this run only
        return
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(32))

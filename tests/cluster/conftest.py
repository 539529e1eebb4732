"""Several Ray nodes on this machine: a scene in a process of its own, of which nothing is left."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

SCENES = Path(__file__).with_name("scenes.py")

Scene = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Backbone and features, made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def scenes() -> Any:
    """The module beside this one."""
    spec = importlib.util.spec_from_file_location("scenes", SCENES)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def scene(tmp_path: Path, cache: Path) -> Scene:
    """``scene(name)`` plays it, below ``tmp_path / name``, and returns what it found."""

    def play(name: str, **environment: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="fr", dir="/tmp", ignore_cleanup_errors=True) as short:
            mine = {
                "RAY_TMPDIR": short,
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": secrets.token_hex(32),
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            }
            kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "FEDRAY_"))}
            command = [sys.executable, str(SCENES), name, str(tmp_path / name), str(cache)]
            try:
                done = subprocess.run(
                    command, env=kept | mine | environment, capture_output=True, text=True, timeout=1000, check=False
                )
            finally:
                ended(short)
        assert done.returncode == 0, done.stderr[-4000:]
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    return play


def ended(folder: str) -> None:
    """End what still has a scene's folder in its command line: nobody else's processes do."""
    left = []
    for process in psutil.process_iter(["cmdline"]):
        if any(folder in word for word in process.info["cmdline"] or []):
            left.append(process)
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=10)

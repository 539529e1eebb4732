"""The skeleton of a run folder: names that can't lead out of their root, folders of mode 0700, what made the run."""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from fedray.errors import BadInput
from fedray.track import files

SLUG = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
FOLDERS = ("ckpt", "private", "prompts", "figures", "tables")
ENVIRONMENT = ("fedray", "torch", "ray", "python", "platform", "machine", "cpus", "device", "commit")
"""All that env.json may say: no environment variables, no host or user names."""

log = logging.getLogger("fedray")


def place(root: Path, *names: str) -> Path:
    """The path ``root/name/...``, with nothing on the way below `root` that could lead out of it.

    Raises:
        BadInput: a name is no slug, or a symlink stands on the way.
    """
    path = Path(root).expanduser().resolve()
    for name in names:
        if not isinstance(name, str) or not SLUG.fullmatch(name):
            shown = ascii(str(name)[:80])
            raise BadInput(f"{shown} is not a usable name: up to 64 of a-z 0-9 . _ -, the first a letter or digit")
        path = path / name
        if path.is_symlink():
            raise BadInput(f"{path} is a symlink, which run folders never follow; move it away or choose another name")
    return path


def slugs(path: Path) -> list[Path]:
    """The folders in `path` whose names could be ours, by name."""
    if not path.is_dir():
        return []
    return sorted(entry for entry in path.iterdir() if SLUG.fullmatch(entry.name) and _is_folder(entry))


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def is_run(path: Path) -> bool:
    """Whether `path` has what every run has from its first moment."""
    return all((path / name).is_file() for name in ("config.yaml", "status.json"))


def make(path: Path, config: str, env: Mapping[str, Any], rounds: object) -> None:
    """Fills a folder aside and renames it into place, so that no run exists without its config.

    Raises:
        OSError: the place can't be written.
    """
    _private(path.parent)
    temporary = path.with_name(f".new-{path.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(mode=0o700)
    for name in FOLDERS:
        (temporary / name).mkdir(mode=0o700)
    status: dict[str, object] = {"state": "running", "round": 0, "rounds": rounds, "started": now(), "updated": now()}
    status["config"] = files.sha256(config.encode())
    files.write(temporary / "config.yaml", config.encode())
    files.write(temporary / "env.json", files.to_json(_environment() | {k: env[k] for k in ENVIRONMENT if k in env}))
    files.write(temporary / "status.json", files.to_json(files.sealed(status)))
    try:
        temporary.rename(path)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not is_run(path):  # else another process was quicker
            raise
    files.sync_folder(path.parent)


def close(path: Path) -> None:
    """Takes from other users what a copy or another program gave them of a run, its private states and its study.

    The root may be a folder of the user's with other things in it: it is left as it is, with a warning.
    """
    for folder in (path.parent, path, path / "private"):
        with suppress(OSError):  # another user's, or a file system without modes
            if folder.is_dir() and folder.stat().st_mode & 0o077:
                folder.chmod(0o700)
    _told_if_open(path.parent.parent)


@lru_cache
def _told_if_open(root: Path) -> None:
    """Once per process."""
    if mode := root.stat().st_mode & 0o077:
        log.warning("%s is open to other users (mode 7%02o); close it with: chmod 700 %s", root, mode, root)


def _private(path: Path) -> None:
    """Makes a folder and those above it, each 0700 (`Path.mkdir` gives its mode to the last one only)."""
    if not path.is_dir():
        _private(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def _environment() -> dict[str, Any]:
    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    for name in ("fedray", "torch", "ray"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found | {"machine": platform.machine(), "cpus": os.cpu_count()}


def now() -> str:
    """UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")

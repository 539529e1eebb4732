"""Where a tracking store lies, who may create it, and what a folder remembers of it (mlflow.json beside the rest)."""

from __future__ import annotations

import json
import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fedray.errors import Unavailable
from fedray.track import files
from fedray.track.export import without_secrets

MEMORY = "mlflow.json"


def default_uri(root: Path) -> str:
    """The store that needs no server: ``<root>/mlflow.db``, artifacts beside it in ``mlartifacts``."""
    return f"sqlite:///{Path(root).expanduser().resolve() / 'mlflow.db'}"


CLOSED = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",  # up to 3.17
    "MLFLOW_ALLOW_MODEL_CODE_EXECUTION": "false",  # from 3.18
}
"""What mlflow shall not do in any process of ours: speak home, or run code that came with a model."""


def before_import() -> None:
    """What mlflow reads: doors closed, no minutes of retries, nothing printed, no warning about its own mapping."""
    os.environ.update(CLOSED)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the next sync is our retry
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # two lines at the end of each run, on a server
    warnings.filterwarnings("ignore", message="The ``noload`` loader strategy is deprecated")


def database(uri: str) -> Path | None:
    """The file of an sqlite store; None for a server."""
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def artifact_place(uri: str, study: str) -> str | None:
    """Where an sqlite store's artifacts go; a server decides for itself."""
    path = database(uri)
    if path is None:
        return None
    place = path.parent / "mlartifacts" / study
    with files.writing(place):  # else mlflow makes it, with the umask's mode
        for folder in (place.parent, place):
            folder.mkdir(mode=0o700, exist_ok=True)
    return place.as_uri()


def only_one(uri: str) -> AbstractContextManager[object]:
    """Lets one process at a time open an sqlite store: two that create its tables at once would both fail.

    A new one is for its owner alone, as what sqlite lays beside it will be.

    Raises:
        Unavailable: the place of the database can't be written.
    """
    path = database(uri)
    if path is None:
        return nullcontext()
    with files.writing(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
    return FileLock(f"{path}.lock", timeout=120, mode=0o600)


def writer(folder: Path) -> AbstractContextManager[object]:
    """The right to write what is in `folder` to a store, held until the context or the process ends.

    Raises:
        Unavailable: another process has it.
    """
    try:
        return FileLock(folder / ".mlflow.lock", mode=0o600).acquire(timeout=0)
    except Timeout:
        raise Unavailable(f"{folder} is being sent to MLflow by another process; wait for it, then sync") from None


def recall(folder: Path, uri: str) -> dict[str, str]:
    """What `remember` kept in `folder` about this store; empty if nothing, or nothing readable."""
    facts = _memory(folder).get(without_secrets(uri), {})
    return facts if isinstance(facts, dict) else {}


def remember(folder: Path, uri: str, **facts: str) -> None:
    """Keeps `facts` about this store, in place of what was kept; of other stores nothing is forgotten.

    Raises:
        Unavailable: the folder can't be written.
    """
    files.replace(folder / MEMORY, files.to_json(_memory(folder) | {without_secrets(uri): facts}))


def _memory(folder: Path) -> dict[str, Any]:
    """What the folder remembers, by the store's address."""
    try:
        content = json.loads((folder / MEMORY).read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    if isinstance(uri := content.get("uri"), str):  # as it was when a folder knew one store only
        return {uri: {key: value for key, value in content.items() if key != "uri"}}
    return content


def milliseconds(moment: str) -> int:
    """Since 1970, of a status's ISO 8601 moment."""
    return int(datetime.fromisoformat(moment).timestamp() * 1000)

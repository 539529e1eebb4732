"""A round on disk: a folder of tensors and a manifest that vouches for them, present whole or not at all.

    r000012/state.safetensors    the aggregator's state (state/...) and the shared parameters (shared/...)
    r000012/manifest.json        round, cohort, SHA-256 of the state, of the rows so far and of the private states

Temp folder, files, fsync, rename, fsync of the parent: whoever finds the folder finds all of it. The manifest also
carries a digest of itself. Private states have their hashes here, never their contents.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedray.track import files

if TYPE_CHECKING:
    from fedray.types import Params, Round

KEEP = 2
Private = dict[int, tuple[int, str]]
"""Of each client's private state: (version, SHA-256)."""


class Mark(NamedTuple):
    """How much of rows.jsonl is committed, and by which round."""

    round: int = -1
    bytes: int = 0
    sha256: str = files.sha256(b"")


def found(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, newest first."""
    paths = [path for path in folder.glob("r*") if re.fullmatch(r"r\d{6,}", path.name)]
    return sorted(paths, key=_number, reverse=True)


def _number(path: Path) -> int:
    return int(path.name[1:])


def write(folder: Path, done: Round, rows: Mark, private: Mapping[int, tuple[int, str]]) -> None:
    """Writes `done` as ``folder/r000012``, durably; an older attempt at the same round is replaced."""
    tensors = {f"state/{name}": tensor for name, tensor in done.state.items()}
    tensors |= {f"shared/{name}": tensor for name, tensor in done.shared.items()}
    state = files.to_safetensors(tensors)
    body = {
        "schema": files.SCHEMA,
        "round": done.round,
        "cohort": list(done.cohort),
        "state": files.sha256(state),
        "rows": {"bytes": rows.bytes, "sha256": rows.sha256},
        "private": {str(client): list(entry) for client, entry in sorted(private.items())},
    }
    temporary, target = folder / f".tmp-{os.getpid()}", folder / f"r{done.round:06d}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(mode=0o700)
    files.write(temporary / "state.safetensors", state)
    text = files.to_line(body)
    files.write(temporary / "manifest.json", text[:-1] + b',"self":"%s"}' % files.sha256(text).encode())
    files.sync_folder(temporary)
    if target.exists():  # damaged, or of an attempt that was given up
        shutil.rmtree(target)
    temporary.rename(target)
    files.sync_folder(folder)


def prune(folder: Path, newest: int) -> None:
    """Keeps the two newest up to round `newest`; later and unfinished ones are of an attempt that was given up."""
    mine = [path for path in found(folder) if _number(path) <= newest][:KEEP]
    for path in (*found(folder), *folder.glob(".tmp-*")):
        if path not in mine:
            shutil.rmtree(path)


def manifest(path: Path) -> dict[str, Any]:
    """The manifest of one checkpoint.

    Raises:
        ValueError: it is damaged or of another schema version.
        OSError: it can't be read.
    """
    content = json.loads((path / "manifest.json").read_bytes())
    if not isinstance(content, dict):
        raise ValueError("manifest.json is no mapping")
    try:
        content = files.unsealed(content)
    except ValueError as error:
        raise ValueError(f"manifest.json: {error}") from None
    if content["schema"] != files.SCHEMA:
        raise ValueError(f"manifest.json has schema version {content['schema']}, this fedray reads {files.SCHEMA}")
    return content


def lines(manifest: Mapping[str, Any], journal: Path) -> bytes:
    """The bytes of `journal` that a manifest commits.

    Raises:
        ValueError: they have another SHA-256 than it says.
        OSError: they can't be read.
    """
    found = journal.read_bytes()[: manifest["rows"]["bytes"]]
    if files.sha256(found) != manifest["rows"]["sha256"]:
        raise ValueError(f"{journal.name} has another SHA-256 than the manifest says")
    return found


def read(path: Path, journal: Path) -> tuple[Round, Private, Mark, bytes]:
    """The checkpoint, all hashes checked, and the bytes of `journal` that it commits.

    Raises:
        ValueError: something in it has another SHA-256 than its manifest says.
        OSError: something in it can't be read.
    """
    from fedray.types import Round

    content = manifest(path)
    image = (path / "state.safetensors").read_bytes()
    if files.sha256(image) != content["state"]:
        raise ValueError("state.safetensors has another SHA-256 than its manifest says")
    mark = Mark(content["round"], content["rows"]["bytes"], content["rows"]["sha256"])
    rows = lines(content, journal)
    tensors = files.from_safetensors(image)
    done = Round(mark.round, _under("state/", tensors), _under("shared/", tensors), tuple(content["cohort"]), ())
    private = {int(client): (int(version), str(digest)) for client, (version, digest) in content["private"].items()}
    return done, private, mark, rows


def _under(prefix: str, tensors: Params) -> Params:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

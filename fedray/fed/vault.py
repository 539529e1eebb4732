"""Where private parameters live: with their client, versioned by round, in a folder that nothing else reads.

A step of round r always starts from the newest version *before* r. So a step that is done twice (a retried call, a
resumed run) starts from the same bytes and ends with the same bytes: idempotent without any bookkeeping.

    <folder>/000012-<digest of whose>.safetensors    tensors "<client>/<round>/<parameter>"

One file for all clients that trained together: keeping their states costs one write, not one for each. A file goes when
nothing in it is needed any more; files that are half empty are put together. So all of this costs what the clients cost
that trained, however many there are.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedray.errors import Unavailable
from fedray.types import Params

Versions = dict[int, tuple[int, str]]
"""client -> (round of its newest version, SHA-256 of it): all that a manifest may know of a private state."""

Key = tuple[int, int]
"""(client, round)."""

Block = tuple[torch.dtype, tuple[int, ...], bytes]
"""A tensor as it is kept."""

KINDS = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Types by their names in a safetensors file, in the order in which they stand there: larger ones first."""

NEEDED = 3
"""Rounds that can be gone back to: that of the older checkpoint, of the newest, and the one being written."""

WORN = 8
"""Files at most half full that are put together in one go."""


class Vault:
    """Private parameters by (client, round), in files or in memory only.

    With a folder, the files are the truth. They survive the process, and the machine, from `flush` on. Several
    processes may share a folder as long as each has clients of its own.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.recent: dict[Key, dict[str, Block]] = {}  # not written yet, or just written; without a folder all there is
        self.places: dict[int, dict[int, Path | None]] = {}  # client -> round -> file; None: not written
        self.files: dict[Path, dict[Key, list[str]]] = {}  # what is still needed of each, and its tensors' names
        self.sizes: dict[Path, int] = {}  # entries that each was written with
        self.opened: dict[Path, Any] = {}  # those that were read from: opening one costs more than reading it
        self.damaged: list[Path] = []
        self.mine: set[int] = set()  # clients that trained in this process
        self.unsaved: Versions = {}
        self.changed: dict[int, set[int]] = {}  # round of saving -> clients that had a new version
        self.saved: list[int] = []
        if folder is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._look(folder)

    def versions(self, client: int) -> list[int]:
        """Rounds after which this client's state is held, ascending."""
        return sorted(self.places.get(client, ()))

    def before(self, client: int, round: int) -> Params | None:
        """The newest version from before `round`; None for a client that has not taken part yet."""
        older = [r for r in self.places.get(client, ()) if r < round]
        return self._read(client, max(older)) if older else None

    def put(self, client: int, round: int, private: Params) -> None:
        """Keep `private` as this client's state after `round`; with a folder, `flush` makes it last."""
        if not private:
            return
        self._forget(client, round)
        kept = self.recent[client, round] = _blocks(private)
        self.places.setdefault(client, {})[round] = None
        self.unsaved[client] = round, _digest(kept)
        self.mine.add(client)

    def flush(self) -> None:
        """Write what is not written yet into one file, durably.

        Raises:
            Unavailable: the folder can't be written.
        """
        if self.folder is None:
            return
        if new := {key: kept for key, kept in self.recent.items() if self.places[key[0]][key[1]] is None}:
            self._write(self.folder, new)
            self.recent = new  # the next round starts from these, mostly

    def save(self, round: int, clients: Collection[int] | None = None) -> Versions:
        """Make everything up to `round` durable, drop what is no longer needed, and name what is new since the last.

        Args:
            round: the one that has just been trained.
            clients: to name; None: all that have a new version.
        """
        self.flush()
        if self.saved[-1:] != [round]:  # a process that took over knows of no round before
            self.saved = [*(self.saved or range(round - NEEDED + 1, round)), round][-NEEDED:]
        self.changed[round] = self.changed.get(round, set()) | set(self.unsaved)
        for client in set().union(*self.changed.values()):
            held = self.versions(client)
            for old in held[: max(0, sum(r <= self.saved[0] for r in held) - 1)]:
                self._forget(client, old)
        self.changed = {r: who for r, who in self.changed.items() if r >= self.saved[0]}
        self._tidy()
        new = {k: self.unsaved[k] for k in sorted(self.unsaved) if clients is None or k in clients}
        self.unsaved = {}
        return new

    def load(self, round: int, manifest: Versions) -> None:
        """Go back to the checkpoint of `round`: verify the versions that it names, drop those that came after.

        Raises:
            Unavailable: a version is missing or damaged.
        """
        if self.folder is not None:
            for partial in self.folder.glob("*.partial"):  # of processes that were killed
                partial.unlink(missing_ok=True)
            self._look(self.folder)
        for client, (version, sha) in manifest.items():
            if digest(self._read(client, version)) != sha:
                raise Unavailable(
                    f"private state of client {client} after round {version} is damaged (SHA-256 differs from the "
                    f"manifest of round {round}); resume from an older checkpoint or start the run anew"
                )
        for client in self.places:
            for later in [r for r in self.places[client] if r > round]:
                self._forget(client, later)
        self.saved, self.changed, self.unsaved = [round], {round: set(self.places)}, {}
        self._tidy()

    def _look(self, folder: Path) -> None:
        """Read anew what the files hold; what was not written is forgotten."""
        self.recent, self.places, self.files, self.sizes, self.opened, self.damaged = {}, {}, {}, {}, {}, []
        for path in sorted(folder.glob("*.safetensors")):
            try:
                self._hold(path, _entries(path))
            except (SafetensorError, OSError, ValueError):
                self.damaged.append(path)

    def _hold(self, path: Path, entries: Mapping[Key, list[str]]) -> None:
        self.files[path], self.sizes[path] = dict(entries), len(entries)
        for client, version in entries:
            before = self.places.setdefault(client, {}).get(version)
            if before is not None and before != path:  # the same twice: a step that was done again
                self.files[before].pop((client, version), None)
            self.places[client][version] = path

    def _read(self, client: int, round: int) -> Params:
        if (client, round) in self.recent:
            return {name: _tensor(block) for name, block in self.recent[client, round].items()}
        path = self.places.get(client, {}).get(round)
        if path is None:
            why = f"damaged ({self.damaged[0]})" if self.damaged else f"missing in {self.folder}"
            raise Unavailable(
                f"private state of client {client} after round {round} is {why}; resume where the run's folder is "
                "whole, or start the run anew"
            )
        try:
            file = self.opened.get(path) or self.opened.setdefault(path, safe_open(path, "pt"))
            names = self.files[path][client, round]
            return {name: file.get_tensor(f"{client}/{round}/{name}").clone() for name in names}  # not the mapping
        except (SafetensorError, OSError):
            raise Unavailable(f"private state {path} is damaged; resume from an older checkpoint") from None

    def _write(self, folder: Path, new: Mapping[Key, Mapping[str, Block]]) -> None:
        whose = hashlib.sha256(repr(sorted(new)).encode()).hexdigest()[:16]
        path = folder / f"{max(r for _, r in new):06d}-{whose}.safetensors"
        data = _rendered({f"{k}/{r}/{name}": block for (k, r), kept in new.items() for name, block in kept.items()})
        partial = path.with_suffix(f".{os.getpid()}.partial")  # a dying process and its successor may both write
        try:
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            _sync(folder)
        except OSError as error:
            partial.unlink(missing_ok=True)
            reason = (error.strerror or type(error).__name__).lower()
            free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
            raise Unavailable(
                f"cannot write {path}: {reason}, {free:,} bytes free there; choose another place with --runs"
            ) from error
        self.opened.pop(path, None)
        self._hold(path, {key: list(kept) for key, kept in new.items()})

    def _forget(self, client: int, round: int) -> None:
        self.recent.pop((client, round), None)
        path = self.places.get(client, {}).pop(round, None)
        if path is not None:
            self.files[path].pop((client, round), None)

    def _tidy(self) -> None:
        """Remove files of which nothing is needed; put those together that are at most half full."""
        for path in [path for path, left in self.files.items() if not left]:
            self._remove(path)
        worn = [
            path
            for path, left in self.files.items()
            if 2 * len(left) <= self.sizes[path] and all(client in self.mine for client, _ in left)
        ]
        if self.folder is not None and len(worn) >= WORN:
            self._write(self.folder, {key: _blocks(self._read(*key)) for path in worn for key in self.files[path]})
            for path in worn:
                self._remove(path)

    def _remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self.opened.pop(path, None)
        del self.files[path], self.sizes[path]


def _entries(path: Path) -> dict[Key, list[str]]:
    """What a file holds: names of the tensors of each (client, round)."""
    entries: dict[Key, list[str]] = {}
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 (it is no mapping)
            client, version, parameter = name.split("/", 2)
            entries.setdefault((int(client), int(version)), []).append(parameter)
    return entries


def digest(params: Params) -> str:
    """SHA-256 of parameters: names, types, shapes, bytes."""
    return _digest(_blocks(params))


def _blocks(params: Params) -> dict[str, Block]:
    return {name: _block(params[name].detach().cpu()) for name in sorted(params)}


def _block(value: Tensor) -> Block:
    bits = value.view(torch.int16) if value.dtype == torch.bfloat16 else value  # numpy knows no bfloat16
    return value.dtype, tuple(value.shape), bits.numpy().tobytes()


def _tensor(block: Block) -> Tensor:
    dtype, shape, data = block
    return torch.frombuffer(bytearray(data), dtype=dtype).view(shape) if data else torch.empty(shape, dtype=dtype)


def _digest(kept: Mapping[str, Block]) -> str:
    total = hashlib.sha256()
    for name, (dtype, shape, data) in kept.items():
        total.update(f"{name} {KINDS[dtype]} {shape}\0".encode())
        total.update(data)
    return total.hexdigest()


def _rendered(tensors: Mapping[str, Block]) -> bytes:
    """A safetensors image, put together by hand: the package's own way takes five times as long for small tensors."""
    order = list(KINDS)
    named = sorted(tensors.items(), key=lambda item: (order.index(item[1][0]), item[0]))
    header, start = {}, 0
    for name, (dtype, shape, data) in named:
        header[name] = {"dtype": KINDS[dtype], "shape": shape, "data_offsets": (start, start + len(data))}
        start += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, *(data for _, (_, _, data) in named)))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

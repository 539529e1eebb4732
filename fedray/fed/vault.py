"""Where private parameters live: with their client, versioned by round, in a folder that nothing else reads.

A step of round r always starts from the newest version *before* r. So a step that is done twice (a retried call, a
resumed run) starts from the same bytes and ends with the same bytes: idempotent without any bookkeeping.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save as render

from fedray.errors import Unavailable
from fedray.types import Params

Versions = dict[int, tuple[int, str]]
"""client -> (round of its newest version, SHA-256 of it): all that a manifest may know of a private state."""


class Vault:
    """Private parameters by (client, round): files ``<folder>/<client>/<round>.safetensors``, or memory only.

    With a folder, the files are the truth and survive the process (``os.replace``), the machine from `save` on (fsync).
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.kept: dict[tuple[int, int], bytes] = {}
        self.synced: set[Path] = set()
        self.saved: list[int] = []
        if folder is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def versions(self, client: int) -> list[int]:
        """Rounds after which this client's state is held, ascending."""
        held = {r for c, r in self.kept if c == client}
        if self.folder is not None:
            held = {int(p.stem) for p in (self.folder / str(client)).glob("*.safetensors")}
        return sorted(held)

    def before(self, client: int, round: int) -> Params | None:
        """The newest version from before `round`; None for a client that has not taken part yet."""
        older = [r for r in self.versions(client) if r < round]
        return parse(self._read(client, older[-1])) if older else None

    def put(self, client: int, round: int, private: Params) -> None:
        """Keep `private` as this client's state after `round`."""
        if not private:
            return
        data = render({name: private[name].contiguous() for name in sorted(private)})
        if self.folder is None:
            self.kept[client, round] = data
            return
        path = _file(self.folder, client, round)
        partial = path.with_suffix(f".{os.getpid()}.partial")  # a dying process and its successor may both write
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            partial.write_bytes(data)
            partial.replace(path)
        except OSError as error:
            raise Unavailable(f"can't write {path}: {error.strerror}; free space or choose another --runs") from error
        self.synced.discard(path)

    def save(self, round: int, clients: list[int]) -> Versions:
        """Make everything up to `round` durable, drop what two checkpoints no longer need, and name what is held."""
        self.saved = [*(self.saved or [round - 1]), round][-2:]  # a process that took over knows of one only
        manifest: Versions = {}
        for client in clients:
            versions = [r for r in self.versions(client) if r <= round]
            if not versions:
                continue
            self._sync(client, versions[-1])
            manifest[client] = versions[-1], hashlib.sha256(self._read(client, versions[-1])).hexdigest()
            needed = [r for r in versions if r <= self.saved[0]][-1:]
            for old in versions:
                if needed and old < needed[0]:
                    self._drop(client, old)
        return manifest

    def load(self, round: int, manifest: Versions) -> None:
        """Go back to the checkpoint of `round`: verify the versions that it names, drop those that came after.

        Raises:
            Unavailable: a version is missing or damaged.
        """
        for client, (version, digest) in manifest.items():
            if hashlib.sha256(self._read(client, version)).hexdigest() != digest:
                raise Unavailable(
                    f"private state of client {client} after round {version} is damaged (SHA-256 differs from the "
                    f"manifest of round {round}); resume from an older checkpoint or start the run anew"
                )
        for client in self._everyone():
            for later in self.versions(client):
                if later > round:
                    self._drop(client, later)
        self.saved = [round]

    def _everyone(self) -> set[int]:
        """Clients of which anything is held; in a shared folder also those of other processes."""
        if self.folder is None:
            return {client for client, _ in self.kept}
        return {int(path.name) for path in self.folder.iterdir() if path.name.isdigit()}

    def _read(self, client: int, round: int) -> bytes:
        if self.folder is None:
            return self.kept[client, round]
        path = _file(self.folder, client, round)
        try:
            data = path.read_bytes()
            parse(data)
        except FileNotFoundError:
            raise Unavailable(f"private state {path} is missing; resume where the run's folder is whole") from None
        except SafetensorError:
            raise Unavailable(f"private state {path} is damaged; resume from an older checkpoint") from None
        return data

    def _sync(self, client: int, round: int) -> None:
        """Also what a predecessor of this process wrote: nobody knows whether it got round to it."""
        if self.folder is not None and (path := _file(self.folder, client, round)) not in self.synced:
            _sync(path)
            _sync(path.parent)
            self.synced.add(path)

    def _drop(self, client: int, round: int) -> None:
        self.kept.pop((client, round), None)
        if self.folder is not None:
            path = _file(self.folder, client, round)
            path.unlink(missing_ok=True)
            self.synced.discard(path)


def _file(folder: Path, client: int, round: int) -> Path:
    return folder / str(client) / f"{round:06d}.safetensors"


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

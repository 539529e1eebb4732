"""The clients that live in one process: who trains with whom, and the private parameters between two rounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fedray.fed import batched
from fedray.fed.client import Setup, fit, open_world, score, threads
from fedray.fed.vault import Vault, Versions
from fedray.method import batching, split
from fedray.types import GLOBAL, Job, Params, Result, Scores


class Clients:
    """The clients that live in this process, and their vault."""

    def __init__(self, setup: Setup, private: Path | None = None, device: str = "cpu") -> None:
        self.world = open_world(setup, device)
        self.vault = Vault(private)
        self.start = split(self.world.initial, self.world.method.private)[1]  # of a client that never took part

    def fit(self, jobs: Sequence[Job]) -> Iterator[Result]:
        """Train the clients named by `jobs`: one after the other, or as many as `local.group` says as one batch."""
        with threads(self.world.setup.threads):
            for group in self._groups(jobs):
                privates = [self._private(job.client, job.round) for job in group]
                if len(group) == 1:
                    fitted = [fit(self.world, group[0], privates[0])]
                else:
                    fitted = batched.fit(self.world, group, privates)
                for job, (result, kept) in zip(group, fitted, strict=True):
                    self.vault.put(job.client, job.round, kept)
                    yield result

    def score(self, jobs: Sequence[Job]) -> Iterator[Scores]:
        """Score the views named by `jobs`."""
        with threads(self.world.setup.threads):
            for job in jobs:
                private = {} if job.client == GLOBAL else self._private(job.client, job.round + 1)
                yield score(self.world, job, private)

    def _groups(self, jobs: Sequence[Job]) -> Iterator[Sequence[Job]]:
        """Those who train together, by `local.group` and as far as the method and what was sent allow."""
        setup, method = self.world.setup, self.world.method
        size = setup.local.group
        one = len(jobs) < 2 or batching(method) == "none" or setup.local.label_space != "all" or not self.world.initial
        if size == 1 or one or not batched.alike(jobs):
            size = 1
        elif size == 0:
            size = batched.room(self.world, jobs[0], self._private(jobs[0].client, jobs[0].round))
        for start in range(0, len(jobs), size):
            yield jobs[start : start + size]

    def save(self, round: int, clients: Sequence[int]) -> Versions:
        """Make private states durable; returns their rounds and hashes, never their contents."""
        return self.vault.save(round, list(clients))

    def load(self, round: int, manifest: Versions) -> None:
        """Return to the private states of a checkpoint."""
        self.vault.load(round, manifest)

    def _private(self, client: int, before: int) -> Params:
        held = self.vault.before(client, before)
        return self.start if held is None else held

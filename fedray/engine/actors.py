"""Clients in Ray actors. Each host actor keeps the private prompts of the clients pinned to it; they never leave it.

One call per actor and round carries all of its jobs, results come back as they finish (``ray.wait``): nothing polls.
A call is under way as soon as `fit` or `score` returns, so that the caller can do something else meanwhile. Private
states are durable before a call's answer leaves: the answer carries their hashes, which spares a call to ask for them.
Small payloads travel as plain arguments; weights and features are files that each process maps.
Retries are unlimited and safe: a step starts from the version before its round, so doing it twice changes nothing.

A host that was lost with its node, and for which there is no other place, has its clients taken over by another host
until it is back: their private states are in files that every node sees.

Every call also carries a lease: which run's clients it is for, and how to open them. So a host that was started anew
after a crash, or that served another run before, can't answer for the wrong one: it opens what the call names.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import ray
from ray.exceptions import GetTimeoutError

from fedray.engine import nodes, seats, wire
from fedray.engine.calls import done, got, waiting
from fedray.engine.cluster import resources
from fedray.engine.placement import Placement
from fedray.engine.seats import device
from fedray.errors import Unavailable
from fedray.fed.client import Setup
from fedray.fed.clients import Clients
from fedray.fed.participation import PLAIN, Conduct, Fault, trained
from fedray.fed.vault import Versions
from fedray.types import GLOBAL, Job, Result, Scores

if TYPE_CHECKING:
    from ray.actor import ActorHandle

log = logging.getLogger("fedray")

INLINE_BYTES = 100_000
"""Above this a payload goes through the object store once, below it is cheaper as a plain argument."""

GRACE = 0.2
"""Share of a deadline that hosts get on top: they stop by their own clocks, and what is done then is still welcome."""

PATIENCE = 600.0
"""Seconds that actors may wait for a place; a cluster that scales up needs minutes."""

LOST_S = 60.0
"""Seconds without a process after which a host's clients move to another one; what is restarted takes less."""

LOOK_S = 5.0
"""Seconds without any answer after which one looks whether hosts are lost."""


class Lease(NamedTuple):
    """Whose clients a host shall be."""

    key: str  # another one for every opening
    setup: list[ray.ObjectRef[Setup]]  # a reference in a list travels as such; only a host that opens fetches it
    private: tuple[str, str] | None  # folder of the private states, and the word by which it is known
    conduct: Conduct = PLAIN


class Call(NamedTuple):
    """Work that a host was asked for."""

    host: ActorHandle[Host]
    answer: Any


class Host:
    """An actor's body: some clients, their private parameters, one frozen backbone."""

    def __init__(self) -> None:
        self.key = ""
        self.clients: Clients | None = None

    def ready(self) -> bool:
        """Answer, once there is a process."""
        return True

    def fit(self, lease: Lease, message: wire.Jobs) -> tuple[wire.Results, Versions, list[Fault]]:
        """Train. What returns is typed: shared parameters, counts, metrics; of private states rounds and hashes.

        And of clients that failed, what they said.
        """
        clients, jobs = self._open(lease), wire.unpack_jobs(message)
        found = list(trained(clients, jobs, lease.conduct))
        faults = [fault for fault in found if isinstance(fault, Fault)]
        results = [result for result in found if not isinstance(result, Fault)]
        return wire.pack_results(results), clients.vault.save(max(job.round for job in jobs)), faults

    def score(self, lease: Lease, message: wire.Jobs) -> list[Scores]:
        """Score."""
        return list(self._open(lease).score(wire.unpack_jobs(message)))

    def load(self, lease: Lease, round: int, manifest: Versions) -> None:
        """Return to a checkpoint's private states."""
        self._open(lease).load(round, manifest)

    def _open(self, lease: Lease) -> Clients:
        if self.clients is None or self.key != lease.key:
            self.clients = None  # the old ones first: two backbones may not fit
            folder = nodes.must_see(*lease.private) if lease.private else None
            self.clients = Clients(ray.get(lease.setup[0]), folder, device())
            self.key = lease.key
        return self.clients


class RayActors:
    """An executor whose clients live in actors. Use with ``contextlib.closing``, or call `close`.

    Raises (all methods that wait):
        Unavailable: actors found no place, or one kept dying.
        Exception: whatever a client raised, as what it was there.
    """

    def __init__(self, placement: Placement) -> None:
        """Start the actors; they import torch while the caller goes on."""
        self.placement = placement
        self.lease: Lease | None = None
        self.changed: Versions = {}  # private states that no `save` has named yet
        self.faults: list[Fault] = []  # clients that failed, as it becomes known
        self.owing: dict[int, Call] = {}  # host -> call that was not done when its time was up
        self.lost: dict[int, float] = {}  # host without a process -> since when it has been
        self.away: dict[int, int] = {}  # host whose clients have moved -> the one that has them
        self.seats = seats.taken(placement)
        self.hosts: list[ActorHandle[Host]] = [seats.start(Host, placement, seat) for seat in self.seats]

    def open(
        self, setup: Setup, private: Path | None, *, clients: Placement | None = None, conduct: Conduct = PLAIN
    ) -> None:
        """Let the actors host a run's clients; warm ones leave those of the run before.

        Args:
            setup: the run.
            private: folder of the private states; None keeps them in memory, and a crash loses them.
            clients: how this run's clients are pinned, where they are others than at the start.
            conduct: what becomes of clients that fail or are late.
        """
        self.placement = clients or self.placement
        if len(self.placement.hosts) != len(self.hosts):
            raise ValueError(f"{len(self.placement.hosts)} hosts asked for, {len(self.hosts)} there")
        self._await_place()
        self.changed, self.faults, self.owing = {}, [], {}
        kept = (str(private), nodes.mark(private)) if private is not None else None
        self.lease = Lease(uuid4().hex, [ray.put(setup)], kept, conduct)

    def fit(self, jobs: Sequence[Job]) -> Iterator[Result]:
        """Let them train; results in order of completion, one host's at a time.

        With a deadline, a host that is not done in time leaves its clients out; what it sends later comes among the
        results of a later round. It is asked for no more until then.
        """
        self._take_back()
        self._move(self.owing.keys())
        self.owing = {index: call for index, call in self.owing.items() if not self._void(call)}
        groups = self._by_host(jobs)
        late = [self.owing.pop(index).answer for index in list(self.owing) if done(self.owing[index].answer)]
        for index in self.owing.keys() & groups.keys():
            self._excused(groups.pop(index), "its host is still at an earlier round")
        return self._results(late, self._sent("fit", groups), groups)

    def score(self, jobs: Sequence[Job]) -> Iterator[Scores]:
        """Let them score; results in order of completion, one host's at a time."""
        groups = self._by_host(jobs)
        calls = self._sent("score", groups)
        return (scores for _, answer in self._answers("score", calls, groups) for scores in answer)

    def save(self, round: int) -> Versions:
        """The private states that are new; the hosts have made them durable."""
        new, self.changed = self.changed, {}
        return dict(sorted(new.items()))

    def load(self, round: int, manifest: Versions) -> None:
        """Return to a checkpoint's private states."""
        whose: dict[int, Versions] = {index: {} for index in range(len(self.hosts)) if index not in self.away}
        for client in sorted(manifest):
            whose[self._at(self.placement.host(client))][client] = manifest[client]
        got([self.hosts[index].load.remote(self.lease, round, part) for index, part in whose.items()])
        self.changed = {}

    def close(self) -> None:
        """End the actors."""
        for host in self.hosts:
            ray.kill(host)
        seats.left(self.seats)
        self.hosts, self.seats = [], []

    def _await_place(self) -> None:
        try:
            got([self.hosts[i].ready.remote() for i in range(len(self.hosts)) if i not in self.away], timeout=PATIENCE)
        except GetTimeoutError:
            p, free = self.placement, resources(free=True)
            raise Unavailable(
                f"{len(self.hosts)} actors of {p.num_cpus:g} CPU and {p.num_gpus:g} GPU found no place within "
                f"{PATIENCE:g} s (free: {free.get('CPU', 0):g} CPU, {free.get('GPU', 0):g} GPU); "
                "use fewer --actors, or see what holds them with: ray status"
            ) from None

    def _by_host(self, jobs: Sequence[Job]) -> dict[int, list[Job]]:
        groups: dict[int, list[Job]] = {}
        for job in jobs:
            # the whole test set goes to the host with the fewest clients: the last one
            index = len(self.hosts) - 1 if job.client == GLOBAL else self.placement.host(job.client)
            groups.setdefault(index, []).append(job)
        return groups

    def _sent(self, method: str, groups: dict[int, list[Job]]) -> dict[int, Call]:
        sent = {}
        for index, message in {index: wire.pack_jobs(group) for index, group in groups.items()}.items():
            host = self.hosts[self._at(index)]
            sent[index] = Call(host, getattr(host, method).remote(self.lease, _sendable(message)))
        return sent

    def _answers(
        self, method: str, calls: dict[int, Call], groups: dict[int, list[Job]], timeout: float | None = None
    ) -> Iterator[tuple[int, Any]]:
        """What is answered, as it is, until all is or the time is up. Where a host is lost, another one is asked."""
        end = math.inf if timeout is None else monotonic() + timeout
        while calls:
            calls |= self._sent(method, {i: groups[i] for i, call in calls.items() if self._void(call)})
            left = max(0.0, min(LOOK_S, end - monotonic()))
            ready = ray.wait([call.answer for call in calls.values()], num_returns=1, timeout=left)[0]
            if ready:
                index = next(i for i, call in calls.items() if call.answer == ready[0])
                del calls[index]
                yield index, got(ready)[0]
            elif monotonic() >= end:
                return
            else:
                self._move(calls.keys())

    def _void(self, call: Call) -> bool:
        """Whether nobody will answer: another host has been put in the place of the one that was asked."""
        return all(call.host is not host for host in self.hosts)

    def _move(self, asked: Set[int]) -> None:
        """Let others take over the clients of those asked that may never have a process again."""
        if not asked or self.lease is None or self.lease.private is None:  # private states would be gone with them
            return
        now, every = monotonic(), range(len(self.hosts))
        without = {index for index in every if waiting(self.hosts[index])}
        self.lost = {index: self.lost.get(index, now) for index in without & {self._at(index) for index in asked}}
        gone = {index for index, since in self.lost.items() if now - since >= LOST_S}
        there = [index for index in every if index not in without | self.away.keys()]
        if not gone or not there:
            return
        moved = [index for index in every if self._at(index) in gone]
        self.away |= {index: there[n % len(there)] for n, index in enumerate(moved)}
        for index in gone:
            ray.kill(self.hosts[index])  # or it would come back to work that others have taken over
            self.hosts[index] = seats.start(Host, self.placement, self.seats[index])
        self._renew()
        log.warning("%d of %d hosts have no place left; their clients move to others", len(moved), len(self.hosts))

    def _take_back(self) -> None:
        """Give hosts that have a place again their clients."""
        if back := {index for index in self.away if not waiting(self.hosts[index])}:
            self.away = {index: other for index, other in self.away.items() if index not in back}
            self._renew()

    def _renew(self) -> None:
        """Another lease: who gets clients of another host must look into the files anew."""
        if self.lease:
            self.lease = self.lease._replace(key=uuid4().hex)

    def _at(self, index: int) -> int:
        """The host that has a host's clients."""
        return self.away.get(index, index)

    def _results(self, late: list[Any], calls: dict[int, Call], groups: dict[int, list[Job]]) -> Iterator[Result]:
        allowed = self.lease.conduct.failure.deadline_s if self.lease else None
        for message, versions, _ in got(late):  # of their faults it is known
            self.changed |= versions
            yield from wire.unpack_results(message)
        answers = self._answers("fit", calls, groups, allowed and allowed * (1 + GRACE))
        for index, (message, versions, faults) in answers:
            del groups[index]
            self.changed |= versions
            self.faults += faults
            yield from wire.unpack_results(message)
        for index, jobs in groups.items():
            self.owing[index] = calls[index]
            self._excused(jobs, f"not done within {allowed:g} s")

    def _excused(self, jobs: Sequence[Job], text: str) -> None:
        self.faults += [Fault(job.round, job.client, "late", text) for job in jobs]


def _sendable(message: wire.Jobs) -> Any:
    return ray.put(message) if wire.payload(message[0]) > INLINE_BYTES else message

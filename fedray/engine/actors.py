"""Clients in Ray actors. Each host actor keeps the private prompts of the clients pinned to it; they never leave it.

One call per actor and round carries all of its jobs, results come back as they finish (``ray.wait``): nothing polls.
A call is under way as soon as `fit` or `score` returns, so that the caller can do something else meanwhile. Private
states are durable before a call's answer leaves: the answer carries their hashes, which spares a call to ask for them.
Small payloads travel as plain arguments; weights and features are files that each process maps.
Retries are unlimited and safe: a step starts from the version before its round, so doing it twice changes nothing.

Every call also carries a lease: which run's clients it is for, and how to open them. So a host that was started anew
after a crash, or that served another run before, can't answer for the wrong one: it opens what the call names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from fedray.engine import wire
from fedray.engine.cluster import resources
from fedray.engine.placement import Placement
from fedray.errors import Unavailable
from fedray.fed.client import Setup
from fedray.fed.clients import Clients
from fedray.fed.participation import PLAIN, Conduct, Fault, trained
from fedray.fed.vault import Versions
from fedray.types import GLOBAL, Job, Result, Scores

if TYPE_CHECKING:
    from ray.actor import ActorHandle

INLINE_BYTES = 100_000
"""Above this a payload goes through the object store once, below it is cheaper as a plain argument."""

RESTARTS = 100
"""Times that one actor may be started again (lost nodes, killed processes); more would be a loop of crashes."""

GRACE = 0.2
"""Share of a deadline that hosts get on top: they stop by their own clocks, and what is done then is still welcome."""

PATIENCE = 600.0
"""Seconds that actors may wait for a place; a cluster that scales up needs minutes."""


class Lease(NamedTuple):
    """Whose clients a host shall be."""

    key: str  # another one for every opening
    setup: list[ray.ObjectRef[Setup]]  # a reference in a list travels as such; only a host that opens fetches it
    private: str | None
    conduct: Conduct = PLAIN


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
        got = list(trained(clients, jobs, lease.conduct))
        faults = [fault for fault in got if isinstance(fault, Fault)]
        results = [result for result in got if not isinstance(result, Fault)]
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
            setup = ray.get(lease.setup[0])
            self.clients = Clients(setup, Path(lease.private) if lease.private else None, device())
            self.key = lease.key
        return self.clients


def device() -> str:
    """The GPU that Ray gave to this process, else the CPU. A share of a GPU is made a limit to its memory, too."""
    import torch

    assigned: Callable[[], dict[str, float]] = ray.get_runtime_context().get_assigned_resources
    share = assigned().get("GPU", 0)
    if not share or not torch.cuda.is_available():
        return "cpu"
    torch.cuda.set_per_process_memory_fraction(min(1.0, share))
    return "cuda"


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
        self.owing: dict[int, Any] = {}  # host -> call that was not done when its time was up
        actor: Any = ray.remote(Host).options(
            num_cpus=placement.num_cpus, num_gpus=placement.num_gpus, max_restarts=RESTARTS, max_task_retries=-1
        )
        self.hosts: list[ActorHandle[Host]] = [actor.remote() for _ in placement.hosts]

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
        self.lease = Lease(uuid4().hex, [ray.put(setup)], str(private) if private is not None else None, conduct)

    def fit(self, jobs: Sequence[Job]) -> Iterator[Result]:
        """Let them train; results in order of completion, one host's at a time.

        With a deadline, a host that is not done in time leaves its clients out; what it sends later comes among the
        results of a later round. It is asked for no more until then.
        """
        groups = self._by_host(jobs)
        late = [self.owing.pop(index) for index in list(self.owing) if _done(self.owing[index])]
        for index in self.owing.keys() & groups.keys():
            self._excused(groups.pop(index), "its host is still at an earlier round")
        return self._results(late, self._sent("fit", groups), groups)

    def score(self, jobs: Sequence[Job]) -> Iterator[Scores]:
        """Let them score; results in order of completion, one host's at a time."""
        calls = list(self._sent("score", self._by_host(jobs)).values())
        return (scores for _, answer in _answers(calls) for scores in answer)

    def save(self, round: int) -> Versions:
        """The private states that are new; the hosts have made them durable."""
        new, self.changed = self.changed, {}
        return dict(sorted(new.items()))

    def load(self, round: int, manifest: Versions) -> None:
        """Return to a checkpoint's private states."""
        calls: list[Any] = []
        for host, clients in zip(self.hosts, self.placement.hosts, strict=True):
            calls.append(host.load.remote(self.lease, round, {c: manifest[c] for c in clients if c in manifest}))
        _get(calls)
        self.changed = {}

    def close(self) -> None:
        """End the actors."""
        for host in self.hosts:
            ray.kill(host)
        self.hosts = []

    def _await_place(self) -> None:
        try:
            _get([host.ready.remote() for host in self.hosts], timeout=PATIENCE)
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

    def _sent(self, method: str, groups: dict[int, list[Job]]) -> dict[int, Any]:
        messages = {index: wire.pack_jobs(group) for index, group in groups.items()}
        return {i: getattr(self.hosts[i], method).remote(self.lease, _sendable(m)) for i, m in messages.items()}

    def _results(self, late: list[Any], calls: dict[int, Any], groups: dict[int, list[Job]]) -> Iterator[Result]:
        allowed = self.lease.conduct.failure.deadline_s if self.lease else None
        owed = {call: index for index, call in calls.items()}
        for call, (message, versions, faults) in _answers([*late, *owed], allowed and allowed * (1 + GRACE)):
            self.changed |= versions
            self.faults += faults if owed.pop(call, None) is not None else []  # of late ones it is known
            yield from wire.unpack_results(message)
        for call, index in owed.items():
            self.owing[index] = call
            self._excused(groups[index], f"not done within {allowed:g} s")

    def _excused(self, jobs: Sequence[Job], text: str) -> None:
        self.faults += [Fault(job.round, job.client, "late", text) for job in jobs]


def _answers(pending: list[Any], timeout: float | None = None) -> Iterator[tuple[Any, Any]]:
    """Calls with what they answer, as they do, until all have or the time is up."""
    end = None if timeout is None else monotonic() + timeout
    while pending:
        ready, pending = ray.wait(pending, num_returns=1, timeout=None if end is None else max(0.0, end - monotonic()))
        if not ready:
            return
        yield ready[0], _get(ready)[0]


def _done(call: Any) -> bool:
    return bool(ray.wait([call], num_returns=1, timeout=0)[0])


def _sendable(message: wire.Jobs) -> Any:
    return ray.put(message) if wire.payload(message[0]) > INLINE_BYTES else message


def _get(calls: list[Any], timeout: float | None = None) -> list[Any]:
    """Wait for calls; an error is raised as what it was in the actor, without Ray's wrapping."""
    try:
        return list(ray.get(calls, timeout=timeout))
    except RayTaskError as error:
        raise unwrapped(error) from error
    except RayActorError as error:
        raise Unavailable(f"an actor that hosts clients died for good ({first_line(error)}); {AGAIN}") from error


AGAIN = "finished rounds are kept: give the same command again to go on"


def unwrapped(error: RayTaskError) -> BaseException:
    """What was raised in the other process."""
    return error.cause if isinstance(error.cause, BaseException) else error


def first_line(error: BaseException) -> str:
    """An error's text up to its first line's end."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")

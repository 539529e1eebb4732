"""Who sits where: clients pinned to actors, actors to fractions of a device. Arithmetic only; Ray does the placing.

inline      all clients in the calling process, no Ray
packed      a few actors, several clients in each (the default: a process costs far more than a client)
exclusive   one actor per client, on a fraction of a GPU (of a CPU where there is none)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

from fedray.errors import BadInput

Kind: TypeAlias = Literal["auto", "inline", "packed", "exclusive"]

ACTOR_BYTES = 700 << 20
"""Private memory of a process that has imported torch and holds a ViT-B/16's activations (measured: 470-560 MB)."""

SHARES = 10_000
"""Ray counts a device in ten-thousandths."""


class Need(NamedTuple):
    """Bytes that an actor takes at its peak, measured on the experiment (`fedray.engine.probe`)."""

    host: int
    gpu: int = 0  # of its GPU; 0 where there is none
    gpu_memory: int = 0  # that a GPU has


@dataclass(frozen=True)
class Placement:
    """Clients by host, and what each host asks of Ray."""

    kind: Kind
    hosts: tuple[tuple[int, ...], ...]  # clients pinned to each actor
    num_cpus: float  # of each actor
    num_gpus: float  # the least, where `dealt` says that some have more
    reason: str
    dealt: int = 0  # whole GPUs that hosts are dealt out to; 0: any arrangement uses all of them
    accelerator: str = ""  # type of GPU; "": any

    def host(self, client: int) -> int:
        """The host that a client is pinned to."""
        return client % len(self.hosts)


def place(
    kind: Kind,
    clients: int,
    *,
    cpus: float,
    gpus: float = 0,
    memory: int | None = None,
    actors: int | None = None,
    need: Need | None = None,
    accelerator: str = "",
) -> Placement:
    """Pin `clients` to actors.

    Args:
        kind: see above; "auto" takes one actor per GPU, else one per whole CPU, as far as memory goes.
        clients: number of clients K.
        cpus: CPUs that the actors may share.
        gpus: GPUs that the actors may share.
        memory: free bytes for the actors; None if unknown.
        actors: number of actors for "packed"; None chooses as "auto" does.
        need: of an actor, where it was measured; else `ACTOR_BYTES`, and nothing is known of GPUs' memory.
        accelerator: type of the GPUs, if only those of one type are counted.

    Raises:
        BadInput: an unknown kind, no client, `actors` out of range, actors that memory can't hold, or by measurement
            not even one.
    """
    if kind not in get_args(Kind):
        raise BadInput(f"placement must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    if clients < 1:
        raise BadInput(f"partition.clients must be >= 1, got {clients}")
    if actors is not None and not 1 <= actors <= clients:
        raise BadInput(f"actors must be in 1..{clients} (the number of clients), got {actors}")
    if kind == "inline":
        return Placement(kind, (tuple(range(clients)),), 0, 0, "all clients in this process")
    fits = min(_held(memory, need), _on_gpus(gpus, need), clients)
    measured = f", {need.host / 2**30:.1f} GB each as measured" if need else ""
    if kind == "exclusive":
        if clients > fits:
            raise BadInput(
                f"placement exclusive needs {clients} actors, free memory holds {fits}{measured}; use packed, or fewer "
                "clients"
            )
        return _spread(kind, clients, clients, cpus, gpus, f"one client per actor{measured}", accelerator)
    devices = int(gpus) if gpus >= 1 else max(1, int(cpus))
    count = actors or min(clients, devices, fits)
    if need and count > fits:
        raise BadInput(f"{_count(count, 'actor')} asked for, free memory holds {fits}{measured}; use fewer --actors")
    device = f"{accelerator} GPU".strip() if gpus >= 1 else "CPU"
    reason = f"{_count(count, 'actor')} for {_count(devices, device)}{measured}"
    if not actors and fits < min(clients, devices):
        reason += f", as many as free memory holds ({(memory or 0) / 2**30:.1f} GB)"
    return _spread("packed", clients, count, cpus, gpus, reason, accelerator)


def _held(memory: int | None, need: Need | None) -> int:
    """Actors that main memory holds."""
    if memory is None:
        return SHARES
    if need is None:
        return max(1, memory // ACTOR_BYTES)  # a guess forbids nothing
    if need.host > memory:
        raise BadInput(
            f"one actor takes {need.host / 2**30:.1f} GB as measured, {memory / 2**30:.1f} GB are free; use a smaller "
            "local.batch, or clip.precision bf16"
        )
    return memory // need.host


def _on_gpus(gpus: float, need: Need | None) -> int:
    """Actors that the GPUs' memory holds: as many on each, for what a share can't hold would end the run later."""
    if not gpus or need is None or not need.gpu:
        return SHARES
    if need.gpu > need.gpu_memory * min(1.0, gpus):
        raise BadInput(
            f"one actor takes {need.gpu / 2**30:.1f} GB of a GPU as measured, it has "
            f"{need.gpu_memory * min(1.0, gpus) / 2**30:.1f} GB; use a smaller local.batch, or clip.precision bf16"
        )
    return int(need.gpu_memory * min(1.0, gpus) // need.gpu) * max(1, int(gpus))


def fraction(actors: int, devices: float) -> float:
    """The largest share of a device, 1 or 1/k, of which `actors` fit: k of them on each whole device.

    Any larger share would leave actors waiting for ever: three shares of 0.6 need three devices, not 1.8.
    """
    if devices < 1:  # less than one device for all: Ray may have been given half a GPU
        return math.floor(SHARES * devices / actors) / SHARES
    return math.floor(SHARES / math.ceil(actors / int(devices))) / SHARES


def seats(actors: int, devices: int) -> list[tuple[int, float]]:
    """Device and share of each actor, dealt out in turn: no device has two more than another.

    Equal shares can't do that: Ray fills up a device before it takes the next, so that of 4 devices 5 halves use 3.
    """
    on = [actors // devices + (device < actors % devices) for device in range(devices)]
    return [(a % devices, math.floor(SHARES / on[a % devices]) / SHARES) for a in range(actors)]


def _spread(kind: Kind, clients: int, count: int, cpus: float, gpus: float, reason: str, accelerator: str) -> Placement:
    hosts = tuple(tuple(range(h, clients, count)) for h in range(count))
    if gpus:  # CPUs are not asked for: a node that is short of them must not leave its GPUs idle
        dealt = int(gpus) if count > gpus >= 1 and count % int(gpus) else 0
        return Placement(kind, hosts, 0, fraction(count, gpus), reason, dealt, accelerator)
    return Placement(kind, hosts, fraction(count, cpus), 0, reason)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"

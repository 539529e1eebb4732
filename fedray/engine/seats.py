"""Actors for hosts: what each asks of Ray, so that GPUs are used evenly, and how often it is started again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fedray.engine.devices import asked
from fedray.engine.placement import Placement, seats

RESTARTS = 100
"""Times that one actor may be started again (lost nodes, killed processes); more would be a loop of crashes."""


class Seat(NamedTuple):
    """What one host asks of Ray, beside CPUs."""

    num_gpus: float
    group: PlacementGroup | None = None  # of whole GPUs that hosts are dealt out to
    bundle: int = -1


def taken(placement: Placement) -> list[Seat]:
    """Seats for all hosts; what is reserved for them is freed by `left`, or when the process that asked ends."""
    if not placement.dealt:
        return [Seat(placement.num_gpus)] * len(placement.hosts)
    dealt = seats(len(placement.hosts), placement.dealt)
    on = Counter(device for device, _ in dealt)
    wanted = [{"GPU": 1.0, **asked(placement.accelerator, on[device])} for device in range(placement.dealt)]
    group = placement_group(wanted, strategy="PACK")
    return [Seat(share, group, device) for device, share in dealt]


def left(seats: list[Seat]) -> None:
    """Free what is reserved."""
    if seats and seats[0].group is not None:
        remove_placement_group(seats[0].group)


def start(body: type[Any], placement: Placement, seat: Seat) -> Any:
    """An actor on a seat; its calls are done however often it is lost."""
    options: dict[str, Any] = {"num_cpus": placement.num_cpus, "num_gpus": seat.num_gpus}
    if seat.group is not None:
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(seat.group, seat.bundle)
    actor: Any = ray.remote(body).options(
        **options, resources=asked(placement.accelerator), max_restarts=RESTARTS, max_task_retries=-1
    )
    return actor.remote()


def device() -> str:
    """The GPU that Ray gave to this process, else the CPU. A share of a GPU is made a limit to its memory, too."""
    import torch

    assigned: Callable[[], dict[str, float]] = ray.get_runtime_context().get_assigned_resources
    share = assigned().get("GPU", 0)
    if not share or not torch.cuda.is_available():
        return "cpu"
    torch.cuda.set_per_process_memory_fraction(min(1.0, share))
    return "cuda"

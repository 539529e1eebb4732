"""Waiting for actors: what they answer, what they raise as what it was there, and whether they have a process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from fedray.errors import Unavailable

if TYPE_CHECKING:
    from ray.actor import ActorHandle

AGAIN = "finished rounds are kept: give the same command again to go on"


def got(calls: list[Any], timeout: float | None = None) -> list[Any]:
    """Wait for calls; an error is raised as what it was in the actor, without Ray's wrapping."""
    try:
        return list(ray.get(calls, timeout=timeout))
    except RayTaskError as error:
        raise unwrapped(error) from error
    except RayActorError as error:
        raise Unavailable(f"an actor that hosts clients died for good ({first_line(error)}); {AGAIN}") from error


def done(call: Any) -> bool:
    """Whether a call has been answered."""
    return bool(ray.wait([call], num_returns=1, timeout=0)[0])


def waiting(actor: ActorHandle[Any]) -> bool:
    """Whether an actor has no process, but will have one as soon as Ray finds a place for it."""
    from ray._private import state  # its public form asks the dashboard, which need not run

    found = state.actors(actor._actor_id.hex())
    return bool(found) and found["State"] in ("PENDING_CREATION", "DEPENDENCIES_UNREADY", "RESTARTING")


def unwrapped(error: RayTaskError) -> BaseException:
    """What was raised in the other process."""
    return error.cause if isinstance(error.cause, BaseException) else error


def first_line(error: BaseException) -> str:
    """An error's text up to its first line's end."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")

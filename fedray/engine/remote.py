"""A run inside Ray: the driver is an actor, its clients are actors, and this process builds, then only listens.

Building here, while the actors start, spares the driver's process open_clip and tells a mistake at once.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import ExitStack, closing
from pathlib import Path
from shlex import quote
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedray.build import Built, build
from fedray.data.cache import default_cache
from fedray.engine import probe, wire
from fedray.engine.actors import RayActors
from fedray.engine.calls import first_line, unwrapped
from fedray.engine.cluster import alone, attached, free_memory
from fedray.engine.devices import devices
from fedray.engine.driver import Rounds, Started, claimed, conduct, drive, warned
from fedray.engine.nodes import Share, agree, needed
from fedray.engine.placement import Kind, Placement, place
from fedray.errors import Unavailable
from fedray.experiment import Experiment
from fedray.track.run import RunFolder


class Driver:
    """An actor's body: the server of one run."""

    def __init__(self, placement: Placement) -> None:
        self.executor = RayActors(placement)

    def rounds(self, experiment: Experiment, built: Built, folder: Path) -> Generator[wire.Done, None, None]:
        """Run, yielding each committed round."""
        run = RunFolder.open(folder)
        gc.freeze()  # half a million objects of what is imported, which no full collection needs to look through
        with closing(self.executor), claimed(run):
            self.executor.open(built.setup, run.private_dir, conduct=conduct(experiment))
            for done in drive(experiment, built, run, self.executor, self.executor.faults):
                yield wire.pack_round(done)


def remotely(experiment: Experiment, folder: RunFolder, kind: Kind, actors: int | None, cache: Path | None) -> Started:
    """Place a run on the Ray that this process is attached to, or on a local one of its own."""
    with ExitStack() as stack:
        stack.enter_context(attached())
        shares = [Share(folder.path.parents[1], "the argument runs"), Share(cache or default_cache(), "FEDRAY_CACHE")]
        agree(shares, needed([experiment]))
        cpus, gpus, accelerator = devices()
        placement = place(
            kind,
            experiment.partition.clients,
            cpus=cpus,
            gpus=gpus,
            memory=free_memory() if alone() else None,  # of other nodes nothing is known
            actors=actors,
            need=probe.known(experiment, cache or default_cache()),
            accelerator=accelerator,
        )
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # the run folder's
        driver: Any = ray.remote(Driver).options(num_cpus=0, scheduling_strategy=here).remote(placement)
        stack.callback(_end, driver)
        with claimed(folder):
            built = build(experiment, cache=cache)
        return Started(folder, placement, _listen(driver, experiment, built, folder, stack.pop_all()))


def _listen(driver: Any, experiment: Experiment, built: Built, folder: RunFolder, stack: ExitStack) -> Rounds:
    with stack:
        try:
            for reference in driver.rounds.options(num_returns="streaming").remote(experiment, built, folder.path):
                done = wire.unpack_round(ray.get(reference))
                warned(folder, done)  # the driver's own words stay where it is
                yield done
        except RayTaskError as error:
            raise unwrapped(error) from error
        except RayActorError as error:
            _left(folder)
            raise Unavailable(
                f"the driver of run {folder.run_id} died ({first_line(error)}); finished rounds are kept, "
                f"go on with: fedray resume {quote(str(folder.path))}"
            ) from error
        except (GeneratorExit, KeyboardInterrupt):
            _end(driver)
            _left(folder)
            raise


def _end(driver: Any) -> None:
    if ray.is_initialized():  # a generator may be closed late; asking then would start a new Ray
        ray.kill(driver)


def _left(folder: RunFolder) -> None:
    """Write into the run's status that its driver is gone; waits until it is."""
    with claimed(folder):
        if folder.status["state"] == "running":
            folder.interrupt()
